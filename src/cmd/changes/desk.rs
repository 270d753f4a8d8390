//! One rule set at work: changes in, plans out, lookups asked on the way.
//!
//! Owns when the database is asked, and what takes the place of an answer. It must not know sources. Invariant: nothing
//! is connected to before a lookup has to be asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::printable;
use super::source::{Item, Way};
use crate::change::{Operation, TableName};
use crate::cmd::Failure;
use crate::lookups::Runner;
use crate::plan::Plan;
use crate::postgres::{self, Address};
use crate::rules::{Planner, RuleSet, Trigger};

/// How lookups are answered.
pub(in crate::cmd) enum Lookups {
    /// Not at all.
    Off,
    /// By this database, once there is one to ask.
    Unasked {
        address: Box<Address>,
        /// A database that is away is a failure.
        required: bool,
    },
    /// By this connection.
    Asked(Box<Runner>),
    /// Not at all, which was said.
    Given,
}

/// One rule set at work.
pub(in crate::cmd) struct Desk {
    planner: Planner,
    lookups: Lookups,
}

impl Desk {
    /// Plans by these rules.
    pub(super) fn new(rules: Arc<RuleSet>, lookups: Lookups) -> Self {
        Self { planner: Planner::new(rules), lookups }
    }

    /// Whether any rule names this table.
    pub(super) fn has_rules_for(&self, table: &TableName) -> bool {
        self.planner.has_rules_for(table)
    }

    /// Whether any rule is about the change; for a dead letter, whether its rule is still there.
    pub(super) fn knows(&self, item: &Item) -> bool {
        let name = &item.change.relation.name;
        let mut rules = self.planner.rules().rules().iter();
        match &item.way {
            Way::Only(letter) => rules.any(|rule| rule.name == letter.rule),
            _ if item.change.operation == Operation::Event => {
                rules.any(|rule| rule.trigger == Trigger::Event && rule.table.value.table == name.table)
            }
            _ => self.has_rules_for(name),
        }
    }

    /// Adds what a change asks for.
    pub(super) fn plan(&mut self, item: &Item, plan: &mut Plan) -> Result<(), Failure> {
        match &item.way {
            Way::AsItCame => {
                let planned = self.planner.plan(&item.change, &item.commit, plan);
                planned.map_err(|error| Failure::findings(printable(&error.to_string())))?;
            }
            Way::Whatever => self.planner.plan_row_whatever(&item.change, &item.commit, plan),
            Way::Resync => self.planner.resync(&item.change, plan),
            Way::Only(letter) => self.planner.plan_only(&letter.rule, &item.change, &item.commit, plan),
        }
        Ok(())
    }

    /// Asks what the plan has to know, or does without.
    pub(super) async fn resolve(&mut self, plan: &mut Plan) -> Result<(), Failure> {
        const EVERYTHING: &str = "everything that their rules could delete takes the place of the answers";
        if plan.calls().len() == 0 {
            return Ok(());
        }
        match &self.lookups {
            Lookups::Off => {
                eprintln!("note: lookups are not asked: {EVERYTHING}");
                self.lookups = Lookups::Given;
            }
            Lookups::Unasked { address, required } => match postgres::connect(address).await {
                Ok(client) => self.lookups = Lookups::Asked(Box::new(Runner::new(client))),
                Err(error) if *required => return Err(error.into()),
                Err(error) => {
                    eprintln!("note: lookups are not asked, {}: {EVERYTHING}", printable(&error.to_string()));
                    self.lookups = Lookups::Given;
                }
            },
            Lookups::Asked(_) | Lookups::Given => {}
        }
        if let Lookups::Asked(runner) = &mut self.lookups {
            runner.resolve(self.planner.rules(), plan).await;
            return Ok(());
        }
        for (call, _) in plan.take_calls() {
            self.planner.rules().expand_all(&call, plan);
        }
        Ok(())
    }
}

/// Changes that no rule is about.
#[derive(Default)]
pub(super) struct Strangers {
    tables: BTreeMap<String, u64>,
    /// Dead letters, by a rule that is gone.
    rules: BTreeMap<String, u64>,
    /// Those of more names than are kept.
    more: u64,
}

impl Strangers {
    /// How many names are kept.
    const NAMES_MAX: usize = 100;

    /// Takes note of a change, unless it is known.
    pub(super) fn count(&mut self, item: &Item, known: bool) {
        if known {
            return;
        }
        let (names, name) = match &item.way {
            Way::Only(letter) => (&mut self.rules, letter.rule.clone()),
            _ => (&mut self.tables, item.change.relation.name.to_string()),
        };
        match names.len() < Self::NAMES_MAX || names.contains_key(&name) {
            true => *names.entry(name).or_default() += 1,
            false => self.more += 1,
        }
    }

    /// What there is to say of them.
    pub(super) fn note(&self) -> Option<String> {
        let listed = |names: &BTreeMap<String, u64>| {
            let each: Vec<_> = names.iter().map(|(name, count)| format!("{} ({count})", printable(name))).collect();
            each.join(", ")
        };
        let mut lines = Vec::new();
        let count = self.tables.values().sum::<u64>();
        if count > 0 {
            let s = if count == 1 { "" } else { "s" };
            lines.push(format!("note: {count} change{s} of tables without a rule: {}", listed(&self.tables)));
        }
        let count = self.rules.values().sum::<u64>();
        if count > 0 {
            let s = if count == 1 { "" } else { "s" };
            lines.push(format!(
                "note: {count} dead letter{s} of rules that are gone, left alone: {}",
                listed(&self.rules)
            ));
        }
        if self.more > 0 {
            lines.push(format!("note: {} more, of other names", self.more));
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Commit;
    use crate::source::recording::Recording;

    fn item(table: &str, way: Way) -> Item {
        let line = format!("{{\"table\":\"{table}\",\"op\":\"truncate\"}}");
        let change = Recording::new(line.as_bytes()).next().unwrap().unwrap().change;
        Item { change, commit: Commit::default(), continues: false, way }
    }

    #[test]
    fn strangers_are_listed_by_table() {
        let mut strangers = Strangers::default();
        assert_eq!(strangers.note(), None);
        strangers.count(&item("users", Way::AsItCame), true);
        assert_eq!(strangers.note(), None);
        for table in ["b\\u001b", "a", "a"] {
            strangers.count(&item(table, Way::AsItCame), false);
        }
        assert_eq!(strangers.note().unwrap(), r"note: 3 changes of tables without a rule: a (2), b\u{1b} (1)");
        for n in 0..200 {
            strangers.count(&item(&format!("t{n}"), Way::AsItCame), false);
        }
        assert!(strangers.note().unwrap().ends_with("note: 102 more, of other names"), "{:?}", strangers.note());
    }
}
