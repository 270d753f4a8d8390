//! Throwaway PostgreSQL and Redis servers, from installed binaries.
//!
//! Owns their directories and processes; used by the demo, the tests and the benches. It must not know
//! what they are used for; [`example`] fills one. Invariant: a server ends when its owner does, even by `kill -9`: a small shell
//! stands between, and ends the server when its standard input closes.

pub mod example;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to answer after its start.
const START_MAX: Duration = Duration::from_secs(60);

/// Starts its arguments in the background, says their process id, and ends them when input ends. A signal
/// that comes before the server listens to it is lost, so it is repeated, and in the end does not ask.
const SUPERVISE: &str = r#"log=$1; signal=$2; shift 2
"$@" >>"$log" 2>&1 &
pid=$!
echo $pid
cat >/dev/null
kill -s "$signal" $pid 2>/dev/null
(for second in 1 2 3 4 5; do sleep 1; kill -s "$signal" $pid; done; kill -s KILL $pid) >/dev/null 2>&1 &
wait $pid
kill $! 2>/dev/null"#;

/// Why there is no throwaway server.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A program is not installed.
    #[error("cannot find {0}; install it, or set {1}")]
    Missing(&'static str, &'static str),
    /// A command failed.
    #[error("{0} failed: {1}")]
    Failed(String, String),
    /// A server did not begin to answer.
    #[error("{0} did not start; its log says: {1}")]
    Silent(&'static str, String),
    /// The file system or the process table said no.
    #[error("cannot prepare a throwaway server: {0}")]
    Io(#[from] io::Error),
}

/// A running process that ends with its owner.
#[derive(Debug)]
struct Server {
    shell: Child,
    input: Option<ChildStdin>,
    pid: u32,
    log: PathBuf,
}

impl Server {
    fn start(
        program: &Path,
        arguments: &[String],
        directory: &Path,
        signal: &str,
        user: Option<User>,
    ) -> Result<Self, SandboxError> {
        let log = directory.join("log");
        let mut command = Command::new("sh");
        command.args(["-c", SUPERVISE, "sh"]).arg(&log).arg(signal).arg(program).args(arguments);
        // A group of its own: Ctrl-C on a terminal is for us, not for the servers.
        command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.process_group(0);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        let mut shell = command.spawn()?;
        let input = shell.stdin.take();
        let mut line = String::new();
        if let Some(output) = shell.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let pid = line
            .trim()
            .parse()
            .map_err(|_| SandboxError::Failed("sh".to_owned(), "it gave no process id".to_owned()))?;
        Ok(Self { shell, input, pid, log })
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<_> = text.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// Whether the process is still there.
    fn runs(&self) -> bool {
        signal(self.pid, "0")
    }

    /// Ends the process by closing the shell's input, and waits until both are gone.
    fn stop(&mut self) {
        self.input = None;
        let _ = self.shell.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends a signal, by name; whether there was such a process.
pub fn signal(pid: u32, name: &str) -> bool {
    // The shell's own: a small system has no such program.
    let mut kill = Command::new("sh");
    kill.args(["-c", r#"kill -s "$1" "$2""#, "sh", name, &pid.to_string()]).stderr(Stdio::null());
    kill.status().is_ok_and(|status| status.success())
}

#[derive(Clone, Copy, Debug)]
struct User {
    uid: u32,
    gid: u32,
}

/// PostgreSQL refuses to run as root: then it runs as one of these.
fn unprivileged() -> Result<Option<User>, SandboxError> {
    let id = Command::new("id").arg("-u").output()?;
    if id.stdout.trim_ascii() != b"0" {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        let mut fields = passwd.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
        Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    };
    find("postgres")
        .or_else(|| find("nobody"))
        .map(Some)
        .ok_or(SandboxError::Missing("a user to run PostgreSQL as", "USER to one that is not root"))
}

/// A port nobody listens on at this moment.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A throwaway PostgreSQL on a free port of 127.0.0.1. Its data goes when it is dropped.
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
    /// Makes a cluster and starts it with `wal_level=logical` and these further settings (`name=value`).
    pub fn start(settings: &[&str]) -> Result<Self, SandboxError> {
        let bin = find_postgres()?;
        let user = unprivileged()?;
        let directory = TempDir::with_prefix("unstale-pg-")?;
        if let Some(user) = user {
            std::os::unix::fs::chown(directory.path(), Some(user.uid), Some(user.gid))?;
        }
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.arg("-D").arg(directory.path().join("data"));
        initdb
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
            .current_dir(directory.path());
        if let Some(user) = user {
            initdb.uid(user.uid).gid(user.gid);
        }
        run(initdb, "initdb")?;
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
        // Whoever held the data directory before may still be on its way out.
        let deadline = Instant::now() + START_MAX;
        loop {
            // QUIT: an immediate shutdown, which is all a throwaway server needs.
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

    /// Makes a standby that streams from this server, with these further settings. This server is stopped and
    /// started again on the way.
    pub fn standby(&mut self, settings: &[&str]) -> Result<Self, SandboxError> {
        let directory = TempDir::with_prefix("unstale-pg-")?;
        self.stop();
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(self.data_directory()).arg(directory.path().join("data"));
        run(copy, "cp")?;
        self.restart()?;
        std::fs::write(directory.path().join("data/standby.signal"), "")?;
        // A lock file of the server that was copied would be taken for a running one.
        let _ = std::fs::remove_file(directory.path().join("data/postmaster.pid"));
        if let Some(user) = self.user {
            std::os::unix::fs::chown(directory.path(), Some(user.uid), Some(user.gid))?;
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

    /// Ends the server at once, as a crash would.
    pub fn stop(&mut self) {
        self.server = None;
    }
}

/// A throwaway Redis on a free port of 127.0.0.1, without persistence.
#[derive(Debug)]
pub struct Redis {
    server: Option<Server>,
    program: PathBuf,
    directory: TempDir,
    arguments: Vec<String>,
    port: u16,
}

impl Redis {
    /// Starts a server with these further arguments.
    pub fn start(arguments: &[&str]) -> Result<Self, SandboxError> {
        let program = std::env::var_os("UNSTALE_REDIS_SERVER").map(PathBuf::from);
        let program = program.or_else(|| on_path("redis-server")).or_else(|| on_path("valkey-server"));
        let program = program.ok_or(SandboxError::Missing("redis-server", "UNSTALE_REDIS_SERVER to its path"))?;
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mut redis = Self {
            server: None,
            program,
            directory: TempDir::with_prefix("unstale-redis-")?,
            arguments,
            port: free_port()?,
        };
        redis.restart()?;
        Ok(redis)
    }

    /// Starts the server again, on the same port.
    pub fn restart(&mut self) -> Result<(), SandboxError> {
        let port = self.port.to_string();
        let fixed =
            ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--loglevel", "warning"];
        let arguments: Vec<_> =
            fixed.map(ToOwned::to_owned).into_iter().chain(self.arguments.iter().cloned()).collect();
        let server = Server::start(&self.program, &arguments, self.directory.path(), "KILL", None)?;
        let deadline = Instant::now() + START_MAX;
        while !answers_ping(self.port) {
            if !server.runs() || Instant::now() > deadline {
                return Err(SandboxError::Silent("Redis", server.log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.server = Some(server);
        Ok(())
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The process id of the server.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.pid)
    }

    /// Ends the server at once; what it held is lost.
    pub fn stop(&mut self) {
        self.server = None;
    }
}

/// Whether a server accepts sessions on this port: it answers a start-up packet with anything but an error.
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

fn answers_ping(port: u16) -> bool {
    let attempt = || -> io::Result<bool> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.write_all(b"PING\r\n")?;
        let mut reply = [0; 5];
        socket.read_exact(&mut reply)?;
        // Anything else, such as a wish for a password, comes from a server that is up too.
        Ok(reply.starts_with(b"+PONG") || reply.starts_with(b"-NOAU"))
    };
    attempt().unwrap_or(false)
}

fn run(mut command: Command, name: &str) -> Result<(), SandboxError> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    Err(SandboxError::Failed(name.to_owned(), text))
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

/// The directory with `initdb` and `postgres`: as told, of the newest version that Debian or Homebrew put
/// somewhere, or on the path.
fn find_postgres() -> Result<PathBuf, SandboxError> {
    if let Some(told) = std::env::var_os("UNSTALE_PG_BIN").filter(|told| !told.is_empty()) {
        return Ok(told.into());
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
