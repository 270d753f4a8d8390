//! How the daemon learns of changes, and what that means for the servers, the rules and the
//! writers.
//!
//! Owns the differences between the modes. It must not know what is stale. Invariant: the promise
//! is the same in every mode, and so is the oracle.

use crate::support::in_outbox_mode;

/// One of the sources, as it is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Logical replication.
    Slot,
    /// The outbox on a server that can prepare transactions, so writers do not notify. One daemon
    /// works, the other stands by.
    Outbox,
    /// The outbox with notifications. One daemon works, the other stands by.
    Wakeup,
    /// The outbox with notifications, and rules that let two daemons share the work.
    Shared,
}

const RULES: &str = r#"
version: 1
source: {url: "${DATABASE_URL}"}
target: {url: "${REDIS_URL}", namespace: "t:", redis_down_max: 2s}
lookups:
  peers: {sql: "select id from items where grp = $1"}
rules:
  item:
    table: items
    delete: ["item:{id}", "alias:{alias}", "group:{grp}", "peer:{id}", "api-item:{id}", "api-alias:{alias}"]
    bump: "version:{grp}"
    publish: {channel: items, data: {id: "{id}"}}
    stream: {name: log, data: {id: "{id}", v: "{v}"}, maxlen: 1000}
  swept:
    table: items
    tags: "group:{grp}"
    pattern: "listed:{grp}:*"
  written:
    table: items
    when: "old.v != new.v || op != 'update'"
    set: {key: "card:{id}", columns: [v]}
  asked:
    table: items
    for_each: peers({grp}) as p
    delete: "peer:{p.id}"
  part:
    table: parts
    delete: "part:{id}"
api: {max_staleness: 2s, stale_if_error: 0s, consistency_wait: 50ms, timeout: 2s}
reads:
  item:
    path: /items/{id}
    key: "api-item:{id}"
    ttl: 1s
    stale_while_revalidate: 10m
    negative_ttl: 10m
    sql: select to_json(v) from items where id = $1
  alias:
    path: /aliases/{alias}
    key: "api-alias:{alias}"
    ttl: 2s
    negative_ttl: 10m
    max_staleness: 1s
    sql: select to_json(v) from items where alias = $1
  tagged:
    path: /tagged/{grp}
    key: "api-tagged:{grp}"
    tags: "group:{grp}"
    sql: select to_json(coalesce(sum(v), 0)) from items where grp = $1
  versioned:
    path: /versioned/{grp}
    key: "api-versioned:{grp}"
    version: "version:{grp}"
    sql: select to_json(coalesce(sum(v), 0)) from items where grp = $1
"#;

/// The beginning of the API's settings.
const API: &str = "api: {";

/// The actions that need the order of commits, and what takes their place where daemons share the
/// work.
const UNORDERED: [(&str, &str); 2] = [
    ("    stream: {name: log, data: {id: \"{id}\", v: \"{v}\"}, maxlen: 1000}\n", ""),
    ("set: {key: \"card:{id}\", columns: [v]}", "delete: \"card:{id}\""),
];

impl Mode {
    pub(super) const ALL: [Self; 4] = [Self::Slot, Self::Outbox, Self::Wakeup, Self::Shared];

    /// The modes with an outbox.
    pub(super) const OUTBOX: [Self; 3] = [Self::Outbox, Self::Wakeup, Self::Shared];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::Outbox => "outbox",
            Self::Wakeup => "wakeup",
            Self::Shared => "shared",
        }
    }

    pub(super) fn is_outbox(self) -> bool {
        self != Self::Slot
    }

    /// Whether transactions can be prepared.
    pub(super) fn prepares(self) -> bool {
        matches!(self, Self::Slot | Self::Outbox)
    }

    pub(super) fn server_settings(self) -> &'static [&'static str] {
        match self {
            Self::Slot => &["max_prepared_transactions=20"],
            Self::Outbox => &["max_prepared_transactions=20", "wal_level=replica"],
            Self::Wakeup | Self::Shared => &["max_prepared_transactions=0", "wal_level=replica"],
        }
    }

    pub(super) fn rules(self) -> String {
        match self {
            Self::Slot => RULES.to_owned(),
            Self::Outbox | Self::Wakeup => in_outbox_mode(RULES),
            Self::Shared => UNORDERED.iter().fold(in_outbox_mode(RULES), |rules, (ordered, unordered)| {
                assert!(rules.contains(ordered), "{ordered}");
                rules.replace(ordered, unordered)
            }),
        }
    }

    /// The rules, with reads from this replica.
    pub(super) fn rules_with_replica(self, url: &str) -> String {
        let rules = self.rules();
        assert!(rules.contains(API), "{rules}");
        rules.replace(API, &format!("{API}replica_url: \"{url}\", "))
    }
}
