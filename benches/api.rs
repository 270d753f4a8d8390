//! The cost of a hit over HTTP: the read API compared with the usual recipe, and with a handler
//! that returns a constant.
//!
//! Owns throwaway servers with 2,000 users, all of them cached. What is compared takes turns within
//! every round, so what disturbs one disturbs all, and each is one process. Run it with `make
//! bench-api`; `ARGS="--quick"` only shows that it runs, and `ARGS="--rounds 9 --seconds 10"`
//! measures longer. Needs wrk, and npm for the recipe.

#![allow(clippy::indexing_slicing, clippy::print_stdout, clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use axum::serve::ListenerExt as _;
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use unstale::postgres::{self, Address};
use unstale::sandbox::{Postgres, Redis, example};

const USERS: u32 = 2000;

/// Connections of the load.
const CONNECTIONS: u32 = 32;

/// Clients that ask at once for a key that is not cached.
const WAITING: usize = 200;

/// How long a server may take until it serves, or until everything is cached.
const START_MAX: Duration = Duration::from_secs(60);

/// With this argument, the bench is the process that returns the constant that follows.
const CONSTANT: &str = "--constant";

/// A user as in the shipped file. The recipe reads the same.
const SQL: &str = "select json_build_object(
  'id', u.id, 'email', u.email, 'name', u.name, 'avatar_url', u.avatar_url,
  'organizations', coalesce((
    select json_agg(json_build_object('id', o.id, 'name', o.name, 'plan', o.plan, 'role', m.role) order by o.id)
      from memberships m join organizations o on o.id = m.organization_id where m.user_id = u.id), '[]'))
from users u where u.id = $1";

/// Takes long enough that all clients ask while it is read.
const SLOW_SQL: &str = "select json_build_object('id', u.id) from users u cross join pg_sleep(0.05) where u.id = $1";

const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}"}
lookups:
  org_members: {sql: "select user_id from memberships where organization_id = $1"}
rules:
  user: {table: users, delete: ["user:{id}", "slow:{id}"]}
  membership: {table: memberships, delete: "user:{user_id}"}
  organization: {table: organizations, for_each: "org_members({id}) as m", delete: "user:{m.user_id}"}
reads:
  user: {path: "/users/{id}", key: "user:{id}", ttl: 1h, sql: USER}
  slow: {path: "/slow/{id}", key: "slow:{id}", ttl: 1h, sql: SLOW}
"#;

/// The server that answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Constant,
    Ours,
    Recipe,
    /// The recipe without parsing values that it only passes on.
    RecipeOfText,
}

impl Way {
    const ALL: [Self; 4] = [Self::Constant, Self::Ours, Self::Recipe, Self::RecipeOfText];

    fn name(self) -> &'static str {
        match self {
            Self::Constant => "axum, a constant",
            Self::Ours => "unstale run --serve",
            Self::Recipe => "Express + ioredis",
            Self::RecipeOfText => "Express + ioredis, text sent on",
        }
    }

    fn prefix(self) -> &'static str {
        if self == Self::RecipeOfText { "/text" } else { "" }
    }
}

/// The result of one run of wrk; latencies in milliseconds.
struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
}

struct Options {
    rounds: usize,
    seconds: usize,
}

impl Options {
    fn read() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let quick = arguments.iter().any(|argument| argument == "--quick");
        let number = |name: &str, usual: usize, quickly: usize| {
            let Some(place) = arguments.iter().position(|argument| argument == name) else {
                return if quick { quickly } else { usual };
            };
            arguments.get(place + 1).and_then(|value| value.parse().ok()).expect("a number follows")
        };
        Self { rounds: number("--rounds", 5, 1), seconds: number("--seconds", 5, 1) }
    }
}

/// A process that serves. It ends with the bench, however that ends.
struct Server {
    process: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// The port is in the first line in which `port` finds one; later lines are not kept.
    fn start(mut command: Command, logs: bool, port: fn(&str) -> Option<u16>) -> Self {
        command.stdin(Stdio::null());
        let _ = if logs { command.stderr(Stdio::piped()) } else { command.stdout(Stdio::piped()) };
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output: Box<dyn std::io::Read + Send> =
            if logs { Box::new(process.stderr.take().unwrap()) } else { Box::new(process.stdout.take().unwrap()) };
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        // If it never serves, it is dropped here, and so killed.
        let mut server = Self { process, port: 0 };
        let mut seen = Vec::new();
        while server.port == 0 {
            let Ok(line) = lines.recv_timeout(START_MAX) else { panic!("{command:?} does not serve: {seen:#?}") };
            server.port = port(&line).unwrap_or(0);
            seen.push(line);
        }
        server
    }

    /// The most memory it ever had, in MB.
    fn peak_memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        kilobytes.unwrap_or(f64::NAN) / 1024.0
    }

    /// The answers to these paths, on one connection.
    fn get_all(&self, paths: impl Iterator<Item = String>) -> Vec<String> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut stream = BufReader::new(stream);
        paths.map(|path| get(&mut stream, &path)).collect()
    }

    /// A count of one read, since it began.
    fn count(&self, read: &str, what: &str) -> u64 {
        let stats = self.get_all(std::iter::once("/stats".to_owned())).remove(0);
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats["reads"][read][what].as_u64().unwrap_or_else(|| panic!("/stats has no {what} of {read}: {stats}"))
    }
}

/// The body of an answer, which must be 200 and have a length.
fn get(stream: &mut BufReader<TcpStream>, path: &str) -> String {
    write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{path} is not answered: {head}");
    }
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
    });
    let mut body = vec![0; length.expect("a length")];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

struct Bench {
    postgres: Postgres,
    redis: Redis,
    /// The rules, and the recipe with what it depends on.
    directory: TempDir,
    options: Options,
}

/// The servers to measure: one process for each way, both recipes in the same one.
struct Servers {
    constant: Server,
    ours: Server,
    recipe: Server,
}

impl Servers {
    fn of(&self, way: Way) -> &Server {
        match way {
            Way::Constant => &self.constant,
            Way::Ours => &self.ours,
            Way::Recipe | Way::RecipeOfText => &self.recipe,
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // `cargo test` runs every bench once with this argument; there is nothing to test here.
            "--test" => return,
            // On a runtime like that of `unstale serve`.
            CONSTANT => {
                let body = arguments.next().expect("what to answer");
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
                return runtime.unwrap().block_on(serve(body));
            }
            _ => {}
        }
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(bench());
}

async fn bench() {
    let began = Instant::now();
    let bench = Bench::prepare(Options::read()).await;
    let servers = bench.start();
    bench.load(&servers);
    bench.stampede(&servers.ours).await;
    println!("\n{:.0} s in all", began.elapsed().as_secs_f64());
}

/// Answers everything with the same text.
async fn serve(body: String) {
    let body = bytes::Bytes::from(body);
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    let router = axum::Router::new().route("/users/{id}", axum::routing::get(move || async move { (json, body) }));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), router).await.unwrap();
}

impl Bench {
    async fn prepare(options: Options) -> Self {
        let postgres = Postgres::start(&[]).unwrap();
        let redis = Redis::start(&[]).unwrap();
        let address = Address::parse(&postgres.url("postgres"), &|_| None).unwrap();
        let client = postgres::connect(&address).await.unwrap();
        example::create(&client, USERS).await.unwrap();
        client.batch_execute("analyze").await.unwrap();
        let directory = TempDir::new().unwrap();
        // JSON text is also YAML.
        let quoted = |sql: &str| serde_json::to_string(sql).unwrap();
        let rules = RULES.replace("USER}", &format!("{}}}", quoted(SQL)));
        let rules = rules.replace("SLOW}", &format!("{}}}", quoted(SLOW_SQL)));
        std::fs::write(directory.path().join("invalidation.yaml"), rules).unwrap();
        Self { postgres, redis, directory, options }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.directory.path()).env("RUST_LOG", "info");
        command.env("DATABASE_URL", self.postgres.url("postgres")).env("REDIS_URL", self.redis.url());
        command
    }

    fn unstale(&self, arguments: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_unstale"), arguments)
    }

    /// A process that answers by our rules, and says where.
    fn serve(&self, arguments: &[&str]) -> Server {
        Server::start(self.unstale(&[arguments, &["--listen", "127.0.0.1:0"]].concat()), true, |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let address = line["address"].as_str().filter(|_| line["message"] == "serving")?;
            address.rsplit(':').next()?.parse().ok()
        })
    }

    /// Starts everything, with every user cached.
    fn start(&self) -> Servers {
        let set_up = self.unstale(&["setup"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(set_up.unwrap().success(), "setup");
        let ours = self.serve(&["run", "--serve"]);
        let recipe = self.recipe();
        let body = self.warm(&ours, &recipe);
        let itself = std::env::current_exe().unwrap();
        let constant = Server::start(self.command(itself, &[CONSTANT, &body]), false, |line| line.parse().ok());
        println!("{USERS} users of {} bytes each, all cached", body.len());
        Servers { constant, ours, recipe }
    }

    /// Installs the recipe and starts it.
    fn recipe(&self) -> Server {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/api");
        for file in ["package.json", "recipe.mjs"] {
            std::fs::copy(from.join(file), self.directory.path().join(file)).unwrap();
        }
        let mut install = self.command("npm", &["install", "--no-audit", "--no-fund", "--no-package-lock"]);
        let install = install.output().expect("npm is needed for the recipe: apt-get install nodejs npm");
        assert!(install.status.success(), "npm install: {}", String::from_utf8_lossy(&install.stderr));
        let mut node = self.command("node", &["recipe.mjs"]);
        node.env("NODE_ENV", "production").env("READ_SQL", SQL);
        Server::start(node, false, |line| line.parse().ok())
    }

    /// Reads everything until all are hits. Returns one body.
    fn warm(&self, ours: &Server, recipe: &Server) -> String {
        let users = |prefix: &'static str| (1..=USERS).map(move |user| format!("{prefix}/users/u{user}"));
        let deadline = Instant::now() + START_MAX;
        loop {
            // Before the daemon's first epoch nothing can be stored.
            let before = ours.count("user", "hits");
            let body = ours.get_all(users("")).remove(0);
            if ours.count("user", "hits") - before == u64::from(USERS) {
                recipe.get_all(users("/text"));
                let theirs: serde_json::Value = serde_json::from_str(&recipe.get_all(users("")).remove(0)).unwrap();
                assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap(), theirs, "the same JSON");
                return body;
            }
            assert!(Instant::now() < deadline, "not everything is cached");
        }
    }

    /// Requests per second and latencies of hits.
    fn load(&self, servers: &Servers) {
        let Options { rounds, seconds } = self.options;
        let mut many: [Vec<Run>; 4] = Default::default();
        let mut one: [Vec<Run>; 4] = Default::default();
        let before = servers.ours.count("user", "database_reads");
        for _ in 0..rounds {
            for (n, way) in Way::ALL.into_iter().enumerate() {
                many[n].push(wrk(servers.of(way), way, CONNECTIONS, seconds));
                one[n].push(wrk(servers.of(way), way, 1, seconds.min(2)));
            }
        }
        let reads = servers.ours.count("user", "database_reads") - before;
        println!(
            "\nwrk -t1 -c{CONNECTIONS} over all of them at random, medians of {rounds} x {seconds} s; then with one connection"
        );
        println!(
            "{:<34}{:>11}{:>9}{:>9}{:>9}{:>11}{:>11}{:>10}",
            "", "requests/s", "ours is", "p50 ms", "p99 ms", "1: p50 ms", "1: p99 ms", "peak MB"
        );
        let rates = many.each_ref().map(|runs| median(runs, |run| run.rate));
        for (n, way) in Way::ALL.into_iter().enumerate() {
            println!(
                "{:<34}{:>11.0}{:>9.2}{:>9.2}{:>9.2}{:>11.3}{:>11.3}{:>10.1}",
                way.name(),
                rates[n],
                rates[1] / rates[n],
                median(&many[n], |run| run.p50),
                median(&many[n], |run| run.p99),
                median(&one[n], |run| run.p50),
                median(&one[n], |run| run.p99),
                servers.of(way).peak_memory()
            );
        }
        println!("our database reads meanwhile: {reads}");
    }

    /// A cold key that all clients ask for at once, at two instances.
    async fn stampede(&self, ours: &Server) {
        let other = self.serve(&["serve"]);
        let instances = [ours, &other];
        let reads = || instances.iter().map(|server| server.count("slow", "database_reads")).sum::<u64>();
        let mut counts = Vec::new();
        let mut slowest = Vec::new();
        for user in 1..=self.options.rounds {
            let before = reads();
            let connect = |n: usize| tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, instances[n % 2].port));
            let streams = join_all((0..WAITING).map(connect)).await;
            let began = Instant::now();
            join_all(streams.into_iter().map(|stream| ask_once(stream.unwrap(), user))).await;
            slowest.push(began.elapsed().as_secs_f64() * 1000.0);
            counts.push(reads() - before);
        }
        slowest.sort_by(f64::total_cmp);
        println!(
            "\n{WAITING} clients of two instances at once ask for a cold key that takes 50 ms to read; database reads: {counts:?}, the last answer after {:.0} ms (median)",
            slowest[slowest.len() / 2]
        );
    }
}

/// A connection of its own for one request.
async fn ask_once(mut stream: tokio::net::TcpStream, user: usize) {
    let request = format!("GET /slow/u{user} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(START_MAX, stream.read_to_end(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

/// One run of wrk. Every request must get the expected answer.
fn wrk(server: &Server, way: Way, connections: u32, seconds: usize) -> Run {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/api/users.lua");
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency", "-s"]).arg(script);
    wrk.arg(format!("http://127.0.0.1:{}", server.port)).args(["--", way.prefix(), &USERS.to_string()]);
    let output = wrk.output().expect("wrk is needed: apt-get install wrk");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("RESULT "));
    let line = line.unwrap_or_else(|| panic!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    let [requests, micros, broken, refused, p50, p99]: [f64; 6] = numbers.try_into().unwrap();
    assert!(broken == 0.0 && refused == 0.0, "{}: {text}", way.name());
    Run { rate: requests / micros * 1e6, p50: p50 / 1000.0, p99: p99 / 1000.0 }
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
