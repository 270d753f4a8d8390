//! The template parser, and that no value leaves its place in a key or a glob.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unstale::rules::{Rendered, Resolved, Template};

fuzz_target!(|input: (&str, Vec<Option<&[u8]>>)| {
    let (text, values) = input;
    let resolve = |at: usize| match values.get(at) {
        Some(Some(value)) => Resolved::Value(value),
        Some(None) => Resolved::Nothing,
        None => Resolved::Unknown,
    };
    let whole = |at: usize| match resolve(at) {
        Resolved::Unknown => Resolved::Value(b"*"),
        known => known,
    };
    for template in [Template::parse(text, "v1:", Some("m")), Template::parse_pattern(text, "v1:", None)] {
        let Ok(template) = template else { continue };
        if let (Rendered::Key(key), glob) = (template.render(whole), template.glob()) {
            assert!(key.as_bytes().starts_with(b"v1:") && glob.matches(key.as_bytes()));
            if let Rendered::Glob(glob) = template.render(resolve) {
                assert!(glob.matches(key.as_bytes()));
            }
        }
    }
});
