//! The status as JSON.
//!
//! Owns the names of the fields, which scripts parse. It must not ask a server.

use serde_json::{Map, Value, json};

use super::servers::ServerStatus;
use super::source::{OutboxStatus, SlotStatus, SourceStatus};
use super::target::TargetStatus;
use crate::cmd::display::millis;

/// The whole object.
pub(super) fn object(status: &ServerStatus<'_>) -> Value {
    let ServerStatus { settings, source, target } = status;
    let mode = settings.mode.word();
    let error = |message: &str| json!({"error": message.trim_end()});
    let source = match source {
        Ok(SourceStatus::Slot(slot)) => slot_object(slot),
        Ok(SourceStatus::Outbox(outbox)) => outbox_object(outbox),
        Err(failure) => error(&failure.message),
    };
    let target = match target {
        Ok(standing) => standing_object(standing),
        Err(failure) => error(&failure.message),
    };
    let mut object = Map::new();
    object.insert("mode".to_owned(), mode.into());
    object.insert("slot".to_owned(), settings.slot.as_str().into());
    object.insert("source".to_owned(), source);
    object.insert("target".to_owned(), target);
    Value::Object(object)
}

fn slot_object(slot: &SlotStatus) -> Value {
    json!({
        "active": slot.active,
        "confirmed": slot.confirmed,
        "lag_bytes": slot.lag,
        "retained_bytes": slot.retained,
        "wal_status": slot.wal_status,
    })
}

fn outbox_object(outbox: &OutboxStatus) -> Value {
    json!({
        "daemons": outbox.daemons,
        "depth": outbox.depth,
        "deeper": outbox.deeper,
        "oldest_seconds": outbox.oldest.map(|age| age.as_secs_f64()),
        "bytes": outbox.bytes,
        "consumer": outbox.consumer,
        "batches": outbox.batches,
    })
}

fn standing_object(standing: &TargetStatus) -> Value {
    let names: Vec<_> =
        standing.stream_names.iter().map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned()).collect();
    json!({
        "applied": standing.applied.map(|applied| applied.to_string()),
        "started": standing.started.map(|started| started.to_string()),
        "epoch": standing.epoch,
        "epochs": standing.epochs,
        "asof_age_ms": standing.asof.map(millis),
        "dead": standing.dead,
        "failures": standing.failures,
        "streams": standing.streams,
        "stream_names": names,
        "batches": standing.batches,
        "widened": standing.widened,
        "catalog_changes": standing.catalog_changes,
        "blind": standing.blind,
    })
}
