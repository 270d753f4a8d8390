//! The outcome of a test: which ops were expected, which were planned, and where they differ.

use std::collections::{BTreeMap, BTreeSet};

use super::named_op::NamedOp;
use crate::plan::RuleId;
use crate::rules::PlanError;

/// The outcome of a test.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The run with the whole old row.
    pub(super) full: TestRun,
    /// The run with what the log carries of the old row, if that is less and the first run passed.
    pub(super) carried: Option<TestRun>,
    /// The columns whose old value the log does not carry, and without which an expected op is
    /// missing.
    pub(super) lacking: Vec<String>,
    /// The columns that the rules read and the test does not name, if that may be why it failed.
    pub(super) unnamed: Vec<String>,
}

/// One run of a test.
#[derive(Debug, Default)]
pub(super) struct TestRun {
    /// Expected and planned.
    pub(super) met: BTreeSet<NamedOp>,
    /// Expected, and neither planned nor covered by a planned op.
    pub(super) missing: BTreeSet<NamedOp>,
    /// Planned and not expected.
    pub(super) beyond: BTreeSet<NamedOp>,
    /// Why a rule could not be applied to the change.
    pub(super) dead: Vec<(RuleId, String)>,
    /// Why nothing was planned.
    pub(super) stopped: Option<PlanError>,
}

impl TestRun {
    /// Whether every expected op was planned; with `exactly`, and no other.
    pub(super) fn is_right(&self, exactly: bool) -> bool {
        let right = self.missing.is_empty() && self.dead.is_empty() && self.stopped.is_none();
        right && (!exactly || self.beyond.is_empty())
    }

    /// Compares the planned ops with the expected ones. `is_met(expected, planned)` says whether
    /// the second stands for the first.
    pub(super) fn compare(
        &mut self,
        expected: &BTreeSet<NamedOp>,
        made: &BTreeMap<NamedOp, RuleId>,
        is_met: impl Fn(&NamedOp, &NamedOp) -> bool,
    ) {
        for op in expected {
            let met = made.keys().any(|made| is_met(op, made));
            let side = if met { &mut self.met } else { &mut self.missing };
            side.insert(op.clone());
        }
        self.beyond = made.keys().filter(|made| !expected.iter().any(|op| op.same(made))).cloned().collect();
    }
}

impl Outcome {
    /// Whether the test passed.
    pub(super) fn passed(&self) -> bool {
        self.full.is_right(true) && self.carried.as_ref().is_none_or(|run| run.is_right(false))
    }
}
