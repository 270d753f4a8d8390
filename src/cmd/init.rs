//! `unstale init`: a first configuration file, drafted from a database.

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
use crate::postgres::lossy_text::{LossyText, strings};
use crate::postgres::{self, Address};
use crate::rules::Widening;

/// The default of the file that is written.
const DEFAULT_URL: &str = "postgres://postgres@127.0.0.1:5432/postgres";

/// What a draft needs and the catalog does not say: which tables are partitions or belong to an
/// extension, and which columns are generated.
const DEPENDENT_AND_GENERATED: &str = "select n.nspname, c.relname, \
                     c.relispartition or exists (select from pg_depend d where d.classid = 'pg_class'::regclass \
                       and d.objid = c.oid and d.objsubid = 0 and d.deptype = 'e'), \
                     array(select a.attname::text from pg_attribute a \
                       where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> '') \
                     from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p')";

#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// The database to read; the default is DATABASE_URL, or else a server on this machine. The URL
    /// is not written into the file
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Where to write; `-` is standard output, and the default is the file of --config
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only these tables, separated by commas; the default is every table of the search path
    #[arg(long, value_name = "TABLES", value_delimiter = ',')]
    tables: Vec<String>,
    /// Replace the file if it exists
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
        Failure::usage(format!(
            "the URL of the database is not valid: {error}; expected postgres://user@host:5432/database"
        ))
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
    // Standard error may be closed.
    let _ = std::io::stderr().write_all(advice(&draft, output, config, is_set).as_bytes());
    Ok(())
}

/// Reads what a draft is made from.
async fn survey(client: &Client) -> Result<DraftInput, Failure> {
    let mut survey = DraftInput { catalog: catalog::read(client).await?, ..DraftInput::default() };
    let names: Vec<_> = survey.catalog.tables.iter().map(|table| &table.name).collect();
    survey.catalog.limits = postgres::identity::read(client, &survey.catalog, &names).await?;
    for row in client.query(DEPENDENT_AND_GENERATED, &[]).await? {
        let table = TableName::new(row.get::<_, LossyText>(0).0, row.get::<_, LossyText>(1).0);
        let generated = strings(row.get(3));
        survey.generated.extend(generated.into_iter().map(|column| (table.clone(), column)));
        if row.get(2) {
            survey.dependent.insert(table);
        }
    }
    Ok(survey)
}

/// The draft with the SQL at its end. Before that, the draft is compiled and compared with the
/// database like any file.
fn complete(draft: &Draft, path: &Path, catalog: &Catalog) -> Result<String, Failure> {
    let defect = |failure: Failure| {
        Failure::findings(format!(
            "the draft does not fit the database, which is a bug of unstale; please report it:\n{}",
            failure.message
        ))
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
        "{} exists; replace it with --force, write another file with --output, or print the draft with `--output -`",
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
        text.push_str("set DATABASE_URL for the next steps: the file reads it, and holds no credentials\n");
    }
    let option = if path == config { String::new() } else { format!(" --config {}", path.display()) };
    text.push_str(&format!(
        "next, replace the names of the keys by those that your application uses, then run:\n  \
           unstale test{option}     the tests in the file\n  \
           unstale setup{option}    installs in PostgreSQL what is listed at the end of the file\n  \
           unstale check{option}    checks the file, PostgreSQL and Redis\n  \
           unstale run{option}      keeps Redis coherent\n"
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
    fn a_file_is_replaced_only_with_force() {
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
    fn a_draft_that_does_not_fit_is_not_written() {
        let refused = complete(&draft(), Path::new("f.yaml"), &Catalog::default()).unwrap_err();
        for said in ["bug of unstale", "no table `t`"] {
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
