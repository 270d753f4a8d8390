//! The rules that remove what one read has cached.
//!
//! Owns which changes those rules react to, and whether they reach all cached values. It must not
//! know how a gap is reported.

use std::collections::BTreeSet;

use super::shapes::{Alphabet, NameShapes};
use crate::catalog::QueryRelation;
use crate::change::{Operation, TableName};
use crate::reads::Read;
use crate::rules::{Image, Rule, RuleSet, Trigger};

/// The rules of which some action removes the values of a read.
pub(super) struct Removers<'a> {
    read: &'a Read,
    alphabet: Alphabet,
    rules: Vec<&'a Rule>,
}

impl<'a> Removers<'a> {
    pub(super) fn of(read: &'a Read, rules: &'a RuleSet, alphabet: Alphabet) -> Self {
        let names = NameShapes::of(read, alphabet);
        let rules = rules.rules().iter().filter(|rule| names.are_removed_by(rule, alphabet)).collect();
        Self { read, alphabet, rules }
    }

    pub(super) fn rules(&self) -> &[&'a Rule] {
        &self.rules
    }

    /// A rule on an event, if one of them is.
    pub(super) fn on_event(&self) -> Option<&'a Rule> {
        self.rules.iter().copied().find(|rule| rule.trigger == Trigger::Event)
    }

    /// The rules on a relation.
    pub(super) fn on(&self, relation: &QueryRelation) -> Vec<&'a Rule> {
        self.rules.iter().copied().filter(|rule| is_on(rule, relation)).collect()
    }

    /// Whether the operation on a relation of the query removes the values, by a rule on it or on
    /// another relation that changes together with it.
    pub(super) fn notice(&self, operation: Operation, relation: &QueryRelation, all: &[QueryRelation]) -> bool {
        self.noticed(operation, all).contains(&relation.name)
    }

    /// The relations on which the operation removes the values. A row that another one refers to is
    /// inserted before that one, and deleted after it or together with it.
    fn noticed<'r>(&self, operation: Operation, all: &'r [QueryRelation]) -> BTreeSet<&'r TableName> {
        let is_noticed = |relation: &&QueryRelation| {
            self.rules.iter().any(|rule| {
                is_on(rule, relation)
                    && rule.triggers_on(operation)
                    && self.reaches_all(rule, operation)
                    && self.has_images(rule, operation, relation)
            })
        };
        let mut noticed: BTreeSet<_> = all.iter().filter(is_noticed).map(|relation| &relation.name).collect();
        // Each round adds at least one relation, or is the last one that matters.
        for _ in all.iter().filter(|_| operation != Operation::Update) {
            let changes_along =
                |relation: &&QueryRelation| relation.companions.iter().any(|name| noticed.contains(name));
            let more: Vec<_> = all.iter().filter(changes_along).map(|relation| &relation.name).collect();
            noticed.extend(more);
        }
        noticed
    }

    /// Whether the rule removes everything that is cached. On an insert that includes that there
    /// was no row.
    pub(super) fn reaches_all(&self, rule: &Rule, operation: Operation) -> bool {
        operation != Operation::Insert
            || self.read.negative_ttl.is_none()
            || NameShapes::of_no_row(self.read, self.alphabet).are_removed_by(rule, self.alphabet)
    }

    /// Whether the rule names the values by row images that exist. `{new.id}` makes no name when a
    /// row is deleted, and not the old name when it is updated.
    fn has_images(&self, rule: &Rule, operation: Operation, relation: &QueryRelation) -> bool {
        let names = NameShapes::of(self.read, self.alphabet);
        let exists = |image: Image, column: &str| match (image, operation) {
            (Image::Old, Operation::Insert) | (Image::New, Operation::Delete) => false,
            (Image::Old | Image::New, Operation::Update) => is_key(relation, column),
            _ => true,
        };
        rule.actions().any(|(kind, template)| {
            names.is_removed(kind, &self.alphabet.glob(&template.value))
                && template.value.references().all(|reference| exists(reference.image, &reference.column))
        })
    }
}

/// Whether changes of the relation trigger the rule.
pub(super) fn is_on(rule: &Rule, relation: &QueryRelation) -> bool {
    let table = &rule.table.value;
    rule.trigger == Trigger::Table && (*table == relation.name || relation.ancestors.contains(table))
}

/// Whether a column is part of the primary key, which is taken never to be updated.
pub(super) fn is_key(relation: &QueryRelation, column: &str) -> bool {
    relation.primary_key.iter().any(|key| key == column)
}
