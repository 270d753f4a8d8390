//! The steps of `setup`: as they are planned, and how each ended.
//!
//! Owns how steps are described. It must not know what a step does. Invariant: every statement says
//! what it locks and what it costs.

/// A statement of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStatement {
    /// The SQL, with its semicolon.
    pub sql: String,
    /// What it locks, waits for, or costs.
    pub cost: String,
    /// It may wait for as long as it takes: no writer waits behind it. Any other statement gives up
    /// after half a second and is tried again.
    pub is_patient: bool,
}

impl PlannedStatement {
    /// A statement that must not wait long for its locks.
    pub(crate) fn new(sql: impl Into<String>, cost: impl Into<String>) -> Self {
        Self { sql: sql.into(), cost: cost.into(), is_patient: false }
    }

    /// A statement that may wait.
    pub(crate) fn patient(sql: impl Into<String>, cost: impl Into<String>) -> Self {
        Self { is_patient: true, ..Self::new(sql, cost) }
    }
}

/// What `setup` does about one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlannedStep {
    /// It is as it should be.
    Unchanged(String),
    /// These statements create or change it.
    Run {
        /// The part, in words.
        subject: String,
        /// The statements, in order.
        statements: Vec<PlannedStatement>,
    },
    /// It cannot be installed, and is not needed.
    Skipped {
        /// The part, in words.
        subject: String,
        /// Why not, and what happens without it.
        reason: String,
    },
}

impl PlannedStep {
    /// Statements for a part; none if it is as it should be.
    pub(crate) fn of(subject: impl Into<String>, statements: Vec<PlannedStatement>) -> Self {
        let subject = subject.into();
        if statements.is_empty() { Self::Unchanged(subject) } else { Self::Run { subject, statements } }
    }
}

/// How a step of `setup` ended, with a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something was created or changed.
    Done(String),
    /// It was already as it should be.
    Unchanged(String),
    /// It was not installed, and why.
    Skipped(String, String),
}
