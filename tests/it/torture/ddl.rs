//! Changes of tables, partitions, publications and triggers, while everything else goes on.
//!
//! Owns the statements, and how each change is undone. It must not know what is cached. Invariant:
//! one change at a time, and after it the tables have their names and every change of a row is
//! captured again, whatever interrupted it.

use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::mode::Mode;
use super::state::REST_MAX;
use super::targets::Targets;

/// One change of what the database consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ddl {
    /// The table has another name for a while, and a view has its name.
    Rename,
    /// The table is in another schema for a while, and a view has its name.
    Move,
    /// Another table takes the place of the table.
    Replace,
    /// Every value of a column changes.
    Rewrite,
    /// A column is dropped, and another one with its name is added.
    Recolumn,
    /// A partition is detached, changed and attached again.
    Detach,
    /// The table gets a child with rows of its own.
    Child,
    /// The changes of a table do not arrive for a while.
    Carrier,
}

/// Undoes what can be undone, in any state.
const RESTORE: &str = "do $$ begin
  if to_regclass('public.renamed') is not null then
    drop view if exists public.items;
    alter table public.renamed rename to items;
  end if;
  if to_regclass('moved.items') is not null then
    drop view if exists public.items;
    alter table moved.items set schema public;
  end if;
  drop table if exists public.items_child;
  if not exists (select from pg_inherits where inhrelid = 'public.parts_b'::regclass) then
    alter table public.parts attach partition public.parts_b for values from (31) to (61);
  end if;
end $$";

/// Publishes everything of the tables that are published; `setup` adds the others.
const PUBLISH: &str = "do $$ begin
  alter publication unstale set (publish = 'insert, update, delete, truncate');
  if exists (select from pg_publication_tables where pubname = 'unstale' and rowfilter is not null) then
    alter publication unstale drop table public.items;
  end if;
end $$";

const DISABLE: &str = "do $$ declare name text; begin
  for name in select tgname from pg_trigger where tgrelid = 'public.items'::regclass and tgname like '%unstale%' loop
    execute format('alter table public.items disable trigger %I', name);
  end loop;
end $$";

impl Ddl {
    const ALL: [Self; 8] = [
        Self::Rename,
        Self::Move,
        Self::Replace,
        Self::Rewrite,
        Self::Recolumn,
        Self::Detach,
        Self::Child,
        Self::Carrier,
    ];

    pub(super) fn draw(random: &mut StdRng) -> Self {
        Self::ALL[random.random_range(0..Self::ALL.len())]
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rename => "table renamed",
            Self::Move => "table in another schema",
            Self::Replace => "table replaced",
            Self::Rewrite => "table rewritten",
            Self::Recolumn => "column replaced",
            Self::Detach => "partition detached",
            Self::Child => "child table",
            Self::Carrier => "changes not captured",
        }
    }

    /// Makes the change and undoes it. Whether it was made: locks, or a server that is away, may
    /// prevent it.
    pub(super) async fn strike(self, targets: &Targets, time: Duration, random: &mut StdRng) -> bool {
        let _alone = targets.ddl.lock().await;
        let mut struck = false;
        for sql in self.statements(targets.state.mode, random) {
            struck = execute(targets, &sql).await;
            if !struck {
                break;
            }
            sleep(time).await;
        }
        let mut restore = vec![RESTORE];
        if self == Self::Carrier && !targets.state.mode.is_outbox() {
            restore.push(PUBLISH);
        }
        for sql in restore {
            let deadline = Instant::now() + REST_MAX;
            while !execute(targets, sql).await {
                assert!(Instant::now() < deadline, "{}: {sql} fails", self.name());
                sleep(Duration::from_millis(10)).await;
            }
        }
        if matches!(self, Self::Replace | Self::Carrier) {
            targets.run("setup").await;
        }
        struck
    }

    /// The change, each statement a transaction.
    fn statements(self, mode: Mode, random: &mut StdRng) -> Vec<String> {
        let id = random.random_range(31..=60);
        let one = |sql: &str| vec![sql.to_owned()];
        match self {
            Self::Rename => {
                one("begin; alter table items rename to renamed; create view items as select * from renamed; commit")
            }
            Self::Move => one("begin; create schema if not exists moved; alter table items set schema moved;
                 create view public.items as select * from moved.items; commit"),
            Self::Replace => {
                let reference = "alter table items_new add foreign key (grp) references groups on delete cascade;";
                let reference = if mode.is_outbox() { reference } else { "" };
                vec![format!(
                    "begin; create table items_new (like items including all); {reference}
                     insert into items_new (id, alias, grp) select id, alias, grp from items;
                     alter table items rename to items_old; alter table items_new rename to items;
                     drop table items_old cascade; commit"
                )]
            }
            Self::Rewrite => one("alter table items alter column v type bigint using nextval('versions')"),
            Self::Recolumn => one("alter table items drop column v,
                 add column v bigint not null default nextval('versions')"),
            Self::Detach => vec![
                "alter table parts detach partition parts_b".to_owned(),
                format!("update parts_b set v = nextval('versions') where id = {id}"),
            ],
            Self::Child => vec![
                "create table items_child () inherits (items)".to_owned(),
                format!("insert into items_child (id, alias, grp) values ({}, 'c{id}', {})", id + 1000, id % 12),
                "update items set v = nextval('versions') where id > 1000".to_owned(),
            ],
            Self::Carrier if mode.is_outbox() => one(DISABLE),
            Self::Carrier => one([
                "alter publication unstale drop table items",
                "alter publication unstale drop table parts",
                "alter publication unstale set (publish = 'insert')",
                "begin; alter publication unstale drop table items;
                 alter publication unstale add table items where (id > 30); commit",
            ][random.random_range(0..4)]),
        }
    }
}

/// Runs statements, each attempt in a session of its own; whether they succeeded.
async fn execute(targets: &Targets, sql: &str) -> bool {
    let admin = targets.admin().await;
    // Others wait behind a statement that waits for a lock.
    let limited = admin.batch_execute("set lock_timeout = '500ms'; set statement_timeout = '20s'").await.is_ok();
    limited && admin.batch_execute(sql).await.is_ok()
}
