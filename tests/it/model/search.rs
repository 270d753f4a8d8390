//! Visiting every reachable state of a model.
//!
//! Owns the search and the way to a state that it found. It must not know what the states are.
//! Invariant: breadth first, so a counter-example is a shortest one.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A step in words; `#` stands for the transaction, position or filler.
pub(super) type Step = (&'static str, u8);

/// What some transition must do; otherwise a model proves nothing.
pub(super) type Witness<S> = (&'static str, fn(&S, &S) -> bool);

/// A protocol, whole or with one rule removed.
pub(super) trait Model {
    /// Everything that the actors know at one moment. The search begins at its default.
    type State: Copy + Default + Eq + Hash;

    /// The possible next steps.
    fn next(&self, from: Self::State, steps: &mut Vec<(Step, Self::State)>);

    /// Whether the promise is broken.
    fn is_broken(&self, state: &Self::State) -> bool;
}

/// The possible next steps.
pub(super) struct Next<'a, S> {
    pub(super) from: S,
    pub(super) steps: &'a mut Vec<(Step, S)>,
}

impl<S: Copy> Next<'_, S> {
    pub(super) fn may(&mut self, words: &'static str, who: u8, change: impl FnOnce(&mut S)) {
        let mut to = self.from;
        change(&mut to);
        self.steps.push(((words, who), to));
    }
}

/// Multiply and rotate, as rustc does: the default hasher would take most of an unoptimised test's
/// time.
#[derive(Default)]
pub(super) struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_usize(usize::from(byte)));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_usize(usize::from(byte));
    }

    fn write_isize(&mut self, discriminant: isize) {
        self.write_usize(discriminant as usize);
    }

    fn write_usize(&mut self, word: usize) {
        self.0 = (self.0.rotate_left(5) ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// The states found so far, each with the index of its predecessor and the step between them.
pub(super) struct Search<S> {
    pub(super) found: Vec<(S, usize, Step)>,
    known: HashSet<S, BuildHasherDefault<Mixer>>,
    pub(super) transitions: usize,
}

impl<S: Copy + Default + Eq + Hash> Search<S> {
    pub(super) fn new() -> Self {
        Self { found: Vec::new(), known: HashSet::default(), transitions: 0 }
    }

    /// Visits every state until one is broken, and returns the steps to that one. `watch` is called
    /// with every transition, and without a target for every state that has none.
    pub(super) fn run(
        &mut self,
        model: &impl Model<State = S>,
        mut watch: impl FnMut(&S, Option<&S>),
    ) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        self.add(S::default(), 0, ("", 0));
        let mut at = 0;
        while let Some(&(state, ..)) = self.found.get(at) {
            if model.is_broken(&state) {
                return Some(self.path(at));
            }
            model.next(state, &mut steps);
            if steps.is_empty() {
                watch(&state, None);
            }
            for (step, to) in steps.drain(..) {
                watch(&state, Some(&to));
                self.transitions += 1;
                self.add(to, at, step);
            }
            at += 1;
        }
        None
    }

    fn add(&mut self, state: S, from: usize, step: Step) {
        if self.known.insert(state) {
            self.found.push((state, from, step));
        }
    }

    fn path(&self, mut at: usize) -> Vec<Step> {
        let mut path = Vec::new();
        while at > 0 {
            let (_, from, step) = self.found[at];
            path.push(step);
            at = from;
        }
        path.reverse();
        path
    }
}

/// The steps, one a line.
pub(super) fn listing(path: &[Step]) -> String {
    let line = |(n, (words, who)): (usize, &Step)| format!("{:>4}  {}\n", n + 1, words.replace('#', &who.to_string()));
    path.iter().enumerate().map(line).collect()
}
