//! The status as text.
//!
//! Owns the form. It must not ask a server. Invariant: what came from a server cannot control a
//! terminal.

use std::collections::BTreeMap;

use super::servers::ServerStatus;
use super::source::{OutboxStatus, SlotStatus, SourceStatus};
use super::target::TargetStatus;
use crate::cmd::display::{printable, size, time};
use crate::config::{Mode, Settings};
use crate::key::CacheKey;

/// How many stream names are printed.
const STREAMS_SHOWN: usize = 5;

/// Lines of a label and a value, aligned.
#[derive(Default)]
struct StatusLines(String);

impl StatusLines {
    fn add(&mut self, label: &str, value: impl AsRef<str>) {
        self.0.push_str(&format!("{label:<11}{}\n", value.as_ref()));
    }
}

/// The whole text.
pub(super) fn text(status: &ServerStatus<'_>) -> String {
    let ServerStatus { settings, source, target } = status;
    let mut lines = StatusLines::default();
    match source {
        Ok(SourceStatus::Slot(slot)) => show_slot(slot, settings, &mut lines),
        Ok(SourceStatus::Outbox(outbox)) => {
            let counted = target.as_ref().ok().map(|standing| standing.batches.unwrap_or(0));
            show_outbox(outbox, settings, counted, &mut lines);
        }
        Err(failure) => lines.add("source", printable(failure.message.as_bytes())),
    }
    lines.0.push('\n');
    match target {
        Ok(standing) => show_standing(standing, settings, &mut lines),
        Err(failure) => lines.add("target", printable(failure.message.as_bytes())),
    }
    lines.0
}

fn show_slot(slot: &SlotStatus, settings: &Settings, lines: &mut StatusLines) {
    lines.add("source", format!("replication slot `{}` at {}", settings.slot, settings.postgres));
    lines.add("daemon", if slot.active { "reads it" } else { "none reads it" });
    let confirmed = slot.confirmed.as_deref().unwrap_or("nothing");
    let lag = slot.lag.map_or_else(String::new, |lag| format!(", {} before the end of the log", size(lag)));
    lines.add("confirmed", format!("{}{lag}", printable(confirmed.as_bytes())));
    let retained = slot.retained.map_or_else(|| "none".to_owned(), size);
    let wal_status = printable(slot.wal_status.as_deref().unwrap_or("unknown").as_bytes());
    lines.add("log kept", format!("{retained} ({wal_status})"));
}

fn show_outbox(outbox: &OutboxStatus, settings: &Settings, counted: Option<u64>, lines: &mut StatusLines) {
    lines.add("source", format!("outbox at {}", settings.postgres));
    let daemons = if outbox.daemons == 0 { "none".to_owned() } else { outbox.daemons.to_string() };
    lines.add("daemons", format!("{daemons} at work"));
    let more = if outbox.deeper { "> " } else { "" };
    let oldest = outbox.oldest.map_or_else(String::new, |age| format!(", the oldest {} old", time(age)));
    lines.add("entries", format!("{more}{}{oldest}", outbox.depth));
    lines.add("size", size(outbox.bytes));
    let batches = match (outbox.batches, &outbox.consumer) {
        (Some(batches), _) => {
            let counted = counted.map_or_else(|| "unknown".to_owned(), |counted| counted.to_string());
            format!("{batches} confirmed, {counted} in force")
        }
        (None, Some(other)) => {
            format!("none: it was set up for `{}`, not for `{}`", printable(other.as_bytes()), settings.slot)
        }
        (None, None) => "none: it was not set up for a consumer".to_owned(),
    };
    lines.add("batches", batches);
}

fn show_standing(standing: &TargetStatus, settings: &Settings, lines: &mut StatusLines) {
    let namespace = printable(settings.namespace.as_bytes());
    lines.add("target", format!("{}, namespace `{namespace}`", settings.redis.addr()));
    let applied = match standing.applied {
        Some(applied) => format!("{applied}: {}", meaning(settings.mode)),
        None => "none: no epoch has begun, or the cache is being emptied for one".to_owned(),
    };
    lines.add("applied", applied);
    lines.add("started", standing.started.map_or_else(|| "none".to_owned(), |started| started.to_string()));
    let epoch = standing.epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.to_string());
    lines.add("epoch", epoch + &listed(&standing.epochs));
    let asof = match standing.asof {
        Some(age) => format!("{} ago", time(age)),
        None => "unknown: no daemon has reported yet".to_owned(),
    };
    lines.add("as of", asof);
    let changes: u64 = standing.catalog_changes.values().sum();
    let s = if changes == 1 { "" } else { "s" };
    lines.add("catalog", format!("{changes} change{s}{}", listed(&standing.catalog_changes)));
    for (table, reason) in &standing.blind {
        let (table, reason) = (printable(table.as_bytes()), printable(reason.as_bytes()));
        lines.add("blind", format!("changes of {table} do not arrive: {reason}"));
    }
    let failed = listed(&standing.failures);
    let since = if failed.is_empty() { "" } else { "; failed" };
    let s = if standing.dead == 1 { "" } else { "s" };
    lines.add("dead", format!("{} letter{s}{since}{failed}", standing.dead));
    let widened: u64 = standing.widened.values().sum();
    let s = if widened == 1 { "" } else { "s" };
    lines.add("widened", format!("{widened} time{s}{}", listed(&standing.widened)));
    let names: Vec<_> = standing.stream_names.iter().take(STREAMS_SHOWN).map(CacheKey::to_string).collect();
    let more = if standing.streams > names.len() as u64 { ", …" } else { "" };
    let names = if names.is_empty() { String::new() } else { format!(": {}{more}", names.join(", ")) };
    lines.add("streams", format!("{}{names}", standing.streams));
}

/// What `applied` means.
const fn meaning(mode: Mode) -> &'static str {
    match mode {
        Mode::Slot => "every commit up to this position is in force",
        Mode::Outbox => "every commit that was visible when the log was here is in force",
    }
}

/// Counts by name, in parentheses.
fn listed(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let each: Vec<_> = counts.iter().map(|(name, count)| format!("{} {count}", printable(name.as_bytes()))).collect();
    format!(" ({})", each.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::change::Lsn;
    use crate::cmd::config_file::ConfigFile;
    use crate::cmd::failure::Failure;
    use crate::cmd::status::json::object;

    fn settings(mode: &str) -> Settings {
        let rules = format!(
            "version: 1\nsource: {{url: 'postgres://u:hunter2@db:5433/shop', mode: {mode}}}\n\
             target: {{url: 'redis://:hunter2@cache:6380', namespace: 'v1:'}}\n\
             rules:\n  user: {{table: users, delete: 'user:{{id}}'}}\n"
        );
        let file = ConfigFile::parse("f.yaml".as_ref(), rules, &|_| None);
        file.map_err(|failure| failure.message).unwrap().settings
    }

    fn check(mode: &str, source: Result<SourceStatus, Failure>, target: Result<TargetStatus, Failure>, expected: &str) {
        let settings = settings(mode);
        let status = ServerStatus { settings: &settings, source, target };
        assert_eq!(text(&status), expected);
        assert!(!object(&status).to_string().contains("hunter2"));
    }

    fn standing() -> TargetStatus {
        let counts = |counts: &[(&str, u64)]| counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
        TargetStatus {
            applied: Some(Lsn::new(0x16B_3748)),
            started: Some(Lsn::new(0x16B_3800)),
            epoch: Some(3),
            epochs: counts(&[("gap", 1), ("nothing-remembered", 2)]),
            asof: Some(Duration::from_millis(340)),
            dead: 4,
            failures: counts(&[("user", 7)]),
            streams: 1,
            stream_names: vec!["v1:user-changes".into()],
            batches: Some(121),
            widened: counts(&[("user", 2)]),
            catalog_changes: counts(&[("renamed", 1)]),
            blind: [("public.users".to_owned(), "it is not published".to_owned())].into(),
        }
    }

    #[test]
    fn a_slot_is_shown_with_its_lag() {
        let slot = SlotStatus {
            active: true,
            confirmed: Some("0/16B3748".to_owned()),
            lag: Some(1300),
            retained: Some(16 << 20),
            wal_status: Some("reserved".to_owned()),
        };
        let expected = "\
source     replication slot `unstale` at db:5433 (database shop)
daemon     reads it
confirmed  0/16B3748, 1.2 kB before the end of the log
log kept   16.0 MB (reserved)

target     cache:6380, namespace `v1:`
applied    0/16B3748: every commit up to this position is in force
started    0/16B3800
epoch      3 (gap 1, nothing-remembered 2)
as of      340ms ago
catalog    1 change (renamed 1)
blind      changes of public.users do not arrive: it is not published
dead       4 letters; failed (user 7)
widened    2 times (user 2)
streams    1: v1:user-changes
";
        check("slot", Ok(SourceStatus::Slot(slot)), Ok(standing()), expected);
    }

    #[test]
    fn an_outbox_is_shown_with_what_waits() {
        let outbox = OutboxStatus {
            depth: 12,
            deeper: false,
            oldest: Some(Duration::from_millis(1300)),
            bytes: 114_688,
            daemons: 2,
            consumer: Some("unstale".to_owned()),
            batches: Some(120),
        };
        let expected = "\
source     outbox at db:5433 (database shop)
daemons    2 at work
entries    12, the oldest 1s 300ms old
size       112.0 kB
batches    120 confirmed, 121 in force

target     cache:6380, namespace `v1:`
applied    0/16B3748: every commit that was visible when the log was here is in force
started    0/16B3800
epoch      3 (gap 1, nothing-remembered 2)
as of      340ms ago
catalog    1 change (renamed 1)
blind      changes of public.users do not arrive: it is not published
dead       4 letters; failed (user 7)
widened    2 times (user 2)
streams    1: v1:user-changes
";
        check("outbox", Ok(SourceStatus::Outbox(outbox.clone())), Ok(standing()), expected);
        let outbox = OutboxStatus { depth: 1_000_000, deeper: true, daemons: 0, batches: None, oldest: None, ..outbox };
        let outbox = OutboxStatus { consumer: Some("other".to_owned()), ..outbox };
        let expected = "\
source     outbox at db:5433 (database shop)
daemons    none at work
entries    > 1000000
size       112.0 kB
batches    none: it was set up for `other`, not for `unstale`

target     away
";
        check("outbox", Ok(SourceStatus::Outbox(outbox)), Err(Failure::unavailable("away")), expected);
    }

    #[test]
    fn unknown_values_are_shown() {
        let expected = "\
source     no\\u{1b}

target     cache:6380, namespace `v1:`
applied    none: no epoch has begun, or the cache is being emptied for one
started    none
epoch      none
as of      unknown: no daemon has reported yet
catalog    0 changes
dead       0 letters
widened    0 times
streams    0
";
        check("slot", Err(Failure::unavailable("no\u{1b}")), Ok(TargetStatus::default()), expected);
    }
}
