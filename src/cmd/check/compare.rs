//! The findings about rules that do not fit a catalog.
//!
//! Owns which findings follow from a [`CatalogFit`]. It must not ask a server: the catalog may come
//! from the lock file.

use super::finding::{Finding, Findings, Stage};
use crate::catalog::{Catalog, Identity, Table};
use crate::cmd::preflight::catalog_fit::CatalogFit;
use crate::config::{Mode, Problem};
use crate::install;
use crate::install::step::PlannedStatement;
use crate::rules::{FULL_FAILS_SINCE, Remedy, RuleSet, Widening};

/// Compares rules with a catalog. Returns the rules with the schema of every known table filled in.
pub(super) fn compare(rules: &RuleSet, catalog: &Catalog, mode: Mode, findings: &mut Findings) -> RuleSet {
    let CatalogFit { rules, unknown, unlogged, narrow, widenings } = CatalogFit::of(rules, catalog, mode);
    findings.pass_or(
        format!("names: {} tables and their columns", rules.tables().len()),
        unknown.iter().map(|problem| Finding::problem("unknown-name", problem).why("the rule has no effect")),
    );
    if mode == Mode::Slot {
        findings.found.extend(unlogged.iter().map(logged));
        findings.pass_or("replica identities", narrow.iter().map(|problem| identity(problem, &widenings)));
        findings.found.extend(widenings.iter().filter_map(limited));
        findings.found.extend(generated(&rules, catalog));
        findings.found.extend(keyless(&rules, catalog));
    }
    rules
}

/// The finding about a table that is not logged, with its statements.
fn logged(problem: &Problem) -> Finding {
    let finding = Finding::problem("unlogged-table", problem);
    let mut lines = problem.advice.lines();
    let fix = lines.next().unwrap_or_default();
    let cost = "locks the table (ACCESS EXCLUSIVE) while all of its rows are written again";
    lines.fold(finding.fix(fix), |finding, statement| finding.statement(Stage::Logged, statement, cost))
}

/// The finding about an identity that is too narrow, with the statements for its table.
fn identity(problem: &Problem, widenings: &[Widening]) -> Finding {
    let mut finding = Finding::problem("replica-identity", problem);
    let own = widenings.iter().find_map(|widening| {
        let statements = widening.statements();
        let words = problem.advice.strip_suffix(&statements.join("\n")).filter(|_| !statements.is_empty())?;
        Some((widening, words))
    });
    let Some((widening, words)) = own else { return finding };
    finding.fix = words.trim_end().to_owned();
    for PlannedStatement { sql, cost, .. } in install::identity::statements(widening) {
        finding = finding.statement(Stage::Identity, sql, cost);
    }
    finding
}

/// The findings about tables whose writes PostgreSQL refuses because of a generated column, or will
/// refuse after an upgrade.
fn generated(rules: &RuleSet, catalog: &Catalog) -> Vec<Finding> {
    let is_full = |table: &Table| table.members.iter().any(|member| member.identity == Identity::Full);
    let has_generated = |table: &Table| table.columns.iter().any(|column| !column.generated.is_never());
    let tables = rules.tables().into_iter().filter_map(|name| catalog.find(name));
    let finding = |table: &Table| {
        let message = format!("table {} has REPLICA IDENTITY FULL and a generated column", table.name);
        let fix = "add a key without generated columns, run ALTER TABLE … REPLICA IDENTITY USING INDEX … or DEFAULT, and \
                   then `unstale setup`";
        let finding = match catalog.limits.major_version {
            0 => return None,
            FULL_FAILS_SINCE.. => Finding::error("replica-identity-generated", message)
                .why("PostgreSQL refuses its updates and deletes unless the publication carries that column"),
            _ => Finding::warning("replica-identity-generated", message).why(format!(
                "from version {FULL_FAILS_SINCE} on, PostgreSQL refuses updates and deletes of such a table once it is \
                 published"
            )),
        };
        Some(finding.fix(fix))
    };
    tables.filter(|table| is_full(table) && has_generated(table)).filter_map(finding).collect()
}

/// The finding about an identity that nothing makes wide enough.
fn limited(widening: &Widening) -> Option<Finding> {
    let Remedy::Nothing(reason) = &widening.remedy else { return None };
    let message = format!("the log does not carry all old values of {} that the keys need", widening.table);
    let why = format!("{reason}; rules delete by pattern what they do not know");
    Some(
        Finding::warning("replica-identity-limited", message).why(why).fix(
            "use keys that the primary key determines, or source.mode: outbox, whose triggers see the whole old row",
        ),
    )
}

fn keyless(rules: &RuleSet, catalog: &Catalog) -> Vec<Finding> {
    let mut found = Vec::new();
    for name in rules.tables() {
        let Some(table) = catalog.find(name).filter(|table| table.primary_key.is_empty()) else { continue };
        let rule = rules.rules().iter().find(|rule| rule.table.value == *name);
        let finding = Finding::warning("no-primary-key", format!("table {} has no primary key", table.name))
            .why("nothing identifies its rows, and its updates and deletes log the whole old row")
            .fix("ALTER TABLE … ADD PRIMARY KEY (…)");
        found.push(Finding { place: rule.map(|rule| rule.table.span.clone()), ..finding });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogColumn;
    use crate::change::{ColumnKind, TableName};
    use crate::config::Document;

    #[test]
    fn everything_that_does_not_fit_is_found_at_once() {
        let text = "version: 1\nrules:\n  a: {table: users, delete: ['user:{id}', 'mail:{email}']}\n  \
                    b: {table: usres, delete: 'u:{id}'}\n";
        let document = Document::parse(text, &|_| None).unwrap();
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        let column = |name: &str| CatalogColumn {
            name: name.to_owned(),
            type_name: "text".to_owned(),
            kind: ColumnKind::Text,
            not_null: true,
            ..CatalogColumn::default()
        };
        let name = TableName::new("public", "users");
        let table = Table {
            name: name.clone(),
            columns: vec![column("id"), column("email")],
            primary_key: vec!["id".to_owned()],
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            identity: Identity::Columns(vec!["id".to_owned()]),
            unlogged: false,
            leaves: vec![name],
            ..Table::default()
        };
        let catalog = Catalog { tables: vec![table], search_path: vec!["public".to_owned()], ..Catalog::default() };
        let mut findings = Findings::default();
        let compared = compare(&rules, &catalog, Mode::Slot, &mut findings);
        assert!(compared.rules().iter().any(|rule| rule.table.value.schema == "public"));
        let found: Vec<_> =
            findings.found.iter().map(|f| (f.id, &text[f.place.clone().unwrap()], f.statements.len())).collect();
        assert_eq!(found, [("unknown-name", "usres", 0), ("replica-identity", "email", 2)]);
        let fix = &findings.found.last().unwrap().fix;
        assert!(fix.contains("unstale setup") && !fix.contains("CREATE"), "{fix}");
        let mut findings = Findings::default();
        compare(&rules, &catalog, Mode::Outbox, &mut findings);
        assert_eq!(findings.found.iter().map(|f| f.id).collect::<Vec<_>>(), ["unknown-name"]);
    }
}
