//! `unstale init`: a first file, drafted from a database.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tokio_postgres::Client;

use super::config_file::ConfigFile;
use super::failure::{Failure, with_causes};
use super::preflight::catalog_fit::CatalogFit;
use super::stdout::print;
use crate::catalog::Catalog;
use crate::change::TableName;
use crate::config::Mode;
use crate::draft::{Draft, DraftError, DraftInput, setup_comment};
use crate::postgres::catalog;
use crate::postgres::{self, Address};
use crate::rules::Widening;

/// As in the file that is written.
const DEFAULT_URL: &str = "postgres://postgres@127.0.0.1:5432/postgres";

/// What the catalog does not say and a draft has to know: which tables are a partition or an extension's, and which
/// columns are computed.
const ASIDE: &str = "select n.nspname, c.relname, \
                     c.relispartition or exists (select from pg_depend d where d.classid = 'pg_class'::regclass \
                       and d.objid = c.oid and d.objsubid = 0 and d.deptype = 'e'), \
                     array(select a.attname::text from pg_attribute a \
                       where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> '') \
                     from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p')";

#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// The database to read; without it DATABASE_URL, or else a server on this machine. It is not written down
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Where to write, `-` for standard output; without it the file of --config
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only these tables, with commas between them; without it every table of the search path
    #[arg(long, value_name = "TABLES", value_delimiter = ',')]
    tables: Vec<String>,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
}

pub(super) async fn run(config: &Path, args: InitArgs) -> Result<(), Failure> {
    let output = args.output.as_deref().unwrap_or(config);
    let to_file = output != Path::new("-");
    if to_file && !args.force && output.exists() {
        return Err(exists(output));
    }
    let environment = |name: &str| std::env::var(name).ok();
    let from_environment = environment("DATABASE_URL").filter(|url| !url.is_empty());
    let is_set = from_environment.is_some();
    let url = args.database_url.clone().or(from_environment).unwrap_or_else(|| DEFAULT_URL.to_owned());
    let address = Address::parse(&url, &environment).map_err(|error| {
        Failure::usage(format!("the database's URL: {error}; expected postgres://user@host:5432/database"))
    })?;
    let survey = survey(&postgres::connect(&address).await?).await?;
    let draft = Draft::of(&survey, &args.tables).map_err(|error| match error {
        DraftError::UnknownTable { .. } => Failure::usage(with_causes(&error)),
        DraftError::NoTables(_) | DraftError::NoRules(_) => Failure::findings(with_causes(&error)),
    })?;
    let text = complete(&draft, output, &survey.catalog)?;
    if !to_file {
        return print(&text);
    }
    write(output, &text, args.force)?;
    // Nobody may be there to read it.
    let _ = std::io::stderr().write_all(advice(&draft, output, config, is_set).as_bytes());
    Ok(())
}

/// Reads everything a draft is made from.
async fn survey(client: &Client) -> Result<DraftInput, Failure> {
    let mut survey = DraftInput { catalog: catalog::read(client).await?, ..DraftInput::default() };
    for row in client.query(ASIDE, &[]).await? {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let generated: Vec<String> = row.get(3);
        survey.generated.extend(generated.into_iter().map(|column| (table.clone(), column)));
        if row.get(2) {
            survey.dependent.insert(table);
        }
    }
    Ok(survey)
}

/// The draft with the SQL at its end, after it was read and held against the database like any other file.
fn complete(draft: &Draft, path: &Path, catalog: &Catalog) -> Result<String, Failure> {
    let defect = |failure: Failure| {
        Failure::findings(format!("the draft is not sound, which is a defect of unstale:\n{}", failure.message))
    };
    let file = ConfigFile::parse(path, draft.text.clone(), &|_| None).map_err(defect)?;
    // Identities that are too narrow are no defect: the SQL at the end widens them.
    let CatalogFit { rules, unknown: mut problems, unlogged, widenings, .. } =
        CatalogFit::of(&file.rules, catalog, Mode::Slot);
    problems.append(unlogged);
    if !problems.is_empty() {
        return Err(defect(file.failure(&problems)));
    }
    let statements: Vec<_> = widenings.iter().flat_map(Widening::statements).collect();
    Ok(draft.text.clone() + &setup_comment(&file.settings, &rules.tables(), &statements))
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(path),
        _ => Failure::usage(format!("cannot write {}: {error}; name another file with --output", path.display())),
    })
}

fn exists(path: &Path) -> Failure {
    Failure::usage(format!(
        "{} exists already; --force replaces it, --output writes elsewhere, `--output -` only shows the draft",
        path.display()
    ))
}

/// What was written, and what to do next.
fn advice(draft: &Draft, path: &Path, config: &Path, is_set: bool) -> String {
    let mut text = format!("wrote {}: {} rules, {} tests\n", path.display(), draft.rules, draft.tests);
    for table in &draft.left_out {
        text.push_str(&format!("  without a rule: {table}\n"));
    }
    if !is_set {
        text.push_str("set DATABASE_URL for what follows: the file reads it, and holds no credentials\n");
    }
    let option = if path == config { String::new() } else { format!(" --config {}", path.display()) };
    text.push_str(&format!(
        "next, after you have put in the names that your application caches under:\n  \
           unstale test{option}     what the rules do to the rows of the tests\n  \
           unstale setup{option}    publication, slot and replica identities, as listed at the end of the file\n  \
           unstale check{option}    the file, PostgreSQL and Redis\n  \
           unstale run{option}      keep Redis coherent\n"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::failure::Exit;

    fn draft() -> Draft {
        let left_out = vec!["fast is unlogged".to_owned()];
        Draft { text: "version: 1\nrules: {r: {table: t, delete: k}}\n".to_owned(), rules: 1, tests: 0, left_out }
    }

    #[test]
    fn a_file_is_replaced_only_if_told_so() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("rules.yaml");
        write(&path, "one, and long", false).unwrap();
        let refused = write(&path, "two", false).unwrap_err();
        assert!(refused.exit == Exit::Usage && refused.message.contains("--force"), "{refused:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one, and long");
        write(&path, "two", true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        let nowhere = write(&directory.path().join("none/rules.yaml"), "one", true).unwrap_err();
        assert!(nowhere.exit == Exit::Usage && nowhere.message.contains("none/rules.yaml"), "{nowhere:?}");
    }

    #[test]
    fn a_draft_that_is_not_sound_is_not_written() {
        let refused = complete(&draft(), Path::new("f.yaml"), &Catalog::default()).unwrap_err();
        for said in ["defect of unstale", "no table `t`"] {
            assert!(refused.message.contains(said), "{said}: {refused:?}");
        }
    }

    #[test]
    fn the_next_steps_name_the_file_where_they_have_to() {
        let same = advice(&draft(), Path::new("f.yaml"), Path::new("f.yaml"), true);
        assert!(same.contains("  unstale check   ") && same.contains("without a rule: fast is unlogged"), "{same}");
        assert!(!same.contains("DATABASE_URL"), "{same}");
        let other = advice(&draft(), Path::new("g.yaml"), Path::new("f.yaml"), false);
        assert!(other.contains("  unstale run --config g.yaml ") && other.contains("set DATABASE_URL"), "{other}");
    }
}
