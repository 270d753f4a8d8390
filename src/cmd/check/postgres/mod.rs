//! What `check` asks PostgreSQL.
//!
//! Owns the order of the questions. It must not change anything in the database. Invariant: a
//! question that is refused is one finding, and the others are asked all the same.

mod folding;
mod identity;
mod lookups;
mod outbox;
mod probe;
mod publication;
mod replication;
mod server;
mod slot;

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Client;

use self::probe::{PostgresFacts, PostgresProbe};
use super::clock::{self, Reading, SAMPLES};
use super::compare::compare;
use super::finding::{Finding, Findings};
use crate::catalog::Catalog;
use crate::cmd::config_file::ConfigFile;
use crate::cmd::failure::Failure;
use crate::config::Mode;
use crate::postgres::catalog;
use crate::postgres::{self, ConnectError, ServerError, SqlConnection};
use crate::rules::RuleSet;

/// What the checks of PostgreSQL found.
pub(super) struct PostgresFindings {
    pub(super) findings: Findings,
    /// Its tables, and the rules with every schema filled in, if they could be read.
    pub(super) compared: Option<(Catalog, RuleSet)>,
    /// Its clock, if it was read.
    pub(super) clock: Option<Reading>,
}

/// Runs every check. A server that is not available is one finding.
pub(super) async fn probe(file: &ConfigFile) -> PostgresFindings {
    let name = format!("PostgreSQL at {}", file.settings.postgres);
    let mut database = PostgresFindings { findings: Findings::default(), compared: None, clock: None };
    database.findings.heading(name.clone());
    match postgres::open(&file.settings.postgres).await {
        Ok(opened) => {
            if let Err(error) = ask(file, &opened, &name, &mut database).await {
                database.findings.add(interrupted(&name, error));
            }
        }
        Err(error) => database.findings.add(unconnected(&name, error)),
    }
    database
}

async fn ask(
    file: &ConfigFile,
    opened: &SqlConnection,
    name: &str,
    database: &mut PostgresFindings,
) -> Result<(), tokio_postgres::Error> {
    let SqlConnection { client, address, .. } = opened;
    // A session that holds a lock may hold it for long.
    client.batch_execute("set statement_timeout = '10s'").await?;
    let facts = PostgresFacts::read(client).await?;
    let server = PostgresProbe { client, address, settings: &file.settings, name: name.to_owned(), facts };
    let findings = &mut database.findings;
    if !server.version(findings) {
        return Ok(());
    }
    let primary = server.is_primary(findings);
    let mut catalog = catalog::read(client).await?;
    catalog.limits = postgres::identity::read(client, &catalog, &file.rules.tables()).await?;
    let rules = compare(&file.rules, &catalog, file.settings.mode, findings);
    if primary {
        let mut outcomes = match file.settings.mode {
            Mode::Slot => {
                server.log(findings);
                vec![
                    server.replication(findings).await,
                    server.publication(&rules, &catalog, findings).await,
                    server.slot(findings).await,
                    server.lookups(&rules, &catalog, findings).await,
                    server.events(&rules, findings).await,
                    server.ddl_notice(findings).await,
                    server.left_outbox(findings).await,
                ]
            }
            Mode::Outbox => vec![
                server.outbox(&rules, &catalog, findings).await,
                server.wakeups(findings).await,
                server.vacuum(findings).await,
                server.ddl_notice(findings).await,
                server.lookups(&rules, &catalog, findings).await,
                server.left_slot(findings).await,
            ],
        };
        outcomes.push(server.identity(findings).await);
        outcomes.push(super::reads::check(client, file, &rules, findings).await);
        outcomes.push(server.folding(&rules, &catalog, &file.reads, findings).await);
        for error in outcomes.into_iter().filter_map(Result::err) {
            findings.add(interrupted(name, error));
        }
    }
    database.compared = Some((catalog, rules));
    let findings = &mut database.findings;
    clock::latency(name, samples(client).await?, findings);
    let asked = SystemTime::now();
    let time = client.query_one("select (extract(epoch from clock_timestamp()) * 1000)::int8", &[]).await?;
    database.clock = Some(Reading::new(time.get(0), asked, SystemTime::now()));
    Ok(())
}

async fn samples(client: &Client) -> Result<Vec<Duration>, tokio_postgres::Error> {
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let asked = Instant::now();
        client.simple_query("select 1").await?;
        samples.push(asked.elapsed());
    }
    Ok(samples)
}

/// The finding if there is no connection. Wrong credentials are an error of the file.
fn unconnected(name: &str, error: ConnectError) -> Finding {
    let why = "unstale follows the changes in PostgreSQL";
    let failure = Failure::from(error);
    let message = format!("{name}: {}", failure.message);
    if failure.is_unavailable() {
        return Finding::unavailable("postgres-unreachable", message)
            .why(why)
            .fix("start PostgreSQL, or correct source.url");
    }
    Finding::configuration("postgres-login", message).why(why).fix("correct source.url")
}

/// The finding if a question was not answered.
fn interrupted(name: &str, error: tokio_postgres::Error) -> Finding {
    match error.as_db_error() {
        Some(refusal) => {
            let message = format!("{name} refused a query of this check: {}", ServerError::from(refusal));
            Finding::error("postgres-refused", message).why("what depends on its result was not checked")
        }
        None => Finding::unavailable("postgres-unreachable", format!("{name}: {}", Failure::from(error).message))
            .why("the remaining checks of PostgreSQL did not run"),
    }
}
