//! Which rules remove what a read has cached when a table changes, and what to add where none does.
//!
//! Owns that comparison and its advice. It must not ask a server: what the SQL reads is handed in. Invariant: a rule
//! counts only if its template makes the very name under which the value is kept, version and `vary` included.

mod names;

use std::collections::BTreeSet;

use self::names::{Alphabet, Names, spell};
use super::{ParameterSource, Read};
use crate::catalog::{QueryRelation, RelationKind};
use crate::change::{Operation, TableName};
use crate::config::Spanned;
use crate::key::TAG;
use crate::plan::ActionKind;
use crate::rules::{Image, Lint, Rule, RuleSet, Template, Trigger};

/// What is not covered of one read, for each relation that its query reads. `namespace` is what the file's templates
/// leave out of names.
pub fn gaps(read: &Read, relations: &[QueryRelation], rules: &RuleSet, namespace: &str) -> Vec<Lint> {
    let hashed = read.parameters.iter().any(|parameter| parameter.source == ParameterSource::Session);
    let alphabet = Alphabet { hashed, filters: true };
    let names = Names::of(read, alphabet);
    let removing: Vec<&Rule> = rules.rules().iter().filter(|rule| names.are_removed_by(rule, alphabet)).collect();
    let judge = Judge { read, rules, namespace, alphabet, removing };
    relations.iter().flat_map(|relation| judge.gaps(relation, relations)).chain(judge.sets()).collect()
}

/// One read, and the rules that remove what it has cached.
struct Judge<'a> {
    read: &'a Read,
    rules: &'a RuleSet,
    namespace: &'a str,
    alphabet: Alphabet,
    removing: Vec<&'a Rule>,
}

impl<'a> Judge<'a> {
    fn gaps(&self, relation: &QueryRelation, all: &[QueryRelation]) -> Vec<Lint> {
        let event = self.removing.iter().copied().find(|rule| rule.trigger == Trigger::Event);
        if relation.kind != RelationKind::Table {
            // An event is how an application can tell of what no row tells.
            return event.is_none().then(|| self.uninvalidatable(relation)).into_iter().collect();
        }
        let covering: Vec<&Rule> = self.removing.iter().copied().filter(|rule| is_of(rule, relation)).collect();
        if covering.is_empty() {
            return vec![self.uncovered(relation, event)];
        }
        let mut lints = self.columns(relation, &covering);
        lints.extend(self.insert(relation, &covering, all));
        lints.extend(self.update(relation, &covering, all));
        lints.extend(self.delete(relation, &covering, all));
        lints
    }

    fn lint(&self, id: &'static str, certain: bool, message: String, why: impl Into<String>, fix: String) -> Lint {
        Lint { id, certain, span: self.read.span.clone(), message, why: why.into(), fix }
    }

    fn uncovered(&self, relation: &QueryRelation, event: Option<&Rule>) -> Lint {
        let (read, table) = (&self.read.name, &relation.name);
        let message = format!("no rule removes what read `{read}` has cached when {table} changes");
        let fix = self.suggestion(table);
        if let Some(event) = event {
            let why = format!("only rule `{}` does, and only when an application emits its event", event.name);
            return self.lint("read-uncovered", false, message, why, fix);
        }
        let ttl = humantime::format_duration(self.read.ttl);
        let mut why = format!("`{read}` reads {table}, and would show what was there before for up to {ttl}");
        if let Some(near) = self.near_miss(relation) {
            why.push('\n');
            why.push_str(&near);
        }
        self.lint("read-uncovered", true, message, why, fix)
    }

    fn uninvalidatable(&self, relation: &QueryRelation) -> Lint {
        let (read, name) = (&self.read.name, &relation.name);
        let (what, why, instead) = match relation.kind {
            RelationKind::Table | RelationKind::MaterializedView => (
                "materialized view",
                "it changes when it is refreshed, and PostgreSQL tells nobody which rows did",
                "read the tables beneath it, or emit an event after each REFRESH",
            ),
            RelationKind::ForeignTable => (
                "foreign table",
                "its rows change elsewhere, and this server's log says nothing of it",
                "emit an event when it changes",
            ),
            RelationKind::Sequence => {
                ("sequence", "no row says when it moves on", "keep the number in a table, or emit an event")
            }
        };
        let message = format!("read `{read}` reads the {what} {name}, whose changes no rule can see");
        let (action, template) = self.action();
        let fix = format!("{instead} and add a rule for it: `{{event: …, {action}: \"{template}\"}}`");
        self.lint("read-uninvalidatable", true, message, why, fix)
    }

    /// The columns that may change without anything being removed.
    fn columns(&self, relation: &QueryRelation, covering: &[&Rule]) -> Vec<Lint> {
        let updating = || covering.iter().filter(|rule| rule.triggers_on(Operation::Update));
        let narrowed = updating().count() > 0 && updating().all(|rule| !rule.changed.is_empty());
        let Some(columns) = relation.columns.as_ref().filter(|_| narrowed) else { return Vec::new() };
        let is_listed = |column: &str| updating().any(|rule| rule.changed.iter().any(|listed| listed.value == column));
        let missing = |direct: bool| {
            let ours = columns.iter().filter(move |(column, own)| **own == direct && !is_key(relation, column));
            ours.map(|(column, _)| column.as_str()).filter(|column| !is_listed(column)).collect::<Vec<_>>()
        };
        let conditional = updating().any(|rule| rule.condition.is_some());
        let names = quoted(updating());
        let lint = |missing: Vec<&str>, direct: bool| {
            let shown: Vec<_> = missing.iter().map(|column| format!("{}.{column}", relation.name)).collect();
            let (it, changes) = if missing.len() == 1 { ("it", "changes") } else { ("they", "change") };
            let by = if direct { "uses" } else { "uses, or a view in it does," };
            let read = &self.read.name;
            let message = format!("read `{read}` {by} {}, and no rule fires when {it} {changes}", shown.join(", "));
            let why = format!("the `changed` of {names} leaves {it} out, so `{read}` would go on with the old value");
            let fix = format!("add {} to `changed` of {names}", missing.join(", "));
            self.lint("read-column", direct && !conditional, message, why, fix)
        };
        let groups = [true, false].map(|direct| (missing(direct), direct));
        groups.into_iter().filter(|(missing, _)| !missing.is_empty()).map(|(m, direct)| lint(m, direct)).collect()
    }

    /// Nothing fires on an insert. If the query looks the row up there is nothing cached before it comes, unless that
    /// there is none is.
    fn insert(&self, relation: &QueryRelation, covering: &[&Rule], all: &[QueryRelation]) -> Option<Lint> {
        let comes_first = relation.is_looked_up && self.read.negative_ttl.is_none();
        self.operation(relation, covering, all, (Operation::Insert, "inserted")).filter(|_| !comes_first)
    }

    /// Nothing fires on an update, although the query uses what an update may change.
    fn update(&self, relation: &QueryRelation, covering: &[&Rule], all: &[QueryRelation]) -> Option<Lint> {
        let is_used = relation.columns.as_ref().is_none_or(|columns| columns.keys().any(|c| !is_key(relation, c)));
        self.operation(relation, covering, all, (Operation::Update, "updated")).filter(|_| is_used)
    }

    fn delete(&self, relation: &QueryRelation, covering: &[&Rule], all: &[QueryRelation]) -> Option<Lint> {
        self.operation(relation, covering, all, (Operation::Delete, "deleted"))
    }

    fn operation(
        &self,
        relation: &QueryRelation,
        covering: &[&Rule],
        all: &[QueryRelation],
        (operation, done): (Operation, &str),
    ) -> Option<Lint> {
        if self.told(all, operation).contains(&relation.name) {
            return None;
        }
        let (read, table, word) = (&self.read.name, &relation.name, operation.word());
        let message = format!("no rule removes what read `{read}` has cached when a row of {table} is {done}");
        let names = quoted(covering.iter().filter(|rule| self.reaches(rule, operation)));
        let pinned =
            quoted(covering.iter().filter(|rule| rule.triggers_on(operation) && self.reaches(rule, operation)));
        let (why, fix) = if !pinned.is_empty() {
            let why =
                format!("{pinned} names what it removes by one image of the row, which may be missing or another then");
            (why, "write `{column}` without `old.` or `new.`: it stands for both".to_owned())
        } else if names.is_empty() {
            let names = quoted(covering.iter());
            let why = format!(
                "`negative_ttl` keeps that there is nothing, too, which is in no set that a value names: the `tags` of \
                 {names} do not reach it"
            );
            (why, format!("delete the key, bump a `version`, or tag it by parameters alone, on `{word}`, too"))
        } else {
            (format!("{names} would, but its `ops` leave it out"), format!("add `{word}` to `ops` of {names}"))
        };
        Some(self.lint("read-uncovered", false, message, why, fix))
    }

    /// The relations of which such a change is noticed. A row to which another one refers comes before that one, and
    /// goes after it, or with it.
    fn told<'r>(&self, all: &'r [QueryRelation], operation: Operation) -> BTreeSet<&'r TableName> {
        let fires = |relation: &&QueryRelation| {
            let fires = |rule: &&Rule| is_of(rule, relation) && rule.triggers_on(operation);
            self.removing
                .iter()
                .any(|rule| fires(rule) && self.reaches(rule, operation) && self.sees(rule, operation, relation))
        };
        let mut told: BTreeSet<_> = all.iter().filter(fires).map(|relation| &relation.name).collect();
        // Each round adds one at least, or is the last that matters.
        for _ in all.iter().filter(|_| operation != Operation::Update) {
            let comes_along = |relation: &&QueryRelation| relation.companions.iter().any(|name| told.contains(name));
            let more: Vec<_> = all.iter().filter(comes_along).map(|relation| &relation.name).collect();
            told.extend(more);
        }
        told
    }

    /// Whether what the rule removes is all that is cached; on an insert that includes that there was nothing.
    fn reaches(&self, rule: &Rule, operation: Operation) -> bool {
        operation != Operation::Insert
            || self.read.negative_ttl.is_none()
            || Names::of_nothing(self.read, self.alphabet).are_removed_by(rule, self.alphabet)
    }

    /// Whether the rule knows the row by the image that matters: `{new.id}` renders nothing of a row that is deleted, and
    /// leaves what an updated one was called before.
    fn sees(&self, rule: &Rule, operation: Operation, relation: &QueryRelation) -> bool {
        let names = Names::of(self.read, self.alphabet);
        let is_seen = |image: Image, column: &str| match (image, operation) {
            (Image::Old, Operation::Insert) | (Image::New, Operation::Delete) => false,
            (Image::Old | Image::New, Operation::Update) => is_key(relation, column),
            _ => true,
        };
        rule.actions().any(|(kind, template)| {
            names.is_removed(kind, &self.alphabet.glob(&template.value))
                && template.value.references().all(|reference| is_seen(reference.image, &reference.column))
        })
    }

    /// The rules that write what the read would cache.
    fn sets(&self) -> Vec<Lint> {
        let names = Names::of(self.read, self.alphabet);
        let actions = self.removing.iter().flat_map(|rule| rule.actions().map(move |action| (rule, action)));
        let writes = actions.filter(|(_, (kind, template))| {
            *kind == ActionKind::Set && names.is_removed(*kind, &self.alphabet.glob(&template.value))
        });
        let lint = |(rule, (kind, template)): (&&Rule, (ActionKind, &Spanned<Template>))| {
            let key = spell(&template.value, &self.prefix(kind), false);
            let (rule, read, span) = (&rule.name, &self.read.name, template.span.clone());
            let message = format!("rule `{rule}` writes `{key}` itself, in another shape than read `{read}`");
            let why = "whoever asks for the read is served what the rule wrote: its columns, and nothing of the SQL";
            let fix = "`delete` the key in place of `set`: the read caches it anew when it is asked for";
            Lint { id: "read-set", certain: false, span, message, why: why.to_owned(), fix: fix.to_owned() }
        };
        writes.map(lint).collect()
    }

    /// The rule that would do, in the shape of this read's names.
    fn suggestion(&self, table: &TableName) -> String {
        let (kind, template) = self.action();
        let field = kind.field();
        let mut text = format!("add under `rules:` a rule `{{table: {table}, {field}: \"{template}\"}}`");
        let references = self.target().1.references().map(|reference| format!("`{}`", reference.column));
        let wanted = references.collect::<Vec<_>>().join(" and ");
        if !wanted.is_empty() {
            let otherwise = format!("if {table} has none, look it up with `for_each`");
            text.push_str(&format!(", in which `{{…}}` is the column that holds {wanted}; {otherwise}"));
        }
        text
    }

    /// The action, and the text of its template, that remove what is cached.
    fn action(&self) -> (ActionKind, String) {
        let (kind, template) = self.target();
        let end = if kind == ActionKind::Pattern { "?*" } else { "" };
        (kind, format!("{}{end}", spell(template, &self.prefix(kind), true)))
    }

    /// What the file leaves out of the names of such an action.
    fn prefix(&self, kind: ActionKind) -> String {
        if kind == ActionKind::Tag { format!("{}{TAG}", self.namespace) } else { self.namespace.to_owned() }
    }

    /// What reaches every value that the read may keep, however its name goes on.
    fn target(&self) -> (ActionKind, &'a Template) {
        let key = &self.read.key.value;
        if let Some(version) = &self.read.version {
            return (ActionKind::Bump, &version.value);
        }
        match (self.read.is_extended(), self.read.tags.first()) {
            (false, _) => (ActionKind::Delete, key),
            (true, Some(tag)) => (ActionKind::Tag, &tag.value),
            (true, None) => (ActionKind::Pattern, key),
        }
    }

    /// A rule on the relation that would do, but for one thing.
    fn near_miss(&self, relation: &QueryRelation) -> Option<String> {
        let loose = Alphabet { filters: false, ..self.alphabet };
        let (exactly, roughly) = (Names::of(self.read, self.alphabet), Names::of(self.read, loose));
        let ours = self.rules.rules().iter().filter(|rule| is_of(rule, relation));
        ours.flat_map(|rule| rule.actions().map(move |action| (rule, action))).find_map(|(rule, (kind, template))| {
            let (name, word) = (&rule.name, kind.field());
            let names_keys = match kind {
                ActionKind::Delete | ActionKind::Set | ActionKind::Pattern => true,
                ActionKind::Bump | ActionKind::Tag | ActionKind::Publish | ActionKind::Stream => false,
            };
            if names_keys && exactly.begin_like(&self.alphabet.glob(&template.value)) {
                let what = match self.read.version {
                    Some(_) => "their version: only `bump` reaches them",
                    None => "what `vary` adds: only `tags`, a `version` or a `pattern` reach them",
                };
                return Some(format!("the `{word}` of rule `{name}` does not: the names of the values end in {what}"));
            }
            roughly.is_removed(kind, &loose.glob(&template.value)).then(|| {
                let spelled = spell(&template.value, &self.prefix(kind), false);
                format!("the `{word}` of rule `{name}` does not: `{spelled}` has other filters than the read")
            })
        })
    }
}

/// Whether changes of the relation set the rule off.
fn is_of(rule: &Rule, relation: &QueryRelation) -> bool {
    let table = &rule.table.value;
    rule.trigger == Trigger::Table && (*table == relation.name || relation.ancestors.contains(table))
}

fn quoted<'c, 'r: 'c>(rules: impl Iterator<Item = &'c &'r Rule>) -> String {
    rules.map(|rule| format!("`{}`", rule.name)).collect::<Vec<_>>().join(" or ")
}

fn is_key(relation: &QueryRelation, column: &str) -> bool {
    relation.primary_key.iter().any(|key| key == column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;
    use crate::reads::ReadSet;

    fn relation(name: &str, columns: &[&str]) -> QueryRelation {
        QueryRelation {
            name: TableName::parse(name),
            kind: RelationKind::Table,
            ancestors: Vec::new(),
            companions: Vec::new(),
            is_looked_up: false,
            primary_key: vec!["id".to_owned()],
            columns: Some(columns.iter().map(|column| ((*column).to_owned(), true)).collect()),
        }
    }

    /// Every gap of the only read as `id certain: message; why; fix`.
    fn found(read: &str, rules: &str, relations: &[QueryRelation]) -> Vec<String> {
        let text = format!("version: 1\nrules:\n{rules}reads:\n  x: {{sql: select 1, {read}}}\n");
        let document = Document::parse(&text, &|_| None).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
        let reads = ReadSet::compile(document.reads, &document.settings).unwrap();
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        let gaps = gaps(&reads.reads()[0], relations, &rules, &document.settings.namespace);
        let show = |lint: &Lint| format!("{} {}: {}; {}; {}", lint.id, lint.certain, lint.message, lint.why, lint.fix);
        gaps.iter().map(show).collect()
    }

    fn check(read: &str, rules: &str, relations: &[QueryRelation], expected: &[&[&str]]) {
        let found = found(read, rules, relations);
        let matches = found.iter().zip(expected).all(|(found, parts)| parts.iter().all(|part| found.contains(part)));
        assert!(matches && found.len() == expected.len(), "{read}\n{rules}{found:#?}");
    }

    const USER: &str = "path: '/u/{id}', key: 'user:{id}'";

    #[test]
    fn a_rule_covers_if_it_makes_the_key() {
        let covered = |read: &str, action: &str| {
            check(read, &format!("  a: {{table: t, {action}}}\n"), &[relation("t", &["a"])], &[]);
        };
        let uncovered = |read: &str, action: &str, parts: &[&str]| {
            let rule = format!("  a: {{table: t, {action}}}\n");
            check(read, &rule, &[relation("t", &["a"])], &[&[&["read-uncovered true: no rule"][..], parts].concat()]);
        };
        covered(USER, "delete: 'user:{other}'");
        covered(USER, "delete: ['x:{a}', 'user:{a}']");
        covered(USER, "pattern: 'user:*'");
        covered(USER, "pattern: 'us*{a}'");
        uncovered(USER, "delete: 'users:{id}'", &["{table: t, delete: \"user:{…}\"}", "holds `id`"]);
        uncovered(USER, "delete: 'user:all'", &[]);
        uncovered(USER, "delete: 'user:{a}:{b}'", &[]);
        uncovered(USER, "pattern: 'user:*:x'", &[]);
        uncovered(USER, "publish: {channel: 'user:{id}'}", &[]);
        uncovered(USER, "tags: 'user:{id}'", &[]);
        uncovered("path: /all, key: 'user:all'", "delete: 'user:{id}'", &["delete: \"user:all\"}"]);
        let mail = "path: '/m/{mail}', key: 'mail:{mail|lower}'";
        covered(mail, "delete: 'mail:{email|lower}'");
        uncovered(mail, "delete: 'mail:{email}'", &["`mail:{email}` has other filters", "{…|lower}"]);
    }

    #[test]
    fn what_a_name_ends_in_counts() {
        let t = || [relation("t", &["a"])];
        let version = "path: '/u/{id}', key: 'user:{id}', version: 'v:{id}'";
        check(version, "  a: {table: t, bump: 'v:{x}'}\n", &t(), &[]);
        check(version, "  a: {table: t, pattern: 'user:{id}*'}\n", &t(), &[]);
        check(version, "  a: {table: t, delete: 'v:{x}'}\n", &t(), &[]);
        let advice: &[&str] = &["end in their version: only `bump` reaches them", "bump: \"v:{…}\""];
        check(version, "  a: {table: t, delete: 'user:{id}'}\n", &t(), &[advice]);
        let vary = "path: '/u/{id}', key: 'user:{id}', vary: {query: [page]}";
        check(vary, "  a: {table: t, pattern: 'user:{x}?*'}\n", &t(), &[]);
        check(vary, "  a: {table: t, pattern: 'user:{x}*'}\n", &t(), &[]);
        let advice: &[&str] = &["what `vary` adds: only `tags`", "pattern: \"user:{…}?*\""];
        check(vary, "  a: {table: t, delete: 'user:{x}'}\n", &t(), &[advice]);
        let tags = "path: '/u/{id}', key: 'user:{id}', vary: {query: [page]}, tags: 'of:{value.owner}'";
        check(tags, "  a: {table: t, tags: 'of:{x}'}\n", &t(), &[]);
        check(tags, "  a: {table: t, delete: 'user:{x}'}\n", &t(), &[&["tags: \"of:{…}\""]]);
        let named = "path: '/u/{id}', key: 'user:{id}:{page}', vary: {query: [page]}";
        check(named, "  a: {table: t, delete: 'user:{x}:{y}'}\n", &t(), &[]);
    }

    #[test]
    fn every_pair_is_told_and_ancestors_count() {
        let rules = "  a: {table: t, delete: 'user:{id}'}\n  b: {table: s, delete: 'other:{id}'}\n";
        let mut part = relation("t_1", &[]);
        part.ancestors = vec![TableName::parse("t")];
        let relations = [relation("t", &["a"]), relation("s", &["a"]), relation("u", &["a"]), part];
        check(USER, rules, &relations, &[&["when s changes", "table: s"], &["when u changes", "for up to 10m"]]);
        let event = "  e: {event: e, delete: 'user:{id}'}\n";
        check(USER, event, &[relation("t", &["a"])], &[&["read-uncovered false", "emits its event"]]);
    }

    #[test]
    fn what_no_rule_can_see_needs_an_event() {
        for kind in [RelationKind::MaterializedView, RelationKind::ForeignTable, RelationKind::Sequence] {
            let relations = [QueryRelation { kind, ..relation("t", &["a"]) }];
            let rule = "  a: {table: t, delete: 'user:{id}'}\n";
            check(USER, rule, &relations, &[&["read-uninvalidatable true", "{event: …, delete: \"user:{…}\"}"]]);
            check(USER, "  e: {event: e, delete: 'user:{id}'}\n", &relations, &[]);
        }
    }

    #[test]
    fn columns_that_no_rule_lists_are_told() {
        let narrow = "  a: {table: t, changed: [a, b], delete: 'user:{id}'}\n";
        check(USER, narrow, &[relation("t", &["id", "a", "b"])], &[]);
        let c: &[&str] = &["read-column true: read `x` uses t.c, and no rule fires when it changes", "add c to"];
        check(USER, narrow, &[relation("t", &["id", "a", "c"])], &[c]);
        let two = format!("{narrow}  b: {{table: t, changed: c, delete: 'user:{{id}}'}}\n");
        check(USER, &two, &[relation("t", &["id", "a", "c"])], &[]);
        let both: &[&str] = &["t.d, t.e, and no rule fires when they change", "`a` or `b`"];
        check(USER, &two, &[relation("t", &["d", "e"])], &[both]);
        let whole = format!("{narrow}  b: {{table: t, delete: 'user:{{id}}'}}\n");
        check(USER, &whole, &[relation("t", &["id", "a", "c"])], &[]);
        check(USER, narrow, &[QueryRelation { columns: None, ..relation("t", &[]) }], &[]);
        let view = QueryRelation { columns: Some([("c".to_owned(), false)].into()), ..relation("t", &[]) };
        check(USER, narrow, &[view], &[&["read-column false", "or a view in it does, t.c"]]);
        let when = "  a: {table: t, changed: a, when: 'new.n > 0', delete: 'user:{id}'}\n";
        check(USER, when, &[relation("t", &["c"])], &[&["read-column false"]]);
    }

    #[test]
    fn operations_that_no_rule_fires_on_are_told() {
        let rule = |ops: &str| format!("  a: {{table: t, ops: {ops}, delete: 'user:{{id}}'}}\n");
        let t = || relation("t", &["id", "a"]);
        let looked_up = || QueryRelation { is_looked_up: true, ..t() };
        let inserted: &[&str] = &["read-uncovered false", "a row of t is inserted", "add `insert` to `ops`"];
        check(USER, &rule("[update, delete]"), &[looked_up()], &[]);
        check(USER, &rule("[update, delete]"), &[t()], &[inserted]);
        let negative = format!("{USER}, negative_ttl: 10m");
        check(&negative, &rule("[update, delete]"), &[looked_up()], &[inserted]);
        check(&negative, &rule("[insert, update, delete]"), &[looked_up()], &[]);
        let deleted: &[&str] = &["read-uncovered false", "a row of t is deleted", "add `delete` to `ops`"];
        check(USER, &rule("[insert, update]"), &[t()], &[deleted]);
        check(USER, &rule("update"), &[t()], &[inserted, deleted]);
        check(USER, &rule("[insert, delete]"), &[t()], &[&["read-uncovered false", "a row of t is updated"]]);
        check(USER, &rule("[insert, delete]"), &[relation("t", &["id"])], &[]);
    }

    #[test]
    fn an_image_that_a_row_does_not_have_removes_nothing() {
        let rule = |template: &str| format!("  a: {{table: t, delete: '{template}'}}\n");
        let t = || relation("t", &["id", "a"]);
        let told = |done: &'static str| ["read-uncovered false", done, "without `old.` or `new.`"];
        check(USER, &rule("user:{new.id}"), &[t()], &[&told("a row of t is deleted")]);
        check(USER, &rule("user:{old.id}"), &[t()], &[&told("a row of t is inserted")]);
        let (updated, deleted) = (told("a row of t is updated"), told("a row of t is deleted"));
        check(USER, &rule("user:{new.a}"), &[t()], &[&updated, &deleted]);
        check(USER, &rule("user:{id}"), &[t()], &[]);
    }

    #[test]
    fn a_row_comes_after_and_goes_before_what_it_refers_to() {
        let rules = |ops: &str| {
            format!(
                "  a: {{table: t, ops: update, delete: 'user:{{id}}'}}\n  \
                     b: {{table: s, ops: {ops}, delete: 'user:{{t_id}}'}}\n"
            )
        };
        let with = |name: &str, companion: &str| {
            let companions = vec![TableName::parse(companion)];
            QueryRelation { companions, ..relation(name, &["id"]) }
        };
        let s = || relation("s", &["id"]);
        check(USER, &rules("[insert, delete]"), &[with("t", "s"), s()], &[]);
        let [inserted, deleted]: [&[&str]; 2] = [&["a row of t is inserted"], &["a row of t is deleted"]];
        check(USER, &rules("insert"), &[with("t", "s"), s()], &[deleted, &["a row of s is deleted"]]);
        check(USER, &rules("[insert, delete]"), &[relation("t", &["id"]), s()], &[inserted, deleted]);
        // Nobody has to be told twice: `t` comes with `r`, which comes with `s`.
        let chain = format!("{}  c: {{table: r, ops: update, delete: 'user:{{id}}'}}\n", rules("[insert, delete]"));
        check(USER, &chain, &[with("t", "r"), with("r", "s"), s()], &[]);
        check(USER, &rules("update"), &[with("t", "t")], &[inserted, deleted]);
    }

    #[test]
    fn that_there_is_nothing_is_in_no_set_that_a_value_names() {
        let read = |more: &str| format!("{USER}, tags: ['of:{{value.owner}}', 'all:{{id}}']{more}");
        let t = || [relation("t", &["a"])];
        let of = "  a: {table: t, tags: 'of:{owner}'}\n";
        check(&read(""), of, &t(), &[]);
        let negative = read(", negative_ttl: 1m");
        let nothing: &[&str] = &["read-uncovered false", "a row of t is inserted", "the `tags` of `a` do not reach it"];
        check(&negative, of, &t(), &[nothing]);
        check(&negative, "  a: {table: t, tags: 'all:{x}'}\n", &t(), &[]);
        check(&negative, "  a: {table: t, tags: 'of:{owner}', delete: 'user:{id}'}\n", &t(), &[]);
        let both = format!("{of}  b: {{table: t, ops: [update, delete], delete: 'user:{{id}}'}}\n");
        check(&negative, &both, &t(), &[&["`b` would, but its `ops` leave it out", "add `insert` to `ops` of `b`"]]);
    }

    #[test]
    fn a_rule_that_writes_the_key_is_told() {
        let set = "  a: {table: t, set: {key: 'user:{a}', columns: [a]}}\n";
        let words: &[&str] =
            &["read-set false: rule `a` writes `user:{a}` itself", "than read `x`", "`delete` the key"];
        check(USER, set, &[relation("t", &["a"])], &[words]);
        check(
            USER,
            &format!("{set}  b: {{table: t, set: {{key: 'u:{{a}}', columns: [a]}}}}\n"),
            &[relation("t", &["a"])],
            &[words],
        );
    }
}
