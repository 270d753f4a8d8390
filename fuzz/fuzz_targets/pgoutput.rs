//! Any bytes through the decoder and, message by message, through the assembler: an error is fine, a panic is not.
//!
//! The input is a list of messages, each after its length in two bytes.

#![no_main]

use bytes::{Buf as _, Bytes};
use libfuzzer_sys::fuzz_target;
use unstale::source::replication::assemble::Assembler;
use unstale::source::replication::pgoutput::decode;

fuzz_target!(|input: &[u8]| {
    let mut rest = Bytes::copy_from_slice(input);
    let mut assembler = Assembler::default();
    while let Ok(length) = rest.try_get_u16() {
        let message = rest.split_to(usize::from(length).min(rest.len()));
        if let Ok(message) = decode(message) {
            let _ = assembler.take(message);
            while assembler.next_event().is_some() {}
        }
    }
});
