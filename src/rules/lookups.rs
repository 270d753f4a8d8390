//! Asking the database for the rows that a rule's actions are about.
//!
//! Owns the queries of `lookups:`: prepared once, asked many at a time, bounded in rows and time. It must not decide
//! when it is safe to ask: the caller does, once the change is visible. Invariant: a call is answered with all of its
//! rows, or with everything that its rule could ever have made, and then it is a dead letter.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tokio_postgres::{Client, Portal, Row, Statement, Transaction};

use super::compile::RuleSet;
use super::rule::Lookup;
use super::template::Image;
use crate::change::Cell;
use crate::config::{Problems, Spanned, nearest};
use crate::plan::{Asked, Call, DeadLetter, Plan, Removal, RuleId};

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
    Channel(&'a mpsc::Sender<Plan>, &'a mut Vec<(RuleId, Removal)>),
}

impl Outlet<'_> {
    /// Hands on one piece.
    pub async fn send(&mut self, mut piece: Plan) {
        match self {
            Self::Plan(plan) => plan.append(piece),
            Self::Channel(sender, sweeps) => {
                for sweep in piece.take_sweeps() {
                    if !sweeps.contains(&sweep) {
                        sweeps.push(sweep);
                    }
                }
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
}

impl Runner {
    /// Asks on this connection.
    pub fn new(client: Client) -> Self {
        Self { client, prepared: HashMap::new() }
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Replaces what a plan asks by the ops that follow from the answers.
    pub async fn resolve(&mut self, rules: &RuleSet, plan: &mut Plan) {
        let calls = plan.take_calls();
        self.run(rules, calls, &mut Outlet::Plan(plan)).await;
    }

    /// Asks, and hands on the ops that follow from the answers, piece by piece.
    pub async fn run(&mut self, rules: &RuleSet, calls: Vec<(Call, Asked)>, outlet: &mut Outlet<'_>) {
        let mut by_lookup: Vec<Vec<(Call, Asked)>> = rules.lookups().iter().map(|_| Vec::new()).collect();
        for (call, asked) in calls {
            let for_each = rules.rule(call.rule).and_then(|rule| rule.for_each.as_ref());
            if let Some(group) = for_each.and_then(|for_each| by_lookup.get_mut(for_each.lookup)) {
                group.push((call, asked));
            }
        }
        for (position, (lookup, calls)) in rules.lookups().iter().zip(by_lookup).enumerate() {
            for group in calls.chunks(CALLS_AT_ONCE) {
                let question = Question { rules, lookup, position };
                // One that fails takes the others of its transaction with it: then each gets one of its own.
                if group.len() > 1 && self.ask(question, group, outlet).await.is_ok() {
                    continue;
                }
                for call in group {
                    if let Err(error) = self.ask(question, std::slice::from_ref(call), outlet).await {
                        outlet.send(give_up(rules, call, &error)).await;
                    }
                }
            }
        }
    }

    async fn ask(
        &mut self,
        question: Question<'_>,
        calls: &[(Call, Asked)],
        outlet: &mut Outlet<'_>,
    ) -> Result<(), LookupError> {
        /// What a healthy server and network take beyond the statement itself.
        const GRACE: Duration = Duration::from_secs(5);
        let lookup = question.lookup;
        let statements = u32::try_from(calls.len()).unwrap_or(u32::MAX);
        let limit = lookup.timeout.saturating_mul(statements).saturating_add(GRACE);
        let asked = tokio::time::timeout(limit, self.ask_within(question, calls, outlet)).await;
        asked.unwrap_or_else(|_| Err(LookupError::Silent(lookup.name.value.clone())))
    }

    async fn ask_within(
        &mut self,
        Question { rules, lookup, position }: Question<'_>,
        calls: &[(Call, Asked)],
        outlet: &mut Outlet<'_>,
    ) -> Result<(), LookupError> {
        let failed = |error| failure(lookup, error);
        let prepared = self.prepare(lookup, position).await.map_err(failed)?;
        let transaction = self.client.build_transaction().read_only(true).start().await.map_err(failed)?;
        let timeout = format!("set local statement_timeout = {}", lookup.timeout.as_millis());
        transaction.batch_execute(&timeout).await.map_err(failed)?;
        let mut first = FuturesOrdered::new();
        for call in calls {
            first.push_back(begin(&transaction, &prepared.statement, call));
        }
        let mut piece = Plan::default();
        while let Some(begun) = first.next().await {
            let ((call, asked), portal, mut rows) = begun.map_err(failed)?;
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
                        outlet.send(std::mem::take(&mut piece)).await;
                    }
                }
                if rows.len() < usize::try_from(ROWS_AT_ONCE).unwrap_or(usize::MAX) {
                    break;
                }
                rows = transaction.query_portal(&portal, ROWS_AT_ONCE).await.map_err(failed)?;
            }
        }
        drop(first);
        outlet.send(piece).await;
        transaction.commit().await.map_err(failed)
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
    call: &'a (Call, Asked),
) -> Result<(&'a (Call, Asked), Portal, Vec<Row>), tokio_postgres::Error> {
    let values: Vec<_> = call.0.arguments.iter().map(|argument| TextParameter(argument)).collect();
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
        Some(refusal) => {
            LookupError::Refused(name, format!("{} (SQLSTATE {})", refusal.message(), refusal.code().code()))
        }
        None => LookupError::Broken(name, error),
    }
}

/// What is done without an answer: more than would have been.
fn give_up(rules: &RuleSet, (call, asked): &(Call, Asked), error: &LookupError) -> Plan {
    let mut plan = Plan::default();
    rules.expand_all(call, &mut plan);
    plan.bury(DeadLetter { rule: call.rule, reason: error.to_string(), change: asked.change.clone() });
    plan
}

/// What is done for every call when there is no connection to ask on.
pub fn give_up_all(rules: &RuleSet, calls: &[(Call, Asked)], reason: &str) -> Plan {
    let mut plan = Plan::default();
    for (call, asked) in calls {
        rules.expand_all(call, &mut plan);
        plan.bury(DeadLetter { rule: call.rule, reason: reason.to_owned(), change: asked.change.clone() });
    }
    plan
}

/// A value in PostgreSQL's text form, for a parameter of any type.
#[derive(Debug)]
struct TextParameter<'a>(&'a [u8]);

impl ToSql for TextParameter<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

impl RuleSet {
    /// Compares the lookups with the database: their SQL, how many parameters they have, the columns they return.
    pub async fn check_lookups(&self, client: &Client, problems: &mut Problems) -> Result<(), tokio_postgres::Error> {
        for (position, lookup) in self.lookups().iter().enumerate() {
            let statement = match client.prepare(lookup.sql.value.trim().trim_end_matches(';')).await {
                Ok(statement) => statement,
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
            let columns: Vec<_> = statement.columns().iter().map(tokio_postgres::Column::name).collect();
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
                    problems.push(super::requirements::place(template, reference), message, advice);
                }
            });
        }
    }
}
