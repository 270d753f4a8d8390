//! What is proven of the dataset in Redis and of its history.
//!
//! Owns which dataset is known, in which epoch it is, and what it said that it had recorded and
//! counted. It must not know connections or commands. Invariants: only one dataset is proven at a
//! time; what was recorded in one epoch is not expected of another.

use sha2::{Digest as _, Sha256};

use super::dataset::Dataset;
use crate::change::Lsn;
use crate::coherence::history::{HistoryGap, Origin, Present, Remembered, cluster};

/// The dataset in Redis may not hold what was applied to it. [`super::Sink::remembered`] must be
/// asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unproven;

/// What is proven of a dataset. By default nothing is.
#[derive(Clone, Debug, Default)]
pub(super) struct Proof {
    dataset: Option<Dataset>,
    history: String,
    recorded: Lsn,
    counted: u64,
    epoch: u64,
    /// The epoch as Redis held it when it was read last; none if Redis held none.
    epoch_found: Option<String>,
    reported_gap: Option<HistoryGap>,
}

impl Proof {
    /// The dataset whose history is proven.
    pub(super) fn dataset(&self) -> Option<&Dataset> {
        self.dataset.as_ref()
    }

    /// Whether the history of this dataset is proven.
    pub(super) fn covers(&self, dataset: &Dataset) -> bool {
        self.dataset.as_ref() == Some(dataset)
    }

    /// A short name of the history: only positions of one history can be compared. Empty if no
    /// history is known.
    pub(super) fn history(&self) -> &str {
        &self.history
    }

    /// What the dataset said that it had recorded as `applied`.
    pub(super) fn recorded(&self) -> Lsn {
        self.recorded
    }

    /// How many batches the dataset said that it had counted.
    pub(super) fn counted(&self) -> u64 {
        self.counted
    }

    /// The highest epoch that is known.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The epoch as Redis held it when it was read last; `0` if it held none.
    pub(super) fn epoch_found(&self) -> &str {
        self.epoch_found.as_deref().unwrap_or("0")
    }

    /// A dataset was read, and holds this epoch.
    pub(super) fn read(&mut self, dataset: Dataset, epoch: Option<&str>) {
        let number = epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        if number > self.epoch {
            // Another daemon began it: what was recorded before was recorded in another epoch.
            (self.recorded, self.counted) = (Lsn::ZERO, 0);
        }
        self.epoch = self.epoch.max(number);
        self.epoch_found = epoch.map(ToOwned::to_owned);
        self.dataset = Some(dataset);
    }

    /// History is proven from what the dataset remembers.
    pub(super) fn resume_from(&mut self, remembered: &Remembered) {
        self.recorded = remembered.applied.unwrap_or_default();
        self.counted = remembered.batches;
        self.history = remembered.origin.as_ref().map(history).unwrap_or_default();
    }

    /// A new epoch began, and its flush is not finished. If the flush is tried again, it begins
    /// with this epoch.
    pub(super) fn epoch_began(&mut self, epoch: u64) {
        self.epoch_found = Some(epoch.to_string());
    }

    /// The flush of an epoch is finished. History begins at `present`.
    pub(super) fn flushed(&mut self, epoch: u64, dataset: Dataset, present: &Present) {
        self.history = history(&present.origin);
        (self.epoch, self.dataset, self.recorded) = (epoch, Some(dataset), present.slot);
        self.counted = present.batches.unwrap_or_default();
    }

    /// A batch is in force. Redis recorded this position, and counted this many batches.
    pub(super) fn applied(&mut self, recorded: Option<Lsn>, counted: Option<u64>) {
        self.recorded = self.recorded.max(recorded.unwrap_or_default());
        self.counted = self.counted.max(counted.unwrap_or_default());
    }

    /// The server said over the open connection which dataset it holds now.
    ///
    /// # Errors
    ///
    /// It is not the one that was proven. What was recorded since may be the new dataset's, so this
    /// is reported as a gap.
    pub(super) fn confirm(&mut self, current: Dataset) -> Result<(), Unproven> {
        if !self.dataset.as_ref().is_some_and(|proven| current.continues(proven)) {
            self.reported_gap = Some(HistoryGap::DatasetReplaced);
            return Err(Unproven);
        }
        self.dataset = Some(current);
        Ok(())
    }

    /// Nothing is proven any more, until a dataset is read again.
    pub(super) fn revoke(&mut self) {
        self.dataset = None;
    }

    /// A gap that no comparison of positions would find.
    pub(super) fn report(&mut self, gap: HistoryGap) {
        self.reported_gap = Some(gap);
    }

    /// The gap that was reported. It is returned once.
    pub(super) fn take_reported_gap(&mut self) -> Option<HistoryGap> {
        self.reported_gap.take()
    }
}

/// A short name of a history. An unclean stop begins no new history: only log that was safely
/// written is streamed.
fn history(origin: &Origin) -> String {
    // Not into which dataset an outbox went: after Redis was emptied, entries come twice.
    let source: String = origin.source.split(' ').take(2).collect();
    // Positions in the log are those of a cluster. Numbers of entries are those of a database.
    let system = if source.is_empty() { cluster(&origin.system) } else { &origin.system };
    let digest = Sha256::digest(format!("{system}/{}{source}", origin.timeline));
    digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(run: &str) -> Dataset {
        Dataset::parse(&format!("run_id:{run}\r\nrole:master\r\nmaster_replid:1\r\nmaster_replid2:0000\r\n")).unwrap()
    }

    fn origin(text: &str) -> Origin {
        Origin::decode(text).unwrap()
    }

    fn at(recorded: u64, counted: u64) -> Remembered {
        let origin = Some(origin("s/1/0"));
        Remembered {
            applied: Some(Lsn::new(recorded)),
            started: None,
            origin,
            batches: counted,
            ..Remembered::default()
        }
    }

    #[test]
    fn only_the_dataset_that_was_read_is_proven() {
        let mut proof = Proof::default();
        assert!(!proof.covers(&dataset("a")));
        proof.read(dataset("a"), None);
        assert!(proof.covers(&dataset("a")) && !proof.covers(&dataset("b")));
        proof.revoke();
        assert!(!proof.covers(&dataset("a")));
    }

    #[test]
    fn what_was_recorded_counts_within_its_epoch() {
        let mut proof = Proof::default();
        proof.read(dataset("a"), Some("3"));
        proof.resume_from(&at(50, 7));
        proof.applied(Some(Lsn::new(60)), Some(8));
        proof.applied(None, None);
        assert_eq!((proof.recorded(), proof.counted()), (Lsn::new(60), 8));
        proof.read(dataset("b"), Some("3"));
        assert_eq!((proof.recorded(), proof.counted(), proof.epoch_found()), (Lsn::new(60), 8, "3"));
        proof.read(dataset("b"), None);
        assert_eq!((proof.recorded(), proof.epoch(), proof.epoch_found()), (Lsn::new(60), 3, "0"));
        proof.read(dataset("b"), Some("4"));
        assert_eq!((proof.recorded(), proof.counted(), proof.epoch()), (Lsn::ZERO, 0, 4));
    }

    #[test]
    fn a_flush_begins_history_at_what_is_present() {
        let mut proof = Proof::default();
        proof.read(dataset("a"), Some("1"));
        proof.resume_from(&at(90, 9));
        proof.epoch_began(2);
        assert_eq!((proof.epoch_found(), proof.epoch()), ("2", 1));
        let [slot, end, recorded] = [40, 95, 90].map(Lsn::new);
        let present = Present { origin: origin("t/1/0"), slot, end, recorded, batches: None };
        let history_before = proof.history().to_owned();
        proof.flushed(2, dataset("a"), &present);
        assert_eq!((proof.recorded(), proof.counted(), proof.epoch()), (slot, 0, 2));
        assert_ne!(proof.history(), history_before);
    }

    #[test]
    fn a_dataset_that_was_replaced_is_reported_once() {
        let mut proof = Proof::default();
        proof.read(dataset("a"), None);
        assert_eq!(proof.confirm(dataset("a")), Ok(()));
        assert_eq!(proof.take_reported_gap(), None);
        assert_eq!(proof.confirm(dataset("b")), Err(Unproven));
        assert_eq!(proof.take_reported_gap(), Some(HistoryGap::DatasetReplaced));
        assert_eq!(proof.take_reported_gap(), None);
    }

    #[test]
    fn a_history_is_named_by_cluster_timeline_and_outbox() {
        let name = |text: &str| history(&origin(text));
        assert_eq!(name("s/1/0"), name("s/1/7"), "an unclean stop");
        assert_eq!(name("s/1/0/outbox 7 a"), name("s/1/0/outbox 7 b"), "another dataset");
        assert_eq!(name("s/1/0"), name("s.5/1/0"), "the log is that of the cluster");
        assert_ne!(name("s.5/1/0/outbox 7"), name("s.6/1/0/outbox 7"), "another database");
        for other in ["t/1/0", "s/2/0", "s/1/0/outbox 7"] {
            assert_ne!(name("s/1/0"), name(other));
        }
        assert_ne!(name("s/1/0/outbox 7"), name("s/1/0/outbox 8"));
    }
}
