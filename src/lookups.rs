//! Asking the database for the rows that a rule's actions are about.
//!
//! Owns the queries of `lookups:`: prepared once, asked many at a time, bounded in rows and time. It must not decide
//! when it is safe to ask: the caller does, once the change is visible. Invariant: a call is answered with all of its
//! rows, or with everything that its rule could ever have made, and then it is a dead letter.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Portal, Row, Statement, Transaction};

use crate::change::Cell;
use crate::config::{Problems, Spanned};
use crate::nearest::nearest;
use crate::plan::{CallOrigin, DeadLetter, LookupCall, Plan, RuleId};
use crate::postgres::TextParameter;
use crate::rules::{Image, Lookup, RuleSet};

/// How many calls are on their way at once.
const CALLS_AT_ONCE: usize = 64;

/// The rows of one answer that are fetched at once.
const ROWS_AT_ONCE: i32 = 256;

/// The ops of one piece of the outcome, more or less.
const OPS_PER_PIECE: usize = 2048;

/// A connection on which lookups are asked.
pub struct Runner {
    client: Client,
    /// By the lookup's position in the file.
    prepared: HashMap<usize, Prepared>,
    /// It did not answer, or broke in the middle.
    is_lost: bool,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Prepared {
    statement: Statement,
    columns: Vec<String>,
}

/// Where the ops that follow from answers go.
#[derive(Debug)]
pub enum Outlet<'a> {
    /// Into a plan.
    Plan(&'a mut Plan),
    /// To somebody who applies them; but for patterns and tags, which join those that are swept anyway.
    Channel(&'a mpsc::Sender<Plan>, &'a mut Plan),
}

impl Outlet<'_> {
    /// Hands on one piece.
    pub async fn send(&mut self, rules: &RuleSet, mut piece: Plan) {
        match self {
            Self::Plan(plan) => plan.append(piece),
            Self::Channel(sender, sweeps) => {
                piece.take_sweeps().into_iter().for_each(|(rule, removal)| sweeps.remove(rule, removal));
                sweeps.limit_sweeps(|asked| rules.removals_of(asked));
                if !piece.is_empty() {
                    // Nobody takes it any more: whoever waited for it was dropped.
                    let _ = sender.send(piece).await;
                }
            }
        }
    }
}

/// Why a call has no rows.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error("lookup `{0}` returned more than {1} rows; raise its `max`, or narrow it")]
    TooMany(String, usize),
    #[error("lookup `{0}` failed: {1}")]
    Refused(String, String),
    #[error("lookup `{0}` failed: {1}")]
    Broken(String, tokio_postgres::Error),
    #[error("lookup `{0}` did not answer in time")]
    Silent(String),
    #[error("lookup `{0}` was not asked: the connection to the database is gone")]
    Away(String),
}

impl Runner {
    /// Asks on this connection.
    pub fn new(client: Client) -> Self {
        Self { client, prepared: HashMap::new(), is_lost: false }
    }

    /// Whether the connection is of no further use.
    pub fn is_closed(&self) -> bool {
        self.is_lost || self.client.is_closed()
    }

    /// Replaces what a plan asks by the ops that follow from the answers.
    pub async fn resolve(&mut self, rules: &RuleSet, plan: &mut Plan) {
        let calls = plan.take_calls();
        self.run(rules, calls, &mut Outlet::Plan(plan)).await;
    }

    /// Asks, and hands on the ops that follow from the answers, piece by piece.
    pub async fn run(&mut self, rules: &RuleSet, calls: Vec<(LookupCall, CallOrigin)>, outlet: &mut Outlet<'_>) {
        let mut by_lookup: Vec<Vec<(LookupCall, CallOrigin)>> = rules.lookups().iter().map(|_| Vec::new()).collect();
        for (call, asked) in calls {
            let for_each = rules.rule(call.rule).and_then(|rule| rule.for_each.as_ref());
            if let Some(group) = for_each.and_then(|for_each| by_lookup.get_mut(for_each.lookup)) {
                group.push((call, asked));
            }
        }
        let mut given_up = BTreeMap::new();
        for (position, (lookup, calls)) in rules.lookups().iter().zip(by_lookup).enumerate() {
            for group in calls.chunks(CALLS_AT_ONCE) {
                self.ask_group(Question { rules, lookup, position }, group, &mut given_up, outlet).await;
            }
        }
    }

    /// One call that fails takes the others of its transaction with it: then each gets one of its own, until one of the
    /// same rule fails again. By then everything that the rule could have made goes anyway.
    async fn ask_group(
        &mut self,
        question: Question<'_>,
        group: &[(LookupCall, CallOrigin)],
        given_up: &mut BTreeMap<RuleId, String>,
        outlet: &mut Outlet<'_>,
    ) {
        let is_known = group.iter().any(|(call, _)| given_up.contains_key(&call.rule));
        if !is_known && !self.is_closed() && group.len() > 1 && self.ask(question, group, outlet).await.is_ok() {
            return;
        }
        for call in group {
            if let Some(reason) = given_up.get(&call.0.rule) {
                let mut piece = Plan::default();
                piece.dead_letter(dead(call, reason.clone()));
                outlet.send(question.rules, piece).await;
                continue;
            }
            let outcome = match self.is_closed() {
                true => Err(LookupError::Away(question.lookup.name.value.clone())),
                false => self.ask(question, std::slice::from_ref(call), outlet).await,
            };
            let Err(error) = outcome else { continue };
            // It may have been prepared for tables that are not the same any more.
            self.prepared.clear();
            self.is_lost |= matches!(error, LookupError::Silent(_) | LookupError::Broken(..));
            if !matches!(error, LookupError::TooMany(..)) {
                given_up.insert(call.0.rule, error.to_string());
            }
            outlet.send(question.rules, give_up(question.rules, call, error.to_string())).await;
        }
    }

    async fn ask(
        &mut self,
        Question { rules, lookup, position }: Question<'_>,
        calls: &[(LookupCall, CallOrigin)],
        outlet: &mut Outlet<'_>,
    ) -> Result<(), LookupError> {
        let prepared = within(lookup, self.prepare(lookup, position)).await?;
        let transaction = within(lookup, self.client.build_transaction().read_only(true).start()).await?;
        let timeout = format!("set local statement_timeout = {}", lookup.timeout.as_millis());
        within(lookup, transaction.batch_execute(&timeout)).await?;
        let mut first = FuturesOrdered::new();
        for call in calls {
            first.push_back(begin(&transaction, &prepared.statement, call));
        }
        let mut piece = Plan::default();
        while !first.is_empty() {
            let next = async { first.next().await.transpose() };
            let Some(((call, asked), portal, mut rows)) = within(lookup, next).await? else { break };
            let mut count = 0;
            loop {
                count += rows.len();
                if count > lookup.max {
                    return Err(LookupError::TooMany(lookup.name.value.clone(), lookup.max));
                }
                for row in &rows {
                    let cells = cells(row, &prepared.columns);
                    let find = |name: &str| cells.iter().find(|(column, _)| *column == name).map(|(_, cell)| cell);
                    rules.expand(call, asked.lsn, &find, &mut piece);
                    if piece.len() >= OPS_PER_PIECE {
                        // However long that takes is not the database's fault.
                        outlet.send(rules, std::mem::take(&mut piece)).await;
                    }
                }
                if rows.len() < usize::try_from(ROWS_AT_ONCE).unwrap_or(usize::MAX) {
                    break;
                }
                rows = within(lookup, transaction.query_portal(&portal, ROWS_AT_ONCE)).await?;
            }
        }
        drop(first);
        outlet.send(rules, piece).await;
        within(lookup, transaction.commit()).await
    }

    async fn prepare(&mut self, lookup: &Lookup, position: usize) -> Result<Prepared, tokio_postgres::Error> {
        if let Some(prepared) = self.prepared.get(&position) {
            return Ok(prepared.clone());
        }
        let prepared = prepare(&self.client, lookup).await?;
        self.prepared.insert(position, prepared.clone());
        Ok(prepared)
    }
}

#[derive(Clone, Copy)]
struct Question<'a> {
    rules: &'a RuleSet,
    lookup: &'a Lookup,
    position: usize,
}

/// What one step gives, if it does not take longer than a healthy server and network ever need.
async fn within<T>(
    lookup: &Lookup,
    step: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, LookupError> {
    /// Beyond the statement itself.
    const GRACE: Duration = Duration::from_secs(3);
    match tokio::time::timeout(lookup.timeout.saturating_add(GRACE), step).await {
        Ok(outcome) => outcome.map_err(|error| failure(lookup, error)),
        Err(_) => Err(LookupError::Silent(lookup.name.value.clone())),
    }
}

/// Every column as text, whatever its type: that is what templates and the log are made of.
async fn prepare(client: &Client, lookup: &Lookup) -> Result<Prepared, tokio_postgres::Error> {
    let sql = lookup.sql.value.trim().trim_end_matches(';');
    let columns: Vec<String> =
        client.prepare(sql).await?.columns().iter().map(|column| column.name().to_owned()).collect();
    let texts: Vec<_> = columns.iter().map(|name| format!("\"{}\"::text", name.replace('"', "\"\""))).collect();
    // The line break ends a comment that the query may end with.
    let statement = client.prepare(&format!("select {} from ({sql}\n) unstale_lookup", texts.join(", "))).await?;
    Ok(Prepared { statement, columns })
}

async fn begin<'a>(
    transaction: &Transaction<'_>,
    statement: &Statement,
    call: &'a (LookupCall, CallOrigin),
) -> Result<(&'a (LookupCall, CallOrigin), Portal, Vec<Row>), tokio_postgres::Error> {
    let values: Vec<_> = call.0.arguments.iter().map(|argument| TextParameter(Some(argument))).collect();
    let portal = transaction.bind_raw(statement, values.iter().map(|value| value as &(dyn ToSql + Sync))).await?;
    let rows = transaction.query_portal(&portal, ROWS_AT_ONCE).await?;
    Ok((call, portal, rows))
}

fn cells<'a>(row: &Row, columns: &'a [String]) -> Vec<(&'a str, Cell)> {
    let cell = |at: usize| match row.try_get::<_, Option<&str>>(at) {
        Ok(Some(text)) => Cell::Value(Bytes::copy_from_slice(text.as_bytes())),
        Ok(None) => Cell::Null,
        Err(_) => Cell::Absent,
    };
    columns.iter().enumerate().map(|(at, name)| (name.as_str(), cell(at))).collect()
}

fn failure(lookup: &Lookup, error: tokio_postgres::Error) -> LookupError {
    let name = lookup.name.value.clone();
    match error.as_db_error() {
        // What is wrong with a value quotes it, and no value of a row belongs into a log.
        Some(refusal) if refusal.code().code().starts_with("22") => LookupError::Refused(
            name,
            format!("a value that the query does not take (SQLSTATE {})", refusal.code().code()),
        ),
        Some(refusal) => {
            LookupError::Refused(name, format!("{} (SQLSTATE {})", refusal.message(), refusal.code().code()))
        }
        None => LookupError::Broken(name, error),
    }
}

/// What is done without an answer: more than would have been.
fn give_up(rules: &RuleSet, call: &(LookupCall, CallOrigin), reason: String) -> Plan {
    let mut plan = Plan::default();
    rules.expand_all(&call.0, &mut plan);
    plan.dead_letter(dead(call, reason));
    plan
}

fn dead((call, asked): &(LookupCall, CallOrigin), reason: String) -> DeadLetter {
    DeadLetter { rule: call.rule, reason, change: asked.change.clone() }
}

/// What is done for every call when there is no connection to ask on.
pub fn give_up_all(rules: &RuleSet, calls: &[(LookupCall, CallOrigin)], reason: &str) -> Plan {
    let mut plan = Plan::default();
    for call in calls {
        plan.append(give_up(rules, call, reason.to_owned()));
    }
    plan
}

impl RuleSet {
    /// Compares the lookups with the database: their SQL, how many parameters they have, the columns they return.
    pub async fn check_lookups(&self, client: &Client, problems: &mut Problems) -> Result<(), tokio_postgres::Error> {
        for (position, lookup) in self.lookups().iter().enumerate() {
            let Prepared { statement, columns } = match prepare(client, lookup).await {
                Ok(prepared) => prepared,
                Err(error) => match error.as_db_error() {
                    Some(refusal) => {
                        let message =
                            format!("PostgreSQL refuses lookup `{}`: {}", lookup.name.value, refusal.message());
                        let advice = refusal.hint().unwrap_or("expected one query that returns rows").to_owned();
                        problems.push(lookup.sql.span.clone(), message, advice);
                        continue;
                    }
                    None => return Err(error),
                },
            };
            let columns: Vec<_> = columns.iter().map(String::as_str).collect();
            if columns.is_empty() {
                let message = format!("lookup `{}` returns no columns", lookup.name.value);
                problems.push(lookup.sql.span.clone(), message, "expected a `select`");
            }
            self.check_calls(position, &columns, statement.params().len(), problems);
        }
        Ok(())
    }

    fn check_calls(&self, lookup: usize, columns: &[&str], parameters: usize, problems: &mut Problems) {
        for rule in self.rules() {
            let Some(for_each) = rule.for_each.as_ref().filter(|for_each| for_each.lookup == lookup) else { continue };
            let given = for_each.arguments.len();
            if given != parameters {
                let place =
                    for_each.arguments.first().map_or(rule.span.clone(), |argument: &Spanned<_>| argument.span.clone());
                let message = format!("the lookup takes {parameters} values, and rule `{}` gives {given}", rule.name);
                problems.push(place, message, "each `$n` of its `sql` needs a value");
            }
            rule.each_template(&mut |template| {
                for reference in template.value.references().filter(|reference| reference.image == Image::Lookup) {
                    if columns.contains(&reference.column.as_str()) {
                        continue;
                    }
                    let message = format!("the lookup returns no column `{}`", reference.column);
                    let advice = match nearest(&reference.column, columns.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("it returns {}", columns.join(", ")),
                    };
                    problems.push(crate::rules::place(template, reference), message, advice);
                }
            });
        }
    }
}
