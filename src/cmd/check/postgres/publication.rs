//! Whether the publication carries what the rules need: their whole tables, and every kind of
//! change.
//!
//! Owns this check. It must not judge replica identities. Invariant: a row filter or a column list
//! on a table of the rules is an error, because it hides changes.

use super::probe::PostgresProbe;
use crate::catalog::{Catalog, Table, quote, quote_table};
use crate::cmd::check::finding::{Finding, Findings, Stage};
use crate::postgres::publication::Publication;
use crate::rules::RuleSet;

const COST: &str = "locks the tables briefly against changes of their definition (SHARE UPDATE EXCLUSIVE)";
const NO_COST: &str = "locks no table";

impl PostgresProbe<'_> {
    pub(super) async fn publication(
        &self,
        rules: &RuleSet,
        catalog: &Catalog,
        findings: &mut Findings,
    ) -> Result<(), tokio_postgres::Error> {
        let tables: Vec<&Table> = rules.tables().into_iter().filter_map(|name| catalog.find(name)).collect();
        if tables.is_empty() && !rules.has_events() {
            return Ok(());
        }
        let name = &self.settings.publication;
        let Some(publication) = Publication::read(self.client, name).await? else {
            findings.add(self.unpublished(&tables));
            return Ok(());
        };
        let narrow: Vec<_> = tables.iter().copied().filter(|table| publication.narrows(table)).collect();
        let missing: Vec<_> = tables.iter().copied().filter(|table| !publication.carries(table)).collect();
        let mut found: Vec<_> = self.missing(&missing, &narrow, &tables).into_iter().collect();
        if !publication.every_change {
            let message = format!("{}: the publication `{name}` leaves out some kinds of changes", self.name);
            let statement =
                format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');", quote(name));
            let finding = Finding::error("publication-changes", message)
                .why("a change that is not published is never invalidated")
                .statement(Stage::Publication, statement, NO_COST);
            found.push(finding);
        }
        if publication.via_root {
            let message =
                format!("{}: the publication `{name}` publishes partitions under their root's name", self.name);
            let statement = format!("ALTER PUBLICATION {} SET (publish_via_partition_root = false);", quote(name));
            let finding = Finding::error("publication-root", message)
                .why("a TRUNCATE of one partition is then not published")
                .statement(Stage::Publication, statement, NO_COST);
            found.push(finding);
        }
        let names: Vec<_> = tables.iter().map(|table| table.name.to_string()).collect();
        let carries = if names.is_empty() { "no table".to_owned() } else { names.join(", ") };
        findings.pass_or(format!("publication {name} carries {carries}"), found);
        Ok(())
    }

    fn unpublished(&self, tables: &[&Table]) -> Finding {
        let publication = &self.settings.publication;
        let list = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", list(tables)) };
        let statement = format!("CREATE PUBLICATION {}{list};", quote(publication));
        Finding::error("publication-missing", format!("{} has no publication `{publication}`", self.name))
            .why("the slot sends only what the publication carries")
            .fix("`unstale setup` creates it, or run this as owner of the tables:")
            .statement(Stage::Publication, statement, COST)
    }

    /// The finding about tables that are not carried, or only in part.
    fn missing(&self, missing: &[&Table], narrow: &[&Table], tables: &[&Table]) -> Option<Finding> {
        let publication = &self.settings.publication;
        let say = |tables: &[&Table]| tables.iter().map(|table| table.name.to_string()).collect::<Vec<_>>().join(", ");
        let name = quote(publication);
        // A table must not be dropped and added again: changes in between would never be sent.
        let (message, statement) = match (missing, narrow) {
            ([], []) => return None,
            (missing, []) => (
                format!("{}: the publication `{publication}` does not carry {}", self.name, say(missing)),
                format!("ALTER PUBLICATION {name} ADD TABLE {};", list(missing)),
            ),
            (_, narrow) => (
                format!("{}: the publication `{publication}` carries only a part of {}", self.name, say(narrow)),
                format!("ALTER PUBLICATION {name} SET TABLE {};", list(tables)),
            ),
        };
        let finding = Finding::error("publication-tables", message)
            .why("a change that is not published is never invalidated")
            .fix("`unstale setup` makes it carry exactly the tables of the rules, or run this:");
        Some(finding.statement(Stage::Publication, statement, COST))
    }
}

fn list(tables: &[&Table]) -> String {
    tables.iter().map(|table| quote_table(&table.name)).collect::<Vec<_>>().join(", ")
}
