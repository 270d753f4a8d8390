//! The read API over HTTP: the binary, real servers, and clients that may misbehave.
//!
//! Owns what its parts share: a file with reads, starting instances, and holding a query at a known
//! point. The rules of [`File`] cover its reads, so no served value is older than what is in force.

mod caching;
mod events;
mod failure;
mod freshness;
mod http;
mod input;
mod limits;
mod openapi;
mod reads;
mod session;

use std::ops::{Deref, DerefMut};
use std::process::Command;

pub(crate) use http::{Answer, Client};

use crate::support::{Daemon, EVENT_MAX, World, wait_until};

/// The order of the sections, and what every file of these tests has.
const HEAD: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "v1:"}
rules:
  user: {table: users, delete: ["user:{id}", "slow:{id}", "counted:{id}"]}
  probe: {table: probes, delete: "probe:{id}"}
"#;

/// `slow` waits while a [`Hold`] exists, after its snapshot was taken. `counted` returns a higher
/// number at every database read, so an answer shows whether there was one.
const READS: &str = r#"
reads:
  user:
    path: /users/{id}
    key: "user:{id}"
    ttl: 10m
    sql: select json_build_object('id', u.id, 'name', u.name) from users u where u.id = $1
  slow:
    path: /slow/{id}
    key: "slow:{id}"
    timeout: 30s
    sql: select to_json(u.name) from users u, (select pg_advisory_xact_lock_shared(7)) held where u.id = $1
  counted:
    path: /counted/{id}
    key: "counted:{id}"
    sql: select to_json((extract(epoch from clock_timestamp()) * 1e6)::bigint) from users u where u.id = $1
  probe:
    path: /probe/{id}
    key: "probe:{id}"
    sql: select to_json(p.id) from probes p where p.id = $1
"#;

const API: &str = "
api:
  listen: 127.0.0.1:0
";

const TABLES: &str = "
create table probes (id text primary key);
insert into probes values ('1');
";

/// A configuration: what a test adds to the shared one. Each part is YAML, indented by two.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct File<'a> {
    pub(crate) tables: &'a str,
    pub(crate) rules: &'a str,
    pub(crate) reads: &'a str,
    pub(crate) api: &'a str,
}

impl File<'_> {
    pub(crate) fn text(&self) -> String {
        [HEAD, self.rules, READS, self.reads, API, self.api].join("\n")
    }

    /// The example domain with these tables, set up; no process runs.
    pub(crate) fn world(&self) -> World {
        let world = World::with_rules(&self.text());
        self.set_up(&world);
        world
    }

    pub(crate) fn set_up(&self, world: &World) {
        world.sql(TABLES);
        world.sql(self.tables);
        world.run_ok(&["setup"]);
    }

    /// The daemon and the API in one process; hits are served.
    pub(crate) fn start(&self) -> Api {
        let api = Api::run(self.world(), &[]);
        api.warm("/probe/1");
        api
    }
}

/// `unstale run --serve`, with the servers it needs.
pub(crate) struct Api {
    pub(crate) instance: Instance,
    pub(crate) world: World,
}

impl Api {
    /// The example domain, set up with these rules, and the daemon and the API in one process.
    pub(crate) fn start(rules: &str) -> Self {
        let world = World::with_rules(rules);
        world.run_ok(&["setup"]);
        Self::run(world, &[])
    }

    /// The same in a world that is set up already, with these environment variables.
    pub(crate) fn run(world: World, environment: &[(&str, &str)]) -> Self {
        let mut command = world.command(&["run", "--serve", "--listen", "127.0.0.1:0"]);
        command.envs(environment.iter().copied());
        let instance = Instance::start(command);
        // Until then no hit is served, because it is unknown which invalidations are in force.
        wait_until(EVENT_MAX, "the daemon is up to date", || world.holds("v1:unstale:{unstale}:asof"));
        Self { instance, world }
    }

    /// `unstale serve`: the API without a daemon. `extra` is appended to the file.
    pub(crate) fn serve_alone(world: &World, extra: &str) -> Instance {
        let directory = world.directory.path();
        let text = std::fs::read_to_string(directory.join("invalidation.yaml")).unwrap();
        std::fs::write(directory.join("serve.yaml"), format!("{text}\n{extra}")).unwrap();
        Instance::start(world.command(&["serve", "--listen", "127.0.0.1:0", "--config", "serve.yaml"]))
    }
}

impl Deref for Api {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.instance
    }
}

impl DerefMut for Api {
    fn deref_mut(&mut self) -> &mut Instance {
        &mut self.instance
    }
}

/// A process that serves the API.
pub(crate) struct Instance {
    pub(crate) process: Daemon,
    client: Client,
}

impl Instance {
    fn start(command: Command) -> Self {
        let process = Daemon::start(command);
        let line = process.wait_for_log(r#""message":"serving""#);
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let client = Client::new(line["address"].as_str().unwrap().parse().unwrap());
        Self { process, client }
    }
}

impl Deref for Instance {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Holds every query of the read `slow`: each takes its snapshot and waits.
pub(crate) struct Hold<'a> {
    world: &'a World,
    session: tokio_postgres::Client,
}

impl<'a> Hold<'a> {
    pub(crate) fn new(world: &'a World) -> Self {
        let session = world.another_client();
        world.sql_on(&session, "select pg_advisory_lock(7)");
        Self { world, session }
    }

    /// Waits until at least so many queries are held.
    pub(crate) fn wait_for(&self, queries: usize) {
        let sql = format!("select count(*) >= {queries} from pg_locks where locktype = 'advisory' and not granted");
        let sql = format!("select ({sql})::text");
        wait_until(EVENT_MAX, "queries are held up", || self.world.value(&sql) == "true");
    }

    /// Lets the queries continue.
    pub(crate) fn release(self) {
        self.world.sql_on(&self.session, "select pg_advisory_unlock(7)");
    }
}
