//! The verdict of one rule about a change, in words and as JSON.
//!
//! Owns the words. It must not decide. Invariant: what the log does not carry is reported as
//! unknown, never as NULL.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::change::{Cell, Change, Operation};
use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::{beginning, printable};
use crate::lookups::LookupRunner;
use crate::plan::{LookupCall, Op};
use crate::rules::{ComparedColumn, Decision, Image, Rendered, RenderedAction, RenderedName, Rule, Verdict};

/// How many characters of a column's value are shown.
const VALUE_SHOWN_MAX: usize = 60;

/// How many ops of looked-up rows are shown.
const OPS_SHOWN_MAX: usize = 100;

/// The verdict of one rule, and what it is printed with.
pub(super) struct RuleReport<'a> {
    file: &'a ConfigFile,
    rule: &'a Rule,
    change: &'a Change,
    verdict: Verdict,
    /// The calls of the rule's lookup.
    calls: Vec<LookupCall>,
    /// Whether the lookup was run.
    asked: bool,
}

impl<'a> RuleReport<'a> {
    pub(super) fn new(file: &'a ConfigFile, rule: &'a Rule, change: &'a Change, verdict: Verdict) -> Self {
        let calls = verdict.plan.calls().cloned().collect();
        Self { file, rule, change, verdict, calls, asked: false }
    }

    /// Runs the lookup.
    pub(super) async fn resolve(&mut self, runner: &mut LookupRunner) {
        runner.resolve(&self.file.rules, &mut self.verdict.plan).await;
        self.asked = true;
    }

    /// The report as lines.
    pub(super) fn text(&self) -> String {
        let name = printable(self.rule.name.as_bytes());
        let place = self.file.place(self.rule.span.start);
        let mut text = format!("rule `{name}` ({place}) {}\n", self.outcome());
        if !self.is_considered() {
            return text;
        }
        // Writing to a String cannot fail.
        for compared in &self.verdict.changed {
            let _ = writeln!(text, "  changed: {}", shown_compared(compared));
        }
        if let Some(held) = self.condition_held() {
            let condition = self.rule.condition.as_ref().map(|condition| self.file.excerpt(&condition.span));
            let _ = writeln!(text, "  when: {}  is {held}", condition.unwrap_or_default());
            for (column, cell) in self.read() {
                let _ = writeln!(text, "    {} is {}", printable(column.as_bytes()), shown_cell(cell));
            }
        }
        for named in &self.verdict.named {
            let _ = writeln!(text, "  {}: {}", named.kind.field(), self.file.excerpt(&named.span));
            for words in self.made(named) {
                let _ = writeln!(text, "    {words}");
            }
        }
        if self.verdict.acts() && self.rule.for_each.is_some() {
            self.lookup(&mut text);
        }
        text
    }

    /// Whether the rule considers this operation.
    fn is_considered(&self) -> bool {
        !matches!(self.verdict.decision, Ok(Decision::OtherOperation | Decision::TruncateIgnored))
    }

    fn outcome(&self) -> String {
        let decision = match &self.verdict.decision {
            Ok(decision) => decision,
            Err(error) => return format!("stops everything: {}", printable(error.to_string().as_bytes())),
        };
        match decision {
            Decision::Fires => "acts".to_owned(),
            Decision::FiresUnknown => "acts, because a value that decides is not known".to_owned(),
            Decision::FiresFailed(reason) => {
                format!("acts, because its `when` failed: {}", printable(reason.as_bytes()))
            }
            Decision::OtherOperation => {
                let operations: Vec<_> = self.rule.operations.iter().map(|operation| operation.word()).collect();
                let word = self.change.operation.word();
                format!("does not act: `{word}` is not among its `ops` ({})", operations.join(", "))
            }
            Decision::Unchanged => "does not act: no column of its `changed` differs".to_owned(),
            Decision::ConditionFalse => "does not act: its `when` is false".to_owned(),
            Decision::TruncateIgnored => "does not act: the file says `truncate: ignore`".to_owned(),
        }
    }

    /// The result of the condition; nothing if it was not evaluated.
    fn condition_held(&self) -> Option<&'static str> {
        self.rule.condition.as_ref()?;
        match self.verdict.decision.as_ref().ok()? {
            Decision::ConditionFalse => Some("false"),
            Decision::FiresFailed(_) => Some("not known, because it failed"),
            Decision::Fires | Decision::FiresUnknown if self.change.operation == Operation::Truncate => None,
            Decision::FiresUnknown if self.verdict.read.iter().any(|read| read.cell == Cell::Absent) => {
                Some("not known, which counts as true")
            }
            Decision::Fires | Decision::FiresUnknown => Some("true"),
            Decision::OtherOperation | Decision::Unchanged | Decision::TruncateIgnored => None,
        }
    }

    /// The columns that the condition reads, as it names them, and their values.
    fn read(&self) -> impl Iterator<Item = (String, &Cell)> {
        self.verdict.read.iter().map(|read| {
            let image = if read.image == Image::Old { "old" } else { "new" };
            (format!("{image}.{}", read.column), &read.cell)
        })
    }

    /// What a template makes, each in words.
    fn made(&self, named: &RenderedAction) -> Vec<String> {
        if named.made.is_empty() {
            return vec!["nothing, because there is no row to take values from".to_owned()];
        }
        let both = self.change.old.is_some() && self.change.new.is_some();
        let words = |made: &RenderedName| {
            let because = made.because.iter().map(|column| format!("`{}`", printable(column.as_bytes())));
            let because = because.collect::<Vec<_>>().join(", ");
            let row = match made.image {
                Some(Image::Old) if both => "  (the old row)",
                _ => "",
            };
            match &made.name {
                Rendered::Key(key) => format!("{key}{row}"),
                Rendered::Glob(glob) if because.is_empty() => format!("all of {glob}{row}"),
                Rendered::Glob(glob) => format!("all of {glob}{row}: the log does not carry {because}"),
                Rendered::Nothing => format!("nothing{row}: {because} is NULL, or the row does not exist"),
            }
        };
        named.made.iter().map(words).collect()
    }

    /// The calls of the rule's lookup, and the ops of its rows if it was run.
    fn lookup(&self, text: &mut String) {
        let lookup = self.lookup_name();
        for (kind, template) in self.rule.actions() {
            let field = kind.field();
            let _ = writeln!(text, "  {field}: {}, for each row", self.file.excerpt(&template.span));
        }
        for call in &self.calls {
            let arguments: Vec<_> = call.arguments.iter().map(|value| beginning(value, VALUE_SHOWN_MAX)).collect();
            let asked = if self.asked { "" } else { ", not run: add --lookups" };
            let _ = writeln!(text, "  lookup: {lookup}({}){asked}", arguments.join(", "));
        }
        if self.calls.is_empty() && self.verdict.plan.is_empty() {
            let _ = writeln!(text, "  lookup: {lookup} is not run, because an argument is NULL");
        }
        for letter in self.verdict.plan.dead_letters() {
            let _ = writeln!(text, "  {}", printable(letter.reason.as_bytes()));
        }
        for op in self.ops().take(OPS_SHOWN_MAX) {
            let _ = writeln!(text, "    {op}");
        }
        let more = self.ops().count().saturating_sub(OPS_SHOWN_MAX);
        if more > 0 {
            let _ = writeln!(text, "    and {more} more");
        }
    }

    fn lookup_name(&self) -> String {
        let lookup = self.rule.for_each.as_ref().and_then(|for_each| self.file.rules.lookups().get(for_each.lookup));
        printable(lookup.map_or("?", |lookup| &lookup.name.value).as_bytes())
    }

    fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        self.verdict.plan.ops().map(|(_, op)| op)
    }

    /// One object; `number` is the change's, from 1.
    pub(super) fn json(&self, number: usize) -> Value {
        let mut object = Map::new();
        object.insert("change".to_owned(), number.into());
        object.insert("rule".to_owned(), self.rule.name.clone().into());
        self.file.insert_place(self.rule.span.start, &mut object);
        object.insert("acts".to_owned(), self.verdict.acts().into());
        object.insert("because".to_owned(), self.outcome().into());
        let changed = self.verdict.changed.iter().map(|compared| {
            let mut images = Map::new();
            images.insert("column".to_owned(), compared.column.clone().into());
            insert_cell("old", &compared.old, &mut images);
            insert_cell("new", &compared.new, &mut images);
            Value::Object(images)
        });
        object.insert("changed".to_owned(), changed.collect());
        if let Some(held) = self.condition_held() {
            let mut columns = Map::new();
            self.read().for_each(|(column, cell)| insert_cell(&column, cell, &mut columns));
            object.insert("when".to_owned(), json!({"is": held, "columns": columns}));
        }
        object.insert("actions".to_owned(), self.verdict.named.iter().map(|named| self.named_in_json(named)).collect());
        let calls = self.calls.iter().map(|call| {
            let arguments: Vec<_> = call.arguments.iter().map(|value| String::from_utf8_lossy(value)).collect();
            json!({"lookup": self.lookup_name(), "arguments": arguments, "asked": self.asked})
        });
        object.insert("lookups".to_owned(), calls.collect());
        let ops = self.ops().map(|op| json!({"op": op.kind(), "key": String::from_utf8_lossy(op.name())}));
        object.insert("ops".to_owned(), ops.collect());
        Value::Object(object)
    }

    fn named_in_json(&self, named: &RenderedAction) -> Value {
        let made = named.made.iter().map(|made| {
            let image = made.image.map(|image| if image == Image::Old { "old" } else { "new" });
            let (form, name) = match &made.name {
                Rendered::Key(key) => ("key", Some(String::from_utf8_lossy(key.as_bytes()))),
                Rendered::Glob(glob) => ("glob", Some(String::from_utf8_lossy(glob.as_bytes()))),
                Rendered::Nothing => ("nothing", None),
            };
            json!({"row": image, "form": form, "name": name, "because": made.because})
        });
        let written = self.file.text.get(named.span.clone());
        json!({"action": named.kind.field(), "template": written, "made": made.collect::<Vec<_>>()})
    }
}

fn shown_compared(compared: &ComparedColumn) -> String {
    let ComparedColumn { column, old, new } = compared;
    let column = printable(column.as_bytes());
    match old == new && *old != Cell::Absent {
        true => format!("{column} is {} as before", shown_cell(new)),
        false => format!("{column} was {}, is {}", shown_cell(old), shown_cell(new)),
    }
}

fn shown_cell(cell: &Cell) -> String {
    match cell {
        Cell::Value(value) if value.is_empty() => "\"\"".to_owned(),
        Cell::Value(value) => beginning(value, VALUE_SHOWN_MAX),
        Cell::Null => "NULL".to_owned(),
        Cell::Absent => "not carried by the log".to_owned(),
    }
}

/// Inserts a value. An unknown value is left out.
fn insert_cell(name: &str, cell: &Cell, object: &mut Map<String, Value>) {
    let value = match cell {
        Cell::Value(value) => String::from_utf8_lossy(value).into_owned().into(),
        Cell::Null => Value::Null,
        Cell::Absent => return,
    };
    object.insert(name.to_owned(), value);
}
