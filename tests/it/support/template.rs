//! A PostgreSQL cluster that tests copy, so that each need not make one with `initdb`.
//!
//! Owns the cluster, which has the example domain with ten users, and where copies are kept. It is
//! made once in cargo's directory for such files, and again when the server or the example changes.
//! Invariant: it was shut down cleanly, so that a copy starts without recovery.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use unstale::sandbox::{self, Postgres, example};

use super::{EVENT_MAX, connect, text, wait_until};

/// How much memory the copies of one run may take, in KiB. If less is free, they are kept on disk.
const ROOM_KIB: u64 = 4 << 20;

/// Starts a copy, with these settings.
pub(crate) fn start(settings: &[&str]) -> Postgres {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    static PARENT: OnceLock<PathBuf> = OnceLock::new();
    Postgres::start_copy(TEMPLATE.get_or_init(find_or_make), PARENT.get_or_init(parent), settings).unwrap()
}

/// Starts a server whose system identifier no other one has, with the example domain.
pub(crate) fn start_another_system(settings: &[&str]) -> Postgres {
    let postgres = Postgres::start(settings).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        example::create(&connect(&postgres.url("postgres")).await, 10).await.unwrap();
    });
    postgres
}

fn find_or_make() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    include_str!("../../../sql/example/schema.sql").hash(&mut hasher);
    include_str!("../../../sql/example/seed.sql").hash(&mut hasher);
    include_str!("../../../src/sandbox/postgres.rs").hash(&mut hasher);
    let program = sandbox::find_postgres().unwrap().join("postgres");
    text(&Command::new(program).arg("--version").output().unwrap()).hash(&mut hasher);
    let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("postgres-{:x}", hasher.finish()));
    if !template.exists() {
        make(&template);
    }
    template
}

fn make(template: &Path) {
    let mut postgres = start_another_system(&[]);
    let pid = postgres.pid().unwrap();
    assert!(sandbox::signal(pid, "INT"));
    wait_until(EVENT_MAX, "the server that is copied ends", || !sandbox::signal(pid, "0"));
    postgres.stop();
    let making = template.with_extension(std::process::id().to_string());
    let copied = Command::new("cp").arg("-a").arg(postgres.data_directory()).arg(&making).output().unwrap();
    assert!(copied.status.success(), "{}", text(&copied));
    // Another process may have made one meanwhile, which is just as good.
    if std::fs::rename(&making, template).is_err() {
        std::fs::remove_dir_all(&making).unwrap();
    }
}

/// Memory if there is enough of it: making and removing a thousand files for each test keeps a disk
/// busy.
fn parent() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let free = || {
        let df = Command::new("df").arg("-Pk").arg(memory).output().ok()?;
        text(&df).lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok()
    };
    if free().is_some_and(|free| free >= ROOM_KIB) { memory.to_path_buf() } else { std::env::temp_dir() }
}
