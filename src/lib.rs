//! `unstale` keeps Redis coherent with PostgreSQL.
//!
//! Change a row by any means and every cached key derived from it is gone about a millisecond after the
//! commit. Rules in one file say which keys those are.
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
//! - [`change`], [`catalog`], [`key`], [`parameter`], [`plan`]: the vocabulary. No I/O.
//! - [`config`]: `invalidation.yaml`, from text to settings and raw rules, every problem at its place.
//! - [`rules`]: the rules, compiled; the planner that turns changes into plans. Pure.
//! - [`reads`]: the reads of the API, compiled; which rules keep each of them true. Pure.
//! - [`cache`]: how to reach Redis.
//! - [`postgres`]: how to reach PostgreSQL; what `setup` installs there.
//! - [`source`]: where changes come from: the replication slot, recordings.
//! - [`coherence`]: the protocol: visibility, the ledger of what is in force, proven history, the lease.
//! - [`sink`]: Redis, where plans take effect.
//! - [`pipeline`]: the owner loop that joins them. `source`, `rules` and `sink` never name one another.
//! - [`api`]: the read API: axum, the lease protocol, limits, sessions, events.
//! - [`backoff`]: when to try again, and when to say so.
//! - [`mutant`]: the protocol broken on purpose, in test builds only.
//! - [`sandbox`]: throwaway PostgreSQL and Redis, for the demo and the tests.
//! - [`cmd`]: one file a verb.

pub mod catalog;
pub mod change;
pub mod key;
pub mod parameter;
pub mod plan;

pub mod config;
pub mod reads;
pub mod rules;

pub mod backoff;
pub mod cache;
pub mod coherence;
pub mod mutant;
pub mod postgres;
pub mod sink;
pub mod source;

pub mod api;
pub mod pipeline;
pub mod sandbox;

pub mod cmd;
