//! What a check asks PostgreSQL.
//!
//! Owns the order of the questions, and those about the server itself. It must not change anything there. Invariant: a
//! question that is refused is one finding, and the others are asked all the same.

mod lookups;
mod outbox;
mod publication;
mod replication;
mod slot;

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::Client;

use super::clock::{self, Reading, SAMPLES};
use super::compare::compare;
use super::finding::{Finding, Findings, Stage};
use crate::catalog::Catalog;
use crate::cmd::{Failure, Loaded};
use crate::coherence::primary::PrimaryError;
use crate::config::{Mode, Settings};
use crate::install::emit::EMIT;
use crate::postgres::catalog;
use crate::postgres::{self, ConnectError, ServerError};
use crate::rules::RuleSet;

/// The versions that are supported.
const OLDEST: i32 = 15;
const NEWEST: i32 = 18;

/// What it costs to set a parameter that only a restart puts into force.
const RESTART: &str = "locks nothing; takes effect when PostgreSQL is restarted";

/// What a PostgreSQL answered.
pub(super) struct Database {
    pub(super) findings: Findings,
    /// Its tables, and the rules with every schema filled in, if they could be read.
    pub(super) compared: Option<(Catalog, RuleSet)>,
    /// Its clock, if it was read.
    pub(super) clock: Option<Reading>,
}

/// A server that answers.
struct Server<'a> {
    client: &'a Client,
    settings: &'a Settings,
    /// How it is called in messages.
    name: String,
    facts: Facts,
}

/// What a server says of itself and of us.
struct Facts {
    version: i32,
    version_text: String,
    wal_level: String,
    standby: bool,
    role: String,
    slots_max: i32,
    slots: i32,
    senders_max: i32,
    senders: i32,
}

/// Asks everything there is to ask; a server that is away is one finding.
pub(super) async fn probe(loaded: &Loaded) -> Database {
    let name = format!("PostgreSQL at {}", loaded.settings.postgres);
    let mut database = Database { findings: Findings::default(), compared: None, clock: None };
    database.findings.heading(name.clone());
    match postgres::connect(&loaded.settings.postgres).await {
        Ok(client) => {
            if let Err(error) = ask(loaded, &client, &name, &mut database).await {
                database.findings.add(interrupted(&name, error));
            }
        }
        Err(error) => database.findings.add(unconnected(&name, error)),
    }
    database
}

async fn ask(
    loaded: &Loaded,
    client: &Client,
    name: &str,
    database: &mut Database,
) -> Result<(), tokio_postgres::Error> {
    // Whoever holds a lock that a question waits for may hold it for long.
    client.batch_execute("set statement_timeout = '10s'").await?;
    let facts = Facts::read(client).await?;
    let server = Server { client, settings: &loaded.settings, name: name.to_owned(), facts };
    let findings = &mut database.findings;
    if !server.version(findings) {
        return Ok(());
    }
    let primary = server.is_primary(findings);
    let catalog = catalog::read(client).await?;
    let rules = compare(&loaded.rules, &catalog, loaded.settings.mode, findings);
    if primary {
        let mut outcomes = match loaded.settings.mode {
            Mode::Slot => {
                server.log(findings);
                vec![
                    server.replication(findings).await,
                    server.publication(&rules, &catalog, findings).await,
                    server.slot(findings).await,
                    server.lookups(&rules, findings).await,
                    server.events(&rules, findings).await,
                    server.left_outbox(findings).await,
                ]
            }
            Mode::Outbox => vec![
                server.outbox(&rules, &catalog, findings).await,
                server.doorbell(findings).await,
                server.vacuum(findings).await,
                server.lookups(&rules, findings).await,
                server.left_slot(findings).await,
            ],
        };
        outcomes.push(super::reads::check(client, loaded, &rules, findings).await);
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

/// Why there is no connection. Wrong credentials are the file's fault, not the server's absence.
fn unconnected(name: &str, error: ConnectError) -> Finding {
    let why = "without PostgreSQL there are no changes to follow";
    let failure = Failure::from(error);
    let message = format!("{name}: {}", failure.message);
    if failure.code == Failure::unavailable("").code {
        return Finding::unavailable("postgres-unreachable", message)
            .why(why)
            .fix("start PostgreSQL, or correct source.url");
    }
    Finding::configuration("postgres-login", message).why(why).fix("correct source.url")
}

/// Why a question was not answered.
fn interrupted(name: &str, error: tokio_postgres::Error) -> Finding {
    match error.as_db_error() {
        Some(refusal) => {
            let message = format!("{name} refused a question of this check: {}", ServerError::from(refusal));
            Finding::error("postgres-refused", message).why("what depends on the answer was not checked")
        }
        None => Finding::unavailable("postgres-unreachable", format!("{name}: {}", Failure::from(error).message))
            .why("what was still to be asked was not checked"),
    }
}

impl Facts {
    async fn read(client: &Client) -> Result<Self, tokio_postgres::Error> {
        const FACTS: &str = "select current_setting('server_version_num')::int, current_setting('server_version'), \
             current_setting('wal_level'), pg_is_in_recovery(), current_user::text, \
             current_setting('max_replication_slots')::int, (select count(*) from pg_replication_slots)::int, \
             current_setting('max_wal_senders')::int, (select count(*) from pg_stat_replication)::int";
        let row = client.query_one(FACTS, &[]).await?;
        Ok(Self {
            version: row.get::<_, i32>(0) / 10_000,
            version_text: row.get(1),
            wal_level: row.get(2),
            standby: row.get(3),
            role: row.get(4),
            slots_max: row.get(5),
            slots: row.get(6),
            senders_max: row.get(7),
            senders: row.get(8),
        })
    }
}

impl Server<'_> {
    /// Whether the version can be asked the rest.
    fn version(&self, findings: &mut Findings) -> bool {
        let Facts { version, version_text, .. } = &self.facts;
        let name = &self.name;
        if *version < OLDEST {
            let message = format!("{name} is version {version_text}; at least {OLDEST} is needed");
            findings.add(
                Finding::error("postgres-version", message)
                    .why("older versions lack what publications and slots are asked for")
                    .fix("upgrade PostgreSQL"),
            );
            return false;
        }
        let newer = (*version > NEWEST).then(|| {
            let message = format!("{name} is version {version_text}; tested is up to {NEWEST}");
            Finding::warning("postgres-version", message).why("it may work; nobody tried").fix("upgrade unstale")
        });
        findings.pass_or(format!("version {version_text}"), newer);
        true
    }

    fn is_primary(&self, findings: &mut Findings) -> bool {
        if self.facts.standby {
            let message = format!("{}: {}", self.name, PrimaryError::Standby);
            let why = "what is asked about replication was not checked";
            findings.add(Finding::configuration("postgres-standby", message).why(why));
        }
        !self.facts.standby
    }

    fn log(&self, findings: &mut Findings) {
        let level = &self.facts.wal_level;
        let finding = (level != "logical").then(|| {
            Finding::error("wal-level", format!("{} runs with wal_level = {level}", self.name))
                .why("only with wal_level = logical does the log say what changed in a row")
                .fix("run this and restart PostgreSQL; a managed server has a setting of its own for it:")
                .statement(Stage::Settings, "ALTER SYSTEM SET wal_level = 'logical';", RESTART)
        });
        findings.pass_or(format!("wal_level {level}"), finding);
    }

    /// Whether what rules wait for can be emitted.
    async fn events(&self, rules: &RuleSet, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        const INSTALLED: &str = "select exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
             where n.nspname = 'unstale' and p.proname = 'emit' and oidvectortypes(p.proargtypes) = 'text, jsonb' \
             and p.prosrc like '%pg_logical_emit_message%')";
        if !rules.has_events() {
            return Ok(());
        }
        let installed: bool = self.client.query_one(INSTALLED, &[]).await?.get(0);
        let finding = (!installed).then(|| {
            let message = format!("{} has no function unstale.emit(text, jsonb) that writes to the log", self.name);
            Finding::error("emit-missing", message)
                .why("rules with `event` wait for what applications emit by it")
                .fix("run `unstale setup`, or sql/emit.sql")
                .statement(Stage::Events, EMIT.trim_end(), "locks nothing; makes a schema and a function in it")
        });
        findings.pass_or("function unstale.emit", finding);
        Ok(())
    }
}
