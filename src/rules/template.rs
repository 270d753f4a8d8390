//! Templates of keys and channels: `user-email:{email|lower}`.
//!
//! Owns their syntax and how they render. It must not know tables; [`super::bind`] binds columns.
//! Invariants: a template begins with a literal, so that its glob cannot match every key; with a
//! value that is not known it renders a glob, with NULL nothing; no value can widen a pattern.

use std::ops::Range;
use std::sync::Arc;

use super::filter::Filter;
use super::folding::Folding;
use crate::config::Spanned;
use crate::key::{CacheKey, Glob};
use crate::limits::VALUE_BYTES_MAX;
use crate::nearest::nearest;

/// Which image of the row a reference reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The one that is being rendered: the template is rendered for both.
    Either,
    /// Always the row before: `{old.x}`.
    Old,
    /// Always the row after: `{new.x}`.
    New,
    /// A row that a lookup returned: `{m.x}` after `for_each: … as m`.
    Lookup,
}

/// A column, and the filters for its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The image it reads.
    pub image: Image,
    /// The column's name.
    pub column: String,
    /// The filters, applied from left to right.
    pub filters: Vec<Filter>,
    /// How the database folds case.
    pub folding: Arc<Folding>,
    /// The bytes of the template between the braces, for messages.
    pub span: Range<usize>,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Bytes that stand for themselves.
    Literal(Vec<u8>),
    /// A column's value.
    Reference(Reference),
    /// Anything: a `*` in a pattern.
    Any,
}

/// A parsed template, its namespace in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<TemplatePart>,
    /// The length of the text that it was parsed from, in bytes.
    text_len: usize,
}

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidTemplate {
    /// The wrong bytes of the text.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What was expected.
    pub advice: String,
}

/// The value of a reference in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved<'a> {
    /// These bytes.
    Value(&'a [u8]),
    /// NULL, or the image does not exist: nothing is rendered.
    Nothing,
    /// Not carried by the log: any value.
    Unknown,
}

/// The result of rendering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rendered {
    /// One name.
    Key(CacheKey),
    /// A value was not known: every name that it may be.
    Glob(Glob),
    /// A value was NULL.
    Nothing,
}

impl Rendered {
    /// The pattern of what was rendered; nothing if a value was NULL.
    pub(super) fn into_glob(self) -> Option<Glob> {
        match self {
            Self::Glob(glob) => Some(glob),
            Self::Key(key) => {
                let mut glob = Glob::new();
                glob.push_literal(key.as_bytes());
                Some(glob)
            }
            Self::Nothing => None,
        }
    }
}

impl Template {
    /// Parses `text`; what it renders begins with `namespace`. References to `alias` read looked-up
    /// rows.
    pub fn parse(text: &str, namespace: &str, alias: Option<&str>) -> Result<Self, InvalidTemplate> {
        Self::with_prefix(parse_parts(text, alias)?, text, namespace)
    }

    /// The same for a pattern, in which a `*` of the template's own matches anything.
    pub fn parse_pattern(text: &str, namespace: &str, alias: Option<&str>) -> Result<Self, InvalidTemplate> {
        let mut parts = Vec::new();
        for part in parse_parts(text, alias)? {
            match part {
                TemplatePart::Literal(literal) => {
                    for (at, piece) in literal.split(|&byte| byte == b'*').enumerate() {
                        if at > 0 {
                            parts.push(TemplatePart::Any);
                        }
                        if !piece.is_empty() {
                            parts.push(TemplatePart::Literal(piece.to_owned()));
                        }
                    }
                }
                part => parts.push(part),
            }
        }
        Self::with_prefix(parts, text, namespace)
    }

    fn with_prefix(mut parts: Vec<TemplatePart>, text: &str, namespace: &str) -> Result<Self, InvalidTemplate> {
        match parts.first_mut() {
            Some(TemplatePart::Literal(literal)) => {
                literal.splice(0..0, namespace.bytes());
                Ok(Self { parts, text_len: text.len() })
            }
            first => Err(InvalidTemplate {
                span: 0..text.len(),
                message: match first {
                    None => "an empty template".to_owned(),
                    Some(_) => "the template does not begin with a literal".to_owned(),
                },
                advice: "begin it with a prefix of its own, as in `user:{id}`".to_owned(),
            }),
        }
    }

    /// Parses a string of a message, which need not begin with a literal.
    pub fn parse_value(text: &str, alias: Option<&str>) -> Result<Self, InvalidTemplate> {
        parse_parts(text, alias).map(|parts| Self { parts, text_len: text.len() })
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[TemplatePart] {
        &self.parts
    }

    /// The references, in order.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.parts.iter().filter_map(|part| match part {
            TemplatePart::Reference(reference) => Some(reference),
            TemplatePart::Literal(_) | TemplatePart::Any => None,
        })
    }

    /// Folds case as this database does.
    pub fn fold_as(&mut self, folding: &Arc<Folding>) {
        for part in &mut self.parts {
            if let TemplatePart::Reference(reference) = part {
                reference.folding = Arc::clone(folding);
            }
        }
    }

    /// The pattern of everything this template may ever render.
    pub fn glob(&self) -> Glob {
        self.render(|_| Resolved::Unknown).into_glob().unwrap_or_default()
    }

    /// Renders with the value that `resolve` gives for the n-th reference.
    pub fn render<'a>(&self, resolve: impl FnMut(usize) -> Resolved<'a>) -> Rendered {
        self.render_within(usize::MAX, resolve)
    }

    /// The same; a value or a name of more than `bytes_max` bytes counts as not known.
    pub fn render_within<'a>(&self, bytes_max: usize, mut resolve: impl FnMut(usize) -> Resolved<'a>) -> Rendered {
        let mut name = Vec::with_capacity(48);
        let mut references = 0;
        for (at, part) in self.parts.iter().enumerate() {
            match part {
                TemplatePart::Literal(literal) => name.extend_from_slice(literal),
                TemplatePart::Any => return self.render_glob(at, references, &name, bytes_max, resolve),
                TemplatePart::Reference(reference) => {
                    match resolve(references) {
                        Resolved::Value(value) if reference.push(&mut name, value, bytes_max) => {}
                        Resolved::Nothing => return Rendered::Nothing,
                        Resolved::Value(_) | Resolved::Unknown => {
                            return self.render_glob(at, references + 1, &name, bytes_max, resolve);
                        }
                    }
                    references += 1;
                }
            }
        }
        match name.len() > bytes_max {
            true => Rendered::Glob(self.glob()),
            false => Rendered::Key(CacheKey::new(name)),
        }
    }

    /// Renders a glob from part `at` on, the first that is not known. `references` is the number of
    /// the next reference.
    fn render_glob<'a>(
        &self,
        at: usize,
        mut references: usize,
        known: &[u8],
        bytes_max: usize,
        mut resolve: impl FnMut(usize) -> Resolved<'a>,
    ) -> Rendered {
        let mut glob = Glob::new();
        glob.push_literal(known);
        glob.push_any();
        for part in self.parts.iter().skip(at + 1) {
            match part {
                TemplatePart::Literal(literal) => glob.push_literal(literal),
                TemplatePart::Any => glob.push_any(),
                TemplatePart::Reference(reference) => {
                    match resolve(references) {
                        Resolved::Value(value) => {
                            let mut name = Vec::new();
                            match reference.push(&mut name, value, bytes_max) {
                                true => glob.push_literal(&name),
                                false => glob.push_any(),
                            }
                        }
                        Resolved::Nothing => return Rendered::Nothing,
                        Resolved::Unknown => glob.push_any(),
                    }
                    references += 1;
                }
            }
        }
        // Each byte may be escaped.
        match glob.as_bytes().len() / 2 > bytes_max {
            true => Rendered::Glob(self.glob()),
            false => Rendered::Glob(glob),
        }
    }

    /// Whether a value, or the known values together, take more than `bytes_max` bytes.
    pub(super) fn is_above<'a>(&self, bytes_max: usize, mut resolve: impl FnMut(usize) -> Resolved<'a>) -> bool {
        let (mut bytes, mut references) = (0, 0);
        for part in &self.parts {
            match part {
                TemplatePart::Literal(literal) => bytes += literal.len(),
                TemplatePart::Any => {}
                TemplatePart::Reference(reference) => {
                    if let Resolved::Value(value) = resolve(references) {
                        let mut name = Vec::new();
                        if reference.is_above(value, bytes_max) {
                            return true;
                        }
                        // Not known: only for how the database folds case.
                        reference.push(&mut name, value, usize::MAX);
                        bytes += name.len();
                    }
                    references += 1;
                }
            }
        }
        bytes > bytes_max
    }
}

impl Spanned<Template> {
    /// The place of a reference in the file.
    pub(crate) fn place_of(&self, reference: &Reference) -> Range<usize> {
        self.part_of_text(self.value.text_len, &reference.span)
    }
}

impl Reference {
    /// Whether a filter folds case.
    pub fn folds(&self) -> bool {
        self.filters.iter().any(|filter| filter.case().is_some())
    }

    /// Whether it is known what the filters make of a value.
    pub fn is_known(&self, value: &[u8]) -> bool {
        !self.folds() || self.push(&mut Vec::new(), value, usize::MAX)
    }

    /// Whether a value is too long for a name of at most `bytes_max` bytes. What is hashed may be
    /// longer.
    fn is_above(&self, value: &[u8], bytes_max: usize) -> bool {
        let is_hashed = self.filters.contains(&Filter::Sha256);
        value.len() > if is_hashed { bytes_max.max(VALUE_BYTES_MAX) } else { bytes_max }
    }

    /// Appends what the filters make of a value. Returns false, and appends nothing, if that is not
    /// known or the value is too long.
    fn push(&self, name: &mut Vec<u8>, value: &[u8], bytes_max: usize) -> bool {
        if self.is_above(value, bytes_max) {
            return false;
        }
        let Some((first, rest)) = self.filters.split_first() else {
            name.extend_from_slice(value);
            return true;
        };
        let first = first.apply_as(&self.folding, value);
        let filtered =
            first.and_then(|value| rest.iter().try_fold(value, |value, filter| filter.apply_as(&self.folding, &value)));
        let Some(filtered) = filtered else { return false };
        name.extend_from_slice(&filtered);
        true
    }
}

fn parse_parts(text: &str, alias: Option<&str>) -> Result<Vec<TemplatePart>, InvalidTemplate> {
    let mut parts = Vec::new();
    let mut literal = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("{{") || rest.starts_with("}}") {
            literal.extend_from_slice(rest.as_bytes().get(..1).unwrap_or_default());
            at += 2;
        } else if rest.starts_with('}') {
            return Err(invalid(at..at + 1, "a `}` without a `{`", "write `}}` for a literal brace"));
        } else if let Some(inner) = rest.strip_prefix('{') {
            let end = inner.find(['}', '{']).filter(|&end| inner.as_bytes().get(end) == Some(&b'}'));
            let Some(end) = end else {
                return Err(invalid(at..text.len(), "a `{` that is never closed", "write `{{` for a literal brace"));
            };
            if !literal.is_empty() {
                parts.push(TemplatePart::Literal(std::mem::take(&mut literal)));
            }
            let span = at + 1..at + 1 + end;
            parts.push(TemplatePart::Reference(parse_reference(text, span, alias)?));
            at += end + 2;
        } else {
            let end = rest.find(['{', '}']).unwrap_or(rest.len());
            literal.extend_from_slice(rest.as_bytes().get(..end).unwrap_or_default());
            at += end;
        }
    }
    if !literal.is_empty() {
        parts.push(TemplatePart::Literal(literal));
    }
    Ok(parts)
}

fn parse_reference(text: &str, span: Range<usize>, alias: Option<&str>) -> Result<Reference, InvalidTemplate> {
    let body = text.get(span.clone()).unwrap_or("");
    let mut words = body.split('|').map(str::trim);
    let path = words.next().unwrap_or("");
    let (image, column) = match path.split_once('.') {
        None => (Image::Either, path),
        Some(("old", column)) => (Image::Old, column),
        Some(("new", column)) => (Image::New, column),
        Some((scope, column)) if alias == Some(scope) => (Image::Lookup, column),
        Some((scope, _)) => {
            let message = format!("`{scope}.` is neither an image of the row nor a looked-up row");
            let mut advice = "expected `{column}`, `{old.column}` or `{new.column}`".to_owned();
            if let Some(alias) = alias {
                advice.push_str(&format!(", or `{{{alias}.column}}`"));
            }
            return Err(invalid(span, message, advice));
        }
    };
    if column.is_empty() {
        return Err(invalid(span, "a reference without a column", "expected `{column}`"));
    }
    let filters = words.map(|word| parse_filter(word, &span)).collect::<Result<_, _>>()?;
    Ok(Reference { image, column: column.to_owned(), filters, folding: Arc::default(), span })
}

fn parse_filter(word: &str, span: &Range<usize>) -> Result<Filter, InvalidTemplate> {
    let known = Filter::WORDS.iter().find(|(name, _)| *name == word);
    known.map(|&(_, filter)| filter).ok_or_else(|| {
        let advice = match nearest(word, Filter::WORDS.iter().map(|(name, _)| *name)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "expected `lower`, `upper`, `sha256` or `urlencode`".to_owned(),
        };
        invalid(span.clone(), format!("unknown filter `{word}`"), advice)
    })
}

fn invalid(span: Range<usize>, message: impl Into<String>, advice: impl Into<String>) -> InvalidTemplate {
    InvalidTemplate { span, message: message.into(), advice: advice.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, values: &[Resolved<'_>]) -> String {
        match Template::parse(template, "v1:", None).unwrap().render(|at| values[at]) {
            Rendered::Key(key) => key.to_string(),
            Rendered::Glob(glob) => format!("glob {glob}"),
            Rendered::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_template_renders() {
        use Resolved::{Nothing, Unknown, Value};
        let check = |template: &str, values: &[Resolved<'_>], expected: &str| {
            assert_eq!(render(template, values), expected, "{template}");
        };
        check("user:{id}", &[Value(b"u1")], "v1:user:u1");
        check("all", &[], "v1:all");
        check("user-email:{email|lower}", &[Value(b"A@B")], "v1:user-email:a@b");
        check("x:{ a | upper | lower }", &[Value(b"Q")], "v1:x:q");
        check("{{tag}}:{id}", &[Value(b"1")], "v1:{tag}:1");
        check("a{{{x}}}", &[Value(b"1")], "v1:a{1}");
        check("a:{b}:{c}", &[Value(b""), Value(b"{c}")], "v1:a::{c}");
        check("a:{b}:{c}", &[Value(b"1"), Nothing], "nothing");
        check("a:{b}:{c}", &[Unknown, Nothing], "nothing");
        check("a:{b}:{c}", &[Unknown, Value(b"*")], r"glob v1:a:*:\*");
        check("a:{b}{c}:z", &[Unknown, Unknown], "glob v1:a:*:z");
        check("a*:{b}", &[Unknown], r"glob v1:a\*:*");
        check("user-email:{email|lower}", &[Unknown], "glob v1:user-email:*");
    }

    #[test]
    fn a_pattern_has_wildcards_of_its_own_only() {
        let check = |template: &str, value: &[u8], expected: &str| {
            let template = Template::parse_pattern(template, "v1:", None).unwrap();
            assert_eq!(template.render(|_| Resolved::Value(value)), Rendered::Glob(glob_of(expected)), "{expected}");
        };
        fn glob_of(text: &str) -> Glob {
            let mut glob = Glob::new();
            for (at, piece) in text.split('%').enumerate() {
                if at > 0 {
                    glob.push_any();
                }
                glob.push_literal(piece.as_bytes());
            }
            glob
        }
        check("search:{a}:*", b"*", "v1:search:*:%");
        check("a*{b}*", b"[x]?", "v1:a%[x]?%");
        let error = Template::parse_pattern("*:{a}", "v1:", None).unwrap_err();
        assert!(error.message.contains("does not begin with a literal"), "{error:?}");
        let plain = Template::parse_pattern("a:{b}", "v1:", None).unwrap();
        assert_eq!(plain.render(|_| Resolved::Value(b"1")), Rendered::Key("v1:a:1".into()));
    }

    #[test]
    fn what_is_not_a_template_says_where() {
        let check = |text: &str, span: Range<usize>, advice: &str| {
            let error = Template::parse(text, "v1:", None).unwrap_err();
            assert!(error.span == span && error.advice.contains(advice), "{text}: {error:?}");
        };
        check("", 0..0, "prefix");
        check("{id}", 0..4, "prefix");
        check("a:{id", 2..5, "{{");
        check("a:{id{x}", 2..8, "{{");
        check("a:}", 2..3, "}}");
        check("a:{}", 3..3, "{column}");
        check("a:{old.}", 3..7, "{column}");
        check("a:{id|lowr}", 3..10, "did you mean `lower`?");
        check("a:{id|}", 3..6, "expected `lower`");
        check("a:{m.id}", 3..7, "{old.column}");
    }
}
