//! The function that writes a table's changes to the outbox, and the triggers that call it.
//!
//! Owns their text. It must not ask a server. Invariants: the same table makes the same text, whatever its names
//! contain; a writer does not fail because a column is gone; values read as the log has them, whatever the writer's
//! session is set to.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use crate::catalog::quote_table;
use crate::change::{Operation, TableName};
use crate::rules::Capture;

/// The longest name PostgreSQL keeps whole, in bytes.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// What every capture function's name begins with.
const PREFIX: &str = "capture_";

/// What the triggers' names begin with. PostgreSQL calls triggers by their names' order, and what another one changes is
/// to be written down after the change that made it do so.
const FIRST: &str = "!";

/// The most bytes of both rows that are written down. What has more only says that something changed.
const BYTES_MAX: u32 = 64 << 20;

/// The bits of `pg_trigger.tgtype`, from PostgreSQL's `catalog/pg_trigger.h`.
const ROW: i16 = 1;
const INSERT: i16 = 4;
const DELETE: i16 = 8;
const UPDATE: i16 = 16;
pub(super) const TRUNCATE: i16 = 32;

/// A table to capture, as the database has it.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) capture: Capture,
    /// The columns to write down, in order.
    pub(super) columns: Vec<CapturedColumn>,
    /// The table, its partitions and its heirs, at every depth.
    pub(super) members: Vec<Member>,
}

/// A column to write down.
#[derive(Clone, Debug)]
pub(super) struct CapturedColumn {
    pub(super) name: String,
    /// Its type.
    pub(super) type_oid: u32,
    /// The type of an array's elements, else the type itself.
    pub(super) element_oid: u32,
    /// Whether that is an enum.
    pub(super) is_enum: bool,
    /// Its value is made when it is read: a trigger does not see it (PostgreSQL 18).
    pub(super) is_virtual: bool,
}

/// A table that holds rows of a captured one, or whose partitions do.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) oid: u32,
    pub(super) name: TableName,
    /// PostgreSQL gives it the row triggers of what it is a partition of.
    pub(super) is_partition: bool,
    pub(super) owner: String,
}

/// What the values of an entry are: a row of `unstale.shape`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) table: TableName,
    pub(super) columns: Vec<String>,
    pub(super) types: Vec<u32>,
}

/// What a new connection of the role that sets up is set to, and what the log's text follows.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    pub(super) time_zone: String,
    pub(super) monetary: String,
}

/// A capture function.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) body: String,
    /// What it sets while it runs, by name; the names are in lower case.
    pub(super) settings: Vec<(&'static str, String)>,
    /// Who makes partitions of the table: with each PostgreSQL makes a trigger that calls this, in the name of the owner.
    pub(super) callers: Vec<String>,
}

/// A kind of trigger that a captured table has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trigger {
    pub(super) name: String,
    /// As `pg_trigger.tgtype` has it.
    pub(super) kind: i16,
}

impl Watched {
    pub(super) fn shape(&self) -> Shape {
        Shape {
            table: self.capture.table.clone(),
            columns: self.columns.iter().map(|column| column.name.clone()).collect(),
            types: self.columns.iter().map(|column| column.type_oid).collect(),
        }
    }

    /// What is called for each row, if some rule wants to know of rows.
    pub(super) fn row_trigger(&self) -> Option<Trigger> {
        let bit = |operation: &Operation| match operation {
            Operation::Insert => INSERT,
            Operation::Update => UPDATE,
            Operation::Delete => DELETE,
            Operation::Truncate | Operation::Event => 0,
        };
        let bits = self.capture.operations.iter().map(bit).fold(0, |bits, bit| bits | bit);
        let name = format!("{FIRST}unstale_row_{}", digest(&self.capture.table));
        (bits != 0).then_some(Trigger { name, kind: ROW | bits })
    }

    /// What is called for each truncate, if some rule wants to know of those.
    pub(super) fn truncate_trigger(&self) -> Option<Trigger> {
        let name = format!("{FIRST}unstale_truncate_{}", digest(&self.capture.table));
        self.capture.operations.contains(&Operation::Truncate).then_some(Trigger { name, kind: TRUNCATE })
    }

    pub(super) fn function(&self, shape: i32, notify: bool, defaults: &Defaults) -> Function {
        let values =
            |row: &str| self.columns.iter().map(|column| column.text_of(row)).collect::<Vec<_>>().join(",\n          ");
        let image =
            |row: &str| if self.columns.is_empty() { "'{}'".to_owned() } else { format!("array[{}]", values(row)) };
        // Each rule of the table that an update triggers says which columns must have changed.
        let only_changed = if self.capture.only_changed {
            "\n  if kind = 'u' and before is not distinct from after then\n    return null;\n  end if;"
        } else {
            ""
        };
        let ring = if notify {
            "\n  if pg_sequence_last_value('unstale.bell'::regclass) = 2 then\n    perform unstale.ring();\n  end if;"
        } else {
            ""
        };
        let body = format!(
            r#"
declare
  kind "char" := 't';
  before text[];
  after text[];
begin
  if tg_op <> 'TRUNCATE' then
    -- That a column was renamed, retyped or dropped, or is huge, is no reason for a writer to fail.
    begin
      if tg_op <> 'INSERT' then
        before := {old};
      end if;
      if tg_op <> 'DELETE' then
        after := {new};
      end if;
      if {retyped} or coalesce(pg_column_size(before), 0) + coalesce(pg_column_size(after), 0) > {bytes_max} then
        raise exception 'not as it was, or too large';
      end if;
      kind := case tg_op when 'INSERT' then 'i' when 'UPDATE' then 'u' else 'd' end;
    exception when others then
      kind := 'r';
      before := null;
      after := null;
    end;
  end if;{only_changed}
  insert into unstale.outbox (op, shape, old, new) values (kind, {shape}, before, after);{ring}
  return null;
end
"#,
            old = image("old"),
            new = image("new"),
            retyped = self.retyped(),
            bytes_max = BYTES_MAX,
        );
        let owners: BTreeSet<&String> = self.members.iter().map(|member| &member.owner).collect();
        let callers = owners.into_iter().cloned().collect();
        Function { name: function_name(&self.capture.table), body, settings: self.settings(defaults), callers }
    }

    /// Whether a column has another type by now, whose text may depend on more. Of the row that there is.
    fn retyped(&self) -> String {
        let of = |row: &str| {
            let differs = |column: &CapturedColumn| {
                format!("pg_typeof({row}.{})::oid <> {}", identifier(&column.name), column.type_oid)
            };
            self.columns.iter().map(differs).collect::<Vec<_>>().join(" or ")
        };
        match self.columns.is_empty() {
            true => "false".to_owned(),
            // In parentheses: PL/pgSQL takes the first THEN outside of them for its own.
            false => format!("(case when tg_op = 'DELETE' then {} else {} end)", of("old"), of("new")),
        }
    }

    /// What the text of the values depends on. Each costs a little in every call, so no more than that is set.
    fn settings(&self, defaults: &Defaults) -> Vec<(&'static str, String)> {
        let needed: BTreeSet<&'static str> =
            self.columns.iter().flat_map(|column| column.depends_on()).copied().collect();
        let value = |name: &str| match name {
            "bytea_output" => "hex".to_owned(),
            "datestyle" => "ISO".to_owned(),
            "extra_float_digits" => "3".to_owned(),
            "intervalstyle" => "postgres".to_owned(),
            "lc_monetary" => defaults.monetary.clone(),
            _ => defaults.time_zone.clone(),
        };
        let path = ("search_path", "pg_catalog, pg_temp".to_owned());
        std::iter::once(path).chain(needed.into_iter().map(|name| (name, value(name)))).collect()
    }
}

impl CapturedColumn {
    /// The expression for its text in a row: what the type's own output function gives, but a boolean in words.
    fn text_of(&self, row: &str) -> String {
        let column = format!("{row}.{}", identifier(&self.name));
        match self.type_oid {
            // A cast of these calls the output function; of others it may call something else, or anything.
            16 | 17 | 20 | 21 | 23 | 25 | 26 | 114 | 700 | 701 | 1043 | 1082 | 1083 | 1114 | 1184 | 1186 | 1266
            | 1700 | 2950 | 3802 => format!("{column}::text"),
            // A composite of nothing but NULLs is distinct from NULL.
            _ => format!("case when {column} is distinct from null then format('%s', {column}) end"),
        }
    }

    /// The settings that its output function follows.
    fn depends_on(&self) -> &'static [&'static str] {
        match self.element_oid {
            16 | 18 | 19 | 20 | 21 | 23 | 25 | 26 | 114 | 650 | 774 | 829 | 869 | 1042 | 1043 | 1083 | 1266 | 1700
            | 2950 | 3802 => &[],
            17 => &["bytea_output"],
            700 | 701 => &["extra_float_digits"],
            790 => &["lc_monetary"],
            1082 | 1114 => &["datestyle"],
            1184 => &["datestyle", "timezone"],
            1186 => &["intervalstyle"],
            _ if self.is_enum => &[],
            // What is inside is not looked at.
            _ => &["bytea_output", "datestyle", "extra_float_digits", "intervalstyle", "timezone"],
        }
    }
}

impl Shape {
    /// The number it would like to have: the same shape always the same.
    pub(super) fn preferred_id(&self) -> i32 {
        let text = format!("{} {:?} {:?}", quote_table(&self.table), self.columns, self.types);
        let bits =
            Sha256::digest(text.as_bytes()).iter().take(4).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        i32::try_from(bits >> 1).unwrap_or(i32::MAX)
    }

    /// Writes it down, unless it is.
    pub(super) fn statement(&self, id: i32) -> String {
        let columns: Vec<_> = self.columns.iter().map(|column| literal(column)).collect();
        let types: Vec<_> = self.types.iter().map(ToString::to_string).collect();
        format!(
            "INSERT INTO unstale.shape (id, schema_name, table_name, columns, types)\n  \
             VALUES ({id}, {}, {}, ARRAY[{}]::text[], ARRAY[{}]::oid[]) ON CONFLICT DO NOTHING;",
            literal(&self.table.schema),
            literal(&self.table.table),
            columns.join(", "),
            types.join(", ")
        )
    }
}

impl Function {
    /// Makes it, or makes it as it should be. Nobody but the owners may have it called for a table of theirs.
    pub(super) fn statements(&self) -> Vec<String> {
        let name = format!("unstale.{}()", self.name);
        let settings = self.settings.iter().map(|(setting, value)| match *setting {
            "search_path" => format!("  SET {setting} = {value}\n"),
            _ => format!("  SET {setting} = {}\n", literal(value)),
        });
        let quoted = dollar_quoted(&self.body);
        let callers: Vec<_> = self.callers.iter().map(|role| identifier(role)).collect();
        let grant = format!("GRANT EXECUTE ON FUNCTION {name} TO {};", callers.join(", "));
        let mut statements = vec![
            format!(
                "CREATE OR REPLACE FUNCTION {name} RETURNS trigger\n  LANGUAGE plpgsql SECURITY DEFINER\n{}AS {quoted};",
                settings.collect::<String>()
            ),
            format!("COMMENT ON FUNCTION {name} IS 'made by unstale';"),
            format!("REVOKE ALL ON FUNCTION {name} FROM PUBLIC;"),
        ];
        statements.extend((!callers.is_empty()).then_some(grant));
        statements
    }
}

impl Trigger {
    /// Makes it, or makes it as it should be, for everything that writes, replication included.
    pub(super) fn statements(&self, table: &TableName, function: &str) -> Vec<String> {
        let words = [(INSERT, "INSERT"), (UPDATE, "UPDATE"), (DELETE, "DELETE"), (TRUNCATE, "TRUNCATE")];
        let operations: Vec<_> =
            words.into_iter().filter(|(bit, _)| self.kind & bit != 0).map(|(_, word)| word).collect();
        let each = if self.kind & ROW == 0 { "STATEMENT" } else { "ROW" };
        let create = format!(
            "CREATE OR REPLACE TRIGGER {} AFTER {} ON {}\n  FOR EACH {each} EXECUTE FUNCTION unstale.{function}();",
            identifier(&self.name),
            operations.join(" OR "),
            quote_table(table)
        );
        vec![create, enable(table, &self.name)]
    }
}

/// Has a trigger called whatever `session_replication_role` is.
pub(super) fn enable(table: &TableName, trigger: &str) -> String {
    format!("ALTER TABLE {} ENABLE ALWAYS TRIGGER {};", quote_table(table), identifier(trigger))
}

/// Removes a trigger.
pub(super) fn drop_trigger(table: &TableName, trigger: &str) -> String {
    format!("DROP TRIGGER IF EXISTS {} ON {};", identifier(trigger), quote_table(table))
}

/// The name of a table's capture function: one that needs no quotes.
pub(super) fn function_name(table: &TableName) -> String {
    let digest = digest(table);
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let room = IDENTIFIER_BYTES_MAX - PREFIX.len() - 1 - digest.len();
    let readable: String = table.table.to_ascii_lowercase().chars().map(plain).take(room).collect();
    format!("{PREFIX}{readable}_{digest}")
}

/// Eight hexadecimal digits that stand for a table.
fn digest(table: &TableName) -> String {
    Sha256::digest(quote_table(table).as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// A name in quotes, which it needs where it happens to be a word of the language.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text for SQL, whatever `standard_conforming_strings` is.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A text between marks that it does not contain.
fn dollar_quoted(text: &str) -> String {
    let mut mark = "$unstale$".to_owned();
    let mut number = 0;
    while text.contains(&mark) {
        number += 1;
        mark = format!("$unstale{number}$");
    }
    format!("{mark}{text}{mark}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_oid: u32) -> CapturedColumn {
        CapturedColumn { name: name.to_owned(), type_oid, element_oid: type_oid, is_enum: false, is_virtual: false }
    }

    fn watched(table: TableName, operations: &[Operation], columns: Vec<CapturedColumn>) -> Watched {
        let names = columns.iter().map(|column| column.name.clone()).collect();
        let capture = Capture { table, columns: names, operations: operations.to_vec(), only_changed: false };
        Watched { capture, columns, members: Vec::new() }
    }

    fn defaults() -> Defaults {
        Defaults { time_zone: "Europe/Berlin".to_owned(), monetary: "C".to_owned() }
    }

    #[test]
    fn names_fit_and_differ() {
        let check = |schema: &str, table: &str, beginning: &str| {
            let name = function_name(&TableName::new(schema, table));
            assert!(name.starts_with(beginning) && name.len() <= IDENTIFIER_BYTES_MAX, "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
            name
        };
        check("public", "users", "capture_users_");
        check("public", "Odd \"Näme\"", "capture_odd__n_me__");
        check("public", &"é".repeat(31), "capture____");
        assert_ne!(check("a.b", "c", "capture_c_"), check("a", "b.c", "capture_b_c_"));
        assert_ne!(check("a", "users", "capture_users_"), check("b", "users", "capture_users_"));
    }

    #[test]
    fn only_what_the_text_depends_on_is_set() {
        let check = |oids: &[u32], expected: &[&str]| {
            let columns = oids.iter().map(|&oid| column("c", oid)).collect();
            let watched = watched(TableName::new("public", "t"), &Operation::ALL, columns);
            let settings = watched.function(1, true, &defaults()).settings;
            let names: Vec<_> = settings.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [&["search_path"][..], expected].concat());
        };
        check(&[23, 25, 1043, 2950, 16, 1700, 1042], &[]);
        check(&[1184, 17], &["bytea_output", "datestyle", "timezone"]);
        check(&[16_400], &["bytea_output", "datestyle", "extra_float_digits", "intervalstyle", "timezone"]);
    }

    #[test]
    fn hostile_names_stay_names() {
        let table = TableName::new("public", "a'b\\c");
        let watched = watched(table, &Operation::ALL, vec![column("x\"; $unstale$ drop", 25)]);
        let function = watched.function(7, false, &defaults());
        assert!(function.body.contains("new.\"x\"\"; $unstale$ drop\"::text"), "{}", function.body);
        assert!(!function.body.contains("ring"));
        let text = function.statements().join("\n");
        assert!(text.contains("AS $unstale1$\ndeclare") && text.ends_with("FROM PUBLIC;"), "{text}");
        assert!(watched.shape().statement(7).contains("'public', E'a''b\\\\c', ARRAY['x\"; $unstale$ drop']::text[]"));
    }

    #[test]
    fn triggers_are_called_for_what_rules_want_to_know() {
        let check = |operations: &[Operation], row: Option<i16>, truncate: bool| {
            let watched = watched(TableName::new("public", "t"), operations, Vec::new());
            assert_eq!(watched.row_trigger().map(|trigger| trigger.kind), row);
            assert_eq!(watched.truncate_trigger().is_some(), truncate);
        };
        check(&Operation::ALL, Some(29), true);
        check(&[Operation::Update], Some(17), false);
        check(&[Operation::Truncate], None, true);
        let trigger = Trigger { name: "unstale_row_1".to_owned(), kind: 17 };
        let statements = trigger.statements(&TableName::new("public", "T"), "capture_t_1");
        assert_eq!(
            statements,
            [
                "CREATE OR REPLACE TRIGGER \"unstale_row_1\" AFTER UPDATE ON public.\"T\"\n  FOR EACH ROW EXECUTE FUNCTION unstale.capture_t_1();",
                "ALTER TABLE public.\"T\" ENABLE ALWAYS TRIGGER \"unstale_row_1\";"
            ]
        );
    }

    #[test]
    fn a_shape_has_a_number_of_its_own() {
        let of = |columns: Vec<CapturedColumn>| watched(TableName::new("public", "t"), &[], columns).shape();
        let shape = of(vec![column("a", 25)]);
        assert_eq!(shape.preferred_id(), of(vec![column("a", 25)]).preferred_id());
        assert_ne!(shape.preferred_id(), of(vec![column("a", 23)]).preferred_id());
        assert!(shape.preferred_id() >= 0);
    }
}
