//! Plans of changes by one rule set, with lookups resolved.
//!
//! Owns when the database is asked for a lookup, and what replaces an answer. It must not know
//! sources. Invariant: no connection is opened before a lookup has to be asked.

use std::sync::Arc;

use super::source::{InputChange, Planning};
use crate::change::{Operation, TableName};
use crate::cmd::display::printable;
use crate::cmd::failure::{Failure, with_causes};
use crate::lookups::LookupRunner;
use crate::plan::Plan;
use crate::postgres::{self, Address};
use crate::rules::{Planner, RuleSet, Trigger};

/// How lookups are answered.
pub(in crate::cmd) enum Lookups {
    /// They are not asked.
    Off,
    /// The database answers them. No connection is open yet.
    Unconnected {
        address: Box<Address>,
        /// A database that is not available is a failure.
        required: bool,
    },
    /// This connection answers them.
    Connected(Box<LookupRunner>),
    /// They are not asked, and a note said so.
    Noted,
}

/// Plans changes by one rule set and resolves their lookups.
pub(in crate::cmd) struct Resolver {
    planner: Planner,
    lookups: Lookups,
}

impl Resolver {
    pub(super) fn new(rules: Arc<RuleSet>, lookups: Lookups) -> Self {
        Self { planner: Planner::new(rules), lookups }
    }

    /// Whether any rule names this table.
    pub(super) fn has_rules_for(&self, table: &TableName) -> bool {
        self.planner.has_rules_for(table)
    }

    /// Whether any rule matches the change; for a dead letter, whether its rule still exists.
    pub(super) fn matches(&self, input: &InputChange) -> bool {
        let name = &input.change.relation.name;
        let mut rules = self.planner.rules().rules().iter();
        match &input.planning {
            Planning::OneRule(entry) => rules.any(|rule| rule.name == entry.rule),
            _ if input.change.operation == Operation::Event => {
                rules.any(|rule| rule.trigger == Trigger::Event && rule.table.value.table == name.table)
            }
            _ => self.has_rules_for(name),
        }
    }

    /// Adds the ops of a change to a plan.
    pub(super) fn plan(&mut self, input: &InputChange, plan: &mut Plan) -> Result<(), Failure> {
        match &input.planning {
            Planning::AsDaemon => {
                let planned = self.planner.plan(&input.change, &input.commit, plan);
                planned.map_err(|error| Failure::findings(printable(with_causes(&error))))?;
            }
            Planning::EveryRule => self.planner.plan_row_by_every_rule(&input.change, &input.commit, plan),
            Planning::Resync => self.planner.resync(&input.change, plan),
            Planning::OneRule(entry) => self.planner.plan_only(&entry.rule, &input.change, &input.commit, plan),
        }
        Ok(())
    }

    /// Asks the lookups of a plan. Without an answer, everything that their rules could delete is
    /// added.
    pub(super) async fn resolve(&mut self, plan: &mut Plan) -> Result<(), Failure> {
        const EVERYTHING: &str = "everything that their rules could delete takes the place of the rows";
        if plan.calls().len() == 0 {
            return Ok(());
        }
        match &self.lookups {
            Lookups::Off => {
                eprintln!("note: lookups are not run: {EVERYTHING}");
                self.lookups = Lookups::Noted;
            }
            Lookups::Unconnected { address, required } => match postgres::connect(address).await {
                Ok(client) => self.lookups = Lookups::Connected(Box::new(LookupRunner::new(client))),
                Err(error) if *required => return Err(error.into()),
                Err(error) => {
                    eprintln!("note: lookups are not run ({}): {EVERYTHING}", printable(with_causes(&error)));
                    self.lookups = Lookups::Noted;
                }
            },
            Lookups::Connected(_) | Lookups::Noted => {}
        }
        if let Lookups::Connected(runner) = &mut self.lookups {
            runner.resolve(self.planner.rules(), plan).await;
            return Ok(());
        }
        for (call, _) in plan.take_calls() {
            self.planner.rules().expand_all(&call, plan);
        }
        Ok(())
    }
}
