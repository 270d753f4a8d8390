//! From changes to plans, by the rules of one set.
//!
//! Owns the rules bound to each table. It must not know where changes come from or what becomes of
//! the ops. Invariants: what is not known removes more, never less; two equal changes give equal
//! ops.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::act::{act, line};
use super::bind::BoundRules;
use super::decide::{Decision, PlanError, decide};
use super::rule_set::RuleSet;
use crate::change::{Change, Commit, Relation, RelationId, TableName};
use crate::limits::BOUND_TABLES_MAX;
use crate::plan::{DeadLetter, Plan};

/// Plans changes by the rules of a set. It keeps the rules of each table bound to its columns.
#[derive(Debug)]
pub struct Planner {
    rules: Arc<RuleSet>,
    bound: HashMap<RelationId, BoundRules>,
}

impl Planner {
    /// Creates a planner for these rules.
    pub fn new(rules: Arc<RuleSet>) -> Self {
        Self { rules, bound: HashMap::new() }
    }

    /// The rules that it plans by.
    pub fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Whether any rule names this table.
    pub fn has_rules_for(&self, table: &TableName) -> bool {
        !self.rules.of_table(table).is_empty()
    }

    /// The columns that rules read and the table does not have, as `rule: column`: they were
    /// renamed or dropped since the start.
    pub fn missing(&self, relation: &Relation) -> Vec<String> {
        let exists = |name: &str| relation.columns.iter().any(|column| column.name == name);
        let mut missing = Vec::new();
        for (_, rule) in self.rules.of_tables(std::iter::once(&relation.name).chain(&relation.also)) {
            for column in rule.columns().into_iter().filter(|column| !exists(column)) {
                missing.push(format!("{}: {column}", rule.name));
            }
        }
        missing
    }

    /// Adds the ops of one change to a plan.
    pub fn plan(&mut self, change: &Change, commit: &Commit, plan: &mut Plan) -> Result<(), PlanError> {
        let (rules, bound) = self.bind(change);
        for (bound, rule) in bound.with_definitions(rules) {
            match decide(bound, rule, change, commit, rules)? {
                Decision::Fires | Decision::FiresUnknown => {}
                Decision::FiresFailed(reason) => {
                    plan.dead_letter(DeadLetter { rule: rule.id, reason, change: line(bound, change, commit) });
                }
                Decision::OtherOperation
                | Decision::Unchanged
                | Decision::ConditionFalse
                | Decision::TruncateIgnored => continue,
            }
            act(bound, rule, change, commit, plan);
        }
        Ok(())
    }

    /// Adds the ops of one rule alone, without asking whether it acts.
    pub fn plan_only(&mut self, only: &str, change: &Change, commit: &Commit, plan: &mut Plan) {
        let (rules, bound) = self.bind(change);
        for (bound, rule) in bound.with_definitions(rules).filter(|(_, rule)| rule.name == only) {
            act(bound, rule, change, commit, plan);
        }
    }

    /// Adds the ops of every rule of the row's table, whatever the rules' operations and filters
    /// are: it is not known how the row came to be.
    pub fn plan_row_by_every_rule(&mut self, change: &Change, commit: &Commit, plan: &mut Plan) {
        let (rules, bound) = self.bind(change);
        for (bound, rule) in bound.with_definitions(rules) {
            act(bound, rule, change, commit, plan);
        }
    }

    /// Instead of the ops of a change, removes everything that they could touch: for a transaction
    /// that is too large to name each key.
    pub fn collapse(&mut self, change: &Change, plan: &mut Plan) {
        let (rules, bound) = self.bind(change);
        for (_, rule) in bound.with_definitions(rules).filter(|(_, rule)| rule.triggers_on(change.operation)) {
            rule.remove_all(plan);
        }
    }

    /// Removes everything that the rules of the change's table may ever have made: it is not known
    /// what happened to the table.
    pub fn resync(&mut self, change: &Change, plan: &mut Plan) {
        let (rules, bound) = self.bind(change);
        for (_, rule) in bound.with_definitions(rules) {
            rule.remove_all(plan);
        }
    }

    /// The rules of the change's table, bound to the table as the change describes it.
    fn bind(&mut self, change: &Change) -> (&RuleSet, &BoundRules) {
        if self.bound.len() >= BOUND_TABLES_MAX {
            self.bound.clear();
        }
        let bind = || BoundRules::new(&self.rules, &change.relation, change.operation);
        let bound = match self.bound.entry(change.relation.id) {
            Entry::Occupied(entry) => {
                let bound = entry.into_mut();
                if !Arc::ptr_eq(&bound.relation, &change.relation) {
                    *bound = bind();
                }
                bound
            }
            Entry::Vacant(entry) => entry.insert(bind()),
        };
        (&self.rules, bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Cell, Column, ColumnKind, Operation, Row};
    use crate::config::Document;
    use proptest::prelude::*;

    fn planner(rules: &str) -> Planner {
        let document = Document::parse(&format!("version: 1\nrules:\n{rules}"), &|_| None).unwrap();
        Planner::new(Arc::new(RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap()))
    }

    fn relation(table: &str) -> Arc<Relation> {
        let column = |name: &str| Column { name: name.into(), kind: ColumnKind::Text, in_identity: true };
        let columns = vec![column("id"), column("a")];
        Arc::new(Relation { id: RelationId::new(1), name: TableName::new("public", table), also: Vec::new(), columns })
    }

    fn change(table: &str, old: Option<[Cell; 2]>, new: Option<[Cell; 2]>) -> Change {
        let operation = match (&old, &new) {
            (None, _) => Operation::Insert,
            (_, None) => Operation::Delete,
            _ => Operation::Update,
        };
        let row = |cells: [Cell; 2]| Row::new(cells.into());
        Change { relation: relation(table), operation, old: old.map(row), new: new.map(row) }
    }

    #[test]
    fn a_change_costs_no_more_than_the_rules_of_its_own_table() {
        let rules: String =
            (0..1000).map(|n| format!("  r{n}: {{table: t{}, delete: 'k{n}:{{id}}'}}\n", n % 100)).collect();
        let mut planner = planner(&rules);
        let mut plan = Plan::default();
        planner.plan(&change("t7", None, Some([Cell::of("1"), Cell::Null])), &Commit::default(), &mut plan).unwrap();
        assert_eq!(plan.len(), 10);
        assert_eq!(planner.bound[&RelationId::new(1)].rules.len(), 10, "the rules that a change is held against");
    }

    #[test]
    fn a_table_described_again_is_bound_again() {
        let mut planner = planner("  r: {table: t, delete: 'k:{a}'}\n");
        let mut plan = Plan::default();
        planner.plan(&change("t", None, Some([Cell::of("1"), Cell::of("2")])), &Commit::default(), &mut plan).unwrap();
        let mut swapped = change("t", None, Some([Cell::of("1"), Cell::of("2")]));
        let mut relation = (*swapped.relation).clone();
        relation.columns.reverse();
        swapped.relation = Arc::new(relation);
        planner.plan(&swapped, &Commit::default(), &mut plan).unwrap();
        let keys: Vec<_> = plan.deletes().map(ToString::to_string).collect();
        assert_eq!(keys, ["k:2", "k:1"]);
    }

    fn any_cell() -> impl Strategy<Value = Cell> {
        prop_oneof![
            Just(Cell::Null),
            Just(Cell::Absent),
            proptest::collection::vec(any::<u8>(), 0..6).prop_map(|bytes| Cell::Value(bytes.into())),
        ]
    }

    proptest! {
        /// Whatever a fuller image would delete by name, a poorer one deletes by name or by glob.
        #[test]
        fn knowing_less_deletes_no_less(old in [any_cell(), any_cell()], new in [any_cell(), any_cell()], hide in 0..4_usize) {
            let rules = "  r: {table: t, changed: [a], delete: ['k:{id}:{a|lower}', 'o:{old.a}', 'n:{new.a}:{id}']}\n";
            let mut planner = planner(rules);
            let (mut full, mut poor) = (Plan::default(), Plan::default());
            planner.plan(&change("t", Some(old.clone()), Some(new.clone())), &Commit::default(), &mut full).unwrap();
            let (mut less_old, mut less_new) = (old, new);
            let row = if hide < 2 { &mut less_old } else { &mut less_new };
            row[hide % 2] = Cell::Absent;
            planner.plan(&change("t", Some(less_old), Some(less_new)), &Commit::default(), &mut poor).unwrap();
            for key in full.deletes() {
                let by_name = poor.deletes().any(|other| other == key);
                let by_glob = poor.patterns().any(|glob| matches_glob(glob.as_bytes(), key.as_bytes()));
                prop_assert!(by_name || by_glob, "{key} is not covered by {:?}", poor);
            }
        }
    }

    /// Redis's own matching, as far as our globs use it.
    fn matches_glob(glob: &[u8], key: &[u8]) -> bool {
        match (glob, key) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=key.len()).any(|skip| matches_glob(rest, &key[skip..])),
            ([b'\\', literal, rest @ ..], [byte, key @ ..]) => literal == byte && matches_glob(rest, key),
            ([literal, rest @ ..], [byte, key @ ..]) => literal == byte && matches_glob(rest, key),
            _ => false,
        }
    }
}
