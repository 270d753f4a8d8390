//! Which rules, actions and filters no test touches.
//!
//! Owns what counts as touched. It must not run tests. Invariant: the planner's own functions
//! decide, rule by rule, so that two rules that name the same key are told apart.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::case::{COMMIT, Case};
use super::glob::{covers, literal_tokens, tokens};
use super::runner::answer;
use crate::change::Operation;
use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::{json_line, printable};
use crate::plan::{ActionKind, Op, Plan, RuleId};
use crate::rules::{Decision, Rendered, Rule, RuleSet, Template, Verdict, trace};

/// What a test can touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum CoverageItem {
    /// The rule.
    Rule(RuleId),
    /// The rule's action at this position.
    Action(RuleId, usize),
    /// The rule's `changed`, and its result.
    Changed(RuleId, bool),
    /// The rule's `when`, and its result.
    When(RuleId, bool),
}

/// What was touched so far.
#[derive(Debug)]
pub(super) struct Coverage<'a> {
    rules: &'a RuleSet,
    touched: BTreeSet<CoverageItem>,
}

impl<'a> Coverage<'a> {
    pub(super) fn of(rules: &'a RuleSet) -> Self {
        Self { rules, touched: BTreeSet::new() }
    }

    /// Counts what a test touches.
    pub(super) fn add(&mut self, case: &Case<'_>) {
        for mut verdict in trace(self.rules, &case.full, &COMMIT) {
            let Some(rule) = self.rules.rule(verdict.rule) else { continue };
            self.filters(rule, &verdict, case.full.operation);
            if !verdict.acts() {
                continue;
            }
            self.touched.insert(CoverageItem::Rule(rule.id));
            answer(self.rules, &case.answers, &mut verdict.plan);
            for (at, (kind, template)) in rule.actions().enumerate() {
                if is_touched(&verdict, at, kind, &template.value) {
                    self.touched.insert(CoverageItem::Action(rule.id, at));
                }
            }
        }
    }

    fn filters(&mut self, rule: &Rule, verdict: &Verdict, operation: Operation) {
        let Ok(decision) = &verdict.decision else { return };
        let unchanged = *decision == Decision::Unchanged;
        if *decision == Decision::OtherOperation {
            return;
        }
        if operation == Operation::Update && !rule.changed.is_empty() {
            self.touched.insert(CoverageItem::Changed(rule.id, !unchanged));
        }
        // A truncate has no row to evaluate it with.
        if rule.condition.is_some() && !unchanged && operation != Operation::Truncate {
            self.touched.insert(CoverageItem::When(rule.id, *decision != Decision::ConditionFalse));
        }
    }

    /// What is not touched, in the order of the file. If a rule is not touched, its parts are not
    /// listed.
    fn gaps(&self) -> Vec<CoverageItem> {
        let mut gaps = Vec::new();
        for rule in self.rules.rules() {
            if !self.touched.contains(&CoverageItem::Rule(rule.id)) {
                gaps.push(CoverageItem::Rule(rule.id));
                continue;
            }
            let mut parts: Vec<_> =
                rule.actions().enumerate().map(|(at, _)| CoverageItem::Action(rule.id, at)).collect();
            if !rule.changed.is_empty() && rule.triggers_on(Operation::Update) {
                parts.extend([true, false].map(|result| CoverageItem::Changed(rule.id, result)));
            }
            if rule.condition.is_some() {
                parts.extend([true, false].map(|result| CoverageItem::When(rule.id, result)));
            }
            gaps.extend(parts.into_iter().filter(|part| !self.touched.contains(part)));
        }
        gaps
    }

    /// Whether everything is touched.
    pub(super) fn is_complete(&self) -> bool {
        self.gaps().is_empty()
    }

    /// A line for each gap, and a summary.
    pub(super) fn text(&self, file: &ConfigFile) -> String {
        let (rules, actions) = (self.rules.rules().len(), self.rules.rules().iter().flat_map(Rule::actions).count());
        let count = |is: fn(&CoverageItem) -> bool| self.touched.iter().filter(|part| is(part)).count();
        let touched_rules = count(|part| matches!(part, CoverageItem::Rule(_)));
        let touched_actions = count(|part| matches!(part, CoverageItem::Action(..)));
        let mut text = format!("coverage: {touched_rules} of {rules} rules, {touched_actions} of {actions} actions\n");
        for gap in self.gaps() {
            let Some((rule, at, what)) = self.describe(gap, file) else { continue };
            let rule = printable(rule.name.as_bytes());
            text.push_str(&format!("  {}  rule `{rule}`: {what}\n", file.place(at)));
        }
        text
    }

    /// An object a line for each gap.
    pub(super) fn json(&self, file: &ConfigFile) -> String {
        let objects = self.gaps().into_iter().filter_map(|gap| {
            let (rule, at, _) = self.describe(gap, file)?;
            let mut object = Map::new();
            object.insert("rule".to_owned(), rule.name.clone().into());
            file.insert_place(at, &mut object);
            match gap {
                CoverageItem::Rule(_) => {}
                CoverageItem::Action(_, at) => {
                    let (kind, template) = rule.actions().nth(at)?;
                    object.insert("action".to_owned(), kind.field().into());
                    object.insert("template".to_owned(), file.text.get(template.span.clone()).into());
                }
                CoverageItem::Changed(_, never) => {
                    object.insert("changed_never".to_owned(), never.into());
                }
                CoverageItem::When(_, never) => {
                    object.insert("when_never".to_owned(), never.into());
                }
            }
            Some(json_line(json!({"uncovered": Value::Object(object)})))
        });
        objects.collect()
    }

    /// The rule of a gap, the offset of its place in the file, and the gap in words.
    fn describe(&self, gap: CoverageItem, file: &ConfigFile) -> Option<(&'a Rule, usize, String)> {
        let (CoverageItem::Rule(id)
        | CoverageItem::Action(id, _)
        | CoverageItem::Changed(id, _)
        | CoverageItem::When(id, _)) = gap;
        let rule = self.rules.rule(id)?;
        Some(match gap {
            CoverageItem::Rule(_) => (rule, rule.span.start, "no test makes it act".to_owned()),
            CoverageItem::Action(_, at) => {
                let (kind, template) = rule.actions().nth(at)?;
                let field = kind.field();
                let written = file.excerpt(&template.span);
                (rule, template.span.start, format!("no test makes an op with `{field}: {written}`"))
            }
            CoverageItem::Changed(_, result) => {
                let at = rule.changed.first().map_or(rule.span.start, |column| column.span.start);
                (rule, at, format!("`changed` is never {result} in a test"))
            }
            CoverageItem::When(_, result) => {
                let at = rule.condition.as_ref().map_or(rule.span.start, |condition| condition.span.start);
                (rule, at, format!("`when` is never {result} in a test"))
            }
        })
    }
}

/// Whether an action made an op.
fn is_touched(verdict: &Verdict, at: usize, kind: ActionKind, template: &Template) -> bool {
    match verdict.named.get(at) {
        Some(named) => named.made.iter().any(|made| made.name != Rendered::Nothing),
        // Ops of looked-up rows are only in the plan.
        None => is_in(&verdict.plan, kind, template),
    }
}

/// Whether a plan has an op that an action of this kind and template may have made.
fn is_in(plan: &Plan, kind: ActionKind, template: &Template) -> bool {
    let wide = tokens(template.glob().as_bytes());
    plan.ops().any(|(_, op)| {
        let (is_glob, is_of_kind) = match op {
            // A key with a value that is not known becomes a pattern.
            Op::Pattern(_) => (true, kind.touches_keys() && kind != ActionKind::Tag),
            Op::Tags(_) => (true, kind == ActionKind::Tag),
            Op::Delete(_) | Op::Set(_) | Op::Tag(_) | Op::Bump(..) | Op::Publish(_) | Op::Stream(_) => {
                (false, op.kind() == kind)
            }
        };
        let name = match is_glob {
            true => tokens(op.name()),
            false => literal_tokens(op.name()),
        };
        is_of_kind && covers(&wide, &name)
    })
}
