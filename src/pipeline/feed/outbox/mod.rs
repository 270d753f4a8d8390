//! The outbox as a feed: entries are claimed, and their transaction is committed once all that they
//! ask for is in force.
//!
//! `feed` owns when to survey, to claim and to commit; `lane` is a connection that claims, `vacuum`
//! keeps the table small, `open` begins, `reader` says which outbox is read by which consumer.

mod feed;
mod lane;
mod open;
mod reader;
mod vacuum;

pub(super) use self::feed::OutboxFeed;
pub(super) use self::open::open;
pub(in crate::pipeline) use self::reader::OutboxReader;
