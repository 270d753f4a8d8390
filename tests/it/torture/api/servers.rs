//! The API's servers: processes that are started again when they have ended.
//!
//! Owns the processes. It must not know what they are asked. Invariant: the port that is told is that of the process
//! that is held.

use std::process::Command;
use std::sync::Mutex;

use unstale::sandbox::signal;

use crate::support::Daemon;

/// The first reads the primary alone, the other the replica too.
pub(in crate::torture) const SERVERS: usize = 2;

/// What a server says when it can be asked.
const SERVING: &str = "serving";

/// Lines of a log that a finding shows.
const LINES: usize = 20;

#[derive(Default)]
pub(in crate::torture) struct Servers([Mutex<Option<Running>>; SERVERS]);

struct Running {
    process: Daemon,
    /// None: it does not serve yet, as far as was looked.
    port: Option<u16>,
}

/// Whether a server is there.
pub(super) enum State {
    Runs,
    Away,
    /// It ended by itself after it served; how, and what it said last.
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

    /// Nothing while it does not serve.
    pub(super) fn port(&self, server: usize) -> Option<u16> {
        let mut held = self.0[server].lock().unwrap();
        let running = held.as_mut()?;
        if running.port.is_none() {
            running.port = running.process.log().iter().find_map(|line| serving_port(line));
        }
        running.port
    }

    /// Lets go of one that ended. Before it served, something that it needs may have been away.
    pub(super) fn look(&self, server: usize) -> State {
        let mut held = self.0[server].lock().unwrap();
        let Some(running) = held.as_mut() else { return State::Away };
        if !running.process.has_ended() {
            return State::Runs;
        }
        let code = running.process.wait();
        let log = running.process.log();
        *held = None;
        if !log.iter().any(|line| serving_port(line).is_some()) {
            return State::Away;
        }
        let last = log.len().saturating_sub(LINES);
        State::Died(format!("with {code:?}: {:#?}", &log[last..]))
    }
}

fn serving_port(line: &str) -> Option<u16> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    if line["message"] != SERVING {
        return None;
    }
    line["address"].as_str()?.rsplit(':').next()?.parse().ok()
}
