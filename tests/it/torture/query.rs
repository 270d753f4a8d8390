//! The cached keys of a run, and the statements that give their values.
//!
//! Owns both. It must not know who reads or fills. Invariant: a key's statement says what the
//! database has now, so that it fills the key and judges it.

use unstale::key::CacheKey;

/// How many rows are written, in how many groups.
pub(super) const ITEMS: i32 = 60;
pub(super) const GROUPS: i32 = 12;

/// A cached key, and the statement that gives its value as one column of text.
pub(super) struct Query {
    pub(super) key: CacheKey,
    pub(super) sql: String,
    /// The tag's set that the key joins before its value is read.
    pub(super) tag: Option<CacheKey>,
}

impl Query {
    fn new(key: String, sql: String) -> Self {
        Self { key: CacheKey::new(key), sql, tag: None }
    }
}

pub(super) fn item(id: i32) -> Query {
    let sql = format!("select coalesce((select v::text from items where id = {id}), 'none')");
    Query::new(format!("t:item:{id}"), sql)
}

pub(super) fn alias(letter: char, id: i32) -> Query {
    let sql = format!("select coalesce((select v::text from items where alias = '{letter}{id}'), 'none')");
    Query::new(format!("t:alias:{letter}{id}"), sql)
}

fn sum(group: i32) -> String {
    format!("select coalesce(sum(v)::text, 'none') from items where grp = {group}")
}

pub(super) fn group(group: i32) -> Query {
    Query::new(format!("t:group:{group}"), sum(group))
}

/// The value of [`group`] under a key that no rule deletes: a version is part of the key.
pub(super) fn versioned(group: i32, version: &str) -> Query {
    Query::new(format!("t:versioned:{group}:{version}"), sum(group))
}

/// The value of [`group`] under a key that only a tag finds.
pub(super) fn tagged(group: i32) -> Query {
    let tag = Some(CacheKey::new(format!("t:tag:group:{group}")));
    Query { tag, ..Query::new(format!("t:tagged:{group}"), sum(group)) }
}

/// The value of [`group`] under a key that only a pattern finds.
pub(super) fn listed(group: i32) -> Query {
    Query::new(format!("t:listed:{group}:all"), sum(group))
}

/// The sum of the item's group under a key of the item, which only a lookup finds.
pub(super) fn peer(id: i32) -> Query {
    let sql = format!(
        "select coalesce((select sum(p.v)::text from items i join items p using (grp) where i.id = {id}), 'none')"
    );
    Query::new(format!("t:peer:{id}"), sql)
}

/// The value of a row of a partitioned table.
pub(super) fn part(id: i32) -> Query {
    let sql = format!("select coalesce((select v::text from parts where id = {id}), 'none')");
    Query::new(format!("t:part:{id}"), sql)
}

/// A value that a rule sets, and that a filler fills when it is missing.
pub(super) fn card(id: i32) -> Query {
    let sql = format!("select coalesce((select format('{{\"v\":%s}}', v) from items where id = {id}), 'none')");
    Query::new(format!("t:card:{id}"), sql)
}

pub(super) fn version_key(group: i32) -> CacheKey {
    CacheKey::new(format!("t:version:{group}"))
}
