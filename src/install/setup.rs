//! The plan of everything that slot mode needs.
//!
//! Owns the order, and what must hold before anything is done. It must not decide which tables or
//! identities are needed. [`super::outbox`] plans what outbox mode needs. Invariants: there is no
//! step for what is right already; an application can write at any time, so a table's identity is
//! widened before the table is published.

use tokio_postgres::{Client, Error};

use super::ddl_notice;
use super::emit::{self, EMIT, EmitFunction};
use super::error::InstallError;
use super::step::{PlannedStatement, PlannedStep};
use super::{identity, publication, slot};
use crate::catalog::{Catalog, Table};
use crate::change::TableName;
use crate::config::Settings;
use crate::postgres::publication::Publication;
use crate::rules::{Remedy, Widening};

/// What installing a function costs.
pub const FUNCTION_COST: &str = "locks no table; creates what is missing in the schema unstale";

/// What creating the event triggers costs.
pub const DDL_NOTICE_COST: &str =
    "locks no table; from then on, DDL on tables, types and publications writes one small message";

/// The words for the event triggers.
pub const DDL_NOTICE_SUBJECT: &str = "event triggers for DDL";

/// Plans the identities, the publication, `unstale.emit` if `events`, the event triggers and the
/// slot.
///
/// # Errors
///
/// If a statement of the plan would fail. Nothing was changed then.
pub async fn plan(
    client: &Client,
    settings: &Settings,
    catalog: &Catalog,
    tables: &[&TableName],
    events: bool,
    widenings: &[Widening],
) -> Result<Vec<PlannedStep>, InstallError> {
    let tables: Vec<&Table> = tables.iter().filter_map(|name| catalog.find(name)).collect();
    let mut plan: Vec<PlannedStep> = widenings.iter().map(identity::plan).collect();
    let published = Publication::read(client, &settings.publication).await?;
    let statements = publication::plan(&settings.publication, published.as_ref(), &tables, catalog);
    let widens = widenings.iter().any(|widening| !widening.statements().is_empty());
    let alters_tables = widens || !statements.is_empty();
    let names: Vec<_> = tables.iter().map(|table| table.name.to_string()).collect();
    let carries = if names.is_empty() { "no table".to_owned() } else { names.join(", ") };
    plan.push(PlannedStep::of(format!("publication {} publishes {carries}", settings.publication), statements));
    if events {
        let function = emit::read(client).await?;
        if function == EmitFunction::Foreign {
            return Err(InstallError::ForeignEmit);
        }
        let install = function.fault().map(|_| PlannedStatement::new(EMIT, FUNCTION_COST));
        let subject = match function {
            EmitFunction::Outdated => "function unstale.emit, in place of another version",
            _ => "function unstale.emit",
        };
        plan.push(PlannedStep::of(subject, install.into_iter().collect()));
    }
    plan.push(ddl_step(client).await?);
    let state = State::read(client, settings).await?;
    let create = PlannedStatement::patient(slot::create(&settings.slot, state.major_version), slot::COST);
    let create = (!state.has_slot).then_some(create);
    plan.push(PlannedStep::of(format!("replication slot {}", settings.slot), create.into_iter().collect()));
    let foreign = if alters_tables { not_owned(client, &tables).await? } else { Vec::new() };
    let mut reasons = state.obstacles(settings, foreign);
    reasons.extend(widenings.iter().filter_map(unpublishable));
    if reasons.is_empty() { Ok(plan) } else { Err(InstallError::Impossible(reasons)) }
}

/// Why a table must not be published: PostgreSQL would refuse its updates and deletes.
fn unpublishable(widening: &Widening) -> Option<String> {
    let Remedy::Nothing(reason) = &widening.remedy else { return None };
    widening.is_unusable.then(|| format!(
        "{} has no replica identity, and PostgreSQL refuses updates and deletes of such a table once it is published; \
         {reason}; give it a primary key, or use source.mode: outbox",
        widening.table
    ))
}

/// The step for the event triggers.
pub async fn ddl_step(client: &Client) -> Result<PlannedStep, Error> {
    let found = ddl_notice::read(client).await?;
    let subject = DDL_NOTICE_SUBJECT.to_owned();
    Ok(if found.is_current {
        PlannedStep::Unchanged(subject)
    } else if found.may_create {
        PlannedStep::of(subject, vec![PlannedStatement::new(ddl_notice::DDL_NOTICE, DDL_NOTICE_COST)])
    } else {
        PlannedStep::Skipped { subject, reason: ddl_notice::WITHOUT_DDL_NOTICE.to_owned() }
    })
}

/// What decides whether the statements of a plan can be carried out.
struct State {
    major_version: i32,
    has_slot: bool,
    /// A slot of this name that another database or plugin has.
    other_slot: Option<String>,
    slots: i64,
    slots_max: i64,
    may_replicate: bool,
    /// The owner of a publication that is not ours.
    other_owner: Option<String>,
    has_publication: bool,
    may_create: bool,
    role: String,
    database: String,
}

impl State {
    async fn read(client: &Client, settings: &Settings) -> Result<Self, Error> {
        const STATE: &str = "select current_setting('server_version_num')::int / 10000, \
             exists (select from pg_replication_slots where slot_name = $1), \
             (select 'database ' || coalesce(database, 'none') || ' and plugin ' || coalesce(plugin, 'none') \
                from pg_replication_slots where slot_name = $1 \
                 and (plugin is distinct from 'pgoutput' or database is distinct from current_database())), \
             (select count(*) from pg_replication_slots), current_setting('max_replication_slots')::int8, \
             (select rolsuper or rolreplication or \
                     exists (select from pg_roles a where a.rolname in ('rds_replication', 'rds_superuser') \
                                and pg_has_role(r.oid, a.oid, 'USAGE')) \
                from pg_roles r where rolname = current_user), \
             (select pg_get_userbyid(pubowner)::text from pg_publication \
               where pubname = $2 and not pg_has_role(pubowner, 'USAGE')), \
             exists (select from pg_publication where pubname = $2), \
             has_database_privilege(current_database(), 'CREATE'), current_user::text, current_database()::text";
        let row = client.query_one(STATE, &[&settings.slot, &settings.publication]).await?;
        Ok(Self {
            major_version: row.get(0),
            has_slot: row.get(1),
            other_slot: row.get(2),
            slots: row.get(3),
            slots_max: row.get(4),
            may_replicate: row.get(5),
            other_owner: row.get(6),
            has_publication: row.get(7),
            may_create: row.get(8),
            role: row.get(9),
            database: row.get(10),
        })
    }

    /// Why a statement of the plan would fail. `foreign` are tables to alter that the role does not
    /// own.
    fn obstacles(&self, settings: &Settings, foreign: Vec<String>) -> Vec<String> {
        let mut found = Vec::new();
        let role = &self.role;
        if !foreign.is_empty() {
            found.push(format!(
                "the role {role} does not own {}; run `unstale setup` as their owner",
                foreign.join(", ")
            ));
        }
        if let Some(owner) = &self.other_owner {
            found
                .push(format!("the publication `{}` belongs to the role {owner}, not to {role}", settings.publication));
        }
        if !self.has_publication && !self.may_create {
            found.push(format!(
                "the role {role} may not create a publication: GRANT CREATE ON DATABASE {} TO {role}",
                self.database
            ));
        }
        if let Some(other) = &self.other_slot {
            found.push(format!("the slot `{}` belongs to {other}; choose another name for source.slot", settings.slot));
        }
        if !self.has_slot && !self.may_replicate {
            found.push(format!("the role {role} may not create a replication slot: ALTER ROLE {role} REPLICATION"));
        }
        if !self.has_slot && self.slots >= self.slots_max {
            found.push(format!(
                "all {} replication slots of the server exist already; raise max_replication_slots and restart it",
                self.slots_max
            ));
        }
        found
    }
}

/// The tables that the role does not own, partitions and children included.
async fn not_owned(client: &Client, tables: &[&Table]) -> Result<Vec<String>, Error> {
    const FOREIGN: &str = "select c.oid::regclass::text from pg_class c where c.oid = any ($1) \
         and not pg_has_role(c.relowner, 'USAGE') order by 1";
    let ids: Vec<u32> = tables.iter().flat_map(|table| &table.members).map(|member| member.id.oid()).collect();
    Ok(client.query(FOREIGN, &[&ids]).await?.iter().map(|row| row.get(0)).collect())
}
