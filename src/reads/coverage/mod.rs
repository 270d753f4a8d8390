//! Which rules remove what a read has cached when a table changes, and what to add if none does.
//!
//! Owns the lints about that. It must not ask a server: the relations that the SQL reads are an
//! argument. Invariant: a rule counts only if its template makes the very name under which the
//! value is cached, version and `vary` included.

mod advice;
mod removers;
mod shapes;
#[cfg(test)]
mod test;

use self::advice::Advice;
use self::removers::{Removers, is_key};
use self::shapes::{Alphabet, NameShapes};
use super::{ParameterSource, Read};
use crate::catalog::{QueryRelation, RelationKind};
use crate::change::Operation;
use crate::config::Spanned;
use crate::plan::ActionKind;
use crate::rules::{Lint, Rule, RuleSet, Template};

/// The changes of the read's relations after which cached values would be stale. `namespace` is
/// what the templates of the file leave out of names.
pub fn gaps(read: &Read, relations: &[QueryRelation], rules: &RuleSet, namespace: &str) -> Vec<Lint> {
    let hashed = read.parameters.iter().any(|parameter| parameter.source == ParameterSource::Session);
    let alphabet = Alphabet { hashed, filters: true };
    let removers = Removers::of(read, rules, alphabet);
    let coverage = ReadCoverage { read, alphabet, removers, advice: Advice { read, rules, namespace, alphabet } };
    let gaps = relations.iter().flat_map(|relation| coverage.gaps(relation, relations));
    gaps.chain(coverage.writes()).collect()
}

/// One read, held against the rules.
struct ReadCoverage<'a> {
    read: &'a Read,
    alphabet: Alphabet,
    removers: Removers<'a>,
    advice: Advice<'a>,
}

impl ReadCoverage<'_> {
    /// The gaps of one relation of the query.
    fn gaps(&self, relation: &QueryRelation, all: &[QueryRelation]) -> Vec<Lint> {
        let event = self.removers.on_event();
        if relation.kind != RelationKind::Table {
            // An application can announce by an event what no row change shows.
            return event.is_none().then(|| self.uninvalidatable(relation)).into_iter().collect();
        }
        let covering = self.removers.on(relation);
        if covering.is_empty() {
            return vec![self.uncovered(relation, event)];
        }
        let mut lints = self.columns(relation, &covering);
        lints.extend(self.insert(relation, &covering, all));
        lints.extend(self.update(relation, &covering, all));
        lints.extend(self.operation(relation, &covering, all, (Operation::Delete, "deleted")));
        lints
    }

    fn lint(&self, id: &'static str, certain: bool, message: String, why: impl Into<String>, fix: String) -> Lint {
        Lint { id, certain, span: self.read.span.clone(), message, why: why.into(), fix }
    }

    /// No rule on the relation removes the values.
    fn uncovered(&self, relation: &QueryRelation, event: Option<&Rule>) -> Lint {
        let (read, table) = (&self.read.name, &relation.name);
        let message = format!("no rule removes what read `{read}` has cached when {table} changes");
        let fix = self.advice.rule(table);
        if let Some(event) = event {
            let why = format!("only rule `{}` does, and only when an application emits its event", event.name);
            return self.lint("read-uncovered", false, message, why, fix);
        }
        let ttl = humantime::format_duration(self.read.ttl);
        let mut why = format!("`{read}` reads {table}, and would serve the old value for up to {ttl}");
        if let Some(near) = self.advice.near_miss(relation) {
            why.push('\n');
            why.push_str(&near);
        }
        self.lint("read-uncovered", true, message, why, fix)
    }

    /// The relation changes without row changes that rules could react to.
    fn uninvalidatable(&self, relation: &QueryRelation) -> Lint {
        let (read, name) = (&self.read.name, &relation.name);
        let (what, why, instead) = match relation.kind {
            RelationKind::Table | RelationKind::MaterializedView => (
                "materialized view",
                "REFRESH changes it, and PostgreSQL does not report which rows",
                "read the tables beneath it, or emit an event after each REFRESH",
            ),
            RelationKind::ForeignTable => (
                "foreign table",
                "its rows change elsewhere, and are not in this server's log",
                "emit an event when it changes",
            ),
            RelationKind::Sequence => {
                ("sequence", "nextval() changes no row", "keep the number in a table, or emit an event")
            }
        };
        let message = format!("read `{read}` reads the {what} {name}, whose changes no rule can see");
        let (kind, template) = self.advice.action();
        let fix = format!("{instead}, and add a rule for it: `{{event: …, {}: \"{template}\"}}`", kind.field());
        self.lint("read-uninvalidatable", true, message, why, fix)
    }

    /// The columns that the query uses and that no rule lists in `changed`.
    fn columns(&self, relation: &QueryRelation, covering: &[&Rule]) -> Vec<Lint> {
        let updating = || covering.iter().filter(|rule| rule.triggers_on(Operation::Update));
        let narrowed = updating().count() > 0 && updating().all(|rule| !rule.changed.is_empty());
        let Some(columns) = relation.columns.as_ref().filter(|_| narrowed) else { return Vec::new() };
        let is_listed = |column: &str| updating().any(|rule| rule.changed.iter().any(|listed| listed.value == column));
        let missing = |direct: bool| {
            let used = columns.iter().filter(move |(column, own)| **own == direct && !is_key(relation, column));
            used.map(|(column, _)| column.as_str()).filter(|column| !is_listed(column)).collect::<Vec<_>>()
        };
        let conditional = updating().any(|rule| rule.condition.is_some());
        let names = quoted(updating());
        let lint = |missing: Vec<&str>, direct: bool| {
            let shown: Vec<_> = missing.iter().map(|column| format!("{}.{column}", relation.name)).collect();
            let (it, changes) = if missing.len() == 1 { ("it", "changes") } else { ("they", "change") };
            let by = if direct { "uses" } else { "uses, or a view in it does," };
            let read = &self.read.name;
            let message = format!("read `{read}` {by} {}, and no rule fires when {it} {changes}", shown.join(", "));
            let them = if missing.len() == 1 { "it" } else { "them" };
            let why = format!("the `changed` of {names} omits {them}, so `{read}` would keep serving the old value");
            let fix = format!("add {} to `changed` of {names}", missing.join(", "));
            self.lint("read-column", direct && !conditional, message, why, fix)
        };
        let groups = [true, false].map(|direct| (missing(direct), direct));
        groups.into_iter().filter(|(missing, _)| !missing.is_empty()).map(|(m, direct)| lint(m, direct)).collect()
    }

    /// No rule fires on an insert. If the query looks the row up by its key, nothing is cached
    /// before the insert, unless the absence of the row is.
    fn insert(&self, relation: &QueryRelation, covering: &[&Rule], all: &[QueryRelation]) -> Option<Lint> {
        let comes_first = relation.is_looked_up && self.read.negative_ttl.is_none();
        self.operation(relation, covering, all, (Operation::Insert, "inserted")).filter(|_| !comes_first)
    }

    /// No rule fires on an update, although the query uses columns that an update may change.
    fn update(&self, relation: &QueryRelation, covering: &[&Rule], all: &[QueryRelation]) -> Option<Lint> {
        let is_used = relation.columns.as_ref().is_none_or(|columns| columns.keys().any(|c| !is_key(relation, c)));
        self.operation(relation, covering, all, (Operation::Update, "updated")).filter(|_| is_used)
    }

    /// No rule removes the values after this operation, for one of three reasons.
    fn operation(
        &self,
        relation: &QueryRelation,
        covering: &[&Rule],
        all: &[QueryRelation],
        (operation, done): (Operation, &str),
    ) -> Option<Lint> {
        if self.removers.notice(operation, relation, all) {
            return None;
        }
        let (read, table, word) = (&self.read.name, &relation.name, operation.word());
        let message = format!("no rule removes what read `{read}` has cached when a row of {table} is {done}");
        let reaches_all = |rule: &&&Rule| self.removers.reaches_all(rule, operation);
        let reaching = quoted(covering.iter().filter(reaches_all));
        let by_image = quoted(covering.iter().filter(|rule| rule.triggers_on(operation)).filter(reaches_all));
        let (why, fix) = if !by_image.is_empty() {
            let why = format!("{by_image} uses one image of the row, which then does not exist or has another value");
            (why, "write `{column}` without `old.` or `new.`: it stands for both".to_owned())
        } else if reaching.is_empty() {
            let names = quoted(covering.iter());
            let why = format!(
                "`negative_ttl` also caches that there is no row, which joins no set that depends on the value: the \
                 `tags` of {names} do not reach it"
            );
            (why, format!("on `{word}`, also delete the key, bump a `version`, or tag it by parameters alone"))
        } else {
            (format!("{reaching} would, but its `ops` omit it"), format!("add `{word}` to `ops` of {reaching}"))
        };
        Some(self.lint("read-uncovered", false, message, why, fix))
    }

    /// The rules that write the key of the read themselves.
    fn writes(&self) -> Vec<Lint> {
        let names = NameShapes::of(self.read, self.alphabet);
        let actions = self.removers.rules().iter().flat_map(|rule| rule.actions().map(move |action| (rule, action)));
        let writes = actions.filter(|(_, (kind, template))| {
            *kind == ActionKind::Set && names.is_removed(*kind, &self.alphabet.glob(&template.value))
        });
        let lint = |(rule, (kind, template)): (&&Rule, (ActionKind, &Spanned<Template>))| {
            let key = self.advice.spell(kind, &template.value, false);
            let (rule, read, span) = (&rule.name, &self.read.name, template.span.clone());
            let message = format!("rule `{rule}` itself writes `{key}`, in another format than read `{read}`");
            let why = "the read would serve what the rule wrote: the rule's columns instead of the result of the SQL";
            let fix = "`delete` the key instead of `set`: the read caches it again on the next request";
            Lint { id: "read-set", certain: false, span, message, why: why.to_owned(), fix: fix.to_owned() }
        };
        writes.map(lint).collect()
    }
}

fn quoted<'c, 'r: 'c>(rules: impl Iterator<Item = &'c &'r Rule>) -> String {
    rules.map(|rule| format!("`{}`", rule.name)).collect::<Vec<_>>().join(" or ")
}
