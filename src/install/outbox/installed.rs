//! Reads from the catalog what is installed of an outbox, and what captured tables look like.
//!
//! Owns the queries. It must not compare. Invariants: no table is locked and nothing is changed; a
//! role without privileges on the schema still learns what the catalog knows.

use std::collections::HashMap;

use tokio_postgres::{Client, Error, Row};

use super::captured::{CapturedColumn, CapturedTable, Member};
use super::shape::Shape;
use crate::change::TableName;
use crate::install::emit::{self, EmitFunction};
use crate::postgres::lossy_text::LossyText;
use crate::rules::Capture;

/// Which objects of the outbox exist, and what the role may read. It looks at the catalog, because
/// a name cannot be resolved without USAGE on its schema.
const OBJECTS: &str = "with ours as (select oid from pg_namespace where nspname = 'unstale'), \
     class as (select c.* from pg_class c join ours on c.relnamespace = ours.oid), \
     proc as (select p.* from pg_proc p join ours on p.pronamespace = ours.oid) \
     select (select count(*) from class where (relname, relkind) in \
              (('outbox', 'r'), ('shape', 'r'), ('consumer', 'r'), ('bell', 'S'), ('counted', 'S'))) = 5 \
            and (select count(*) from proc where proname in ('ring', 'take_over', 'confirm')) = 3, \
     coalesce((select has_schema_privilege(oid, 'USAGE') from ours), false) \
       and coalesce((select bool_and(has_table_privilege(oid, 'SELECT')) from class \
                      where relname in ('shape', 'consumer') and relkind = 'r'), false), \
     (select count(*) from class where relname in ('outbox', 'shape', 'consumer') and relkind = 'r')";

const FUNCTIONS: &str = "select p.proname::text, p.prosrc, \
     p.prosecdef and l.lanname = 'plpgsql' and p.prorettype = 'trigger'::regtype, coalesce(p.proconfig, '{}'), \
     has_function_privilege('public', p.oid, 'EXECUTE'), p.proowner = (select oid from pg_roles where rolname = current_user), \
     pg_get_userbyid(p.proowner)::text, \
     array(select pg_get_userbyid(a.grantee)::text from aclexplode(p.proacl) a \
            where a.grantee <> 0 and a.privilege_type = 'EXECUTE'), \
     coalesce((select has_table_privilege(p.proowner, c.oid, 'INSERT') from pg_class c \
                where c.relnamespace = p.pronamespace and c.relname = 'outbox'), false) \
     from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang \
     where n.nspname = 'unstale' and p.proname like 'capture\\_%' and p.pronargs = 0 order by 1";

const TRIGGERS: &str = "select t.tgrelid, n.nspname::text, c.relname::text, t.tgname::text, t.tgtype, \
     t.tgenabled = 'A', t.tgparentid <> 0, p.proname::text, t.tgqual is null and t.tgnargs = 0 and t.tgattr = '' \
     from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace s on s.oid = p.pronamespace \
     join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace \
     where s.nspname = 'unstale' and p.proname like 'capture\\_%' order by 2, 3, 4";

const COLUMNS: &str = "with recursive domains (id, base) as ( \
       select oid, typbasetype from pg_type where typtype = 'd' \
       union all select d.id, t.typbasetype from domains d join pg_type t on t.oid = d.base where t.typtype = 'd'), \
     bases as (select d.id, d.base from domains d join pg_type t on t.oid = d.base where t.typtype <> 'd') \
     select a.attname::text, a.atttypid, e.oid, e.typtype = 'e', a.attgenerated = 'v', t.oid \
     from pg_attribute a left join bases b on b.id = a.atttypid \
     join pg_type t on t.oid = coalesce(b.base, a.atttypid) \
     join pg_type e on e.oid = case when t.typcategory = 'A' and t.typelem <> 0 then t.typelem else t.oid end \
     where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped and a.attname::text = any($2) order by a.attnum";

/// A table and its descendants, partitions or by inheritance; itself first.
const MEMBERS: &str = "with recursive tree (oid, below) as ( \
       select c.oid, false from pg_class c join pg_namespace n on n.oid = c.relnamespace \
        where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p') \
       union select i.inhrelid, true from pg_inherits i join tree on i.inhparent = tree.oid) \
     select c.oid, n.nspname::text, c.relname::text, tree.below and c.relispartition, \
       pg_get_userbyid(c.relowner)::text from tree \
     join pg_class c on c.oid = tree.oid join pg_namespace n on n.oid = c.relnamespace \
     where c.relkind in ('r', 'p') order by tree.below, 2, 3";

/// The installed parts of an outbox.
#[derive(Debug)]
pub(super) struct Installed {
    /// Whether the tables, sequences and functions exist.
    pub(super) base: bool,
    /// The number of existing tables.
    tables: i64,
    /// The function `unstale.emit`.
    pub(super) emit: EmitFunction,
    /// The registered consumers, if the role may read them.
    pub(super) consumers: Vec<String>,
    /// The shapes by id, if the role may read them.
    pub(super) shapes: HashMap<i32, Shape>,
    /// Whether the role may read consumers and shapes.
    pub(super) readable: bool,
    pub(super) functions: Vec<InstalledFunction>,
    pub(super) triggers: Vec<InstalledTrigger>,
}

#[derive(Debug)]
pub(super) struct InstalledFunction {
    pub(super) name: String,
    pub(super) body: String,
    /// Whether it is a SECURITY DEFINER trigger function in PL/pgSQL.
    pub(super) is_definer: bool,
    /// Its settings, as `name=value`.
    pub(super) settings: Vec<String>,
    /// Whether PUBLIC may execute it.
    pub(super) is_public: bool,
    /// Whether the current role owns it.
    pub(super) is_own: bool,
    pub(super) owner: String,
    /// The roles that may execute it.
    pub(super) callers: Vec<String>,
    /// Whether its owner may insert into the outbox.
    pub(super) may_insert: bool,
}

#[derive(Debug)]
pub(super) struct InstalledTrigger {
    pub(super) relation: u32,
    pub(super) table: TableName,
    pub(super) name: String,
    pub(super) kind: i16,
    pub(super) is_always: bool,
    /// Whether it was created with the trigger of the table's parent.
    pub(super) is_inherited: bool,
    pub(super) function: String,
    /// Whether it has no condition and no list of columns.
    pub(super) is_whole: bool,
}

impl Installed {
    /// Whether any part of an outbox exists.
    pub(super) fn is_any(&self) -> bool {
        self.base || self.tables > 0 || !self.functions.is_empty()
    }
}

pub(super) async fn read(client: &Client) -> Result<Installed, Error> {
    let row = client.query_one(OBJECTS, &[]).await?;
    let tables: i64 = row.get(2);
    // If there are no tables, there is nothing that the role may not read.
    let readable = row.get::<_, bool>(1) || tables == 0;
    let (mut consumers, mut shapes) = (Vec::new(), HashMap::new());
    if readable && tables == 3 {
        let rows = client.query("select slot from unstale.consumer order by 1", &[]).await?;
        consumers.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        let rows = client.query("select id, schema_name, table_name, columns, types from unstale.shape", &[]).await?;
        shapes.extend(rows.iter().map(|row| (row.get::<_, i32>(0), shape(row))));
    }
    let functions = client.query(FUNCTIONS, &[]).await?;
    let triggers = client.query(TRIGGERS, &[]).await?;
    Ok(Installed {
        base: row.get(0),
        tables,
        emit: emit::read(client).await?,
        consumers,
        shapes,
        readable,
        functions: functions.iter().map(function).collect(),
        triggers: triggers.iter().map(trigger).collect(),
    })
}

/// A captured table as it is now; none if it does not exist.
pub(super) async fn table(client: &Client, capture: &Capture) -> Result<Option<CapturedTable>, Error> {
    let rows = client.query(MEMBERS, &[&capture.table.schema, &capture.table.table]).await?;
    let member = |row: &Row| Member {
        oid: row.get(0),
        name: TableName::new(row.get::<_, LossyText>(1).0, row.get::<_, LossyText>(2).0),
        is_partition: row.get(3),
        owner: row.get(4),
    };
    let members: Vec<Member> = rows.iter().map(member).collect();
    let Some(table) = members.first() else { return Ok(None) };
    let rows = client.query(COLUMNS, &[&table.oid, &capture.columns]).await?;
    let column = |row: &Row| CapturedColumn {
        name: row.get(0),
        type_oid: row.get(1),
        element_oid: row.get(2),
        is_enum: row.get(3),
        is_virtual: row.get(4),
        base_oid: row.get(5),
    };
    Ok(Some(CapturedTable { capture: capture.clone(), columns: rows.iter().map(column).collect(), members }))
}

fn shape(row: &Row) -> Shape {
    Shape {
        table: TableName::new(row.get::<_, LossyText>(1).0, row.get::<_, LossyText>(2).0),
        columns: row.get(3),
        types: row.get(4),
    }
}

fn function(row: &Row) -> InstalledFunction {
    InstalledFunction {
        name: row.get(0),
        body: row.get(1),
        is_definer: row.get(2),
        settings: row.get(3),
        is_public: row.get(4),
        is_own: row.get(5),
        owner: row.get(6),
        callers: row.get(7),
        may_insert: row.get(8),
    }
}

fn trigger(row: &Row) -> InstalledTrigger {
    InstalledTrigger {
        relation: row.get(0),
        table: TableName::new(row.get::<_, LossyText>(1).0, row.get::<_, LossyText>(2).0),
        name: row.get(3),
        kind: row.get(4),
        is_always: row.get(5),
        is_inherited: row.get(6),
        function: row.get(7),
        is_whole: row.get(8),
    }
}
