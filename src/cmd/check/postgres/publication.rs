//! Whether the publication carries what the rules need: their whole tables, and every kind of
//! change.
//!
//! Owns this check. It must not judge replica identities. Invariant: a row filter or a column list
//! on a table of the rules is an error, because it hides changes.

use super::probe::PostgresProbe;
use crate::catalog::{Catalog, Table};
use crate::cmd::check::finding::{Finding, Findings, Stage};
use crate::install::publication;
use crate::postgres::publication::Publication;
use crate::rules::RuleSet;

impl PostgresProbe<'_> {
    pub(super) async fn publication(
        &self,
        rules: &RuleSet,
        catalog: &Catalog,
        findings: &mut Findings,
    ) -> Result<(), tokio_postgres::Error> {
        let tables = rules.tables().into_iter().filter_map(|name| catalog.find(name));
        // Another finding says why.
        let left_out = rules.unpublishable(catalog);
        let tables: Vec<&Table> = tables.filter(|table| !left_out.contains(&table.name)).collect();
        if tables.is_empty() && !rules.has_events() {
            return Ok(());
        }
        let name = &self.settings.publication;
        let Some(published) = Publication::read(self.client, name).await? else {
            findings.add(self.unpublished(&tables));
            return Ok(());
        };
        let narrow: Vec<_> = tables.iter().copied().filter(|table| published.narrows(table)).collect();
        let missing: Vec<_> = tables.iter().copied().filter(|table| !published.carries(table)).collect();
        let mut found: Vec<_> = self.missing(&published, &missing, &narrow, &tables).into_iter().collect();
        if !published.every_change {
            let message = format!("{}: the publication `{name}` leaves out some kinds of changes", self.name);
            let finding = Finding::error("publication-changes", message)
                .why("a change that is not published is never invalidated")
                .planned(Stage::Publication, publication::publish_every_change(name));
            found.push(finding);
        }
        if published.via_root {
            let message =
                format!("{}: the publication `{name}` publishes partitions under their root's name", self.name);
            let finding = Finding::error("publication-root", message)
                .why("a TRUNCATE of one partition is then not published")
                .planned(Stage::Publication, publication::publish_partitions(name));
            found.push(finding);
        }
        let names: Vec<_> = tables.iter().map(|table| table.name.to_string()).collect();
        let carries = if names.is_empty() { "no table".to_owned() } else { names.join(", ") };
        findings.pass_or(format!("publication {name} carries {carries}"), found);
        Ok(())
    }

    fn unpublished(&self, tables: &[&Table]) -> Finding {
        let publication = &self.settings.publication;
        Finding::error("publication-missing", format!("{} has no publication `{publication}`", self.name))
            .why("the slot sends only what the publication carries")
            .fix("`unstale setup` creates it, or run this as owner of the tables:")
            .planned(Stage::Publication, publication::create(publication, tables))
    }

    /// The finding about tables that are not carried, or only in part.
    fn missing(
        &self,
        published: &Publication,
        missing: &[&Table],
        narrow: &[&Table],
        tables: &[&Table],
    ) -> Option<Finding> {
        let name = &self.settings.publication;
        let say = |tables: &[&Table]| tables.iter().map(|table| table.name.to_string()).collect::<Vec<_>>().join(", ");
        let (message, statement) = match (missing, narrow) {
            ([], []) => return None,
            (missing, []) => (
                format!("{}: the publication `{name}` does not carry {}", self.name, say(missing)),
                publication::add_tables(name, published, missing)?,
            ),
            (_, narrow) => (
                format!("{}: the publication `{name}` carries only a part of {}", self.name, say(narrow)),
                publication::set_tables(name, tables),
            ),
        };
        let finding = Finding::error("publication-tables", message)
            .why("a change that is not published is never invalidated")
            .fix("`unstale setup` makes it carry exactly the tables of the rules, or run this:");
        Some(finding.planned(Stage::Publication, statement))
    }
}
