//! The promise with the schemas, migrations, servers and inputs that people have.
//!
//! Each file owns one kind of them. Every test is a case in which an older value stayed in Redis,
//! an invalidation was lost, or everything stopped.

mod bounds;
mod inputs;
mod installing;
mod pace;
mod servers;
mod tables;
mod tags;
mod text;
