//! Sweeps: removals that have to search Redis, by pattern or by set.
//!
//! Owns their limit for each rule. It must not know how they are carried out. Invariant: no rule
//! has more sweeps than the limits after [`Sweeps::limit`].

use std::collections::{BTreeMap, BTreeSet};

use indexmap::map::Entry;

use super::op::Op;
use super::removal::Removal;
use super::rule_id::RuleId;
use super::unique::Unique;
use crate::key::{CacheKey, Glob};

/// The most patterns of one rule that are searched for one by one: every key of the server is
/// compared with each.
const PATTERNS_PER_RULE: usize = 64;

/// The most sets of one rule that are removed one by one: each is a search of its own.
const SETS_PER_RULE: usize = 4096;

/// The patterns and sets that a plan removes.
#[derive(Clone, Debug, Default)]
pub(super) struct Sweeps {
    patterns: Unique<Glob, RuleId>,
    tags: Unique<CacheKey, RuleId>,
    tag_globs: Unique<Glob, RuleId>,
}

impl Sweeps {
    /// Adds a pattern of keys. How many bytes that takes.
    pub(super) fn add_pattern(&mut self, rule: RuleId, glob: Glob) -> usize {
        let bytes = glob.as_bytes().len();
        match self.patterns.entry(glob) {
            Entry::Vacant(entry) => {
                entry.insert(rule);
                bytes
            }
            Entry::Occupied(_) => 0,
        }
    }

    /// Adds a set. How many bytes that takes.
    pub(super) fn add_tag(&mut self, rule: RuleId, set: CacheKey) -> usize {
        let bytes = set.as_bytes().len();
        self.tags.entry(set).or_insert(rule);
        bytes
    }

    /// Adds a pattern of sets. How many bytes that takes.
    pub(super) fn add_tags(&mut self, rule: RuleId, sets: Glob) -> usize {
        let bytes = sets.as_bytes().len();
        self.tag_globs.entry(sets).or_insert(rule);
        bytes
    }

    /// Adds those of another plan. How many bytes that takes.
    pub(super) fn append(&mut self, other: Self) -> usize {
        let patterns: usize = other.patterns.into_iter().map(|(glob, rule)| self.add_pattern(rule, glob)).sum();
        let tags: usize = other.tags.into_iter().map(|(set, rule)| self.add_tag(rule, set)).sum();
        let globs: usize = other.tag_globs.into_iter().map(|(glob, rule)| self.add_tags(rule, glob)).sum();
        patterns + tags + globs
    }

    /// Removes the sweeps of every rule that has too many. Returns these rules: what replaces the
    /// sweeps is everything that the rules may ever have made.
    pub(super) fn limit(&mut self) -> BTreeSet<RuleId> {
        let mut counts: BTreeMap<RuleId, (usize, usize)> = BTreeMap::new();
        for rule in self.patterns.values().chain(self.tag_globs.values()) {
            counts.entry(*rule).or_default().0 += 1;
        }
        for rule in self.tags.values() {
            counts.entry(*rule).or_default().1 += 1;
        }
        counts.retain(|_, (globs, sets)| *globs > PATTERNS_PER_RULE || *sets > SETS_PER_RULE);
        let excessive: BTreeSet<_> = counts.into_keys().collect();
        if !excessive.is_empty() {
            self.patterns.retain(|_, rule| !excessive.contains(rule));
            self.tag_globs.retain(|_, rule| !excessive.contains(rule));
            self.tags.retain(|_, rule| !excessive.contains(rule));
        }
        excessive
    }

    /// Whether a pattern matches the key, or there are too many patterns to compare it with each.
    pub(super) fn may_match(&self, key: &CacheKey) -> bool {
        self.patterns.len() > PATTERNS_PER_RULE || self.patterns.keys().any(|glob| glob.matches(key.as_bytes()))
    }

    pub(super) fn patterns(&self) -> impl ExactSizeIterator<Item = &Glob> {
        self.patterns.keys()
    }

    /// The rule of each sweep.
    pub(super) fn rules(&self) -> impl Iterator<Item = RuleId> {
        self.patterns.values().chain(self.tags.values()).chain(self.tag_globs.values()).copied()
    }

    pub(super) fn ops(&self) -> impl Iterator<Item = (RuleId, Op<'_>)> {
        let patterns = self.patterns.iter().map(|(glob, &rule)| (rule, Op::Pattern(glob)));
        let tags = self.tags.iter().map(|(set, &rule)| (rule, Op::Tag(set)));
        patterns.chain(tags).chain(self.tag_globs.iter().map(|(glob, &rule)| (rule, Op::Tags(glob))))
    }

    /// What is removed: keys first, then patterns of sets, then sets.
    pub(super) fn into_removals(self) -> impl Iterator<Item = (RuleId, Removal)> {
        let patterns = self.patterns.into_iter().map(|(glob, rule)| (rule, Removal::Keys(glob)));
        let globs = self.tag_globs.into_iter().map(|(glob, rule)| (rule, Removal::Tags(glob)));
        patterns.chain(globs).chain(self.tags.into_iter().map(|(set, rule)| (rule, Removal::Tag(set))))
    }

    pub(super) fn len(&self) -> usize {
        self.patterns.len() + self.tags.len() + self.tag_globs.len()
    }

    /// The bytes of all names.
    pub(super) fn bytes(&self) -> usize {
        let globs = self.patterns.keys().chain(self.tag_globs.keys()).map(|glob| glob.as_bytes().len());
        globs.chain(self.tags.keys().map(|tag| tag.as_bytes().len())).sum()
    }
}
