//! What `setup` installs in PostgreSQL and `teardown` removes: the publication, the slot, replica
//! identities, the outbox.
//!
//! Owns the statements and the files of `sql/`. It must not decide what the rules need; it is told.
//! It must not read changes. Invariant: every step can be repeated.

pub mod ddl_notice;
pub mod emit;
pub mod error;
pub mod execute;
pub mod identity;
pub mod outbox;
pub mod publication;
mod script;
pub mod setup;
pub mod slot;
pub mod step;
pub mod teardown;
