//! What `setup` installs in PostgreSQL, and `teardown` removes: publication, slot, replica identities, outbox.
//!
//! Owns the statements and the files of `sql/`. It must not know rules, sources or Redis. Invariant: every step may
//! be repeated.

pub mod emit;
mod identity;
pub mod outbox;
mod publication;
mod script;
pub mod setup;
pub mod slot;
pub mod step;
pub mod teardown;
