//! The map of a plan's ops.
//!
//! Owns the choice of the map. Invariant: keys are unique, and iteration has their order of
//! insertion.

use foldhash::fast::RandomState;
use indexmap::IndexMap;

/// Values by what they name, each name once, in the order in which the names were first added.
pub(super) type Unique<K, V> = IndexMap<K, V, RandomState>;
