//! A server process that ends with its owner.
//!
//! Owns the shell between the owner and the server. Invariant: a server ends when its owner does,
//! even by `kill -9`, because the shell ends it when its standard input closes.

use std::io::{self, BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use super::error::SandboxError;
use super::user::User;

/// How long a server may take until it answers.
pub(super) const START_MAX: Duration = Duration::from_secs(60);

/// Starts its arguments in the background, prints their process id, and ends them when standard
/// input closes. A server may miss a signal that arrives while it starts, so the signal is
/// repeated. After 5 seconds the server is killed.
const SUPERVISE: &str = r#"log=$1; signal=$2; shift 2
"$@" >>"$log" 2>&1 &
pid=$!
echo $pid
cat >/dev/null
kill -s "$signal" $pid 2>/dev/null
(for second in 1 2 3 4 5; do sleep 1; kill -s "$signal" $pid; done; kill -s KILL $pid) >/dev/null 2>&1 &
wait $pid
kill $! 2>/dev/null"#;

/// A running process that ends with its owner.
#[derive(Debug)]
pub(super) struct Server {
    shell: Child,
    input: Option<ChildStdin>,
    pub(super) pid: u32,
    log: PathBuf,
}

impl Server {
    /// Starts a program. `signal` is what ends it.
    pub(super) fn start(
        program: &Path,
        arguments: &[String],
        directory: &Path,
        signal: &str,
        user: Option<User>,
    ) -> Result<Self, SandboxError> {
        let log = directory.join("log");
        let mut command = Command::new("sh");
        command.args(["-c", SUPERVISE, "sh"]).arg(&log).arg(signal).arg(program).args(arguments);
        // A process group of its own: Ctrl-C on a terminal must not reach the servers.
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

    /// The last lines of its log.
    pub(super) fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<_> = text.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// Whether the process runs.
    pub(super) fn runs(&self) -> bool {
        signal(self.pid, "0")
    }

    /// Ends the process by closing the shell's input, and waits until both have ended.
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

/// Sends a signal, by its name. Returns whether the process exists.
pub fn signal(pid: u32, name: &str) -> bool {
    // The shell's own `kill`: a small system has no such program.
    let mut kill = Command::new("sh");
    kill.args(["-c", r#"kill -s "$1" "$2""#, "sh", name, &pid.to_string()]).stderr(Stdio::null());
    kill.status().is_ok_and(|status| status.success())
}

/// A port that is free at this moment.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Runs a command to its end.
pub(super) fn run(mut command: Command, name: &str) -> Result<(), SandboxError> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    Err(SandboxError::Failed(name.to_owned(), text))
}

/// Finds a program on the path.
pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}
