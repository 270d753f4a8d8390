//! How the database folds case, for the names in which `lower` or `upper` occur.
//!
//! Owns the questions. What follows from the answers is [`Folding`]'s. It must not fold anything
//! itself. Invariants: a database is asked only if some name folds case; what it does not answer is
//! not known.

use std::collections::BTreeSet;

use tokio_postgres::{Client, Error};

use crate::catalog::Catalog;
use crate::reads::ReadSet;
use crate::rules::{FoldedValues, Folding, LetterCase, RuleSet};

/// The collations of these columns, but for the default one.
const OF_COLUMNS: &str = "select distinct quote_ident(n.nspname) || '.' || quote_ident(l.collname) \
     from unnest($1::text[], $2::text[], $3::text[]) wanted (schema, name, attribute) \
     join pg_namespace t on t.nspname = wanted.schema \
     join pg_class c on c.relnamespace = t.oid and c.relname = wanted.name \
     join pg_attribute a on a.attrelid = c.oid and a.attname = wanted.attribute \
     join pg_collation l on l.oid = a.attcollation and l.collname <> 'default' \
     join pg_namespace n on n.oid = l.collnamespace";

/// The collations of all columns of the application, but for the default one: it is not known from
/// which column a lookup takes a value.
const OF_ALL: &str = "select distinct quote_ident(n.nspname) || '.' || quote_ident(l.collname) \
     from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace t on t.oid = c.relnamespace \
     join pg_collation l on l.oid = a.attcollation and l.collname <> 'default' \
     join pg_namespace n on n.oid = l.collnamespace \
     where t.nspname not in ('pg_catalog', 'information_schema') and t.nspname !~ '^pg_toast|^pg_temp'";

/// Asks how the database folds what the names of these rules and reads fold. The default collation
/// counts in any case: it is that of a query's parameters.
pub(in crate::cmd) async fn ask(
    client: &Client,
    catalog: &Catalog,
    rules: &RuleSet,
    reads: &ReadSet,
) -> Result<Folding, Error> {
    let FoldedValues { columns, of_lookups, of_events } = rules.folded();
    if columns.is_empty() && !of_lookups && !of_events && !reads.folds_case() {
        return Ok(Folding::default());
    }
    let rows = if of_lookups {
        client.query(OF_ALL, &[]).await?
    } else {
        let (mut schemas, mut tables, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (table, column) in columns {
            let table = catalog.find(table).map_or(table, |table| &table.name);
            schemas.push(table.schema.as_str());
            tables.push(table.table.as_str());
            names.push(column);
        }
        client.query(OF_COLUMNS, &[&schemas, &tables, &names]).await?
    };
    let named = rows.iter().map(|row| row.try_get::<_, String>(0).map(|name| format!("collate {name}")));
    let mut collations = vec![String::new()];
    for collation in named {
        collations.push(collation?);
    }
    let encoding: String = client.query_one("select current_setting('server_encoding')", &[]).await?.try_get(0)?;
    // A text of any other encoding may not have the characters that would be asked for.
    let beyond_ascii = encoding == "UTF8";
    let mut odd = [BTreeSet::new(), BTreeSet::new()];
    for collation in collations {
        match odd_characters(client, &collation, beyond_ascii, &mut odd).await {
            Ok(()) => {}
            Err(error) if error.as_db_error().is_some() => return Ok(Folding::unknown()),
            Err(error) => return Err(error),
        }
    }
    let [lower, upper] = odd;
    Ok(Folding::of_database(beyond_ascii, lower, upper))
}

/// Adds the characters that a collation folds otherwise than Unicode says.
async fn odd_characters(
    client: &Client,
    collation: &str,
    beyond_ascii: bool,
    [odd_lower, odd_upper]: &mut [BTreeSet<char>; 2],
) -> Result<(), Error> {
    let compare = format!(
        "select t.c, lower(t.c {collation}) collate \"C\" <> t.l collate \"C\", \
         upper(t.c {collation}) collate \"C\" <> t.u collate \"C\" \
         from unnest($1::text[], $2::text[], $3::text[]) t (c, l, u) \
         where lower(t.c {collation}) collate \"C\" <> t.l collate \"C\" \
         or upper(t.c {collation}) collate \"C\" <> t.u collate \"C\""
    );
    let (mut characters, mut lower, mut upper) = (Vec::new(), Vec::new(), Vec::new());
    for [character, in_lower, in_upper] in LetterCase::characters(beyond_ascii) {
        characters.push(character);
        lower.push(in_lower);
        upper.push(in_upper);
    }
    for row in client.query(&compare, &[&characters, &lower, &upper]).await? {
        let character: String = row.try_get(0)?;
        if row.try_get(1)? {
            odd_lower.extend(character.chars());
        }
        if row.try_get(2)? {
            odd_upper.extend(character.chars());
        }
    }
    Ok(())
}
