//! What goes wrong, on schedule.
//!
//! Owns the faults, what each may do to history, and how it is brought about. Each strikes for a fraction of a
//! cycle; what lasts longer, [`Stage::calm`] ends.

use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::sleep;
use unstale::mutant::Mutant;
use unstale::sandbox::signal;

use super::stage::Stage;
use crate::proxy;

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
    /// Commits are streamed and not visible until the synchronous standby answers, which there is none.
    StuckCommits,
    /// The replica does not replay.
    LaggingReplica,
    CrashPostgres,
    RestartRedisFromSnapshot,
    FailOverRedis,
    EmptyRedis,
    AdvanceSlot,
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

/// Those after which the cache has to be emptied, and which take longer.
const GRAVE: [Fault; 5] = [
    Fault::CrashPostgres,
    Fault::RestartRedisFromSnapshot,
    Fault::FailOverRedis,
    Fault::EmptyRedis,
    Fault::AdvanceSlot,
];

impl Fault {
    /// The next one; for a mutant, one that may bring it out. A grave one would hide what a mutant did.
    pub(super) fn draw(mutant: Option<Mutant>, random: &mut StdRng) -> Self {
        let pick = |faults: &[Self], random: &mut StdRng| faults[random.random_range(0..faults.len())];
        match mutant {
            None if random.random_range(0..12) == 0 => pick(&GRAVE, random),
            None => pick(&ORDINARY, random),
            Some(Mutant::NoGate) => Self::StuckCommits,
            Some(Mutant::NoLease) => pick(&ORDINARY, random),
            Some(Mutant::AckBeforeRedis | Mutant::EagerKeepalive) => {
                pick(&[Self::FreezeRedis, Self::PauseRedisWrites, Self::SlowRedis, Self::SilentRedis], random)
            }
            Some(Mutant::ReplicaCheckTooLate) => pick(&[Self::LaggingReplica, Self::SlowPostgres], random),
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
            Self::RestartRedisFromSnapshot => "Redis restarted from a snapshot",
            Self::FailOverRedis => "Redis failed over",
            Self::EmptyRedis => "Redis emptied",
            Self::AdvanceSlot => "slot advanced",
        }
    }

    /// Whether values may come back, or commits go, without a change that anybody could see: until the next epoch
    /// nothing is promised.
    pub(super) fn may_lose_history(self) -> bool {
        GRAVE.contains(&self)
    }

    /// Whether an epoch for this reason may follow.
    pub(super) fn explains(self, reason: &str) -> bool {
        // A flush that is cut short by the kill is begun again for want of anything remembered.
        let own: &[&str] = match self {
            Self::CrashPostgres => &["unclean-restart", "nothing-remembered"],
            Self::RestartRedisFromSnapshot | Self::FailOverRedis => {
                &["redis-went-back", "gap", "nothing-remembered", "dataset-replaced"]
            }
            Self::EmptyRedis | Self::EvictStarted => &["nothing-remembered"],
            Self::AdvanceSlot => &["gap", "nothing-remembered"],
            _ => &[],
        };
        own.contains(&reason)
    }

    pub(super) async fn strike(self, stage: &mut Stage, random: &mut StdRng) {
        let while_it_lasts = Duration::from_millis(random.random_range(10..250));
        match self {
            Self::FreezeDaemon => freeze(stage.daemon_pid(), while_it_lasts).await,
            Self::FreezeRedis => freeze(stage.redis.pid(), while_it_lasts).await,
            Self::FreezePostgres => {
                let sql = "select coalesce(max(active_pid), 0) from pg_replication_slots where slot_name = 'unstale'";
                let pid: i32 = stage.admin().await.query_one(sql, &[]).await.unwrap().get(0);
                freeze(u32::try_from(pid).ok().filter(|pid| *pid > 0), while_it_lasts).await;
            }
            Self::CutRedis => stage.to_redis.cut(),
            Self::CutPostgres => stage.to_postgres.cut(),
            Self::LoseRedisReply => lasting(&stage.to_redis, proxy::Fault::CutAfterRequest, while_it_lasts).await,
            Self::LosePostgresReply => lasting(&stage.to_postgres, proxy::Fault::CutAfterRequest, while_it_lasts).await,
            Self::SilentRedis => lasting(&stage.to_redis, proxy::Fault::HalfOpen, while_it_lasts).await,
            Self::SilentPostgres => lasting(&stage.to_postgres, proxy::Fault::HalfOpen, while_it_lasts).await,
            Self::SlowRedis => stage.to_redis.set(slow(random)),
            Self::SlowPostgres => stage.to_postgres.set(slow(random)),
            Self::OneByteRedis => lasting(&stage.to_redis, proxy::Fault::OneByte, while_it_lasts).await,
            Self::OneBytePostgres => lasting(&stage.to_postgres, proxy::Fault::OneByte, while_it_lasts).await,
            Self::PauseRedisWrites => {
                let millis = u64::try_from(while_it_lasts.as_millis()).unwrap();
                redis(stage, &["CLIENT", "PAUSE", &millis.to_string(), "WRITE"]).await;
            }
            Self::FullRedis => {
                redis(stage, &["CONFIG", "SET", "maxmemory", "1"]).await;
                sleep(while_it_lasts).await;
                redis(stage, &["CONFIG", "SET", "maxmemory", "0"]).await;
            }
            Self::KillClients => redis(stage, &["CLIENT", "KILL", "TYPE", "normal"]).await,
            Self::FlushScripts => redis(stage, &["SCRIPT", "FLUSH"]).await,
            Self::EvictStarted => redis(stage, &["DEL", "t:unstale:{unstale}:started"]).await,
            Self::TerminateWalsender => {
                let sql =
                    "select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null";
                stage.admin().await.query(sql, &[]).await.unwrap();
            }
            Self::StuckCommits => {
                let admin = stage.admin().await;
                // Ours may not wait for it, or nothing would ever end it.
                admin.batch_execute("set synchronous_commit = local").await.unwrap();
                admin.batch_execute("alter system set synchronous_standby_names = 'nobody'").await.unwrap();
                admin.batch_execute("select pg_reload_conf()").await.unwrap();
                sleep(while_it_lasts).await;
                admin.batch_execute("alter system reset synchronous_standby_names").await.unwrap();
                admin.batch_execute("select pg_reload_conf()").await.unwrap();
            }
            Self::LaggingReplica => {
                let replica = crate::support::connect(&stage.setting.replica).await;
                replica.batch_execute("select pg_wal_replay_pause()").await.unwrap();
                sleep(while_it_lasts).await;
                replica.batch_execute("select pg_wal_replay_resume()").await.unwrap();
            }
            Self::CrashPostgres => {
                stage.postgres.stop();
                stage.postgres.restart().unwrap();
            }
            Self::RestartRedisFromSnapshot => {
                redis(stage, &["SAVE"]).await;
                sleep(while_it_lasts).await;
                stage.redis.stop();
                stage.redis.restart().unwrap();
                stage.follow();
            }
            Self::FailOverRedis => {
                // What is written from now on does not reach the replica any more, now and then.
                if random.random() {
                    let mut spare = redis::Client::open(stage.spare.url()).unwrap().get_connection().unwrap();
                    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut spare).unwrap();
                }
                sleep(while_it_lasts).await;
                stage.fail_over();
            }
            Self::EmptyRedis => redis(stage, &["FLUSHALL"]).await,
            Self::AdvanceSlot => {
                stage.kill_daemon();
                let admin = stage.admin().await;
                let sql = "select pg_replication_slot_advance('unstale', pg_current_wal_lsn())";
                // The walsender of the killed daemon may not have noticed yet; then this fault has no effect.
                let _ = admin.batch_execute(sql).await;
                stage.start_daemon();
            }
        }
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

async fn freeze(pid: Option<u32>, time: Duration) {
    if let Some(pid) = pid
        && signal(pid, "STOP")
    {
        sleep(time).await;
        signal(pid, "CONT");
    }
}

/// Runs a command on the Redis in use, past the proxy.
async fn redis(stage: &Stage, words: &[&str]) {
    let client = redis::Client::open(stage.redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut connection).await.unwrap();
}
