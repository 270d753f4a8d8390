//! Tags: a value is found by a tag, not by its name.
//!
//! Owns the steps around one key that only a tag finds: two transactions that both change its
//! value, the daemon, three fillers of which some replace a value, one reader, and a Redis that
//! evicts whatever it likes. Invariant: nothing that Redis can evict may make a value servable that
//! was not. Deletes by name, replicas and failovers are the other model's: the deletion of a
//! generation is a delete like any other.

use super::search::{Model, Next, Search, Step, Witness, listing};
use super::{LAST, Position, Transactions, only, up_to};

const FILLERS: u8 = 3;

/// A rule that is removed; the comment says what happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// A hit does not compare generations: the set of the tag is what finds a value.
    HitShowsGeneration,
    /// The generation is read after the database.
    JoinBeforeRead,
    /// A missing generation begins again at the same value.
    GenerationIsNew,
    /// A filler that replaces a value makes the generation of that value's own token.
    GenerationOfEachJoin,
    /// The daemon deletes the generation of a transaction that is not visible.
    Gate,
    /// A transaction counts as in force before the generation is deleted.
    DeleteBeforeAcknowledge,
    /// A reader compares a generation that it read before the position and the value.
    CompareAfterValue,
}

const RULES: [Rule; 7] = [
    Rule::HitShowsGeneration,
    Rule::JoinBeforeRead,
    Rule::GenerationIsNew,
    Rule::GenerationOfEachJoin,
    Rule::Gate,
    Rule::DeleteBeforeAcknowledge,
    Rule::CompareAfterValue,
];

/// No two are equal, except in mutants.
type Generation = u8;

/// A cached value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Value {
    seen: Transactions,
    generation: Generation,
    /// Its token: the filler that stored it.
    by: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Key {
    #[default]
    Empty,
    Lease(u8),
    Value(Value),
}

/// What a filler must find under the key when it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Token {
    OwnLease,
    ValueOf(u8),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Filler {
    #[default]
    Idle,
    Granted(Token),
    Joined(Token, Generation),
    Read(Token, Generation, Transactions),
    Done,
    /// Mutant: what was read before the generation.
    EarlyRead(Token, Transactions),
}

/// The daemon's progress with one transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Sent {
    #[default]
    Nothing,
    /// The generation is deleted.
    Deleted,
    /// The members of the set are deleted too: the transaction counts as in force.
    Swept,
}

/// A reader. What it read last decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Reader {
    #[default]
    Idle,
    /// A value, and the transactions that `applied` covered, as it was read together.
    Found(Value, Transactions),
    /// Mutant: the generation first.
    EarlyGeneration(Option<Generation>),
    /// It served a value, and said that these transactions are in it.
    Served(Transactions, Transactions),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    log: Position,
    visible: Transactions,
    key: Key,
    generation: Option<Generation>,
    /// The set of the tag has the key as its member.
    is_member: bool,
    sent: [Sent; LAST as usize],
    fillers: [Filler; FILLERS as usize],
    reader: Reader,
}

impl State {
    fn with(&self, wanted: impl Fn(Sent) -> bool) -> Transactions {
        (1..=LAST).zip(self.sent).filter(|&(_, sent)| wanted(sent)).map(|(n, _)| only(n)).sum()
    }
}

struct Tags {
    removed: Option<Rule>,
}

impl Model for Tags {
    type State = State;

    fn next(&self, from: State, steps: &mut Vec<(Step, State)>) {
        let next = &mut Next { from, steps };
        Self::servers(next);
        self.daemon(next);
        (0..FILLERS).for_each(|filler| self.filler(next, filler));
        self.reader(next);
    }

    fn is_broken(&self, state: &State) -> bool {
        matches!(state.reader, Reader::Served(seen, claimed) if claimed & !seen != 0)
    }
}

impl Tags {
    fn has(&self, rule: Rule) -> bool {
        self.removed != Some(rule)
    }

    /// Eviction, expiry and a rule that names the same key are one step: the key is gone.
    fn servers(next: &mut Next<'_, State>) {
        let s = next.from;
        if s.log < LAST {
            next.may("# is in the log and streamed", s.log + 1, |s| s.log += 1);
        }
        for transaction in (1..=s.log).filter(|&transaction| s.visible & only(transaction) == 0) {
            next.may("# becomes visible on the primary", transaction, |s| s.visible |= only(transaction));
        }
        if s.key != Key::Empty {
            next.may("Redis evicts the key", 0, |s| s.key = Key::Empty);
        }
        if s.generation.is_some() {
            next.may("Redis evicts the generation", 0, |s| s.generation = None);
        }
        if s.is_member {
            next.may("Redis evicts the set", 0, |s| s.is_member = false);
        }
    }

    fn daemon(&self, next: &mut Next<'_, State>) {
        let s = next.from;
        for (transaction, sent) in (1..=s.log).zip(s.sent) {
            let at = usize::from(transaction) - 1;
            if s.visible & only(transaction) == 0 && self.has(Rule::Gate) {
                continue;
            }
            if sent == Sent::Nothing {
                next.may("the daemon deletes the generation for #", transaction, |s| {
                    s.generation = None;
                    s.sent[at] = Sent::Deleted;
                });
            } else {
                // Also a batch that was delayed and arrives a second time.
                if s.generation.is_some() {
                    next.may("the daemon deletes the generation for # again", transaction, |s| s.generation = None);
                }
                if sent == Sent::Deleted {
                    next.may("the daemon deletes the members of the set for #", transaction, |s| {
                        s.key = if s.is_member { Key::Empty } else { s.key };
                        s.is_member = false;
                        s.sent[at] = Sent::Swept;
                    });
                }
            }
        }
    }

    fn filler(&self, next: &mut Next<'_, State>, filler: u8) {
        let (s, at) = (next.from, usize::from(filler));
        match s.fillers[at] {
            // They are alike, so the first to begin may be called 0.
            Filler::Idle if at > 0 && s.fillers[at - 1] == Filler::Idle => {}
            Filler::Idle => match s.key {
                Key::Empty => next.may("filler # is granted the lease", filler, |s| {
                    s.key = Key::Lease(filler);
                    s.fillers[at] = Filler::Granted(Token::OwnLease);
                }),
                Key::Value(value) => next.may("filler # begins to replace the value", filler, |s| {
                    s.fillers[at] = Filler::Granted(Token::ValueOf(value.by));
                }),
                Key::Lease(_) => {}
            },
            Filler::Granted(token) if self.has(Rule::JoinBeforeRead) => {
                let words = "filler # joins the tag";
                self.join(next, filler, token, words, |generation| Filler::Joined(token, generation));
            }
            Filler::Granted(token) => next.may("filler # reads the primary", filler, |s| {
                s.fillers[at] = Filler::EarlyRead(token, s.visible);
            }),
            Filler::EarlyRead(token, seen) => {
                let words = "filler # joins the tag, too late";
                self.join(next, filler, token, words, |generation| Filler::Read(token, generation, seen));
            }
            Filler::Joined(token, generation) => next.may("filler # reads the primary", filler, |s| {
                s.fillers[at] = Filler::Read(token, generation, s.visible);
            }),
            Filler::Read(token, generation, seen) => Self::fill(next, filler, token, generation, seen),
            Filler::Done => {}
        }
    }

    /// Reads the generation, or makes it; and adds the key to the set.
    fn join(
        &self,
        next: &mut Next<'_, State>,
        filler: u8,
        token: Token,
        words: &'static str,
        then: impl Fn(Generation) -> Filler,
    ) {
        let new = match token {
            _ if !self.has(Rule::GenerationIsNew) => 0,
            Token::ValueOf(by) if !self.has(Rule::GenerationOfEachJoin) => FILLERS + by,
            _ => filler,
        };
        next.may(words, filler, |s| {
            let generation = *s.generation.get_or_insert(new);
            s.is_member = true;
            s.fillers[usize::from(filler)] = then(generation);
        });
    }

    /// Also long after the lease has ended, if Redis was frozen: the token decides.
    fn fill(next: &mut Next<'_, State>, filler: u8, token: Token, generation: Generation, seen: Transactions) {
        let stores = match (token, next.from.key) {
            (Token::OwnLease, key) => key == Key::Lease(filler),
            (Token::ValueOf(by), Key::Value(value)) => value.by == by,
            (Token::ValueOf(_), _) => false,
        };
        let words = if stores { "filler # stores what it read" } else { "filler # finds its token gone" };
        next.may(words, filler, |s| {
            s.key = if stores { Key::Value(Value { seen, generation, by: filler }) } else { s.key };
            s.fillers[usize::from(filler)] = Filler::Done;
        });
    }

    /// It claims what `applied` covered when it read that: the transactions in force then.
    fn reader(&self, next: &mut Next<'_, State>) {
        let s = next.from;
        let in_force = s.with(|sent| if self.has(Rule::DeleteBeforeAcknowledge) { sent == Sent::Swept } else { true });
        let claimed = in_force & s.visible;
        match (s.reader, s.key) {
            (Reader::Idle, _) if !self.has(Rule::CompareAfterValue) => {
                next.may("the reader reads the generation", 0, |s| s.reader = Reader::EarlyGeneration(s.generation));
            }
            (Reader::Idle, Key::Value(value)) => next.may("the reader reads applied and the value", 0, |s| {
                s.reader = Reader::Found(value, claimed);
            }),
            (Reader::EarlyGeneration(Some(generation)), Key::Value(value)) if value.generation == generation => {
                next.may("the reader reads applied and the value, and serves it", 0, |s| {
                    s.reader = Reader::Served(value.seen, claimed);
                });
            }
            (Reader::Found(value, claimed), key) => {
                if s.generation == Some(value.generation) || !self.has(Rule::HitShowsGeneration) {
                    next.may("the reader finds the generation and serves the value", 0, |s| {
                        s.reader = Reader::Served(value.seen, claimed);
                    });
                } else {
                    next.may("the reader finds another generation and deletes the value", 0, |s| {
                        s.key = if key == Key::Value(value) { Key::Empty } else { key };
                        s.reader = Reader::Idle;
                    });
                }
            }
            (Reader::Idle | Reader::EarlyGeneration(_) | Reader::Served(..), _) => {}
        }
    }
}

const WITNESSES: [Witness<State>; 5] = [
    ("a value with both transactions is served, both in force", |_, to| {
        to.reader == Reader::Served(up_to(LAST), up_to(LAST))
    }),
    ("an old value is found whose generation and set are gone, and is deleted", |from, to| {
        let old = matches!(from.reader, Reader::Found(value, claimed) if claimed & !value.seen != 0);
        old && !from.is_member && from.key != to.key && to.key == Key::Empty
    }),
    ("a value is stored after its generation was deleted", |from, to| match (from.key, to.key) {
        (Key::Lease(_), Key::Value(value)) => to.generation != Some(value.generation),
        _ => false,
    }),
    ("a value is replaced", |from, to| match (from.key, to.key) {
        (Key::Value(one), Key::Value(other)) => one.by != other.by,
        _ => false,
    }),
    ("a value whose generation was evicted is deleted though it is current", |from, to| {
        let current = matches!(from.reader, Reader::Found(value, claimed) if claimed & !value.seen == 0);
        current && from.key != to.key && to.key == Key::Empty
    }),
];

#[test]
fn a_value_is_never_served_after_its_tag_was_invalidated_whatever_is_evicted() {
    let mut search = Search::new();
    let mut missing: Vec<Witness<State>> = WITNESSES.into();
    let broken = search.run(&Tags { removed: None }, |from, to| {
        to.iter().for_each(|to| missing.retain(|(_, reached)| !reached(from, to)));
    });
    println!("{} states, {} transitions", search.found.len(), search.transitions);
    if let Some(path) = broken {
        panic!("stale after {} steps:\n{}", path.len(), listing(&path));
    }
    assert!(missing.is_empty(), "never reached: {:?}", missing.iter().map(|(words, _)| words).collect::<Vec<_>>());
}

#[test]
fn every_rule_of_tags_is_needed() {
    for rule in RULES {
        let mut search = Search::new();
        let broken = search.run(&Tags { removed: Some(rule) }, |_, _| ());
        let path = broken.unwrap_or_else(|| panic!("nothing becomes stale without {rule:?}"));
        println!("without {rule:?}, after {} of {} states, stale:", path.len(), search.found.len());
        println!("{}", listing(&path));
    }
}
