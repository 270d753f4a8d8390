//! The shape of a rule: its fields and their types.
//!
//! Owns raw rules. It must not know what templates, conditions or columns mean; [`crate::rules`]
//! compiles them. Invariant: a raw rule has exactly one trigger.

use std::time::Duration;

use super::fields::{Fields, as_word};
use super::node::Node;
use super::problem::Problems;
use super::span::Spanned;
use crate::change::Operation;
use crate::plan::ActionKind;

/// One rule of the file.
#[derive(Clone, Debug)]
pub struct RawRule {
    /// Its name: the key in `rules:`.
    pub name: Spanned<String>,
    /// A canonical text of the whole rule: equal for equal rules, however they are laid out.
    pub canonical: String,
    /// `table:` or `event:`.
    pub trigger: RawTrigger,
    /// `ops:`; all operations if the field is missing.
    pub operations: Vec<Operation>,
    /// `changed:`.
    pub changed: Vec<Spanned<String>>,
    /// `when:`.
    pub when: Option<Spanned<String>>,
    /// `for_each:`.
    pub for_each: Option<Spanned<String>>,
    /// What it does.
    pub actions: Vec<RawAction>,
    /// `again_after:`.
    pub again_after: Option<Duration>,
}

/// What triggers a rule.
#[derive(Clone, Debug)]
pub enum RawTrigger {
    /// A change of this table.
    Table(Spanned<String>),
    /// An event of this name, emitted by an application.
    Event(Spanned<String>),
}

/// One action of a rule.
#[derive(Clone, Debug)]
pub enum RawAction {
    /// `set:`.
    Set(RawSet),
    /// `delete:`.
    Delete(Spanned<String>),
    /// `pattern:`.
    Pattern(Spanned<String>),
    /// `tags:`.
    Tag(Spanned<String>),
    /// `bump:`.
    Bump(Spanned<String>),
    /// `publish:`.
    Publish(RawPublish),
    /// `stream:`.
    Stream(RawStream),
}

/// One write-through value of a rule.
#[derive(Clone, Debug)]
pub struct RawSet {
    /// `key:`.
    pub key: Spanned<String>,
    /// `columns:`.
    pub columns: Vec<Spanned<String>>,
    /// `ttl:`.
    pub ttl: Option<Duration>,
}

/// One message of a rule.
#[derive(Clone, Debug)]
pub struct RawPublish {
    /// `channel:`.
    pub channel: Spanned<String>,
    /// `data:`.
    pub data: RawData,
}

/// One stream entry of a rule.
#[derive(Clone, Debug)]
pub struct RawStream {
    /// `name:`.
    pub name: Spanned<String>,
    /// `data:`.
    pub data: RawData,
    /// `maxlen:`, in entries.
    pub maxlen: Option<u64>,
}

/// The payload of a message: JSON in which every string is a template.
#[derive(Clone, Debug)]
pub enum RawData {
    /// A template.
    Template(Spanned<String>),
    /// A number, a boolean or null.
    Literal(serde_json::Value),
    /// A list.
    List(Vec<RawData>),
    /// An object.
    Object(Vec<(String, RawData)>),
}

/// The shortest TTL. Shorter values would expire before they are read.
const TTL_LEAST: Duration = Duration::from_secs(1);

/// The longest delay of a second delete. Delayed deletes stay in memory, and PostgreSQL keeps the
/// log.
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Reads the section `rules`.
pub(super) fn read_rules(entries: Vec<(Spanned<String>, Spanned<Node>)>, problems: &mut Problems) -> Vec<RawRule> {
    entries.into_iter().filter_map(|(name, node)| read_rule(name, node, problems)).collect()
}

fn read_rule(name: Spanned<String>, node: Spanned<Node>, problems: &mut Problems) -> Option<RawRule> {
    let canonical = node.canonical();
    let mut fields = Fields::of(node, format!("rule `{}`", name.value), problems)?;
    let before = fields.problems().len();
    let trigger = read_trigger(&name, &mut fields);
    let words = Operation::ALL.map(|operation| (operation.word(), operation));
    let texts = fields.texts("ops");
    let operations: Vec<_> = match texts.is_empty() {
        true => Operation::ALL.to_vec(),
        false => texts.iter().filter_map(|text| as_word(text, "ops", &words, fields.problems())).collect(),
    };
    let changed = fields.texts("changed");
    if let Some(RawTrigger::Event(event)) = &trigger {
        for text in texts.iter().chain(&changed) {
            let message = format!("`ops` and `changed` apply to tables, and `{}` is an event", event.value);
            fields.problems().push(text.span.clone(), message, "remove it; use `when` to filter events");
        }
    }
    let rule = RawRule {
        canonical,
        trigger: trigger.unwrap_or_else(|| RawTrigger::Table(Spanned { value: "?".to_owned(), span: 0..0 })),
        operations,
        changed,
        when: fields.text("when"),
        for_each: fields.text("for_each"),
        actions: read_actions(&mut fields),
        again_after: fields.duration("again_after", Duration::from_millis(1)..=AGAIN_MAX),
        name,
    };
    let sound_so_far = fields.problems().len() == before;
    fields.finish();
    if sound_so_far && problems.len() == before {
        check_whole(&rule, problems);
    }
    (problems.len() == before).then_some(rule)
}

/// Checks a rule whose fields are each valid.
fn check_whole(rule: &RawRule, problems: &mut Problems) {
    let name = &rule.name;
    if rule.actions.is_empty() {
        let message = format!("rule `{}` does nothing", name.value);
        let advice = "add `delete`, `bump`, `tags`, `pattern`, `set`, `publish` or `stream`";
        problems.push(name.span.clone(), message, advice);
    }
    let removes = |action: &RawAction| matches!(action, RawAction::Delete(_) | RawAction::Pattern(_));
    if rule.again_after.is_some() && !rule.actions.iter().any(removes) {
        let message = format!("rule `{}` has `again_after` and deletes nothing", name.value);
        problems.push(name.span.clone(), message, "remove `again_after`, or add `delete`");
    }
    let sets = rule.actions.iter().any(|action| matches!(action, RawAction::Set(_)));
    if let (Some(for_each), true) = (&rule.for_each, sets) {
        let message = "`set` writes the changed row, so it cannot be used with `for_each`";
        problems.push(for_each.span.clone(), message, "move `set` into a rule without `for_each`");
    }
}

/// Reads the actions, those that write values first: if a rule writes a key and deletes it, it
/// stays deleted.
fn read_actions(fields: &mut Fields<'_>) -> Vec<RawAction> {
    let mut kinds = ActionKind::ALL;
    kinds.sort_by_key(|kind| *kind != ActionKind::Set);
    let mut actions = Vec::new();
    for kind in kinds {
        let field = kind.field();
        match kind {
            ActionKind::Set => actions.extend(each(fields, field, read_set).into_iter().map(RawAction::Set)),
            ActionKind::Delete => actions.extend(fields.texts(field).into_iter().map(RawAction::Delete)),
            ActionKind::Pattern => actions.extend(fields.texts(field).into_iter().map(RawAction::Pattern)),
            ActionKind::Tag => actions.extend(fields.texts(field).into_iter().map(RawAction::Tag)),
            ActionKind::Bump => actions.extend(fields.texts(field).into_iter().map(RawAction::Bump)),
            ActionKind::Publish => {
                actions.extend(each(fields, field, read_publish).into_iter().map(RawAction::Publish));
            }
            ActionKind::Stream => actions.extend(each(fields, field, read_stream).into_iter().map(RawAction::Stream)),
        }
    }
    actions
}

fn read_trigger(name: &Spanned<String>, fields: &mut Fields<'_>) -> Option<RawTrigger> {
    let (has_table, has_event) = (fields.has_any(&["table"]), fields.has_any(&["event"]));
    let (table, event) = (fields.text("table"), fields.text("event"));
    match (table, event) {
        (Some(table), None) => Some(RawTrigger::Table(table)),
        (None, Some(event)) if event.value.is_empty() => {
            fields.problems().push(event.span, "`event` is empty", "expected a name such as `product.updated`");
            None
        }
        (None, Some(event)) => Some(RawTrigger::Event(event)),
        (Some(_), Some(event)) => {
            let message = format!("rule `{}` has both `table` and `event`", name.value);
            fields.problems().push(event.span, message, "split it into two rules");
            None
        }
        (None, None) => {
            if !has_table && !has_event {
                let message = format!("rule `{}` has no `table`", name.value);
                fields.problems().push(name.span.clone(), message, "add `table: NAME` or `event: NAME`");
            }
            None
        }
    }
}

/// Takes a field that is one mapping or a list of them.
fn each<T>(
    fields: &mut Fields<'_>,
    name: &'static str,
    read: impl Fn(Spanned<Node>, &mut Problems) -> Option<T>,
) -> Vec<T> {
    match fields.take(name) {
        None => Vec::new(),
        Some(Spanned { value: Node::List(items), .. }) => {
            items.into_iter().filter_map(|item| read(item, fields.problems())).collect()
        }
        Some(node) => read(node, fields.problems()).into_iter().collect(),
    }
}

fn read_set(node: Spanned<Node>, problems: &mut Problems) -> Option<RawSet> {
    let mut fields = Fields::of(node, "`set`", problems)?;
    let span = fields.span.clone();
    let key = fields.text("key");
    let columns = fields.texts("columns");
    let ttl = fields.duration("ttl", TTL_LEAST..=Duration::MAX);
    if key.is_none() || columns.is_empty() {
        fields.problems().push(
            span,
            "`set` needs `key` and `columns`",
            "expected `{key: NAME, columns: [A, B], ttl: 10m}`",
        );
    }
    fields.finish();
    Some(RawSet { key: key?, columns, ttl })
}

fn read_publish(node: Spanned<Node>, problems: &mut Problems) -> Option<RawPublish> {
    let mut fields = Fields::of(node, "`publish`", problems)?;
    let span = fields.span.clone();
    let channel = fields.text("channel");
    if channel.is_none() {
        fields.problems().push(span, "`publish` has no `channel`", "expected `{channel: NAME, data: {…}}`");
    }
    let data = fields.take("data").map_or_else(|| RawData::Object(Vec::new()), read_data);
    fields.finish();
    Some(RawPublish { channel: channel?, data })
}

fn read_stream(node: Spanned<Node>, problems: &mut Problems) -> Option<RawStream> {
    let mut fields = Fields::of(node, "`stream`", problems)?;
    let span = fields.span.clone();
    let name = fields.text("name");
    let maxlen = fields.count("maxlen");
    if name.is_none() {
        fields.problems().push(span, "`stream` has no `name`", "expected `{name: NAME, data: {…}, maxlen: 10000}`");
    }
    let data = fields.take("data").map_or_else(|| RawData::Object(Vec::new()), read_data);
    fields.finish();
    Some(RawStream { name: name?, data, maxlen })
}

fn read_data(node: Spanned<Node>) -> RawData {
    match node.value {
        Node::Null => RawData::Literal(serde_json::Value::Null),
        Node::Bool(value) => RawData::Literal(value.into()),
        Node::Number(number) => RawData::Literal(number.into()),
        Node::Text(value) => RawData::Template(Spanned { value, span: node.span }),
        Node::List(items) => RawData::List(items.into_iter().map(read_data).collect()),
        Node::Map(entries) => {
            RawData::Object(entries.into_iter().map(|(key, value)| (key.value, read_data(value))).collect())
        }
    }
}
