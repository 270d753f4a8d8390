//! The shapes of a read's names, and whether a rule's template can make a name of that shape.
//!
//! Owns that comparison. The shape of a name is its literals and the places of values between them.
//! It must not know tables. Invariant: a value in a rule's template matches a value with the same
//! filters in the read's, and never a literal.

use crate::config::Spanned;
use crate::key::Glob;
use crate::plan::ActionKind;
use crate::reads::Read;
use crate::rules::{Filter, Image, Reference, Rule, Template, TemplatePart};

/// Bytes that occur in no text: around the filters of a value, and for what only a `*` matches.
const VALUE: u8 = 0xff;
const VALUE_END: u8 = 0xfe;
const ANYTHING: u8 = 0xfd;

/// How shapes are encoded as bytes, so that a [`Glob`] can compare them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alphabet {
    /// The read's parameter already is a hash, which a rule may have to compute.
    pub(super) hashed: bool,
    /// Whether filters count.
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
        let part = |part: &TemplatePart| match part {
            TemplatePart::Literal(literal) => literal.clone(),
            TemplatePart::Reference(reference) => self.value(reference),
            TemplatePart::Any => vec![ANYTHING],
        };
        template.parts().iter().flat_map(part).collect()
    }

    /// The shapes that a rule's template can make.
    pub(super) fn glob(self, template: &Template) -> Glob {
        let mut glob = Glob::new();
        for part in template.parts() {
            match part {
                TemplatePart::Literal(literal) => glob.push_literal(literal),
                TemplatePart::Reference(reference) => glob.push_literal(&self.value(reference)),
                TemplatePart::Any => glob.push_any(),
            }
        }
        glob
    }
}

/// The shapes of a read's names.
pub(super) struct NameShapes {
    /// The key as its template makes it.
    key: Vec<u8>,
    /// The key of a value, with what is appended.
    cached: Vec<u8>,
    tags: Vec<Vec<u8>>,
    version: Option<Vec<u8>>,
}

impl NameShapes {
    pub(super) fn of(read: &Read, alphabet: Alphabet) -> Self {
        let key = alphabet.name(&read.key.value);
        let mut cached = key.clone();
        if read.is_extended() {
            cached.extend([b'?', ANYTHING]);
        }
        if read.version.is_some() {
            cached.extend([b'@', ANYTHING]);
        }
        Self {
            key,
            cached,
            tags: read.tags.iter().map(|tag| alphabet.name(&tag.value)).collect(),
            version: read.version.as_ref().map(|version| alphabet.name(&version.value)),
        }
    }

    /// The names under which it is cached that there is no row: without the sets that depend on the
    /// value.
    pub(super) fn of_no_row(read: &Read, alphabet: Alphabet) -> Self {
        let is_known = |tag: &&Spanned<Template>| tag.value.references().all(|name| name.image != Image::Lookup);
        let tags = read.tags.iter().filter(is_known).map(|tag| alphabet.name(&tag.value)).collect();
        Self { tags, ..Self::of(read, alphabet) }
    }

    /// Whether an action of the rule removes the values.
    pub(super) fn are_removed_by(&self, rule: &Rule, alphabet: Alphabet) -> bool {
        rule.actions().any(|(kind, template)| self.is_removed(kind, &alphabet.glob(&template.value)))
    }

    /// Whether such an action removes the values. A version key that was deleted is made again,
    /// from a later position in the log.
    pub(super) fn is_removed(&self, kind: ActionKind, glob: &Glob) -> bool {
        let is_version = || self.version.as_ref().is_some_and(|version| glob.matches(version));
        match kind {
            ActionKind::Set => glob.matches(&self.cached),
            ActionKind::Delete | ActionKind::Pattern => glob.matches(&self.cached) || is_version(),
            ActionKind::Bump => is_version(),
            ActionKind::Tag => self.tags.iter().any(|tag| glob.matches(tag)),
            ActionKind::Publish | ActionKind::Stream => false,
        }
    }

    /// Whether the glob matches the key before what is appended, and something is appended.
    pub(super) fn begin_like(&self, glob: &Glob) -> bool {
        self.key != self.cached && glob.matches(&self.key)
    }
}

/// A template as the file has it, without the prefix of every name; with `…` for columns if
/// `hidden`.
pub(super) fn spell(template: &Template, prefix: &str, hidden: bool) -> String {
    let mut text = String::new();
    for (at, part) in template.parts().iter().enumerate() {
        match part {
            TemplatePart::Literal(literal) => {
                let own = if at == 0 { literal.strip_prefix(prefix.as_bytes()).unwrap_or(literal) } else { literal };
                text.push_str(&String::from_utf8_lossy(own).replace('{', "{{").replace('}', "}}"));
            }
            TemplatePart::Reference(reference) => {
                let image = match reference.image {
                    Image::Old => "old.",
                    Image::New => "new.",
                    Image::Either | Image::Lookup => "",
                };
                let filters: String = reference.filters.iter().map(|filter| format!("|{}", filter.word())).collect();
                let column = if hidden { "…".to_owned() } else { format!("{image}{}", reference.column) };
                text.push_str(&format!("{{{column}{filters}}}"));
            }
            TemplatePart::Any => text.push('*'),
        }
    }
    text
}
