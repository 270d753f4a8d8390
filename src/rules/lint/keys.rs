//! Whether two templates with keys of the same shape give the same keys.
//!
//! Owns that comparison. Invariant: without a catalog it reports only what the file alone proves.

use std::collections::BTreeSet;

use super::super::rule::{Rule, Trigger};
use super::super::spelling::{spell, spell_reference};
use super::super::template::{Image, Reference, Template, TemplatePart};
use super::finding::Lint;
use crate::catalog::{Catalog, Table};
use crate::change::TableName;
use crate::config::Spanned;

/// The most foreign keys that are followed from a column.
const HOPS_MAX: usize = 8;

/// A template that names keys, and the rule it is in.
struct KeyTemplate<'a> {
    rule: &'a Rule,
    template: &'a Spanned<Template>,
    shape: Vec<Option<&'a [u8]>>,
}

/// Templates whose keys look alike and are not.
pub(super) fn ambiguous(rules: &[Rule], catalog: Option<&Catalog>) -> Vec<Lint> {
    let mut seen: Vec<KeyTemplate<'_>> = Vec::new();
    let mut lints = Vec::new();
    for rule in rules {
        for (_, template) in rule.actions().filter(|(kind, _)| kind.touches_keys()) {
            let named = KeyTemplate { rule, template, shape: shape(&template.value) };
            let mut alike = seen.iter().filter(|other| other.shape == named.shape);
            lints.extend(alike.find_map(|other| compare(other, &named, catalog)));
            if named.shape.contains(&None) {
                seen.push(named);
            }
        }
    }
    lints
}

/// The literals; `None` for each reference between them.
fn shape(template: &Template) -> Vec<Option<&[u8]>> {
    fn literal(part: &TemplatePart) -> Option<&[u8]> {
        match part {
            TemplatePart::Literal(literal) => Some(literal),
            TemplatePart::Any => Some(b"*"),
            TemplatePart::Reference(_) => None,
        }
    }
    template.parts().iter().map(literal).collect()
}

/// The finding about the second of two templates, if any.
fn compare(first: &KeyTemplate<'_>, second: &KeyTemplate<'_>, catalog: Option<&Catalog>) -> Option<Lint> {
    let pairs = || first.template.value.references().zip(second.template.value.references());
    if let Some((one, other)) = pairs().find(|(one, other)| one.filters != other.filters) {
        return Some(other_filters(first, second, (one, other)));
    }
    pairs().find_map(|pair| other_columns(first, second, pair, catalog))
}

fn other_filters(first: &KeyTemplate<'_>, second: &KeyTemplate<'_>, (one, other): (&Reference, &Reference)) -> Lint {
    // The value of an event or a lookup may be filtered already; and one rule may mean both keys.
    let plain = !is_foreign(first.rule, one) && !is_foreign(second.rule, other);
    let certain = plain && !std::ptr::eq(first.rule, second.rule);
    let message = format!(
        "`{}` filters its value otherwise than `{}` does in rule `{}`",
        spell(&second.template.value),
        spell(&first.template.value),
        first.rule.name
    );
    Lint::new("ambiguous-key", certain, &second.template.span, message)
        .why("both name keys of one cache, and for some values different keys, so one of them misses cached values")
        .fix(format!("write `{}` in both, as the application makes the key", spell_reference(one)))
}

fn other_columns(
    first: &KeyTemplate<'_>,
    second: &KeyTemplate<'_>,
    (one, other): (&Reference, &Reference),
    catalog: Option<&Catalog>,
) -> Option<Lint> {
    let (table, other_table) = (&first.rule.table.value, &second.rule.table.value);
    if is_foreign(first.rule, one)
        || is_foreign(second.rule, other)
        || (table, &one.column) == (other_table, &other.column)
    {
        return None;
    }
    let columns = [(table, one.column.as_str()), (other_table, other.column.as_str())];
    if catalog.is_some_and(|catalog| are_connected(catalog, columns)) {
        return None;
    }
    let types = catalog.and_then(|catalog| {
        let [one, other] = columns.map(|(table, column)| type_of(catalog, table, column));
        one.zip(other).filter(|(one, other)| one != other)
    });
    let one_table = table == other_table;
    let one_rule = std::ptr::eq(first.rule, second.rule);
    let certain = one_table && !one_rule;
    if !certain && types.is_none() {
        return None;
    }
    let message = format!(
        "`{}` is made from {other_table}.{}, and in rule `{}` from {table}.{}",
        spell(&second.template.value),
        other.column,
        first.rule.name,
        one.column
    );
    let why = match types {
        Some((one, other)) => format!("one holds {one} and the other {other}: they cannot make the same keys"),
        None => "keys are cached under one of the two columns, and the other rule misses them".to_owned(),
    };
    let lint = Lint::new("ambiguous-key", certain, &second.template.span, message).why(why);
    Some(lint.fix("give the keys different prefixes, correct the column, or put both into one rule if both are meant"))
}

/// Whether the value does not come from the rule's table.
fn is_foreign(rule: &Rule, reference: &Reference) -> bool {
    rule.trigger == Trigger::Event || reference.image == Image::Lookup
}

/// Whether foreign keys lead from both columns to one.
fn are_connected(catalog: &Catalog, [one, other]: [(&TableName, &str); 2]) -> bool {
    let others = reachable(catalog, other);
    reachable(catalog, one).iter().any(|column| others.contains(column))
}

/// A column, and those whose values it has by foreign keys.
fn reachable<'a>(catalog: &'a Catalog, (table, column): (&TableName, &'a str)) -> BTreeSet<(&'a TableName, &'a str)> {
    let mut found = BTreeSet::new();
    let mut open: Vec<(&'a Table, &'a str)> = catalog.find(table).map(|table| (table, column)).into_iter().collect();
    for _ in 0..=HOPS_MAX {
        let mut next = Vec::new();
        for (table, column) in open {
            if !found.insert((&table.name, column)) {
                continue;
            }
            for key in &table.foreign_keys {
                let pairs = key.columns.iter().zip(&key.referenced);
                let targets = pairs.filter(|(own, _)| *own == column).map(|(_, referenced)| referenced.as_str());
                next.extend(targets.filter_map(|target| Some((catalog.find(&key.table)?, target))));
            }
        }
        open = next;
    }
    found
}

fn type_of<'a>(catalog: &'a Catalog, table: &TableName, column: &str) -> Option<&'a str> {
    let table = catalog.find(table)?;
    table.columns.iter().find(|known| known.name == column).map(|known| known.type_name.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::tests::lints;
    use super::*;
    use crate::catalog::{CatalogColumn, ForeignKey, Identity};
    use crate::change::ColumnKind;

    fn table(name: &str, columns: &[(&str, &str)], foreign_keys: &[(&str, &str, &str)]) -> Table {
        let column = |&(name, type_name): &(&str, &str)| CatalogColumn {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            kind: ColumnKind::Text,
            not_null: true,
            ..CatalogColumn::default()
        };
        let foreign_key = |&(column, table, referenced): &(&str, &str, &str)| ForeignKey {
            columns: vec![column.to_owned()],
            table: TableName::new("public", table),
            referenced: vec![referenced.to_owned()],
            ..ForeignKey::default()
        };
        let name = TableName::new("public", name);
        Table {
            name: name.clone(),
            columns: columns.iter().map(column).collect(),
            primary_key: Vec::new(),
            unique: Vec::new(),
            foreign_keys: foreign_keys.iter().map(foreign_key).collect(),
            identity: Identity::Full,
            unlogged: false,
            leaves: vec![name],
            ..Table::default()
        }
    }

    fn catalog() -> Catalog {
        let tables = vec![
            table(
                "users",
                &[("id", "uuid"), ("email", "text"), ("owner_id", "uuid"), ("nick", "text")],
                &[("owner_id", "users", "id")],
            ),
            table("members", &[("user_id", "uuid")], &[("user_id", "users", "id")]),
            table(
                "posts",
                &[("author_id", "uuid"), ("title", "text"), ("count", "integer")],
                &[("author_id", "members", "user_id")],
            ),
        ];
        Catalog { tables, search_path: vec!["public".to_owned()], ..Catalog::default() }
    }

    /// Two rules; the second's key is `user:{…}`, too.
    fn check(first: &str, second: &str, catalog: Option<&Catalog>, expected: &[bool]) {
        let text = format!("version: 1\nrules:\n  one: {{{first}}}\n  two: {{{second}}}\n");
        let found = lints(&text, catalog);
        let prefix = |certain: &bool| format!("ambiguous-key {certain}: ");
        let matching = found.iter().zip(expected).all(|(lint, certain)| lint.starts_with(&prefix(certain)));
        assert!(matching && found.len() == expected.len(), "{text}: {found:?}");
    }

    #[test]
    fn filters_must_agree() {
        let users = "table: users, delete: 'user:{email}'";
        check(users, "table: posts, delete: 'user:{title|lower}'", None, &[true]);
        check(users, "table: users, bump: 'user:{email|lower}'", None, &[true]);
        check(users, "event: e, delete: 'user:{email|lower}'", None, &[false]);
        check(users, "event: e, delete: ['other:{a}', 'other:{a|lower}']", None, &[false]);
        check(users, "table: posts, publish: {channel: 'user:{title|lower}'}", None, &[]);
        check(users, "table: posts, delete: 'user:{title}:x'", None, &[]);
    }

    #[test]
    fn columns_of_one_table_must_agree_between_rules() {
        check("table: users, delete: 'user:{id}'", "table: users, bump: 'user:{nick}'", None, &[true]);
        check("table: users, delete: 'user:{id}'", "table: users, bump: 'user:{nick}'", Some(&catalog()), &[true]);
        check("table: users, delete: 'user:{id}'", "table: users, bump: 'user:{owner_id}'", Some(&catalog()), &[]);
        let event = "event: e, delete: 'x'";
        check("table: users, delete: ['user:{email}', 'user:{nick}']", event, Some(&catalog()), &[]);
        check("table: users, delete: ['user:{id}', 'user:{nick}']", event, Some(&catalog()), &[false]);
    }

    #[test]
    fn columns_of_two_tables_must_be_of_one_type() {
        let users = "table: users, delete: 'user:{id}'";
        check(users, "table: members, delete: 'user:{user_id}'", Some(&catalog()), &[]);
        check(users, "table: posts, delete: 'user:{author_id}'", Some(&catalog()), &[]);
        check(users, "table: posts, delete: 'user:{count}'", Some(&catalog()), &[false]);
        check(users, "table: posts, delete: 'user:{count}'", None, &[]);
        check("table: users, delete: 'user:{email}'", "table: posts, delete: 'user:{title}'", Some(&catalog()), &[]);
    }
}
