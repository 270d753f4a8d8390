//! From a row that a lookup returned to ops.
//!
//! Owns what the actions of a rule with `for_each` make of one row. It must not ask the database. Invariant: what is
//! asked for is what the rule's templates say of the change that asked and of the row, both as they were handed in.

use super::compile::RuleSet;
use super::message::{Message, write_field};
use super::planner::as_glob;
use super::rule::Action;
use super::template::{Image, Rendered, Resolved, Template};
use crate::change::{Cell, Lsn};
use crate::config::Spanned;
use crate::plan::{LookupCall, Plan, Publish, Removal};

impl RuleSet {
    /// Adds the ops that a call's rule asks for one returned row; bumps rise to `lsn`. A column that the row does not
    /// have is not known.
    pub fn expand<'a>(&self, call: &'a LookupCall, lsn: Lsn, row: &dyn Fn(&str) -> Option<&'a Cell>, plan: &mut Plan) {
        let Some(rule) = self.rule(call.rule) else { return };
        let mut reader = Reader { call, row, next: 0 };
        for action in &rule.actions {
            let name = reader.name(&action.name().value);
            match action {
                Action::Delete(_) => {
                    let removal = match name {
                        Rendered::Key(key) => Removal::Key(key),
                        Rendered::Glob(glob) => Removal::Keys(glob),
                        Rendered::Nothing => continue,
                    };
                    if let Some(after) = rule.again_after {
                        plan.repeat(call.rule, after, removal.clone());
                    }
                    plan.remove(call.rule, removal);
                }
                Action::Pattern(_) => {
                    if let Some(glob) = as_glob(name) {
                        if let Some(after) = rule.again_after {
                            plan.repeat(call.rule, after, Removal::Keys(glob.clone()));
                        }
                        plan.pattern(call.rule, glob);
                    }
                }
                Action::Tag(_) => match name {
                    Rendered::Key(tag) => plan.tag(call.rule, tag),
                    Rendered::Glob(glob) => plan.tags(call.rule, glob),
                    Rendered::Nothing => {}
                },
                Action::Bump(_) => match name {
                    Rendered::Key(key) => plan.bump(call.rule, key, lsn),
                    Rendered::Glob(glob) => plan.pattern(call.rule, glob),
                    Rendered::Nothing => {}
                },
                Action::Publish { data, .. } => {
                    let data = reader.message(data);
                    if let Rendered::Key(channel) = name {
                        plan.publish(call.rule, Publish { channel, data });
                    }
                }
                // The file may not ask for these together with `for_each`.
                Action::Set { .. } | Action::Stream { .. } => {}
            }
        }
    }

    /// Adds everything that the rule of a call may ever have made: when the rows are not to be had.
    pub fn expand_all(&self, call: &LookupCall, plan: &mut Plan) {
        let Some(rule) = self.rule(call.rule) else { return };
        rule.remove_all(plan);
    }
}

/// Reads the references of a rule's templates in their order, which is that of the call's cells.
struct Reader<'a, 'r> {
    call: &'a LookupCall,
    row: &'r dyn Fn(&str) -> Option<&'a Cell>,
    next: usize,
}

impl<'a> Reader<'a, '_> {
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

    fn name(&mut self, template: &Template) -> Rendered {
        let cells = self.cells(template);
        template.render(|at| resolve(&cells, at))
    }

    fn message(&mut self, data: &Message<Spanned<Template>>) -> Vec<u8> {
        let mut message = Vec::with_capacity(64);
        data.write(&mut message, &mut |template, out| {
            let cells = self.cells(&template.value);
            write_field(out, &template.value, |at| resolve(&cells, at));
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
