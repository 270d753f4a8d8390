//! The processes of the read API.
//!
//! Owns the processes and their ports. It must not know what they are asked. Invariant: the port of
//! a server is the one of its current process.

use std::process::Command;
use std::sync::Mutex;

use unstale::sandbox::signal;

use crate::support::Daemon;

/// The first reads the primary only, the second also the replica.
pub(in crate::torture) const SERVERS: usize = 2;

/// The message in the log of a server that serves.
const SERVING: &str = "serving";

/// How many lines of a log a finding shows.
const LINES: usize = 20;

#[derive(Default)]
pub(in crate::torture) struct Servers([Mutex<Option<Running>>; SERVERS]);

struct Running {
    process: Daemon,
    /// None until the log said that it serves.
    port: Option<u16>,
}

/// Whether a server runs.
pub(super) enum ProcessState {
    Runs,
    Away,
    /// It ended by itself after it had served: its exit code and its last lines.
    Died(String),
}

impl Servers {
    pub(in crate::torture) fn start(&self, server: usize, command: Command) {
        *self.0[server].lock().unwrap() = Some(Running { process: Daemon::start(command), port: None });
    }

    pub(super) fn kill(&self, server: usize) {
        *self.0[server].lock().unwrap() = None;
    }

    pub(in crate::torture) fn signal(&self, server: usize, name: &str) {
        if let Some(running) = &*self.0[server].lock().unwrap() {
            signal(running.process.pid(), name);
        }
    }

    /// None while it does not serve.
    pub(super) fn port(&self, server: usize) -> Option<u16> {
        let mut held = self.0[server].lock().unwrap();
        let running = held.as_mut()?;
        if running.port.is_none() {
            running.port = running.process.log().iter().find_map(|line| serving_port(line));
        }
        running.port
    }

    /// Whether a server runs, and if not, why. Before it served, something that it needs may have
    /// been away.
    pub(super) fn check(&self, server: usize) -> ProcessState {
        let mut held = self.0[server].lock().unwrap();
        let Some(running) = held.as_mut() else { return ProcessState::Away };
        if !running.process.has_ended() {
            return ProcessState::Runs;
        }
        let code = running.process.wait();
        let log = running.process.log();
        *held = None;
        if !log.iter().any(|line| serving_port(line).is_some()) {
            return ProcessState::Away;
        }
        let last = log.len().saturating_sub(LINES);
        ProcessState::Died(format!("with {code:?}: {:#?}", &log[last..]))
    }
}

fn serving_port(line: &str) -> Option<u16> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    if line["message"] != SERVING {
        return None;
    }
    line["address"].as_str()?.rsplit(':').next()?.parse().ok()
}
