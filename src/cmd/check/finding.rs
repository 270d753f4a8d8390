//! The findings of `check`: each with its place, why it matters, what to do, and what that costs.
//!
//! Owns the findings and their exit code. It must not know how one is found or shown. Invariant:
//! warnings alone are a success.

use std::ops::Range;

use crate::cmd::failure::Exit;
use crate::config::Problem;
use crate::install::step::PlannedStatement;
use crate::rules::Lint;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    /// It works; the user should know.
    Warning,
    /// It does not work, or leaves something stale.
    Error,
}

impl Severity {
    /// The word in every format.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// When a statement of the fixing script has to run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Settings of the server.
    Settings,
    /// Tables that become logged. Before everything that needs their log.
    Logged,
    /// Replica identities. Before the publication, because updates of a published table need one.
    Identity,
    /// The outbox and its triggers.
    Outbox,
    /// What the role may do.
    Role,
    /// The publication.
    Publication,
    /// The function that emits events, and the event triggers.
    Events,
    /// The slot. After the publication, because an older slot cannot decode with it.
    Slot,
    /// Commands for Redis, shown as comments.
    Redis,
}

/// A statement that fixes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) stage: Stage,
    pub(super) text: String,
    /// What it locks or restarts.
    pub(super) cost: String,
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Does not change between versions, for filters.
    pub(super) id: &'static str,
    pub(super) severity: Severity,
    /// The exit code, if it is an error.
    pub(super) exit: Exit,
    /// The span of the file that is wrong, if it is the file.
    pub(super) place: Option<Range<usize>>,
    pub(super) message: String,
    pub(super) why: String,
    pub(super) fix: String,
    pub(super) statements: Vec<Statement>,
    /// `setup` runs the statements, so the script runs them also if this is a warning.
    pub(super) is_planned: bool,
}

impl Finding {
    fn new(id: &'static str, severity: Severity, exit: Exit, message: String) -> Self {
        let (why, fix) = (String::new(), String::new());
        Self { id, severity, exit, place: None, message, why, fix, statements: Vec::new(), is_planned: false }
    }

    /// Something that does not work.
    pub(super) fn error(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(id, Severity::Error, Exit::Findings, message.into())
    }

    /// Something that the user should know.
    pub(super) fn warning(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(id, Severity::Warning, Exit::Findings, message.into())
    }

    /// A server that did not answer.
    pub(super) fn unavailable(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(id, Severity::Error, Exit::Unavailable, message.into())
    }

    /// Something wrong with the file, or with what it says about a server.
    pub(super) fn configuration(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(id, Severity::Error, Exit::Configuration, message.into())
    }

    /// A problem that reading or comparing the file found.
    pub(super) fn problem(id: &'static str, problem: &Problem) -> Self {
        let finding = Self::configuration(id, problem.message.clone()).fix(problem.advice.clone());
        Self { place: Some(problem.span.clone()), ..finding }
    }

    /// A lint of the rules.
    pub(super) fn lint(lint: Lint) -> Self {
        let severity = if lint.certain { Severity::Error } else { Severity::Warning };
        let finding = Self::new(lint.id, severity, Exit::Findings, lint.message).why(lint.why).fix(lint.fix);
        Self { place: Some(lint.span), ..finding }
    }

    /// Why it matters.
    pub(super) fn why(self, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..self }
    }

    /// What to do.
    pub(super) fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }

    /// A statement that does it, and what that locks or restarts.
    pub(super) fn statement(mut self, stage: Stage, text: impl Into<String>, cost: impl Into<String>) -> Self {
        self.statements.push(Statement { stage, text: text.into(), cost: cost.into() });
        self
    }

    /// A statement that `setup` runs, too.
    pub(super) fn planned(mut self, stage: Stage, planned: PlannedStatement) -> Self {
        self.is_planned = true;
        self.statement(stage, planned.sql, planned.cost)
    }

    /// What the statements lock or restart, each once.
    pub(super) fn cost(&self) -> String {
        let mut costs: Vec<&str> = Vec::new();
        for statement in &self.statements {
            if !costs.contains(&statement.cost.as_str()) {
                costs.push(&statement.cost);
            }
        }
        costs.join("; ")
    }

    /// What to do: in words, then as statements, except those that install whole functions.
    pub(super) fn advice(&self) -> String {
        let words = Some(self.fix.as_str()).filter(|fix| !fix.is_empty());
        let is_advice = |statement: &&Statement| !matches!(statement.stage, Stage::Events | Stage::Outbox);
        let statements = self.statements.iter().filter(is_advice);
        let statements = statements.map(|statement| statement.text.as_str());
        words.into_iter().chain(statements).collect::<Vec<_>>().join("\n")
    }

    /// Whether the script of `--sql` fixes it.
    pub(super) fn is_scripted(&self) -> bool {
        self.statements.iter().any(|statement| statement.stage != Stage::Redis)
    }
}

/// What one part of a check found, and what passed.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    /// The headings of the parts and what passed there, in the order of the checks.
    pub(super) passed: Vec<String>,
    pub(super) found: Vec<Finding>,
}

impl Findings {
    /// Adds the heading of the following lines.
    pub(super) fn heading(&mut self, text: impl Into<String>) {
        self.passed.push(text.into());
    }

    /// Adds something that passed.
    pub(super) fn pass(&mut self, text: impl AsRef<str>) {
        self.passed.push(format!("ok  {}", text.as_ref()));
    }

    /// Adds a finding.
    pub(super) fn add(&mut self, finding: Finding) {
        self.found.push(finding);
    }

    /// Adds these findings, or else that something passed.
    pub(super) fn pass_or(&mut self, text: impl AsRef<str>, found: impl IntoIterator<Item = Finding>) {
        let before = self.found.len();
        self.found.extend(found);
        if self.found.len() == before {
            self.pass(text);
        }
    }

    /// Adds the findings of another part.
    pub(super) fn append(&mut self, other: Self) {
        self.passed.extend(other.passed);
        self.found.extend(other.found);
    }

    /// How many findings are this bad.
    pub(super) fn count(&self, severity: Severity) -> usize {
        self.found.iter().filter(|finding| finding.severity == severity).count()
    }

    /// The exit code of the errors that `counts` includes. A wrong file outweighs a server that is
    /// not available, because it will be wrong the next time, too.
    pub(super) fn exit(&self, counts: impl Fn(&Finding) -> bool) -> Option<Exit> {
        let errors = self.found.iter().filter(|finding| finding.severity == Severity::Error && counts(finding));
        errors.map(|finding| finding.exit).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let check = |findings: &[Finding], expected: Option<Exit>| {
            let findings = Findings { passed: Vec::new(), found: findings.to_vec() };
            assert_eq!(findings.exit(|_| true), expected, "{findings:?}");
        };
        let warning = Finding::warning("a", "a");
        let error = Finding::error("b", "b");
        let away = Finding::unavailable("c", "c");
        let file = Finding::configuration("d", "d");
        check(&[], None);
        check(std::slice::from_ref(&warning), None);
        check(&[warning, error.clone()], Some(Exit::Findings));
        check(&[away.clone(), error], Some(Exit::Unavailable));
        check(&[file, away], Some(Exit::Configuration));
    }

    #[test]
    fn a_cost_is_listed_once() {
        let finding = Finding::error("a", "a")
            .statement(Stage::Role, "GRANT 1;", "locks nothing")
            .statement(Stage::Role, "GRANT 2;", "locks nothing")
            .statement(Stage::Slot, "SELECT;", "waits");
        assert_eq!(finding.cost(), "locks nothing; waits");
        assert_eq!(finding.advice(), "GRANT 1;\nGRANT 2;\nSELECT;");
        assert_eq!(finding.clone().fix("do this:").advice(), "do this:\nGRANT 1;\nGRANT 2;\nSELECT;");
        assert!(finding.is_scripted());
    }
}
