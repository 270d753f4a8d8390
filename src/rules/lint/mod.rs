//! Lints: valid rules that can never do anything, or that contradict one another.
//!
//! Owns the lints. It must not ask a server; the caller passes the catalog if it is known.
//! Invariant: a certain lint is true for every possible row.

mod finding;
mod keys;

pub use self::finding::Lint;
use super::action::{Action, RuleAction};
use super::rule::{Rule, Trigger};
use super::rule_set::RuleSet;
use super::spelling::spell;
use super::template::Image;
use crate::catalog::Catalog;
use crate::change::Operation;
use crate::config::{Spanned, Truncate};

/// All findings about a rule set, in the order of the file. With a catalog, types and foreign keys
/// are compared too.
pub fn lint(rules: &RuleSet, catalog: Option<&Catalog>) -> Vec<Lint> {
    let mut lints = Vec::new();
    for rule in rules.rules() {
        lints.extend(never_fires(rule, rules.truncate));
        lints.extend(always_fires(rule));
        lints.extend(never_renders(rule));
        lints.extend(leaves_values(rule));
        lints.extend(leaves_names(rule));
    }
    lints.extend(duplicates(rules.rules()));
    lints.extend(unused_lookups(rules));
    lints.extend(keys::ambiguous(rules.rules(), catalog));
    lints.sort_by_key(|lint| lint.span.start);
    lints
}

/// Values that `set` writes and that become stale.
fn leaves_values(rule: &Rule) -> Vec<Lint> {
    const ID: &str = "set-goes-stale";
    let Some(set) = rule.actions.iter().find(|action| matches!(action, Action::Set { .. })) else { return Vec::new() };
    let place = &set.name().span;
    let mut lints = Vec::new();
    let watched = |column: &str| rule.changed.is_empty() || rule.changed.iter().any(|known| known.value == column);
    // A column in the key is not compared: another value gives another key.
    let names = |column: &str| set.name().value.references().any(|reference| reference.column == column);
    let unwatched = |column: &&Spanned<String>| !watched(&column.value) && !names(&column.value);
    for column in rule.set_columns().filter(unwatched) {
        let message = format!("rule `{}` writes `{}`, which is not in its `changed`", rule.name, column.value);
        let lint = Lint::new(ID, true, &column.span, message);
        lints.push(lint.why("when it changes, the old value stays in the cache").fix("add it to `changed`"));
    }
    if rule.trigger == Trigger::Table && !rule.triggers_on(Operation::Delete) {
        let message = format!("rule `{}` writes a value and is not triggered when the row is deleted", rule.name);
        let lint = Lint::new(ID, true, place, message);
        lints.push(lint.why("the value of a row that was deleted stays until its ttl").fix("add `delete` to `ops`"));
    }
    if let Some(condition) = &rule.condition
        && condition.value.columns().iter().any(|column| column.image == Image::New)
        && condition.value.columns().iter().all(|column| column.image != Image::Old)
    {
        let message = format!(
            "rule `{}` writes a value while its `when` is true, and is not triggered when it becomes false",
            rule.name
        );
        let lint = Lint::new(ID, false, &condition.span, message);
        lints.push(
            lint.why("the value stays in the cache when `when` is no longer true for its row")
                .fix("let `when` read `old` too"),
        );
    }
    lints
}

/// Keys with a column that is not in `changed`.
fn leaves_names(rule: &Rule) -> Vec<Lint> {
    if rule.changed.is_empty() || !rule.triggers_on(Operation::Update) {
        return Vec::new();
    }
    let watched = |column: &str| rule.changed.iter().any(|known| known.value == column);
    // Identifying columns rarely change, so rules rarely list them.
    let is_key = |column: &str| column == "id" || column.ends_with("_id");
    let mut lints = Vec::new();
    for (_, name) in rule.actions() {
        for reference in name.value.references().filter(|reference| reference.image == Image::Either) {
            if watched(&reference.column) || is_key(&reference.column) {
                continue;
            }
            let message =
                format!("rule `{}` names a key by `{}`, which is not in its `changed`", rule.name, reference.column);
            let span = name.place_of(reference);
            let lint = Lint::new("key-goes-stale", false, &span, message);
            lints.push(
                lint.why("when it changes, the key with the old value stays in the cache").fix("add it to `changed`"),
            );
        }
    }
    lints
}

/// A rule that nothing triggers, or whose fields contradict each other.
fn never_fires(rule: &Rule, truncate: Truncate) -> Option<Lint> {
    const ID: &str = "rule-never-fires";
    let constant = rule.condition.as_ref().and_then(|condition| condition.value.constant());
    if let (Some(condition), Some(false)) = (&rule.condition, constant) {
        let message = format!("the `when` of rule `{}` is always false", rule.name);
        let lint = Lint::new(ID, true, &condition.span, message);
        return Some(lint.why("the rule never does anything").fix("correct the condition, or remove the rule"));
    }
    let only = |operation| rule.operations.iter().all(|&known| known == operation);
    if rule.trigger == Trigger::Table && only(Operation::Truncate) && truncate == Truncate::Ignore {
        let message =
            format!("rule `{}` is triggered by truncates only, and `defaults.truncate` is `ignore`", rule.name);
        let lint = Lint::new(ID, true, &rule.span, message);
        return Some(lint.why("the rule never does anything").fix("choose `truncate: pattern`, or remove the rule"));
    }
    let changed = rule.changed.first()?;
    if rule.operations.contains(&Operation::Update) {
        return None;
    }
    let message = format!("`changed` narrows updates, and rule `{}` is not triggered by updates", rule.name);
    let lint = Lint::new(ID, true, &changed.span, message);
    Some(lint.why("the two fields contradict each other").fix("add `update` to `ops`, or remove `changed`"))
}

fn always_fires(rule: &Rule) -> Option<Lint> {
    let condition = rule.condition.as_ref().filter(|condition| condition.value.constant() == Some(true))?;
    let message = format!("the `when` of rule `{}` is always true", rule.name);
    let lint = Lint::new("when-always-true", false, &condition.span, message);
    Some(lint.why("it is evaluated for every change and never matters").fix("correct the condition, or remove it"))
}

/// An action that reads the old row where there never is one.
fn never_renders(rule: &Rule) -> Option<Lint> {
    let has_no_old = match rule.trigger {
        Trigger::Event => true,
        Trigger::Table => rule.operations.iter().all(|&operation| operation == Operation::Insert),
    };
    let name = rule
        .names()
        .filter(|_| has_no_old)
        .find(|name| name.value.references().any(|reference| reference.image == Image::Old))?;
    let message = format!("rule `{}` reads `old.`, but what triggers it has no old row", rule.name);
    let lint = Lint::new("action-never-applies", true, &name.span, message);
    Some(
        lint.why("a name with NULL renders nothing, so the action never does anything")
            .fix("read the new row: `{column}`"),
    )
}

/// Rules that do nothing that another one does not do.
fn duplicates(rules: &[Rule]) -> Vec<Lint> {
    let mut lints = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let other = rules.iter().enumerate().find(|&(place, other)| {
            // Of two equal rules, the later one is reported.
            place != at && covers(other, rule) && (place < at || !covers(rule, other))
        });
        let Some((_, other)) = other else { continue };
        let same = covers(rule, other);
        let message = match same {
            true => format!("rule `{}` is the same as rule `{}`", rule.name, other.name),
            false => format!("rule `{}` does nothing that rule `{}` does not do as well", rule.name, other.name),
        };
        let lint = Lint::new("duplicate-rule", same, &rule.span, message);
        lints.push(lint.why("it costs time for every change, and the two may diverge").fix("remove it"));
    }
    lints
}

/// Whether `wide` acts whenever `rule` does, and does everything that `rule` does.
fn covers(wide: &Rule, rule: &Rule) -> bool {
    let changed = |rule: &Rule| {
        let mut columns: Vec<_> = rule.changed.iter().map(|column| column.value.clone()).collect();
        columns.sort();
        columns
    };
    let condition = |rule: &Rule| rule.condition.as_ref().map(|condition| condition.value.text().to_owned());
    let for_each = |rule: &Rule| {
        let call = rule.for_each.as_ref()?;
        Some((call.lookup, call.arguments.iter().map(|argument| spell(&argument.value)).collect::<Vec<_>>()))
    };
    (wide.trigger, &wide.table.value) == (rule.trigger, &rule.table.value)
        && rule.operations.iter().all(|operation| wide.operations.contains(operation))
        && (wide.changed.is_empty() || changed(wide) == changed(rule))
        && (wide.condition.is_none() || condition(wide) == condition(rule))
        && for_each(wide) == for_each(rule)
        && wide.again_after == rule.again_after
        && rule.actions.iter().all(|action| wide.actions.iter().any(|other| is_same(action, other)))
}

fn is_same(one: &RuleAction, other: &RuleAction) -> bool {
    let data = |action: &RuleAction| {
        let mut text = Vec::new();
        if let Some(data) = action.data() {
            data.write(&mut text, &mut |template, out| out.extend_from_slice(spell(&template.value).as_bytes()));
        }
        text
    };
    let names = |columns: &[Spanned<String>]| columns.iter().map(|column| column.value.clone()).collect::<Vec<_>>();
    let details = match (one, other) {
        (Action::Set { columns, ttl, .. }, Action::Set { columns: others, ttl: other_ttl, .. }) => {
            names(columns) == names(others) && ttl == other_ttl
        }
        (Action::Stream { maxlen, .. }, Action::Stream { maxlen: other_maxlen, .. }) => maxlen == other_maxlen,
        (Action::Set { .. } | Action::Stream { .. }, _) => false,
        (Action::Delete(_) | Action::Pattern(_) | Action::Tag(_) | Action::Bump(_) | Action::Publish { .. }, _) => {
            one.kind() == other.kind()
        }
    };
    details && spell(&one.name().value) == spell(&other.name().value) && data(one) == data(other)
}

fn unused_lookups(rules: &RuleSet) -> Vec<Lint> {
    let calls = || rules.rules().iter().filter_map(|rule| rule.for_each.as_ref());
    let asks = |at: usize| calls().any(|call| call.lookup == at);
    let unused = rules.lookups().iter().enumerate().filter(|&(at, _)| !asks(at));
    let lints = unused.map(|(_, lookup)| {
        let message = format!("no rule calls the lookup `{}`", lookup.name.value);
        let lint = Lint::new("unused-lookup", false, &lookup.name.span, message);
        lint.why("it is compared with the database at every start").fix("remove it, or use it in a `for_each`")
    });
    lints.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    fn rules(text: &str) -> RuleSet {
        let document = Document::parse(text, &|_| None).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
        RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap()
    }

    /// Every lint as `id certain: text at fault`.
    pub(super) fn lints(text: &str, catalog: Option<&Catalog>) -> Vec<String> {
        let found = lint(&rules(text), catalog);
        let show = |lint: &Lint| format!("{} {}: {}", lint.id, lint.certain, &text[lint.span.clone()]);
        found.iter().map(show).collect()
    }

    fn check(rules: &str, expected: &[&str]) {
        assert_eq!(lints(&format!("version: 1\n{rules}"), None), expected, "{rules}");
    }

    #[test]
    fn a_rule_that_never_fires() {
        check("rules: {r: {table: t, when: 'false', delete: 'k:{a}'}}\n", &["rule-never-fires true: false"]);
        check("rules: {r: {table: t, ops: insert, changed: [b], delete: 'k:{a}'}}\n", &["rule-never-fires true: b"]);
        check("rules: {r: {table: t, ops: [insert, update], changed: [a], delete: 'k:{a}'}}\n", &[]);
        let truncate = "rules: {r: {table: t, ops: truncate, delete: 'k:{a}'}}\n";
        check(&format!("defaults: {{truncate: ignore}}\n{truncate}"), &["rule-never-fires true: r"]);
        check(truncate, &[]);
    }

    #[test]
    fn a_condition_that_decides_nothing() {
        check("rules: {r: {table: t, when: 'true', delete: 'k:{a}'}}\n", &["when-always-true false: true"]);
        check("rules: {r: {table: t, when: 'new.a == 1', delete: 'k:{a}'}}\n", &[]);
    }

    #[test]
    fn an_image_that_never_is() {
        check("rules: {r: {table: t, ops: insert, delete: 'k:{old.a}'}}\n", &["action-never-applies true: k:{old.a}"]);
        check("rules: {r: {event: e, delete: 'k:{old.a}'}}\n", &["action-never-applies true: k:{old.a}"]);
        check("rules: {r: {table: t, ops: [insert, delete], delete: 'k:{old.a}'}}\n", &[]);
    }

    #[test]
    fn a_rule_that_adds_nothing() {
        let two = |second: &str| format!("rules: {{one: {{table: t, delete: 'k:{{a}}'}}, two: {{{second}}}}}\n");
        check(&two("table: t, delete: 'k:{ a }'"), &["duplicate-rule true: two"]);
        check(&two("table: t, ops: update, changed: a, delete: 'k:{a}'"), &["duplicate-rule false: two"]);
        check(&two("table: t, delete: ['k:{a}', 'l:{a}']"), &["duplicate-rule false: one"]);
        check(&two("table: t, again_after: 1s, delete: 'k:{a}'"), &[]);
        check(&two("table: u, delete: 'k:{a}'"), &[]);
        check(&two("table: t, bump: 'k:{a}'"), &[]);
        check(&two("table: t, delete: 'l:{a}'"), &[]);
        let messages = |data: &str| {
            let publish = |data: &str| format!("{{table: t, publish: {{channel: c, data: {data}}}}}");
            format!("rules: {{one: {}, two: {}}}\n", publish("1"), publish(data))
        };
        check(&messages("1"), &["duplicate-rule true: two"]);
        check(&messages("2"), &[]);
    }

    #[test]
    fn a_lookup_without_calls() {
        let lookups = "lookups: {members: {sql: select 1}, idle: {sql: select 2}}\n";
        check(
            &format!("{lookups}rules: {{r: {{table: t, for_each: 'members({{id}}) as m', delete: 'k:{{m.a}}'}}}}\n"),
            &["unused-lookup false: idle"],
        );
    }

    #[test]
    fn a_value_or_a_name_that_goes_stale() {
        let of = |fields: &str| format!("rules: {{r: {{table: t, {fields}}}}}");
        check(&of("changed: [a], set: {key: 'k:{id}', columns: [id, b]}"), &["set-goes-stale true: b"]);
        check(&of("ops: [insert, update], set: {key: 'k:{id}', columns: [id]}"), &["set-goes-stale true: k:{id}"]);
        check(&of("when: new.a > 1, set: {key: 'k:{id}', columns: [id]}"), &["set-goes-stale false: new.a > 1"]);
        check(&of("when: new.a > 1 || old.a > 1, set: {key: 'k:{id}', columns: [id]}"), &[]);
        check(&of("changed: [a], delete: ['k:{id}', 'e:{email}', 'o:{old.b}']"), &["key-goes-stale false: email"]);
    }
}
