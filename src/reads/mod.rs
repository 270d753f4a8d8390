//! What the read API answers: reads, compiled once, and the names under which their values are cached.
//!
//! Owns paths and the names of what is cached. It must not know HTTP, sockets, servers or clocks. Invariants: a name
//! stands for one read with one set of arguments, or nothing is cached under it; what a read writes to Redis, a new
//! epoch removes.

mod compile;
pub mod coverage;
mod path;
mod read;

pub use compile::ReadSet;
pub use path::{InvalidPath, Path};
pub use read::{Arguments, Parameter, ParameterSource, Read};
