//! A throwaway PostgreSQL.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::error::SandboxError;
use super::process::{START_MAX, Server, free_port, on_path, run};
use super::user::{User, unprivileged};

/// A throwaway PostgreSQL on a free port of 127.0.0.1. Its data is deleted when it is dropped.
#[derive(Debug)]
pub struct Postgres {
    server: Option<Server>,
    bin: PathBuf,
    directory: TempDir,
    settings: Vec<String>,
    user: Option<User>,
    port: u16,
}

impl Postgres {
    /// Creates a cluster and starts it with `wal_level=logical` and these further settings
    /// (`name=value`).
    pub fn start(settings: &[&str]) -> Result<Self, SandboxError> {
        let (bin, user) = (find_postgres()?, unprivileged()?);
        let directory = cluster_directory(&std::env::temp_dir(), user)?;
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.arg("-D").arg(directory.path().join("data"));
        initdb
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
            .current_dir(directory.path());
        if let Some(user) = user {
            initdb.uid(user.uid).gid(user.gid);
        }
        run(initdb, "initdb")?;
        Self::start_on(directory, bin, user, settings)
    }

    /// Starts a server on a copy of the data directory of one that was shut down. The copy is kept
    /// in `parent`. This takes a tenth of the time of [`Postgres::start`]; both servers have the
    /// same system identifier.
    pub fn start_copy(template: &Path, parent: &Path, settings: &[&str]) -> Result<Self, SandboxError> {
        let (bin, user) = (find_postgres()?, unprivileged()?);
        let directory = cluster_directory(parent, user)?;
        copy(template, &directory.path().join("data"))?;
        Self::start_on(directory, bin, user, settings)
    }

    fn start_on(directory: TempDir, bin: PathBuf, user: Option<User>, settings: &[&str]) -> Result<Self, SandboxError> {
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut postgres = Self { server: None, bin, directory, settings, user, port: free_port()? };
        postgres.restart()?;
        Ok(postgres)
    }

    /// Starts the server again after [`Postgres::stop`], on the same port and data.
    pub fn restart(&mut self) -> Result<(), SandboxError> {
        let path = self.directory.path();
        let port = self.port.to_string();
        let mut arguments = vec!["-D".to_owned(), path.join("data").display().to_string()];
        let socket = format!("unix_socket_directories={}", path.display());
        let port = format!("port={port}");
        let fixed = [
            socket.as_str(),
            &port,
            "listen_addresses=127.0.0.1",
            "wal_level=logical",
            "fsync=off",
            "max_wal_senders=20",
            "max_replication_slots=20",
            "shared_buffers=64MB",
            "log_min_messages=warning",
        ];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        // The process that used the data directory before may not have ended yet.
        let deadline = Instant::now() + START_MAX;
        loop {
            // QUIT: an immediate shutdown. A throwaway server needs no other.
            let server = Server::start(&self.bin.join("postgres"), &arguments, path, "QUIT", self.user)?;
            while server.runs() && Instant::now() < deadline {
                if accepts_postgres(self.port) {
                    self.server = Some(server);
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if Instant::now() >= deadline {
                return Err(SandboxError::Silent("PostgreSQL", server.log()));
            }
            let log = server.log();
            if !log.contains("pre-existing") && !log.contains("already exists") {
                return Err(SandboxError::Silent("PostgreSQL", log));
            }
        }
    }

    /// Creates a standby that streams from this server, with these further settings. This server is
    /// stopped and started again meanwhile.
    pub fn standby(&mut self, settings: &[&str]) -> Result<Self, SandboxError> {
        let parent = self.directory.path().parent().map_or_else(std::env::temp_dir, Path::to_path_buf);
        let directory = cluster_directory(&parent, self.user)?;
        self.stop();
        copy(&self.data_directory(), &directory.path().join("data"))?;
        self.restart()?;
        std::fs::write(directory.path().join("data/standby.signal"), "")?;
        // A copied lock file would be taken for that of a running server.
        let _ = std::fs::remove_file(directory.path().join("data/postmaster.pid"));
        if let Some(user) = self.user {
            std::os::unix::fs::chown(directory.path().join("data/standby.signal"), Some(user.uid), Some(user.gid))?;
        }
        let mut settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
        settings.push(format!("primary_conninfo=host=127.0.0.1 port={} user=postgres", self.port));
        let bin = self.bin.clone();
        let mut standby = Self { server: None, bin, directory, settings, user: self.user, port: free_port()? };
        standby.restart()?;
        Ok(standby)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its Unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// The directory of its data and configuration files.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The directory of its programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// The URL of one of its databases, as superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The process id of the server.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.pid)
    }

    /// Ends the server at once, like a crash.
    pub fn stop(&mut self) {
        self.server = None;
    }
}

/// A directory for a cluster. It belongs to the user that the server runs as.
fn cluster_directory(parent: &Path, user: Option<User>) -> Result<TempDir, SandboxError> {
    let directory = TempDir::with_prefix_in("unstale-pg-", parent)?;
    if let Some(user) = user {
        std::os::unix::fs::chown(directory.path(), Some(user.uid), Some(user.gid))?;
    }
    Ok(directory)
}

/// Copies a directory with the owners and modes of its files.
fn copy(from: &Path, to: &Path) -> Result<(), SandboxError> {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    run(copy, "cp")
}

/// Whether a server accepts sessions on this port: it answers a start-up packet with a request for
/// authentication.
fn accepts_postgres(port: u16) -> bool {
    let attempt = || -> io::Result<bool> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let body = b"\x00\x03\x00\x00user\0postgres\0database\0postgres\0\0";
        let length = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
        socket.write_all(&length.to_be_bytes())?;
        socket.write_all(body)?;
        let mut tag = [0];
        socket.read_exact(&mut tag)?;
        Ok(tag == *b"R")
    };
    attempt().unwrap_or(false)
}

/// The directory with `initdb` and `postgres`: that of `UNSTALE_PG_BIN`, of the newest version that
/// Debian or Homebrew installed, or of the path.
pub fn find_postgres() -> Result<PathBuf, SandboxError> {
    if let Some(set) = std::env::var_os("UNSTALE_PG_BIN").filter(|set| !set.is_empty()) {
        return Ok(set.into());
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for (parent, prefix) in
        [("/usr/lib/postgresql", ""), ("/opt/homebrew/opt", "postgresql@"), ("/usr/local/opt", "postgresql@")]
    {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let version =
                name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|version| version.parse().ok());
            let bin = entry.path().join("bin");
            if let Some(version) = version.filter(|_| bin.join("initdb").is_file()) {
                found.push((version, bin));
            }
        }
    }
    let newest = found.into_iter().max().map(|(_, bin)| bin);
    let on_path = || on_path("initdb").and_then(|initdb| initdb.parent().map(Path::to_path_buf));
    newest.or_else(on_path).ok_or(SandboxError::Missing("PostgreSQL's initdb", "UNSTALE_PG_BIN to its directory"))
}
