//! What makes the promise true: how far invalidations are in force, and what may be acknowledged.
//!
//! Owns the judgement of visibility, the ledger of transactions, and the names and scripts of the watermarks. It must not know sources or
//! rules.

pub mod gate;
pub mod progress;
pub mod watermark;
