//! What a rule that acts on a change adds to the plan.
//!
//! Owns how templates are rendered for both images, and what their names mean for each kind of
//! action. It must not decide whether the rule acts. Invariants: what is not known removes more,
//! never less; two equal changes add equal ops.

use super::action::Action;
use super::bind::{BoundAction, BoundColumn, BoundRule, BoundTemplate, ColumnSource, images};
use super::effect::{bump, remove, remove_pattern, remove_tagged};
use super::message::{MessageTemplate, write_field};
use super::rule::Rule;
use super::template::{Image, Rendered, Resolved};
use crate::change::{Cell, Change, Commit, Operation, json};
use crate::limits::{DEAD_LETTER_VALUE_BYTES_MAX, NAME_BYTES_MAX, SET_BYTES_MAX, VALUE_BYTES_MAX};
use crate::plan::{CallOrigin, DeadLetter, LookupCall, Plan, Publish, SetValue, StreamAppend};

/// Adds what a rule that acts does.
pub(super) fn act(bound: &BoundRule, rule: &Rule, change: &Change, commit: &Commit, plan: &mut Plan) {
    if change.operation == Operation::Truncate {
        return act_on_truncate(bound, rule, plan);
    }
    let is_void = rule.for_each.as_ref().is_some_and(|for_each| for_each.is_void_on_delete);
    if is_void && change.operation == Operation::Delete {
        return rule.remove_all(plan);
    }
    if let Some(arguments) = &bound.arguments {
        return call(bound, rule, arguments, change, commit, plan);
    }
    for action in &bound.actions {
        for image in action.name().images(change) {
            let name = action.name().render(change, image, NAME_BYTES_MAX);
            let is_glob = matches!(name, Rendered::Glob(_));
            let is_widened = is_glob && action.name().is_widened(change, image, NAME_BYTES_MAX);
            if is_widened {
                plan.widen(rule.id);
            }
            match action {
                Action::Set { .. } => set(action, rule, (image, name), change, commit, plan),
                Action::Delete(_) => remove(rule, name, plan),
                Action::Pattern(_) => remove_pattern(rule, name, plan),
                Action::Tag(_) => remove_tagged(rule, name, plan),
                Action::Bump(_) => bump(rule, name, commit.lsn, plan),
                Action::Publish { .. } | Action::Stream { .. } if is_widened => {
                    let reason =
                        format!("the name of its channel or stream is not known, or above {NAME_BYTES_MAX} bytes");
                    plan.dead_letter(DeadLetter { rule: rule.id, reason, change: line(bound, change, commit) });
                }
                Action::Publish { .. } | Action::Stream { .. } => {
                    send(action, rule, name, &mut |source| source.resolve(change, image), plan);
                }
            }
        }
    }
}

/// Writes the new row's value, and removes what the old row's name held.
fn set(
    action: &BoundAction,
    rule: &Rule,
    (image, name): (Image, Rendered),
    change: &Change,
    commit: &Commit,
    plan: &mut Plan,
) {
    let Action::Set { key, columns, ttl } = action else { return };
    match (image, name) {
        (Image::New, Rendered::Key(key)) => match body(columns, change) {
            Body::Known(body) => plan.set(rule.id, SetValue { key, body, ttl: *ttl, lsn: commit.lsn }),
            Body::Unknown => plan.delete(rule.id, key),
            Body::TooLong => {
                plan.widen(rule.id);
                plan.delete(rule.id, key);
            }
        },
        // Two values may give one key, as two spellings under `lower` do.
        (Image::Old, old) if change.new.is_some() && old == key.render(change, Image::New, NAME_BYTES_MAX) => {}
        (_, name) => remove(rule, name, plan),
    }
}

/// Sends a message if the name of its channel or stream is known. `check` refuses rules whose
/// names may be unknown.
fn send<'a>(
    action: &BoundAction,
    rule: &Rule,
    name: Rendered,
    resolve: &mut impl FnMut(ColumnSource) -> Resolved<'a>,
    plan: &mut Plan,
) {
    let Rendered::Key(name) = name else { return };
    match action {
        Action::Publish { data, .. } => {
            let data = message(data, rule, resolve, plan);
            plan.publish(rule.id, Publish { channel: name, data });
        }
        Action::Stream { data, maxlen, .. } => {
            let data = message(data, rule, resolve, plan);
            plan.stream(rule.id, StreamAppend { stream: name, data, maxlen: *maxlen });
        }
        Action::Set { .. } | Action::Delete(_) | Action::Pattern(_) | Action::Tag(_) | Action::Bump(_) => {}
    }
}

/// Removes everything that the rule may ever have made of a row: all rows are gone.
fn act_on_truncate(bound: &BoundRule, rule: &Rule, plan: &mut Plan) {
    rule.remove_all(plan);
    if bound.arguments.is_some() {
        return;
    }
    // A channel or stream whose name has columns is not known without a row.
    for action in bound.actions.iter().filter(|action| action.name().sources.is_empty()) {
        let name = action.name().template.render(|_| Resolved::Unknown);
        send(action, rule, name, &mut |_| Resolved::Unknown, plan);
    }
}

/// Calls the lookup of a rule, for both images where they differ.
fn call(
    bound: &BoundRule,
    rule: &Rule,
    arguments: &[BoundTemplate],
    change: &Change,
    commit: &Commit,
    plan: &mut Plan,
) {
    let sources: Vec<_> =
        arguments.iter().flat_map(|argument| &argument.sources).chain(&bound.naming).copied().collect();
    'image: for image in images(&sources, change) {
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            match argument.render(change, image, VALUE_BYTES_MAX) {
                Rendered::Key(value) => values.push(value.as_bytes().to_vec()),
                Rendered::Nothing => continue 'image,
                Rendered::Glob(_) => {
                    // An argument is not known.
                    if argument.is_widened(change, image, VALUE_BYTES_MAX) {
                        plan.widen(rule.id);
                    }
                    rule.remove_all(plan);
                    continue 'image;
                }
            }
        }
        let cells = bound.references.iter().map(|source| source.cell(change, image)).collect();
        let origin = CallOrigin { lsn: commit.lsn, change: line(bound, change, commit) };
        plan.call(LookupCall { rule: rule.id, arguments: values, cells }, origin);
    }
}

/// The change as a line of a recording, with the columns that the rule reads: all that it takes to
/// plan it again. Long values are left out.
pub(super) fn line(bound: &BoundRule, change: &Change, commit: &Commit) -> String {
    let is_kept = |at, cell: &Cell| {
        bound.uses(at) && !matches!(cell, Cell::Value(value) if value.len() > DEAD_LETTER_VALUE_BYTES_MAX)
    };
    let line = change
        .to_line(commit, None, |relation, at, cell, out| is_kept(at, cell) && json::plainly(relation, at, cell, out));
    String::from_utf8_lossy(&line).into_owned()
}

/// The JSON object that a rule with `set` writes.
enum Body {
    Known(Vec<u8>),
    /// The value of some column is not known.
    Unknown,
    /// It takes more than [`SET_BYTES_MAX`].
    TooLong,
}

/// The columns of the new row as a JSON object.
fn body(columns: &[BoundColumn], change: &Change) -> Body {
    let Some(row) = &change.new else { return Body::Unknown };
    let cell = |column: &BoundColumn| column.position.map_or(&Cell::Absent, |at| row.cell(at));
    if columns.iter().any(|column| *cell(column) == Cell::Absent) {
        return Body::Unknown;
    }
    let mut body = vec![b'{'];
    for (at, column) in columns.iter().enumerate() {
        let cell = cell(column);
        if at > 0 {
            body.push(b',');
        }
        json::write_text(&column.name, &mut body);
        body.push(b':');
        let length = if let Cell::Value(value) = cell { value.len() } else { 0 };
        if body.len() + length > SET_BYTES_MAX {
            return Body::TooLong;
        }
        json::write_value(cell, column.kind, &mut body);
    }
    body.push(b'}');
    if body.len() > SET_BYTES_MAX { Body::TooLong } else { Body::Known(body) }
}

fn message<'a>(
    data: &MessageTemplate<BoundTemplate>,
    rule: &Rule,
    resolve: &mut impl FnMut(ColumnSource) -> Resolved<'a>,
    plan: &mut Plan,
) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    data.write(&mut message, &mut |field, out| {
        if write_field(out, &field.template, |at| resolve(field.source(at))).is_err() {
            plan.widen(rule.id);
        }
    });
    message
}
