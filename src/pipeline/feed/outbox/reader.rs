//! Which outbox is read, and by which consumer.
//!
//! Owns the text that identifies an outbox. It must not know how it is read.

use std::sync::Arc;

use crate::config::Settings;
use crate::rules::RuleSet;
use crate::source::outbox::Consumer;

/// An outbox and its consumer.
#[derive(Clone)]
pub(in crate::pipeline) struct OutboxReader {
    pub(in crate::pipeline) consumer: Arc<Consumer>,
    /// The number of the table's file: a table that was created again, truncated or restored has
    /// another.
    pub(super) file: u32,
}

impl OutboxReader {
    /// Identifies this outbox, as far as it went into this dataset in Redis, as the source of
    /// changes.
    pub(in crate::pipeline) fn source(&self, dataset: &str) -> String {
        let Self { file, .. } = self;
        format!("outbox {file} {dataset}")
    }
}

/// The consumer: its name, its rules, and the Redis that it writes to.
pub(super) fn consumer(settings: &Settings, rules: &RuleSet) -> Consumer {
    let mut versions = rules.versions();
    let (redis, db) = (settings.redis.addr(), settings.redis.redis_settings().db());
    versions.insert("redis".to_owned(), format!("{redis}/{db} {}", settings.namespace));
    let rules = serde_json::to_string(&versions).expect("texts always serialize");
    Consumer { name: settings.slot.clone(), rules }
}
