//! The read API: the file's reads over HTTP, from a cache that is never stale.
//!
//! Owns no code, only the parts. They must not know rules or sources. What the API serves is
//! coherent because the daemon keeps to the protocol, and because [`reader`] does.
//!
//! A request passes through the parts in this order:
//!
//! - [`server`]: one worker for each processor. [`connections`] accepts and drains.
//! - [`front`]: request ids, sizes, codings, paths. [`admission`] checks sessions and rate limits.
//! - [`http`]: a request becomes a [`question`]; its answer becomes a response, or a [`problem`].
//! - [`reader`]: finds the answer: a hit, a [`fill`], or a query past the cache. One of several
//!   requests for a key fills it ([`single_flight`]).
//! - [`cache`] is Redis, [`upstream`] is PostgreSQL: one [`database`] for each server.
//!
//! [`events`], [`stats`] and [`openapi`] answer the API's own paths.

mod admission;
mod cache;
mod caller;
mod connections;
mod cors;
mod database;
mod error;
mod events;
mod fill;
mod front;
mod http;
mod limit;
mod openapi;
mod problem;
mod question;
mod reader;
mod server;
mod session;
mod shared;
mod single_flight;
mod stats;
mod upstream;
mod value;
mod worker;

pub use self::front::Front;
pub use self::server::ApiServer;
