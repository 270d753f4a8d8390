//! Whether the servers are the ones that they are taken for: the database that Redis remembers, and
//! the replica of the read API.
//!
//! Owns these checks. It must not judge positions. Invariant: a replica is never an error, because
//! what does not prove itself is not used while the daemon or the API runs.

use tokio_postgres::Client;

use super::probe::PostgresProbe;
use crate::catalog::quote;
use crate::cmd::check::cost::AT_ONCE;
use crate::cmd::check::finding::{Finding, Findings};
use crate::cmd::failure::with_causes;
use crate::cmd::preflight::history;
use crate::coherence::history::Origin;
use crate::coherence::server::ServerIdentity;
use crate::postgres;
use crate::sink::OwnerRecord;

impl PostgresProbe<'_> {
    /// Compares the database with the one that Redis remembers, and the replica with the database.
    pub(super) async fn identity(&self, findings: &mut Findings) -> Result<(), tokio_postgres::Error> {
        let own = ServerIdentity::read(self.client).await?;
        if let Some(origin) = history::remembered(self.settings).await {
            let other = (!origin.is_of_system(&own.system)).then(|| self.other_database());
            findings.pass_or("database: the one whose changes reached Redis", other);
        }
        let others = history::owner(self.settings).await;
        let others = others.filter(|owner| owner.system != own.system || owner.mode != self.settings.mode.word());
        findings.pass_or("no other service under this name", others.map(|owner| self.name_taken(&owner)));
        let Some(replica) = &self.settings.api.replica else { return Ok(()) };
        let name = format!("the replica at {replica}");
        match postgres::connect(replica).await {
            Ok(client) => match judge(&client, &name, &own).await {
                Ok(found) => findings.pass_or(format!("{name}: of the same history"), found),
                Err(error) => findings.add(unreachable(&name, &with_causes(&error))),
            },
            Err(error) => findings.add(unreachable(&name, &with_causes(&error))),
        }
        Ok(())
    }

    fn name_taken(&self, owner: &OwnerRecord) -> Finding {
        let OwnerRecord { mode, address, host, pid, .. } = owner;
        let (slot, namespace) = (&self.settings.slot, &self.settings.namespace);
        let message = format!(
            "another service uses the slot name `{slot}` and the namespace `{namespace}` in Redis: it follows {address} by \
             its {mode}, and runs on {host} as process {pid}"
        );
        Finding::configuration("name-taken", message)
            .why("two services under one name would empty each other's cache, so `unstale run` does not start")
            .fix("give one of the two another source.slot or target.namespace")
    }

    fn other_database(&self) -> Finding {
        let message = format!("{} is another database than the one whose changes reached Redis", self.name);
        Finding::warning("other-database", message)
            .why("the next `unstale run` empties the cache, and `unstale serve` does not start before that")
            .fix("if that is not what you want, correct source.url, or name another source.slot or target.namespace")
    }
}

/// What is wrong with a replica.
async fn judge(client: &Client, name: &str, own: &ServerIdentity) -> Result<Option<Finding>, tokio_postgres::Error> {
    const UNUSED: &str = "it is not read: every miss reads the primary";
    const HIDDEN: &str = "select current_user::text from pg_stat_wal_receiver where received_tli is null";
    let found = ServerIdentity::read(client).await?;
    if !found.is_standby {
        let finding = Finding::warning("replica-primary", format!("{name} is not a replica"));
        return Ok(Some(finding.why(UNUSED).fix("name a replica of the primary in api.replica_url, or remove it")));
    }
    let origin = Origin {
        system: own.system.clone(),
        timeline: own.timeline.clone(),
        recovered: String::new(),
        source: String::new(),
    };
    if !origin.is_of_system(&found.system) {
        let finding = Finding::warning("replica-other", format!("{name} belongs to another database"));
        return Ok(Some(finding.why(UNUSED).fix("name a replica of the database in source.url in api.replica_url")));
    }
    if !found.is_of(&origin) {
        let ServerIdentity { timeline, .. } = &found;
        let message = format!("{name} follows timeline {timeline}, and the primary is on timeline {}", own.timeline);
        let finding = Finding::warning("replica-timeline", message).why(UNUSED);
        return Ok(Some(
            finding.fix("let it follow the primary, or create it anew; if it does, see `replica-statistics`"),
        ));
    }
    let hidden = client.query_opt(HIDDEN, &[]).await?;
    Ok(hidden.map(|row| {
        let role: String = row.get(0);
        Finding::warning("replica-statistics", format!("{name}: the role {role} may not see which timeline it follows"))
            .why("after a promotion, it is not read until its next restartpoint")
            .fix(format!("GRANT pg_read_all_stats TO {}; it {AT_ONCE}", quote(&role)))
    }))
}

fn unreachable(name: &str, reason: &str) -> Finding {
    Finding::warning("replica-unreachable", format!("{name}: {reason}"))
        .why("it is not read: every miss reads the primary")
        .fix("start it, or correct api.replica_url")
}
