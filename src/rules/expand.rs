//! The ops of a rule with `for_each` for one row that its lookup returned.
//!
//! Owns how templates read both the change and the row. It must not ask the database. Invariant:
//! the ops depend on the call and on the row only.

use super::action::Action;
use super::effect::{bump, remove, remove_pattern, remove_tagged};
use super::message::{MessageTemplate, write_field};
use super::rule::Rule;
use super::rule_set::RuleSet;
use super::template::{Image, Rendered, Resolved, Template};
use crate::change::{Cell, Lsn};
use crate::config::Spanned;
use crate::limits::NAME_BYTES_MAX;
use crate::plan::{LookupCall, Plan, Publish};

impl RuleSet {
    /// Adds the ops of a call's rule for one returned row; version keys rise to `lsn`. A column
    /// that the row does not have is not known.
    pub fn expand<'a>(&self, call: &'a LookupCall, lsn: Lsn, row: &dyn Fn(&str) -> Option<&'a Cell>, plan: &mut Plan) {
        let Some(rule) = self.rule(call.rule) else { return };
        let mut reader = RowReader { call, row, next: 0 };
        for action in &rule.actions {
            let (name, is_widened) = reader.name(&action.name().value);
            if is_widened {
                plan.widen(rule.id);
            }
            match action {
                Action::Delete(_) => remove(rule, name, plan),
                Action::Pattern(_) => remove_pattern(rule, name, plan),
                Action::Tag(_) => remove_tagged(rule, name, plan),
                Action::Bump(_) => bump(rule, name, lsn, plan),
                Action::Publish { data, .. } => {
                    let data = reader.message(rule, data, plan);
                    if let Rendered::Key(channel) = name {
                        plan.publish(call.rule, Publish { channel, data });
                    }
                }
                // Compiling refuses these together with `for_each`.
                Action::Set { .. } | Action::Stream { .. } => {}
            }
        }
    }

    /// Removes everything that the rule of a call may ever have made: for a call without an answer.
    pub fn expand_all(&self, call: &LookupCall, plan: &mut Plan) {
        let Some(rule) = self.rule(call.rule) else { return };
        rule.remove_all(plan);
    }
}

/// Reads the references of a rule's templates in order, which is also the order of the call's
/// cells.
struct RowReader<'a, 'r> {
    call: &'a LookupCall,
    row: &'r dyn Fn(&str) -> Option<&'a Cell>,
    next: usize,
}

impl<'a> RowReader<'a, '_> {
    fn cells(&mut self, template: &Template) -> Vec<&'a Cell> {
        let references = template.references();
        let cells = references.map(|reference| {
            let cell = match reference.image {
                Image::Lookup => (self.row)(&reference.column),
                Image::Either | Image::Old | Image::New => self.call.cells.get(self.next),
            };
            self.next += 1;
            cell.unwrap_or(&Cell::Absent)
        });
        cells.collect()
    }

    /// A name, and whether something in it is too long.
    fn name(&mut self, template: &Template) -> (Rendered, bool) {
        let cells = self.cells(template);
        let name = template.render_within(NAME_BYTES_MAX, |at| resolve(&cells, at));
        let is_glob = matches!(name, Rendered::Glob(_));
        let is_widened = is_glob && template.is_above(NAME_BYTES_MAX, |at| resolve(&cells, at));
        (name, is_widened)
    }

    fn message(&mut self, rule: &Rule, data: &MessageTemplate<Spanned<Template>>, plan: &mut Plan) -> Vec<u8> {
        let mut message = Vec::with_capacity(64);
        data.write(&mut message, &mut |template, out| {
            let cells = self.cells(&template.value);
            if write_field(out, &template.value, |at| resolve(&cells, at)).is_err() {
                plan.widen(rule.id);
            }
        });
        message
    }
}

fn resolve<'a>(cells: &[&'a Cell], at: usize) -> Resolved<'a> {
    match cells.get(at) {
        Some(Cell::Value(value)) => Resolved::Value(value),
        Some(Cell::Null) => Resolved::Nothing,
        Some(Cell::Absent) | None => Resolved::Unknown,
    }
}
