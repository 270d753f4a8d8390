//! `unstale` keeps Redis coherent with PostgreSQL.
//!
//! Change a row by any means and every cached key derived from it is gone about a millisecond after
//! the commit. Rules in one file say which keys those are.
//!
//! # Layout
//!
//! Data flows one way; the only thing that travels back is a position in PostgreSQL's log.
//!
//! ```text
//! source --SourceEvent--> rules --Plan--> gate --> sink --applied(Lsn)--> progress
//!    ^                                                                      |
//!    +--------------------------- confirmed Lsn ----------------------------+
//! ```
//!
//! In reading order:
//!
//! - [`change`], [`catalog`], [`key`], [`limits`], [`nearest`], [`plan`]: the vocabulary. No I/O.
//! - [`causes`]: prints an error with its causes.
//! - [`backoff`]: when to try again, and when to say so.
//! - [`redis`]: how to reach Redis.
//! - [`postgres`]: how to reach PostgreSQL; knows nothing above it.
//! - [`config`]: `invalidation.yaml`, from text to settings and raw rules, every problem at its
//!   place.
//! - [`draft`]: writes a first `invalidation.yaml`, for `init`.
//! - [`coherence`]: the protocol: visibility, the ledger of what is in force, proven history, the
//!   lease.
//! - [`rules`]: the rules, compiled; the planner that turns changes into plans. Pure.
//! - [`lookups`]: asks the database for `for_each`.
//! - [`reads`]: the reads of the API, compiled; which rules keep each of them true. Pure.
//! - [`query`]: what a SQL query reads and joins.
//! - [`install`]: what `setup` installs in PostgreSQL and `teardown` removes; `sql/` holds its
//!   statements.
//! - [`sink`]: Redis, where plans take effect.
//! - [`source`]: where changes come from: the replication slot, the outbox, recordings, tables.
//! - [`watch`]: what changes in the database without a row change.
//! - [`pipeline`]: the owner loop that joins them. `source`, `rules` and `sink` never name one
//!   another.
//! - [`api`]: the read API: axum, the lease protocol, limits, sessions, events.
//! - [`mutant`]: the protocol broken on purpose, in test builds only.
//! - [`sandbox`]: throwaway PostgreSQL and Redis, for the demo and the tests.
//! - [`cmd`]: signals, and one file a verb.

pub mod catalog;
pub mod change;
pub mod key;
pub mod limits;
pub mod nearest;
pub mod plan;

pub mod backoff;
pub mod causes;
pub mod postgres;
pub mod redis;

pub mod config;
pub mod draft;

pub mod coherence;
pub mod lookups;
pub mod query;
pub mod reads;
pub mod rules;

pub mod install;
pub mod sink;
pub mod source;
pub mod watch;

#[cfg(feature = "api")]
pub mod api;
pub mod mutant;
pub mod pipeline;
#[cfg(feature = "demo")]
pub mod sandbox;

pub mod cmd;
