//! The capture function, which writes a table's changes to the outbox.
//!
//! Owns its text. It must not query a server. Invariants: the same table makes the same text,
//! whatever its names contain; writers do not fail when a column is changed or dropped.

use std::collections::BTreeSet;

use super::captured::{CapturedColumn, CapturedTable, digest};
use super::quoting::{dollar_quoted, identifier, literal};
use crate::change::TableName;
use crate::postgres::session;

/// The longest identifier of PostgreSQL, in bytes; it truncates longer ones.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// The prefix of the names of capture functions.
const PREFIX: &str = "capture_";

/// The largest entry, in bytes of both rows. A larger change is captured as an unknown change.
const BYTES_MAX: u32 = 64 << 20;

/// A capture function.
#[derive(Clone, Debug)]
pub(super) struct CaptureFunction {
    pub(super) name: String,
    pub(super) body: String,
    /// The settings of the function; names are lower case.
    pub(super) settings: Vec<(&'static str, String)>,
    /// Owners of the table and its partitions. Creating a partition creates a trigger that calls
    /// the function, which needs EXECUTE.
    pub(super) callers: Vec<String>,
}

impl CaptureFunction {
    pub(super) fn of(table: &CapturedTable, shape: i32, notify: bool) -> Self {
        let values = |row: &str| {
            table.columns.iter().map(|column| column.text_of(row)).collect::<Vec<_>>().join(",\n          ")
        };
        let image =
            |row: &str| if table.columns.is_empty() { "'{}'".to_owned() } else { format!("array[{}]", values(row)) };
        // Set if every rule on updates of the table has `changed`.
        let only_changed = if table.capture.only_changed {
            "\n  if kind = 'u' and before is not distinct from after then\n    return null;\n  end if;"
        } else {
            ""
        };
        let wakeup = if notify {
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
    -- Writers must not fail when a column was renamed, retyped or dropped, or is huge.
    begin
      if tg_op <> 'INSERT' then
        before := {old};
      end if;
      if tg_op <> 'DELETE' then
        after := {new};
      end if;
      if {retyped} or coalesce(pg_column_size(before), 0) + coalesce(pg_column_size(after), 0) > {bytes_max} then
        raise exception 'a column has another type, or the row is too large';
      end if;
      kind := case tg_op when 'INSERT' then 'i' when 'UPDATE' then 'u' else 'd' end;
    exception when others then
      kind := 'r';
      before := null;
      after := null;
    end;
  end if;{only_changed}
  insert into unstale.outbox (op, shape, old, new) values (kind, {shape}, before, after);{wakeup}
  return null;
end
"#,
            old = image("old"),
            new = image("new"),
            retyped = retyped(table),
            bytes_max = BYTES_MAX,
        );
        let owners: BTreeSet<&String> = table.members.iter().map(|member| &member.owner).collect();
        let callers = owners.into_iter().cloned().collect();
        Self { name: function_name(&table.capture.table), body, settings: settings(table), callers }
    }

    /// Creates or replaces the function. Only the owners may create triggers that call it.
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

/// Whether a column of the row has another type now: its text may depend on other settings.
fn retyped(table: &CapturedTable) -> String {
    let of = |row: &str| {
        let differs = |column: &CapturedColumn| {
            format!("pg_typeof({row}.{})::oid <> {}", identifier(&column.name), column.type_oid)
        };
        table.columns.iter().map(differs).collect::<Vec<_>>().join(" or ")
    };
    match table.columns.is_empty() {
        true => "false".to_owned(),
        // PL/pgSQL would end its IF condition at the first THEN outside of parentheses.
        false => format!("(case when tg_op = 'DELETE' then {} else {} end)", of("old"), of("new")),
    }
}

/// The settings that the text of the values depends on. Each one costs time in every call, so no
/// others are set.
fn settings(table: &CapturedTable) -> Vec<(&'static str, String)> {
    let needed: BTreeSet<&'static str> = table.columns.iter().flat_map(|column| column.depends_on()).copied().collect();
    let path = ("search_path", "pg_catalog, pg_temp".to_owned());
    let text = |name: &'static str| (name, session::text_setting(name).to_owned());
    std::iter::once(path).chain(needed.into_iter().map(text)).collect()
}

/// The name of a table's capture function. It needs no quotes.
pub(super) fn function_name(table: &TableName) -> String {
    let digest = digest(table);
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let room = IDENTIFIER_BYTES_MAX - PREFIX.len() - 1 - digest.len();
    let readable: String = table.table.to_ascii_lowercase().chars().map(plain).take(room).collect();
    format!("{PREFIX}{readable}_{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Operation;
    use crate::rules::Capture;

    fn column(name: &str, type_oid: u32) -> CapturedColumn {
        CapturedColumn {
            name: name.to_owned(),
            type_oid,
            base_oid: type_oid,
            element_oid: type_oid,
            is_enum: false,
            is_virtual: false,
        }
    }

    fn watched(table: TableName, operations: &[Operation], columns: Vec<CapturedColumn>) -> CapturedTable {
        let names = columns.iter().map(|column| column.name.clone()).collect();
        let capture = Capture { table, columns: names, operations: operations.to_vec(), only_changed: false };
        CapturedTable { capture, columns, members: Vec::new() }
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
            let table = watched(TableName::new("public", "t"), &Operation::ALL, columns);
            let settings = CaptureFunction::of(&table, 1, true).settings;
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
        let function = CaptureFunction::of(&watched, 7, false);
        assert!(function.body.contains("new.\"x\"\"; $unstale$ drop\"::text"), "{}", function.body);
        assert!(!function.body.contains("ring"));
        let text = function.statements().join("\n");
        assert!(text.contains("AS $unstale1$\ndeclare") && text.ends_with("FROM PUBLIC;"), "{text}");
        assert!(watched.shape().statement(7).contains("'public', E'a''b\\\\c', ARRAY['x\"; $unstale$ drop']::text[]"));
    }
}
