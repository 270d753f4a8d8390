//! Throwaway PostgreSQL and Redis servers, from installed binaries.
//!
//! Owns their directories and processes; [`example`] fills a database. The demo, the tests and the
//! benches use it. It must not know what they are used for. Invariant: a server ends when its owner
//! does, even by `kill -9`.

mod error;
pub mod example;
mod postgres;
mod process;
mod redis;
mod user;

pub use self::error::SandboxError;
pub use self::postgres::{Postgres, find_postgres};
pub use self::process::{free_port, signal};
pub use self::redis::Redis;
