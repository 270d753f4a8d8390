//! `invalidation.yaml`, opened: its text, and what was compiled from it.
//!
//! Owns how the file is read and which of its parts other rooms get. It must not know the verbs.
//! Invariant: every problem of the file is in one failure.

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexSet;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::display::{LineColumn, printable};
use super::failure::Failure;
use crate::coherence::watermark::Names;
use crate::config::{Document, Problems, RawTest, Settings};
use crate::reads::ReadSet;
use crate::rules::{Rule, RuleSet};
use crate::sink::{RuleLabel, Sink, SinkError, SinkSettings};

/// A configuration file, read and compiled.
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) settings: Settings,
    pub(super) rules: RuleSet,
    pub(super) reads: ReadSet,
    pub(super) tests: Vec<RawTest>,
}

impl ConfigFile {
    /// Reads and compiles a file. Variables come from the environment of the process.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        Self::parse(path, Self::text_of(path)?, &|name| std::env::var(name).ok())
    }

    /// Reads the text of a file, which must be UTF-8.
    pub(super) fn text_of(path: &Path) -> Result<String, Failure> {
        let bytes = std::fs::read(path).map_err(|error| {
            Failure::configuration(format!(
                "cannot read {}: {error}; name the file with --config or UNSTALE_CONFIG",
                path.display()
            ))
        })?;
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes());
            let mut problems = Problems::default();
            problems.push(at..at + 1, "the file is not UTF-8 here", "save it as UTF-8");
            Failure::problems(&problems, path, &text)
        })
    }

    /// Compiles a text. Its problems are shown as those of the file at `path`.
    pub(super) fn parse(
        path: &Path,
        text: String,
        environment: &impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        Self::compile(path, text.clone(), environment).map_err(|problems| Failure::problems(&problems, path, &text))
    }

    /// Compiles a text.
    pub(super) fn compile(
        path: &Path,
        text: String,
        environment: &impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Problems> {
        let document = Document::parse(&text, environment)?;
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings)?;
        let reads = ReadSet::compile(document.reads, &document.settings)?;
        Ok(Self { path: path.to_owned(), text, settings: document.settings, rules, reads, tests: document.tests })
    }

    /// A failure with these problems, each shown at its place in the file.
    pub(super) fn failure(&self, problems: &Problems) -> Failure {
        Failure::problems(problems, &self.path, &self.text)
    }

    /// Creates a sink for these rules. It is not connected yet.
    pub(super) fn sink(&self, rules: &RuleSet) -> Result<Sink, SinkError> {
        let names = Names::new(&self.settings.namespace, &self.settings.slot);
        Sink::new(&self.settings.redis, names, self.sink_settings(rules))
    }

    fn sink_settings(&self, rules: &RuleSet) -> SinkSettings {
        let line = |rule: &Rule| self.line_column(rule.span.start).line;
        let label = |rule: &Rule| (rule.id, RuleLabel { name: rule.name.clone(), line: line(rule) });
        // Most keys are named by both rules and reads.
        let removals: IndexSet<_> = rules.removals().into_iter().chain(self.reads.removals()).collect();
        SinkSettings {
            removals: removals.into_iter().collect(),
            labels: rules.rules().iter().map(label).collect(),
            ttl: self.settings.ttl,
            digest: self.digest(),
        }
    }

    /// Identifies the rules, and the keys under which the reads cache. An API whose digest differs
    /// from the daemon's would cache what the daemon does not remove.
    pub(super) fn digest(&self) -> String {
        let parts = format!("{:?} {:?}", self.rules.versions(), self.reads.removals());
        Sha256::digest(parts).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    fn line_column(&self, offset: usize) -> LineColumn {
        LineColumn::of(&self.text, offset)
    }

    /// The place of a byte of the file, as `path:line:column`.
    pub(super) fn place(&self, offset: usize) -> String {
        let LineColumn { line, column } = self.line_column(offset);
        format!("{}:{line}:{column}", self.path.display())
    }

    /// Inserts the place of a byte of the file into a JSON object, as `file`, `line` and `column`.
    pub(super) fn insert_place(&self, offset: usize, object: &mut Map<String, Value>) {
        let LineColumn { line, column } = self.line_column(offset);
        object.insert("file".to_owned(), self.path.display().to_string().into());
        object.insert("line".to_owned(), line.into());
        object.insert("column".to_owned(), column.into());
    }

    /// The text of a span of the file, printable.
    pub(super) fn excerpt(&self, span: &Range<usize>) -> String {
        printable(self.text.get(span.clone()).unwrap_or("").as_bytes())
    }
}
