//! How to reach PostgreSQL: addresses, TLS, ordinary SQL connections, and what its errors mean.
//!
//! Owns everything that the replication stream, the catalog and the set-up commands share. It must not
//! know rules or Redis. Invariant: no error made here contains a password.

mod address;
mod client;
mod error;
pub mod setup;
mod tls;

pub use address::{Address, ChannelBinding, Host, InvalidAddress, SslMode};
pub use client::connect;
pub use error::{ConnectError, ServerError, advice};
pub(crate) use tls::{connector, server_end_point};
