//! How the daemon learns of changes: what differs between the ways, for servers, rules and writers.
//!
//! Invariant: the promise does not differ, so neither does the oracle.

use crate::support::in_outbox_mode;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Logical replication.
    Slot,
    /// The outbox where transactions may be prepared, so that nobody rings: one daemon works, one stands by.
    Outbox,
    /// The outbox with its doorbell: one daemon works, one stands by.
    Bell,
    /// The outbox with its doorbell and with rules whose work two daemons share.
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

/// Where the reads' settings begin.
const API: &str = "api: {";

/// What needs the order of commits, and what takes its place where that is not to be had.
const UNORDERED: [(&str, &str); 2] = [
    ("    stream: {name: log, data: {id: \"{id}\", v: \"{v}\"}, maxlen: 1000}\n", ""),
    ("set: {key: \"card:{id}\", columns: [v]}", "delete: \"card:{id}\""),
];

impl Mode {
    pub(super) const ALL: [Self; 4] = [Self::Slot, Self::Outbox, Self::Bell, Self::Shared];

    /// Those with an outbox.
    pub(super) const OUTBOX: [Self; 3] = [Self::Outbox, Self::Bell, Self::Shared];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::Outbox => "outbox",
            Self::Bell => "bell",
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
            Self::Bell | Self::Shared => &["max_prepared_transactions=0", "wal_level=replica"],
        }
    }

    pub(super) fn rules(self) -> String {
        match self {
            Self::Slot => RULES.to_owned(),
            Self::Outbox | Self::Bell => in_outbox_mode(RULES),
            Self::Shared => UNORDERED.iter().fold(in_outbox_mode(RULES), |rules, (ordered, unordered)| {
                assert!(rules.contains(ordered), "{ordered}");
                rules.replace(ordered, unordered)
            }),
        }
    }

    /// The same where reads may go to this replica.
    pub(super) fn rules_with_replica(self, url: &str) -> String {
        let rules = self.rules();
        assert!(rules.contains(API), "{rules}");
        rules.replace(API, &format!("{API}replica_url: \"{url}\", "))
    }
}
