//! The names under which a read keeps its values, and whether what a rule makes can be one of them.
//!
//! Owns that comparison, which looks at shapes: the literals, and where values are between them. It must not know
//! tables. Invariant: a value in a rule's name stands for a value in the read's, with the same filters, and never for a
//! literal.

use crate::config::Spanned;
use crate::key::Glob;
use crate::plan::ActionKind;
use crate::reads::Read;
use crate::rules::{Filter, Image, Part, Reference, Rule, Template};

/// Bytes that no text has: around a value's filters, and for whatever only a `*` matches.
const VALUE: u8 = 0xff;
const VALUE_END: u8 = 0xfe;
const ANYTHING: u8 = 0xfd;

/// How shapes are written down as bytes, so that a [`Glob`] compares them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alphabet {
    /// The read's value is a hash already, which a rule may still have to make.
    pub(super) hashed: bool,
    /// Filters count.
    pub(super) filters: bool,
}

impl Alphabet {
    fn value(self, reference: &Reference) -> Vec<u8> {
        let mut bytes = vec![VALUE];
        let is_hash = self.hashed && reference.filters == [Filter::Sha256];
        for filter in reference.filters.iter().filter(|_| self.filters && !is_hash) {
            bytes.extend(filter.word().bytes());
            bytes.push(b'|');
        }
        bytes.push(VALUE_END);
        bytes
    }

    fn name(self, template: &Template) -> Vec<u8> {
        let part = |part: &Part| match part {
            Part::Literal(literal) => literal.clone(),
            Part::Reference(reference) => self.value(reference),
            Part::Any => vec![ANYTHING],
        };
        template.parts().iter().flat_map(part).collect()
    }

    /// Everything that a rule's template may make.
    pub(super) fn glob(self, template: &Template) -> Glob {
        let mut glob = Glob::new();
        for part in template.parts() {
            match part {
                Part::Literal(literal) => glob.push_literal(literal),
                Part::Reference(reference) => glob.push_literal(&self.value(reference)),
                Part::Any => glob.push_any(),
            }
        }
        glob
    }
}

/// The shapes of a read's names.
pub(super) struct Names {
    /// What its template makes.
    key: Vec<u8>,
    /// What the values are kept under.
    kept: Vec<u8>,
    tags: Vec<Vec<u8>>,
    version: Option<Vec<u8>>,
}

impl Names {
    pub(super) fn of(read: &Read, alphabet: Alphabet) -> Self {
        let key = alphabet.name(&read.key.value);
        let mut kept = key.clone();
        if read.is_extended() {
            kept.extend([b'?', ANYTHING]);
        }
        if read.version.is_some() {
            kept.extend([b'@', ANYTHING]);
        }
        Self {
            key,
            kept,
            tags: read.tags.iter().map(|tag| alphabet.name(&tag.value)).collect(),
            version: read.version.as_ref().map(|version| alphabet.name(&version.value)),
        }
    }

    /// The names under which it is kept that there is nothing: no value says which of the sets it joins.
    pub(super) fn of_nothing(read: &Read, alphabet: Alphabet) -> Self {
        let is_known = |tag: &&Spanned<Template>| tag.value.references().all(|name| name.image != Image::Lookup);
        let tags = read.tags.iter().filter(is_known).map(|tag| alphabet.name(&tag.value)).collect();
        Self { tags, ..Self::of(read, alphabet) }
    }

    /// Whether one of the rule's actions removes the values.
    pub(super) fn are_removed_by(&self, rule: &Rule, alphabet: Alphabet) -> bool {
        rule.actions().any(|(kind, template)| self.is_removed(kind, &alphabet.glob(&template.value)))
    }

    /// Whether this action does. A version key that is gone is made anew, from a later position in the log.
    pub(super) fn is_removed(&self, kind: ActionKind, glob: &Glob) -> bool {
        let is_version = || self.version.as_ref().is_some_and(|version| glob.matches(version));
        match kind {
            ActionKind::Set => glob.matches(&self.kept),
            ActionKind::Delete | ActionKind::Pattern => glob.matches(&self.kept) || is_version(),
            ActionKind::Bump => is_version(),
            ActionKind::Tag => self.tags.iter().any(|tag| glob.matches(tag)),
            ActionKind::Publish | ActionKind::Stream => false,
        }
    }

    /// Whether it matches what the values' names begin with, and the names go on.
    pub(super) fn begin_like(&self, glob: &Glob) -> bool {
        self.key != self.kept && glob.matches(&self.key)
    }
}

/// A template as a file has it, without what begins every name; with `…` for columns, if those are not to be shown.
pub(super) fn spell(template: &Template, prefix: &str, hidden: bool) -> String {
    let mut text = String::new();
    for (at, part) in template.parts().iter().enumerate() {
        match part {
            Part::Literal(literal) => {
                let own = if at == 0 { literal.strip_prefix(prefix.as_bytes()).unwrap_or(literal) } else { literal };
                text.push_str(&String::from_utf8_lossy(own).replace('{', "{{").replace('}', "}}"));
            }
            Part::Reference(reference) => {
                let image = match reference.image {
                    Image::Old => "old.",
                    Image::New => "new.",
                    Image::Either | Image::Lookup => "",
                };
                let filters: String = reference.filters.iter().map(|filter| format!("|{}", filter.word())).collect();
                let column = if hidden { "…".to_owned() } else { format!("{image}{}", reference.column) };
                text.push_str(&format!("{{{column}{filters}}}"));
            }
            Part::Any => text.push('*'),
        }
    }
    text
}
