//! How to reach PostgreSQL: addresses, TLS, ordinary SQL connections, and what its errors mean.
//!
//! Owns everything that the replication stream, the catalog and the set-up commands share. It must not
//! know rules or Redis. Invariant: no error made here contains a password.

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
pub(crate) use error::{PREREQUISITE_STATE, UNDEFINED_OBJECT};
pub use parameters::InvalidAddress;
pub use statement::StatementError;
pub(crate) use text_parameter::TextParameter;
pub(crate) use transport::{Attempt, Transport, try_hosts};

/// What a server may want that we cannot give.
pub(crate) const NO_PASSWORD: &str = "the server asks for a password; put one into source.url or PGPASSWORD";
pub(crate) const NO_CHANNEL_BINDING: &str =
    "channel_binding=require, but the server does not use it over this connection; it takes TLS and scram-sha-256";
pub(crate) const UNSUPPORTED: &str =
    "the server asks for a kind of authentication that is not supported; use scram-sha-256";

/// What a connection is told first that is to last, so that no setting of its role ends it, or makes a writer fail: a
/// serializable look at an outbox would abort serializable writers.
pub(crate) const SESSION: &str = "select set_config(name, '0', false) from pg_settings where name in \
     ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout', \
      'idle_in_transaction_session_timeout'); \
     set default_transaction_isolation = 'read committed'; set default_transaction_read_only = off";
