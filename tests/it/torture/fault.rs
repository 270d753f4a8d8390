//! The faults of a run.
//!
//! Owns how each strikes and which epochs it explains. It must not know when it strikes. Invariant:
//! a fault ends by itself; if another fault keeps it from that, [`Cluster::calm`] ends it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::sleep;
use unstale::mutant::Mutant;
use unstale::sandbox::signal;

use super::cluster::{Cluster, SESSIONS};
use super::ddl::Ddl;
use super::mode::Mode;
use super::targets::Targets;
use crate::proxy;
use crate::support::connect;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    FreezeDaemon,
    FreezeRedis,
    FreezePostgres,
    CutRedis,
    CutPostgres,
    LoseRedisReply,
    LosePostgresReply,
    SilentRedis,
    SilentPostgres,
    SlowRedis,
    SlowPostgres,
    OneByteRedis,
    OneBytePostgres,
    PauseRedisWrites,
    FullRedis,
    KillClients,
    FlushScripts,
    EvictStarted,
    TerminateWalsender,
    /// Commits are streamed but not visible: they wait for a synchronous standby that does not
    /// exist.
    StuckCommits,
    /// The replica does not replay.
    LaggingReplica,
    CrashPostgres,
    /// A standby is promoted, and the replica lags behind it.
    Promote,
    /// A standby is promoted that has less than the replica.
    PromoteTheLesser,
    RestartRedisFromSnapshot,
    FailOverRedis,
    EmptyRedis,
    AdvanceSlot,
    /// One of the daemon's sessions stops, at any point of a claim.
    FreezeSession,
    TerminateSessions,
    /// Tables, partitions, publications or triggers are changed.
    Ddl(Ddl),
    /// The outbox is dropped and created again. What is written in between is in neither.
    RemakeOutbox,
}

const ORDINARY: [Fault; 21] = [
    Fault::FreezeDaemon,
    Fault::FreezeRedis,
    Fault::FreezePostgres,
    Fault::CutRedis,
    Fault::CutPostgres,
    Fault::LoseRedisReply,
    Fault::LosePostgresReply,
    Fault::SilentRedis,
    Fault::SilentPostgres,
    Fault::SlowRedis,
    Fault::SlowPostgres,
    Fault::OneByteRedis,
    Fault::OneBytePostgres,
    Fault::PauseRedisWrites,
    Fault::FullRedis,
    Fault::KillClients,
    Fault::FlushScripts,
    Fault::TerminateWalsender,
    Fault::StuckCommits,
    Fault::LaggingReplica,
    Fault::EvictStarted,
];

/// The faults after which the cache has to be emptied. They take longer.
const GRAVE: [Fault; 7] = [
    Fault::CrashPostgres,
    Fault::Promote,
    Fault::PromoteTheLesser,
    Fault::RestartRedisFromSnapshot,
    Fault::FailOverRedis,
    Fault::EmptyRedis,
    Fault::AdvanceSlot,
];

impl Fault {
    /// A random fault. For a mutant, one that may reveal it: after a grave one the cache is
    /// emptied, which would hide what the mutant did.
    pub(super) fn draw(mode: Mode, mutant: Option<Mutant>, random: &mut StdRng) -> Self {
        let fault = Self::draw_for_slot(mutant, random);
        if mode.is_outbox() { fault.in_outbox_mode() } else { fault }
    }

    /// The nearest fault where there is no slot.
    fn in_outbox_mode(self) -> Self {
        match self {
            Self::FreezePostgres => Self::FreezeSession,
            Self::TerminateWalsender => Self::TerminateSessions,
            Self::AdvanceSlot => Self::RemakeOutbox,
            other => other,
        }
    }

    fn draw_for_slot(mutant: Option<Mutant>, random: &mut StdRng) -> Self {
        let pick = |faults: &[Self], random: &mut StdRng| faults[random.random_range(0..faults.len())];
        match mutant {
            None if random.random_range(0..12) == 0 => pick(&GRAVE, random),
            None if random.random_range(0..4) == 0 => Self::Ddl(Ddl::draw(random)),
            None => pick(&ORDINARY, random),
            Some(Mutant::NoWatch) => Self::Ddl(Ddl::draw(random)),
            Some(Mutant::NoGate) => Self::StuckCommits,
            Some(Mutant::NoLease | Mutant::CursorOverIds | Mutant::TagsBySet) => pick(&ORDINARY, random),
            // Time has to pass between the claim and the moment at which everything is in force.
            Some(Mutant::EagerWatermark) => pick(&[Self::SlowPostgres, Self::SlowRedis, Self::OneBytePostgres], random),
            Some(Mutant::AckBeforeRedis | Mutant::EagerKeepalive | Mutant::CommitBeforeRedis) => {
                pick(&[Self::FreezeRedis, Self::PauseRedisWrites, Self::SlowRedis, Self::SilentRedis], random)
            }
            Some(Mutant::ReplicaCheckTooLate | Mutant::ReplicaWithoutHistory) => Self::LaggingReplica,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FreezeDaemon => "daemon frozen",
            Self::FreezeRedis => "Redis frozen",
            Self::FreezePostgres => "walsender frozen",
            Self::CutRedis => "Redis cut",
            Self::CutPostgres => "PostgreSQL cut",
            Self::LoseRedisReply => "Redis reply lost",
            Self::LosePostgresReply => "PostgreSQL reply lost",
            Self::SilentRedis => "Redis half-open",
            Self::SilentPostgres => "PostgreSQL half-open",
            Self::SlowRedis => "Redis slow",
            Self::SlowPostgres => "PostgreSQL slow",
            Self::OneByteRedis => "Redis byte by byte",
            Self::OneBytePostgres => "PostgreSQL byte by byte",
            Self::PauseRedisWrites => "Redis writes paused",
            Self::FullRedis => "Redis full",
            Self::KillClients => "Redis clients killed",
            Self::FlushScripts => "scripts flushed",
            Self::EvictStarted => "started evicted",
            Self::TerminateWalsender => "walsender terminated",
            Self::StuckCommits => "commits stuck behind a standby",
            Self::LaggingReplica => "replica lagging",
            Self::CrashPostgres => "PostgreSQL crashed",
            Self::Promote => "standby promoted",
            Self::PromoteTheLesser => "lesser standby promoted",
            Self::RestartRedisFromSnapshot => "Redis restarted from a snapshot",
            Self::FailOverRedis => "Redis failed over",
            Self::EmptyRedis => "Redis emptied",
            Self::AdvanceSlot => "slot advanced",
            Self::FreezeSession => "session frozen",
            Self::TerminateSessions => "sessions terminated",
            Self::RemakeOutbox => "outbox created again",
            Self::Ddl(ddl) => ddl.name(),
        }
    }

    /// Whether an epoch for this reason may follow, given the faults that have struck so far.
    pub(super) fn explains(self, reason: &str, mode: Mode, struck: &BTreeMap<&'static str, u64>) -> bool {
        // If the kill interrupts a flush, the next daemon finds nothing remembered and begins
        // again.
        let own: &[&str] = match self {
            // The outbox shows what is visible. With `synchronous_commit = off` that may not be
            // durable yet.
            Self::CrashPostgres if mode.is_outbox() => &["unclean-restart", "nothing-remembered", "log-went-back"],
            Self::CrashPostgres => &["unclean-restart", "nothing-remembered"],
            Self::Promote | Self::PromoteTheLesser => {
                &["other-timeline", "unclean-restart", "nothing-remembered", "gap", "log-went-back"]
            }
            Self::RestartRedisFromSnapshot | Self::FailOverRedis => {
                // In outbox mode another dataset may have been filled since.
                &["redis-went-back", "gap", "nothing-remembered", "dataset-replaced", "other-source"]
            }
            // The first daemon begins at epoch 1 again, which looks like an old snapshot to the
            // other one.
            Self::EmptyRedis if mode == Mode::Shared => &["nothing-remembered", "redis-went-back"],
            Self::EmptyRedis | Self::EvictStarted => &["nothing-remembered"],
            Self::AdvanceSlot => &["gap", "nothing-remembered"],
            Self::RemakeOutbox => &["other-source", "gap", "nothing-remembered"],
            _ => &[],
        };
        // The dataset that Redis went back to may be older than an unclean stop of PostgreSQL some
        // cycles ago.
        let went_back = matches!(self, Self::RestartRedisFromSnapshot | Self::FailOverRedis);
        let of_old = reason == "unclean-restart" && struck.contains_key(Self::CrashPostgres.name());
        own.contains(&reason) || went_back && of_old
    }

    /// Whether values may come back, or commits disappear, without a change that the daemon could
    /// see. Until the next epoch nothing is promised. These faults replace a server or the daemon,
    /// so they strike one at a time.
    pub(super) fn is_grave(self) -> bool {
        GRAVE.contains(&self) || self == Self::RemakeOutbox
    }

    /// Strikes, and is over when this returns; other faults and the kill may happen at the same
    /// time. Whether it struck: what it needs may be away.
    pub(super) async fn strike(self, targets: &Targets, random: &mut StdRng) -> bool {
        let while_it_lasts = Duration::from_millis(random.random_range(10..250));
        let (to_redis, to_postgres) = (&targets.to_redis, &targets.to_postgres);
        match self {
            Self::FreezeDaemon => return freeze(targets.daemon_pid(), while_it_lasts).await,
            Self::FreezeRedis => return freeze(targets.redis_pid(), while_it_lasts).await,
            Self::FreezePostgres => {
                let sql = "select coalesce(max(active_pid), 0) from pg_replication_slots where slot_name = 'unstale'";
                let row = targets.admin().await.query_one(sql, &[]).await;
                let pid = row.ok().and_then(|row| u32::try_from(row.get::<_, i32>(0)).ok()).filter(|pid| *pid > 0);
                return freeze(pid, while_it_lasts).await;
            }
            Self::FreezeSession => {
                let sql =
                    format!("select pid from pg_stat_activity where application_name = '{SESSIONS}' order by pid");
                let rows = targets.admin().await.query(&sql, &[]).await.unwrap_or_default();
                let pids: Vec<u32> = rows.iter().filter_map(|row| u32::try_from(row.get::<_, i32>(0)).ok()).collect();
                if pids.is_empty() {
                    return false;
                }
                return freeze(Some(pids[random.random_range(0..pids.len())]), while_it_lasts).await;
            }
            Self::TerminateSessions => {
                let sql = format!(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{SESSIONS}'"
                );
                return targets.admin().await.query(&sql, &[]).await.is_ok_and(|rows| !rows.is_empty());
            }
            Self::Ddl(ddl) => return ddl.strike(targets, while_it_lasts, random).await,
            Self::CutRedis => to_redis.cut(),
            Self::CutPostgres => to_postgres.cut(),
            Self::LoseRedisReply => lasting(to_redis, proxy::Fault::CutAfterRequest, while_it_lasts).await,
            Self::LosePostgresReply => lasting(to_postgres, proxy::Fault::CutAfterRequest, while_it_lasts).await,
            Self::SilentRedis => lasting(to_redis, proxy::Fault::HalfOpen, while_it_lasts).await,
            Self::SilentPostgres => lasting(to_postgres, proxy::Fault::HalfOpen, while_it_lasts).await,
            Self::SlowRedis => lasting(to_redis, slow(random), while_it_lasts * 2).await,
            Self::SlowPostgres => lasting(to_postgres, slow(random), while_it_lasts * 2).await,
            Self::OneByteRedis => lasting(to_redis, proxy::Fault::OneByte, while_it_lasts).await,
            Self::OneBytePostgres => lasting(to_postgres, proxy::Fault::OneByte, while_it_lasts).await,
            Self::PauseRedisWrites => {
                let millis = while_it_lasts.as_millis().to_string();
                targets.redis(&["CLIENT", "PAUSE", &millis, "WRITE"]).await;
            }
            Self::FullRedis => {
                targets.redis(&["CONFIG", "SET", "maxmemory", "1"]).await;
                sleep(while_it_lasts).await;
                targets.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
            }
            Self::KillClients => targets.redis(&["CLIENT", "KILL", "TYPE", "normal"]).await,
            Self::FlushScripts => targets.redis(&["SCRIPT", "FLUSH"]).await,
            Self::EvictStarted => targets.redis(&["DEL", "t:unstale:{unstale}:started"]).await,
            Self::TerminateWalsender => {
                let sql =
                    "select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null";
                return targets.admin().await.query(sql, &[]).await.is_ok_and(|rows| !rows.is_empty());
            }
            Self::StuckCommits => {
                let admin = targets.admin().await;
                // The statement that ends the wait must not wait itself.
                let mut struck = true;
                for sql in [
                    "set synchronous_commit = local",
                    "alter system set synchronous_standby_names = 'missing'",
                    "select pg_reload_conf()",
                ] {
                    struck &= admin.batch_execute(sql).await.is_ok();
                }
                sleep(while_it_lasts).await;
                targets.release_commits().await;
                return struck;
            }
            Self::LaggingReplica => {
                // Several times: errors show when the replica begins to catch up.
                let replica = connect(&targets.state.replica).await;
                let end = tokio::time::Instant::now() + while_it_lasts * 2;
                while tokio::time::Instant::now() < end {
                    replica.batch_execute("select pg_wal_replay_pause()").await.unwrap();
                    sleep(Duration::from_millis(random.random_range(5..60))).await;
                    replica.batch_execute("select pg_wal_replay_resume()").await.unwrap();
                    sleep(Duration::from_millis(random.random_range(1..10))).await;
                }
            }
            Self::CrashPostgres
            | Self::Promote
            | Self::PromoteTheLesser
            | Self::RestartRedisFromSnapshot
            | Self::FailOverRedis
            | Self::EmptyRedis
            | Self::AdvanceSlot
            | Self::RemakeOutbox => unreachable!("grave faults strike one at a time"),
        }
        true
    }

    /// As [`Fault::strike`], for the grave ones.
    pub(super) async fn strike_gravely(self, cluster: &mut Cluster, random: &mut StdRng) -> bool {
        let while_it_lasts = Duration::from_millis(random.random_range(10..250));
        match self {
            Self::CrashPostgres => cluster.crash_postgres().await,
            Self::Promote | Self::PromoteTheLesser => {
                cluster.promote(self == Self::PromoteTheLesser, while_it_lasts).await;
            }
            Self::RestartRedisFromSnapshot => {
                cluster.targets.redis(&["SAVE"]).await;
                sleep(while_it_lasts).await;
                cluster.restart_redis();
            }
            Self::FailOverRedis => {
                // Half of the time the replica misses what is written from now on.
                if random.random() {
                    cluster.unfollow();
                }
                sleep(while_it_lasts).await;
                cluster.fail_over();
            }
            Self::EmptyRedis => cluster.targets.redis(&["FLUSHALL"]).await,
            Self::AdvanceSlot => {
                cluster.kill_daemon();
                let struck = cluster.targets.advance_slot().await;
                cluster.start_daemon();
                return struck;
            }
            Self::RemakeOutbox => {
                cluster.kill_daemon();
                cluster.kill_second();
                cluster.remake_outbox().await;
                cluster.start_daemon();
            }
            _ => unreachable!("other faults strike at any time"),
        }
        true
    }
}

fn slow(random: &mut StdRng) -> proxy::Fault {
    proxy::Fault::Delay(Duration::from_millis(random.random_range(1..20)))
}

async fn lasting(proxy: &proxy::Proxy, fault: proxy::Fault, time: Duration) {
    proxy.set(fault);
    sleep(time).await;
    proxy.set(proxy::Fault::None);
}

async fn freeze(pid: Option<u32>, time: Duration) -> bool {
    let Some(pid) = pid else { return false };
    let frozen = signal(pid, "STOP");
    if frozen {
        sleep(time).await;
        signal(pid, "CONT");
    }
    frozen
}
