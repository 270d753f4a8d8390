//! The logical replication slot as a source, from the socket to changes.
//!
//! `connection` logs in and speaks messages, `stream` carries the log and acknowledgements,
//! `pgoutput` decodes, `assemble` completes rows and follows transactions.

pub mod assemble;
pub mod connection;
pub mod pgoutput;
pub mod stream;
