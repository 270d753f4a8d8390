//! The integration tests, one binary, on real PostgreSQL and Redis servers that each test starts itself.
//!
//! `UNSTALE_PG_BIN` picks another PostgreSQL. The tests load the repository's own `invalidation.yaml` and
//! `sql/`, so that examples cannot rot.

mod support;
