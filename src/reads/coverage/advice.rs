//! What to add to the file so that a rule removes what a read has cached.
//!
//! Owns the suggested rule, and the reason why a rule that looks right is not. It must not know how
//! gaps are found. Invariant: the suggested action reaches every value that the read may cache.

use super::removers::is_on;
use super::shapes::{Alphabet, NameShapes, spell};
use crate::catalog::QueryRelation;
use crate::change::TableName;
use crate::key::TAG;
use crate::plan::ActionKind;
use crate::reads::Read;
use crate::rules::{RuleSet, Template};

/// Advice about one read.
pub(super) struct Advice<'a> {
    pub(super) read: &'a Read,
    pub(super) rules: &'a RuleSet,
    /// What the templates of the file leave out of names.
    pub(super) namespace: &'a str,
    pub(super) alphabet: Alphabet,
}

impl<'a> Advice<'a> {
    /// A rule on the table that would remove the values.
    pub(super) fn rule(&self, table: &TableName) -> String {
        let (kind, template) = self.action();
        let field = kind.field();
        let mut text = format!("add under `rules:` a rule `{{table: {table}, {field}: \"{template}\"}}`");
        let references = self.target().1.references().map(|reference| format!("`{}`", reference.column));
        let wanted = references.collect::<Vec<_>>().join(" and ");
        if !wanted.is_empty() {
            let otherwise = format!("if {table} has no such column, look it up with `for_each`");
            text.push_str(&format!(", in which `{{…}}` is the column that holds {wanted}; {otherwise}"));
        }
        text
    }

    /// The action, and the text of its template, that remove the values.
    pub(super) fn action(&self) -> (ActionKind, String) {
        let (kind, template) = self.target();
        let end = if kind == ActionKind::Pattern { "?*" } else { "" };
        (kind, format!("{}{end}", self.spell(kind, template, true)))
    }

    /// A template of such an action, as the file has it; with `…` for columns if those are
    /// `hidden`.
    pub(super) fn spell(&self, kind: ActionKind, template: &Template, hidden: bool) -> String {
        match kind {
            ActionKind::Tag => spell(template, &format!("{}{TAG}", self.namespace), hidden),
            ActionKind::Bump
            | ActionKind::Delete
            | ActionKind::Pattern
            | ActionKind::Publish
            | ActionKind::Set
            | ActionKind::Stream => spell(template, self.namespace, hidden),
        }
    }

    /// The action and the template that reach every value of the read, whatever its name ends in.
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

    /// Why a rule on the relation that nearly removes the values does not.
    pub(super) fn near_miss(&self, relation: &QueryRelation) -> Option<String> {
        let loose = Alphabet { filters: false, ..self.alphabet };
        let (exactly, roughly) = (NameShapes::of(self.read, self.alphabet), NameShapes::of(self.read, loose));
        let rules = self.rules.rules().iter().filter(|rule| is_on(rule, relation));
        rules.flat_map(|rule| rule.actions().map(move |action| (rule, action))).find_map(|(rule, (kind, template))| {
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
                let spelled = self.spell(kind, &template.value, false);
                format!("the `{word}` of rule `{name}` does not: `{spelled}` has other filters than the read")
            })
        })
    }
}
