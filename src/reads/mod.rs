//! Reads, compiled, and the names under which their values are cached.
//!
//! Owns the reads' paths, names and sets, and which rules keep each read coherent. It must not know
//! HTTP, sockets, servers or clocks. Invariants: a name stands for one read with one list of
//! arguments, or nothing is cached under it; a new epoch removes everything that a read has written
//! to Redis.

mod compile;
mod conflicts;
pub mod coverage;
mod names;
mod path;
mod read;
mod set;
mod tags;

pub use path::{InvalidPath, Path};
pub use read::{Arguments, Parameter, ParameterSource, Read};
pub use set::ReadSet;
