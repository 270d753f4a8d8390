//! What follows from a change of the database that no row change tells.
//!
//! Owns the comparison of what is observed with what is remembered, and when to observe again.
//! Synchronous; time is an argument. Invariants: on a difference everything that the table's rules
//! can name is removed before the new state is remembered; while changes of a table do not arrive,
//! that is done again at each observation, and no later position counts as in force meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::change::{RelationId, TableName};
use crate::mutant::{self, Mutant};
use crate::plan::{Plan, RuleId};
use crate::rules::RuleSet;
use crate::sink::CatalogRecord;
use crate::watch::{CatalogChangeKind, Difference, Observation, TableState, ViewState, Watched};

/// How often the database is observed, if nothing says that it changed.
const OBSERVE_EVERY: Duration = Duration::from_secs(2);

/// How soon it is observed again once something says so.
const OBSERVE_SOON: Duration = Duration::from_millis(100);

/// Between two observations there is at least this many times as long as one takes.
const REST: u32 = 20;

/// What is remembered of everything that is watched.
#[derive(Debug)]
pub(super) struct Watching {
    rules: Arc<RuleSet>,
    watched: Arc<Watched>,
    tables: Vec<TableState>,
    views: Vec<ViewState>,
    /// The tables whose changes did not arrive at the last observation.
    blind: BTreeSet<TableName>,
    /// The tables that were truncated since the last observation.
    truncated: Vec<TableName>,
    /// The observation at the beginning of the session.
    first: Option<Observation>,
    is_observing: bool,
    /// When the next observation is due.
    due: Option<Instant>,
    /// The end of the last observation, and how long it took.
    last: Option<(Instant, Duration)>,
}

/// What follows from an observation.
#[derive(Debug, Default)]
pub(super) struct CatalogChange {
    /// The names by which rules mean each table that they concern.
    pub(super) tables: HashMap<RelationId, Vec<TableName>>,
    /// What is removed now.
    pub(super) sweep: Plan,
    /// What Redis remembers once that is done.
    pub(super) record: CatalogRecord,
    /// Changes of some table do not arrive.
    pub(super) is_blind: bool,
    /// When this was observed.
    pub(super) at: Option<SystemTime>,
}

impl Watching {
    /// `first` was observed at the beginning of the session.
    pub(super) fn new(rules: Arc<RuleSet>, watched: Arc<Watched>, first: Option<Observation>) -> Self {
        let (tables, views) = (Vec::new(), Vec::new());
        let (blind, truncated) = (BTreeSet::new(), Vec::new());
        Self { rules, watched, tables, views, blind, truncated, first, is_observing: false, due: None, last: None }
    }

    /// Compares with what Redis remembers. None: a new epoch has begun, so everything was removed.
    pub(super) fn begin(
        &mut self,
        remembered: Option<&HashMap<String, String>>,
        now: Instant,
    ) -> Option<CatalogChange> {
        let first = self.first.take()?;
        let remembered = remembered.filter(|_| !mutant::is(Mutant::NoWatch));
        let recalled = |key: String| remembered?.get(&key).cloned();
        let tables = self.watched.tables.iter().map(|table| recalled(table_key(&table.name)));
        self.tables = tables.map(|text| text.and_then(|text| TableState::decode(&text)).unwrap_or_default()).collect();
        let views = self.watched.views.iter().map(|view| recalled(view_key(&view.name)));
        self.views = views.map(|text| text.and_then(|text| ViewState::decode(&text)).unwrap_or_default()).collect();
        Some(self.observed(first, now))
    }

    /// Whether the next observation is due; [`Watching::observed`] must follow.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Vec<RelationId>> {
        if self.is_observing || self.due.is_none_or(|due| due > now) || mutant::is(Mutant::NoWatch) {
            return None;
        }
        self.is_observing = true;
        Some(self.tables.iter().map(|table| RelationId::new(table.id)).collect())
    }

    /// When the next observation is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.is_observing)
    }

    /// Something says that the database may have changed.
    pub(super) fn hint(&mut self, now: Instant) {
        let soon = self.last.map_or(now, |(end, took)| now.max(end + OBSERVE_SOON + took));
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// The daemon saw a TRUNCATE of these tables: their rows have other files now.
    pub(super) fn truncated(&mut self, tables: impl IntoIterator<Item = TableName>) {
        self.truncated.extend(tables);
    }

    /// What follows from an observation.
    pub(super) fn observed(&mut self, seen: Observation, now: Instant) -> CatalogChange {
        self.is_observing = false;
        self.last = Some((now, seen.took));
        self.due = Some(now + OBSERVE_EVERY.max(seen.took * REST));
        let mut change = CatalogChange { at: Some(seen.at), ..CatalogChange::default() };
        for (id, name) in seen.members {
            change.tables.entry(id).or_default().push(name);
        }
        self.compare_tables(seen.tables, &mut change);
        self.compare_views(seen.views, &mut change);
        self.truncated.clear();
        change.is_blind = self.tables.iter().any(|table| !table.faults.is_empty());
        change.record.faults = self.faults();
        change
    }

    fn compare_tables(&mut self, seen: Vec<TableState>, change: &mut CatalogChange) {
        self.tables.resize_with(seen.len(), TableState::default);
        for ((earlier, now), watched) in self.tables.iter_mut().zip(seen).zip(&self.watched.tables) {
            let name = &watched.name;
            let was_known = *earlier != TableState::default();
            let is_truncated = self.truncated.contains(name);
            let differences = if was_known { now.differences(earlier, name, is_truncated) } else { Vec::new() };
            report(&differences, change);
            let is_blind = !now.faults.is_empty();
            if !was_known && is_blind {
                report(&now.differences(&TableState { faults: Vec::new(), ..now.clone() }, name, true), change);
            }
            // A change that did not arrive may be committed and become visible a moment later.
            let was_blind = self.blind.contains(name);
            if is_blind {
                self.blind.insert(name.clone())
            } else {
                self.blind.remove(name)
            };
            if is_blind || was_blind || !differences.is_empty() {
                self.rules.remove_all_of(name, &mut change.sweep);
            }
            if now != *earlier {
                change.record.states.insert(table_key(name), now.encode());
                *earlier = now;
            }
        }
    }

    fn compare_views(&mut self, seen: Vec<ViewState>, change: &mut CatalogChange) {
        self.views.resize_with(seen.len(), ViewState::default);
        for ((earlier, now), watched) in self.views.iter_mut().zip(seen).zip(&self.watched.views) {
            if now == *earlier {
                continue;
            }
            if *earlier != ViewState::default() {
                let text = format!("the materialized view {} was refreshed or made anew", watched.name);
                report(&[Difference { kind: CatalogChangeKind::Refreshed, text }], change);
                watched.removals.iter().for_each(|removal| change.sweep.remove(RuleId::NONE, removal.clone()));
            }
            change.record.states.insert(view_key(&watched.name), now.encode());
            *earlier = now;
        }
    }

    /// Why changes of tables do not arrive, for `status`.
    fn faults(&self) -> BTreeMap<String, String> {
        let tables = self.tables.iter().zip(&self.watched.tables);
        let blind = tables.filter(|(state, _)| !state.faults.is_empty());
        blind.map(|(state, watched)| (watched.name.to_string(), state.faults.join("; "))).collect()
    }
}

/// Logs and counts differences.
fn report(differences: &[Difference], change: &mut CatalogChange) {
    for difference in differences {
        let kind = difference.kind.word();
        tracing::warn!(kind, "the database changed: {difference}; everything that the rules can name is deleted");
        *change.record.counts.entry(kind).or_default() += 1;
    }
}

fn table_key(name: &TableName) -> String {
    format!("table {name}")
}

fn view_key(name: &TableName) -> String {
    format!("view {name}")
}
