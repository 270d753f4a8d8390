//! How to reach PostgreSQL: addresses, TLS, SQL connections, its errors and its catalog.
//!
//! Owns what replication, SQL and the set-up commands share. It must not know rules or Redis.
//! Invariant: no error from here contains a password.

mod address;
pub mod ancestry;
pub mod blockers;
pub mod catalog;
mod client;
mod error;
pub mod identity;
pub(crate) mod lossy_text;
mod parameters;
pub mod publication;
pub(crate) mod session;
mod statement;
mod target;
mod text_parameter;
mod tls;
mod transport;
pub(crate) mod value_text;

pub use address::{Address, ChannelBinding, Host, SslMode};
pub use client::{SqlConnection, connect, open};
pub use error::{ConnectError, ServerError, advice};
pub(crate) use error::{NO_CHANNEL_BINDING, NO_PASSWORD, PREREQUISITE_STATE, UNDEFINED_OBJECT, UNSUPPORTED};
pub use parameters::InvalidAddress;
pub use statement::StatementError;
pub(crate) use target::ServerState;
pub use target::TargetSessionAttrs;
pub(crate) use text_parameter::TextParameter;
pub(crate) use transport::{Attempt, Transport, try_hosts};
