//! A throwaway Redis.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::error::SandboxError;
use super::process::{START_MAX, Server, free_port, on_path};

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

    /// Ends the server at once. Its data is lost.
    pub fn stop(&mut self) {
        self.server = None;
    }
}

fn answers_ping(port: u16) -> bool {
    let attempt = || -> io::Result<bool> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.write_all(b"PING\r\n")?;
        let mut reply = [0; 5];
        socket.read_exact(&mut reply)?;
        // A server that asks for a password is up, too.
        Ok(reply.starts_with(b"+PONG") || reply.starts_with(b"-NOAU"))
    };
    attempt().unwrap_or(false)
}
