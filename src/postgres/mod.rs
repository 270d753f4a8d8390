//! How to reach PostgreSQL: addresses, TLS, SQL connections, its errors and its catalog.
//!
//! Owns what replication, SQL and the set-up commands share. It must not know rules or Redis.
//! Invariant: no error from here contains a password.

mod address;
pub mod catalog;
mod client;
mod error;
mod parameters;
mod statement;
mod text_parameter;
mod tls;
mod transport;

pub use address::{Address, ChannelBinding, Host, SslMode};
pub use client::{SqlConnection, connect, open};
pub use error::{ConnectError, ServerError, advice};
pub(crate) use error::{NO_CHANNEL_BINDING, NO_PASSWORD, PREREQUISITE_STATE, UNDEFINED_OBJECT, UNSUPPORTED};
pub use parameters::InvalidAddress;
pub use statement::StatementError;
pub(crate) use text_parameter::TextParameter;
pub(crate) use transport::{Attempt, Transport, try_hosts};

/// The settings of long-lived connections. Time-outs that the role has set would end them, and
/// reading an outbox in a serializable transaction could make serializable writers fail.
pub(crate) const SESSION: &str = "select set_config(name, '0', false) from pg_settings where name in \
     ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout', \
      'idle_in_transaction_session_timeout'); \
     set default_transaction_isolation = 'read committed'; set default_transaction_read_only = off";
