//! Drafts a first `invalidation.yaml` from the keys, unique columns and foreign keys in a catalog.
//!
//! Owns the layout of the file. It must not ask a server or validate the file; [`crate::rules`]
//! does that. Invariants: the same catalog makes the same text; names reach the text only through
//! [`yaml`]; credentials never do.

mod error;
mod input;
mod key;
mod name;
mod rule;
mod selection;
mod setup_comment;
mod yaml;

pub use self::error::DraftError;
pub use self::input::DraftInput;
use self::key::Generated;
use self::rule::DraftRule;
use self::selection::{choose, name_in_file};
pub use self::setup_comment::setup_comment;

/// The beginning of every file. It is constant, so that no part of a URL gets into the file.
const HEAD: &str = r#"# Which cached keys become stale when a row changes. Drafted by `unstale init` from the keys of the tables.
# Replace the names by the keys of your application. Reference: docs/rules.md of unstale.
version: 1
source:
  url: ${DATABASE_URL:-postgres://postgres@127.0.0.1:5432/postgres}
  slot: unstale
  publication: unstale
target:
  url: ${REDIS_URL:-redis://127.0.0.1:6379}
  namespace: "v1:"            # prefix of every key and channel; change it when cached values change shape
defaults:
  truncate: pattern           # TRUNCATE deletes by the glob of each template; or ignore, fail
  unknown: match              # an old value that the log lacks counts as changed; or skip, fail

rules:                        # each key is rendered for the old and the new row; a NULL renders no key
"#;

/// A draft of a file, not yet validated or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The text, without the SQL comment at its end.
    pub text: String,
    /// The number of rules.
    pub rules: usize,
    /// The number of tests.
    pub tests: usize,
    /// The tables without a rule and the reasons, printable.
    pub left_out: Vec<String>,
}

impl Draft {
    /// Drafts rules for the tables in `wanted`; if it is empty, for every table of the search path.
    pub fn of(survey: &DraftInput, wanted: &[String]) -> Result<Self, DraftError> {
        let tables = choose(survey, wanted)?;
        let mut left_out = Vec::new();
        let mut drafted = Vec::new();
        for &table in &tables {
            match name_in_file(survey, table, &tables, !wanted.is_empty()) {
                Ok(name) => drafted.push((table, name)),
                Err(why) => left_out.push(format!("{} {why}", yaml::key(&table.name.to_string()))),
            }
        }
        let generated: &Generated = &survey.generated;
        let rules = rule::draft(&drafted, generated);
        let excuses: Vec<_> = rules.iter().filter_map(DraftRule::excuse).collect();
        if !rules.iter().any(DraftRule::is_active) {
            return Err(DraftError::NoRules(left_out.into_iter().chain(excuses).collect()));
        }
        let tests: Vec<_> = rules.iter().flat_map(DraftRule::tests).collect();
        Ok(Self {
            text: file(&rules, &tests, &left_out),
            rules: rules.iter().filter(|rule| rule.is_active()).count(),
            tests: tests.len(),
            left_out: left_out.into_iter().chain(excuses).collect(),
        })
    }
}

fn file(rules: &[DraftRule<'_>], tests: &[String], left_out: &[String]) -> String {
    let rules: Vec<_> = rules.iter().map(DraftRule::yaml).collect();
    let mut text = format!("{HEAD}{}", rules.join("\n"));
    if !left_out.is_empty() {
        text.push_str("\n  # Without a rule:\n");
        text.extend(left_out.iter().map(|table| format!("  # {table}\n")));
    }
    text.push_str("\ntests:                        # exact: an op that is not listed fails the test\n");
    text.push_str(&tests.join("\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, CatalogColumn, ForeignKey, Identity, Table};
    use crate::change::{ColumnKind, TableName};
    use crate::config::{Document, Problems};
    use crate::rules::{Remedy, RuleSet, Widening};

    /// A column as `name type`, with a trailing `?` if it is nullable.
    fn column(text: &str) -> CatalogColumn {
        let (name, type_name) = text.rsplit_once(' ').unwrap();
        let kind = match type_name.trim_end_matches('?') {
            "integer" => ColumnKind::Integer,
            "boolean" => ColumnKind::Boolean,
            "jsonb" => ColumnKind::Json,
            "timestamptz" => ColumnKind::Timestamp,
            _ => ColumnKind::Text,
        };
        CatalogColumn {
            name: name.to_owned(),
            type_name: type_name.trim_end_matches('?').to_owned(),
            kind,
            not_null: !type_name.ends_with('?'),
            ..CatalogColumn::default()
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    /// A table whose primary key is its first column.
    fn table(name: &str, columns: &[&str], unique: &[&[&str]], foreign_keys: &[(&str, &str)]) -> Table {
        let columns: Vec<_> = columns.iter().map(|text| column(text)).collect();
        let name = TableName::new("public", name);
        let foreign_key = |&(column, table): &(&str, &str)| ForeignKey {
            columns: strings(&[column]),
            table: TableName::new("public", table),
            referenced: strings(&["id"]),
            ..ForeignKey::default()
        };
        Table {
            primary_key: vec![columns[0].name.clone()],
            identity: Identity::Columns(vec![columns[0].name.clone()]),
            columns,
            unique: unique.iter().map(|set| strings(set)).collect(),
            foreign_keys: foreign_keys.iter().map(foreign_key).collect(),
            unlogged: false,
            leaves: vec![name.clone()],
            name,
            ..Table::default()
        }
    }

    fn survey(tables: Vec<Table>) -> DraftInput {
        let catalog = Catalog { tables, search_path: strings(&["app", "public"]), ..Catalog::default() };
        DraftInput { catalog, ..DraftInput::default() }
    }

    /// The draft, its rules resolved against the catalog, and the identities that setup has to
    /// widen.
    fn proven(survey: &DraftInput) -> (Draft, RuleSet, Vec<Widening>) {
        let draft = Draft::of(survey, &[]).unwrap();
        let document =
            Document::parse(&draft.text, &|_| None).unwrap_or_else(|problems| panic!("{}: {problems:?}", draft.text));
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        assert_eq!((rules.rules().len(), document.tests.len()), (draft.rules, draft.tests), "{}", draft.text);
        let mut problems = Problems::default();
        let rules = rules.resolve(&survey.catalog, &mut problems);
        rules.check_logged(&survey.catalog, &mut problems);
        assert!(problems.is_empty(), "{}: {problems:?}", draft.text);
        let widenings = rules.check_identities(&survey.catalog, &mut problems);
        let comment = setup_comment(&document.settings, &rules.tables(), &statements(&widenings));
        assert!(comment.lines().all(|line| line.is_empty() || line.starts_with('#')), "{comment}");
        let whole = Document::parse(&format!("{}{comment}", draft.text), &|_| None).unwrap();
        assert_eq!(whole.rules.len(), draft.rules);
        (draft, rules, widenings)
    }

    fn statements(widenings: &[Widening]) -> Vec<String> {
        widenings.iter().flat_map(Widening::statements).collect()
    }

    fn example() -> Vec<Table> {
        vec![
            table("users", &["id integer", "email citext", "settings jsonb?"], &[&["email"], &["id", "email"]], &[]),
            table(
                "memberships",
                &["id integer", "user_id integer", "organization_id integer"],
                &[&["user_id", "organization_id"]],
                &[("user_id", "users"), ("organization_id", "organizations")],
            ),
            table("organizations", &["id integer", "parent_id integer?"], &[], &[("parent_id", "organizations")]),
        ]
    }

    #[test]
    fn keys_come_from_the_catalog() {
        let (draft, rules, widenings) = proven(&survey(example()));
        let rules_part = draft.text.split("\nrules:").nth(1).unwrap();
        let expected = r#"
  membership:
    table: memberships
    # changed: [user_id, organization_id]   # limits updates to the columns that you cache
    delete:
      - "membership:{id}"
      - "membership-by-user-id-organization-id:{user_id}:{organization_id}"
      - "organization-memberships:{organization_id}"   # list of one organization
      - "user-memberships:{user_id}"   # list of one user

  organization:
    table: organizations
    # changed: [parent_id]   # limits updates to the columns that you cache
    delete:
      - "organization:{id}"
      - "organization-organizations:{parent_id}"   # list of one organization; parent_id is nullable, so this key needs REPLICA IDENTITY FULL

  user:
    table: users
    # changed: [email, settings]   # limits updates to the columns that you cache
    delete:
      - "user:{id}"
      - "user-by-email:{email|lower}"

tests:                        # exact: an op that is not listed fails the test
  - it: "membership: an insert deletes its keys"
    insert: memberships
    row: {id: 1, user_id: 1, organization_id: 1}
    expect:
      delete: ["membership:1", "membership-by-user-id-organization-id:1:1", "organization-memberships:1", "user-memberships:1"]

  - it: "membership: a change of user_id deletes the keys of both values"
    update: memberships
    row: {id: 1, user_id: 1, organization_id: 1}
    set: {user_id: 2}
    expect:
      delete: ["membership:1", "membership-by-user-id-organization-id:2:1", "membership-by-user-id-organization-id:1:1", "organization-memberships:1", "user-memberships:2", "user-memberships:1"]
"#;
        let (_, rules_part) = rules_part.split_once('\n').unwrap();
        assert!(format!("\n{rules_part}").starts_with(expected), "{rules_part}");
        assert!(rules_part.contains("set: {email: email-2}"), "{rules_part}");
        assert_eq!(rules.rules().len(), 3);
        let columns = |widening: &Widening| match &widening.remedy {
            Remedy::Index(columns) => columns.join(","),
            Remedy::Full | Remedy::Nothing(_) => String::new(),
        };
        let columns: Vec<_> = widenings.iter().map(columns).collect();
        assert_eq!(columns, ["id,organization_id,user_id", "", "id,email"]);
    }

    #[test]
    fn the_same_catalog_makes_the_same_text() {
        let (first, ..) = proven(&survey(example()));
        let mut tables = example();
        tables.reverse();
        for table in &mut tables {
            table.unique.reverse();
            table.foreign_keys.reverse();
        }
        assert_eq!(Draft::of(&survey(tables), &[]).unwrap(), first);
    }

    #[test]
    fn hostile_names_pass() {
        let sayable = |name: &&str| !name.is_empty() && !name.contains('.');
        let fit: Vec<&str> = yaml::HOSTILE.iter().copied().filter(sayable).collect();
        let columns = fit.iter().map(|name| format!("{name} text"));
        let columns: Vec<String> = std::iter::once("id integer".to_owned()).chain(columns).collect();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let unique: Vec<[&str; 1]> = fit.iter().map(|name| [*name]).collect();
        let unique: Vec<&[&str]> = unique.iter().map(<[_; 1]>::as_slice).collect();
        let foreign_keys: Vec<_> = fit.iter().map(|name| (*name, *name)).collect();
        let plain = |name: &&str| table(name, &["id integer", "email text"], &[&["email"]], &[]);
        let mut tables: Vec<_> = fit.iter().map(plain).collect();
        tables.push(table("all of them", &columns, &unique, &foreign_keys));
        let (draft, rules, _) = proven(&survey(tables));
        assert_eq!(rules.rules().len(), fit.len() + 1, "{}", draft.text);
        for said in
            ["no key by \"{a}\": templates cannot contain this name", "no key by \" a\": templates cannot contain"]
        {
            assert!(draft.text.contains(said), "{said}: {}", draft.text);
        }
        // Prefixes are unique, so that no two templates can make the same key.
        let prefix = |line: &'_ str| Some(line.strip_prefix("      - \"")?.split(':').next()?.to_owned());
        let mut prefixes: Vec<String> = draft.text.lines().filter_map(prefix).collect();
        let count = prefixes.len();
        prefixes.sort_unstable();
        prefixes.dedup();
        assert_eq!(prefixes.len(), count);
    }

    #[test]
    fn some_tables_have_no_rule() {
        let mut keyless = table("keyless", &["n integer"], &[], &[]);
        keyless.primary_key.clear();
        let mut unlogged = table("fast", &["id integer"], &[], &[]);
        unlogged.unlogged = true;
        let mut own = table("outbox", &["id integer"], &[], &[]);
        own.name.schema = "unstale".to_owned();
        let mut elsewhere = table("elsewhere", &["id integer"], &[], &[]);
        elsewhere.name.schema = "other".to_owned();
        let partition = table("events_1", &["id integer"], &[], &[]);
        let tables = vec![
            keyless,
            unlogged,
            own,
            elsewhere,
            partition.clone(),
            table("schema_migrations", &["version text"], &[], &[]),
            table("a.b", &["id integer"], &[], &[]),
            table("blobs", &["hash bytea"], &[], &[]),
            table("users", &["id integer"], &[], &[]),
        ];
        let mut survey = survey(tables);
        survey.dependent.insert(partition.name);
        survey.catalog.search_path.push("unstale".to_owned());
        let (draft, rules, _) = proven(&survey);
        assert_eq!(rules.rules().len(), 1);
        let said = [
            "  # \"public.a.b\" has a `.` in its name",
            "  # \"public.fast\" is unlogged",
            "  # \"public.schema_migrations\" belongs to a migration tool",
            "  # keyless has no primary key",
            "  # keyless:\n  #   table: keyless\n",
            "  #   delete:\n  #     - \"keyless:all\"\n",
            "  # blobs has no column that is suitable for a key.\n",
            "  #   # no key by hash: bytea is not suitable for a key\n",
        ];
        for said in said {
            assert!(draft.text.contains(said), "{said}: {}", draft.text);
        }
        for unsaid in ["outbox", "elsewhere", "events_1"] {
            assert!(!draft.text.contains(unsaid), "{}", draft.text);
        }
        assert_eq!(draft.left_out.len(), 5, "{:?}", draft.left_out);

        let ask = |tables: &[&str]| Draft::of(&survey, &strings(tables));
        assert_eq!(ask(&["schema_migrations", "other.elsewhere", "users", "public.users"]).unwrap().rules, 3);
        let text = ask(&["other.elsewhere"]).unwrap().text;
        assert!(text.contains("    table: \"other.elsewhere\"\n"), "{text}");
        let said = ask(&["usres"]).unwrap_err().to_string();
        assert_eq!(said, "there is no table usres; did you mean \"public.users\"?");
        let said = ask(&["events_1"]).unwrap_err().to_string();
        assert!(said.contains("\"public.events_1\" is a partition"), "{said}");
        let empty = DraftInput::default();
        assert!(matches!(Draft::of(&empty, &[]), Err(DraftError::NoTables(_))));
    }

    #[test]
    fn tables_of_one_name_are_told_apart() {
        let users = |schema: &str| {
            let mut users = table("users", &["id integer"], &[], &[]);
            users.name.schema = schema.to_owned();
            users.leaves = vec![users.name.clone()];
            users
        };
        let (draft, rules, _) = proven(&survey(vec![users("app"), users("public")]));
        for said in ["  user:\n    table: \"app.users\"\n", "  public-user:\n    table: \"public.users\"\n"] {
            assert!(draft.text.contains(said), "{said}: {}", draft.text);
        }
        assert_eq!(rules.rules().len(), 2);
        let alone = Draft::of(&survey(vec![users("app"), users("other")]), &[]).unwrap();
        assert!(alone.text.contains("  user:\n    table: users\n"), "{}", alone.text);
    }

    #[test]
    fn two_ways_to_belong_to_one_table_have_names_of_their_own() {
        let messages = table(
            "messages",
            &["id integer", "sender_id integer", "reader_id integer"],
            &[],
            &[("sender_id", "users"), ("reader_id", "users")],
        );
        let mut profile = table("profiles", &["user_id integer", "bio text"], &[], &[("user_id", "users")]);
        profile.foreign_keys.push(profile.foreign_keys[0].clone());
        let (draft, ..) = proven(&survey(vec![messages, profile, table("users", &["id integer"], &[], &[])]));
        for said in ["\"user-messages-by-reader-id:{reader_id}\"", "\"user-messages-by-sender-id:{sender_id}\""] {
            assert!(draft.text.contains(said), "{said}: {}", draft.text);
        }
        assert!(!draft.text.contains("user-profiles"), "a profile is one row of its user: {}", draft.text);
    }

    #[test]
    fn what_postgresql_computes_makes_no_key() {
        let users = table("users", &["id integer", "email text", "email_lower text"], &[&["email_lower"]], &[]);
        let mut survey = survey(vec![users]);
        survey.generated.insert((TableName::new("public", "users"), "email_lower".to_owned()));
        let (draft, ..) = proven(&survey);
        assert!(draft.text.contains("# no key by email_lower: it is a generated column"), "{}", draft.text);
        assert!(draft.text.contains("# changed: [email]   #"), "{}", draft.text);
    }

    #[test]
    fn a_part_of_the_primary_key_may_be_the_key() {
        let mut events = table("events", &["id integer", "at timestamptz"], &[], &[]);
        events.primary_key = strings(&["id", "at"]);
        events.identity = Identity::Columns(strings(&["id", "at"]));
        let (draft, _, widenings) = proven(&survey(vec![events]));
        assert!(draft.text.contains("      - \"event:{id}\"\n"), "{}", draft.text);
        assert!(draft.text.contains("    # no key by at: timestamps have more than one text form\n"), "{}", draft.text);
        assert!(widenings.is_empty());
    }
}
