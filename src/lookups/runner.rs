//! A connection that answers calls of lookups.
//!
//! Owns how many calls are in flight, and the limits of each in rows and time. It must not know
//! what becomes of the ops. Invariant: a call whose answer is incomplete counts as failed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio_postgres::Client;

use super::error::LookupError;
use super::output::LookupOutput;
use super::prepared::{PreparedLookup, ROWS_AT_ONCE};
use super::unanswered::{dead_letter, without_answer};
use crate::plan::{CallOrigin, LookupCall, Plan, RuleId};
use crate::rules::{Lookup, RuleSet};

/// The most calls in flight.
const CALLS_AT_ONCE: usize = 64;

/// The approximate number of ops in one piece of the output.
const OPS_PER_PIECE: usize = 2048;

/// A connection that answers calls of lookups.
pub struct LookupRunner {
    client: Client,
    /// By the text of the query: it means the same after the file was reloaded.
    prepared: HashMap<String, PreparedLookup>,
    /// Whether the connection timed out or broke, so that its state is unknown.
    is_lost: bool,
}

impl std::fmt::Debug for LookupRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LookupRunner").finish_non_exhaustive()
    }
}

impl LookupRunner {
    /// Asks on this connection.
    pub fn new(client: Client) -> Self {
        Self { client, prepared: HashMap::new(), is_lost: false }
    }

    /// Whether the connection is of no further use.
    pub fn is_closed(&self) -> bool {
        self.is_lost || self.client.is_closed()
    }

    /// Replaces the calls of a plan by the ops that follow from the answers.
    pub async fn resolve(&mut self, rules: &RuleSet, plan: &mut Plan) {
        let calls = plan.take_calls();
        self.run(rules, calls, &mut LookupOutput::Plan(plan)).await;
    }

    /// Asks, and hands over the ops that follow from the answers, piece by piece.
    pub async fn run(&mut self, rules: &RuleSet, calls: Vec<(LookupCall, CallOrigin)>, output: &mut LookupOutput<'_>) {
        let mut by_lookup: Vec<Vec<(LookupCall, CallOrigin)>> = rules.lookups().iter().map(|_| Vec::new()).collect();
        for (call, origin) in calls {
            let for_each = rules.rule(call.rule).and_then(|rule| rule.for_each.as_ref());
            if let Some(group) = for_each.and_then(|for_each| by_lookup.get_mut(for_each.lookup)) {
                group.push((call, origin));
            }
        }
        let mut failed = BTreeMap::new();
        for (lookup, calls) in rules.lookups().iter().zip(by_lookup) {
            for group in calls.chunks(CALLS_AT_ONCE) {
                self.ask_group((rules, lookup), group, &mut failed, output).await;
            }
        }
    }

    /// Asks many calls in one transaction. If one of them fails, all do; then each is asked in a
    /// transaction of its own, until a second call of the same rule fails: by then everything that
    /// the rule may ever have made is removed anyway.
    async fn ask_group(
        &mut self,
        (rules, lookup): (&RuleSet, &Lookup),
        group: &[(LookupCall, CallOrigin)],
        failed: &mut BTreeMap<RuleId, String>,
        output: &mut LookupOutput<'_>,
    ) {
        let has_failed = group.iter().any(|(call, _)| failed.contains_key(&call.rule));
        if !has_failed && !self.is_closed() && group.len() > 1 && self.ask((rules, lookup), group, output).await.is_ok()
        {
            return;
        }
        for call in group {
            if let Some(reason) = failed.get(&call.0.rule) {
                let mut piece = Plan::default();
                piece.dead_letter(dead_letter(call, reason.clone()));
                output.send(rules, piece).await;
                continue;
            }
            let outcome = match self.is_closed() {
                true => Err(LookupError::Closed(lookup.name.value.clone())),
                false => self.ask((rules, lookup), std::slice::from_ref(call), output).await,
            };
            let Err(error) = outcome else { continue };
            // It may have been prepared for tables that have changed.
            self.prepared.clear();
            self.is_lost |= error.loses_connection();
            if error.fails_the_rule() {
                failed.insert(call.0.rule, error.reason());
            }
            output.send(rules, without_answer(rules, call, error.reason())).await;
        }
    }

    async fn ask(
        &mut self,
        (rules, lookup): (&RuleSet, &Lookup),
        calls: &[(LookupCall, CallOrigin)],
        output: &mut LookupOutput<'_>,
    ) -> Result<(), LookupError> {
        let prepared = within(lookup, self.prepare(lookup)).await?;
        let transaction = within(lookup, self.client.build_transaction().read_only(true).start()).await?;
        let timeout = format!("set local statement_timeout = {}", lookup.timeout.as_millis());
        within(lookup, transaction.batch_execute(&timeout)).await?;
        let mut first = FuturesOrdered::new();
        for (call, origin) in calls {
            let begun = prepared.begin(&transaction, call);
            first.push_back(async move { begun.await.map(|(portal, rows)| (call, origin, portal, rows)) });
        }
        let mut piece = Plan::default();
        while !first.is_empty() {
            let next = async { first.next().await.transpose() };
            let Some((call, origin, portal, mut rows)) = within(lookup, next).await? else { break };
            let mut count = 0;
            loop {
                count += rows.len();
                if count > lookup.max {
                    return Err(LookupError::TooMany(lookup.name.value.clone(), lookup.max));
                }
                for row in &rows {
                    let cells = prepared.cells(row);
                    let find = |name: &str| cells.iter().find(|(column, _)| *column == name).map(|(_, cell)| cell);
                    rules.expand(call, origin.lsn, &find, &mut piece);
                    if piece.len() >= OPS_PER_PIECE {
                        // The time that this takes does not count against the database.
                        output.send(rules, std::mem::take(&mut piece)).await;
                    }
                }
                if rows.len() < usize::try_from(ROWS_AT_ONCE).unwrap_or(usize::MAX) {
                    break;
                }
                rows = within(lookup, transaction.query_portal(&portal, ROWS_AT_ONCE)).await?;
            }
        }
        drop(first);
        output.send(rules, piece).await;
        within(lookup, transaction.commit()).await
    }

    async fn prepare(&mut self, lookup: &Lookup) -> Result<PreparedLookup, tokio_postgres::Error> {
        if let Some(prepared) = self.prepared.get(&lookup.sql.value) {
            return Ok(prepared.clone());
        }
        let prepared = PreparedLookup::new(&self.client, lookup).await?;
        self.prepared.insert(lookup.sql.value.clone(), prepared.clone());
        Ok(prepared)
    }
}

/// The result of one step, if it does not take longer than a healthy server and network need.
async fn within<T>(
    lookup: &Lookup,
    step: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, LookupError> {
    /// Time for the network, beyond the statement itself.
    const GRACE: Duration = Duration::from_secs(3);
    match tokio::time::timeout(lookup.timeout.saturating_add(GRACE), step).await {
        Ok(outcome) => outcome.map_err(|error| LookupError::of(lookup, error)),
        Err(_) => Err(LookupError::TimedOut(lookup.name.value.clone())),
    }
}
