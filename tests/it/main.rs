//! The integration tests, one binary, on real PostgreSQL and Redis servers that each test starts
//! itself.
//!
//! `UNSTALE_PG_BIN` picks another PostgreSQL. The tests load the repository's own
//! `invalidation.yaml` and `sql/`, so that examples cannot rot.

#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod api;
mod check;
mod check_reads;
mod cli;
mod docs;
mod explain;
mod faults;
mod gate;
mod history;
mod init;
mod install;
mod invalidation;
mod language;
mod lease;
mod login;
mod model;
mod mutants;
mod outbox;
mod outbox_commands;
mod outbox_install;
mod proxy;
mod replay;
mod rule_tests;
mod status;
mod support;
mod tidy;
mod torture;
mod world;
