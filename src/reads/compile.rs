//! One raw read, compiled: its path and templates parsed, its parameters found, every reference
//! checked.
//!
//! Owns [`ReadCompiler`]. It must not see YAML, SQL, servers or other reads. Invariant: a read is
//! compiled only if its key tells its requests apart.

use std::ops::Range;
use std::time::Duration;

use super::path::Path;
use super::read::{Parameter, ParameterSource, Read};
use crate::config::{Problems, RawRead, Settings, Spanned};
use crate::key::TAG;
use crate::nearest::nearest;
use crate::rules::{Filter, Image, Reference, Template, TemplatePart};

/// Headers that must not become part of a key.
const CREDENTIALS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// The name of the result in templates, in front of one of its fields: `{value.author}`.
const VALUE: &str = "value";

/// The default of `timeout`.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Compiles one read.
pub(super) struct ReadCompiler<'a> {
    settings: &'a Settings,
    is_session: bool,
    problems: &'a mut Problems,
}

/// A text of the file and the template parsed from it.
struct ParsedText {
    text: Spanned<String>,
    template: Template,
}

impl ParsedText {
    /// Where the file has the reference.
    fn at(&self, reference: &Reference) -> Range<usize> {
        self.text.part(&reference.span)
    }

    fn into_template(self) -> Spanned<Template> {
        Spanned { value: self.template, span: self.text.span }
    }
}

impl<'a> ReadCompiler<'a> {
    pub(super) fn new(settings: &'a Settings, is_session: bool, problems: &'a mut Problems) -> Self {
        Self { settings, is_session, problems }
    }

    /// Compiles the read; None if its key or path cannot be parsed. Adds what is wrong to the
    /// problems.
    pub(super) fn compile(mut self, raw: RawRead) -> Option<Read> {
        let namespace = self.settings.namespace.as_str();
        let sets = format!("{namespace}{TAG}");
        let key = self.template(raw.key, namespace);
        let version = raw.version.and_then(|text| self.template(text, namespace));
        let tags: Vec<_> = raw.tags.into_iter().filter_map(|text| self.template(text, &sets)).collect();
        let path = match Path::parse(&raw.path) {
            Ok(path) => Some(path),
            Err(error) => {
                self.problems.push(raw.path.part(&error.span), error.message, error.advice);
                None
            }
        };
        let (key, path) = (key?, path?);
        let mut parameters: Vec<_> =
            path.names().iter().map(|name| Parameter { name: name.clone(), source: ParameterSource::Path }).collect();
        self.vary(&raw.vary.query, ParameterSource::Query, &mut parameters);
        self.vary(&raw.vary.header, ParameterSource::Header, &mut parameters);
        if self.is_session {
            parameters = self.session(&path, &parameters, &key);
        }
        self.check_references(&key, &parameters, false);
        version.iter().for_each(|version| self.check_references(version, &parameters, false));
        tags.iter().for_each(|tag| self.check_references(tag, &parameters, true));
        self.check_key(&key, &parameters);
        Some(Read {
            appended: appended(&parameters, &key.template),
            named: named(&parameters, std::iter::once(&key).chain(&version).chain(&tags).map(|text| &text.template)),
            span: raw.name.span,
            name: raw.name.value,
            path,
            key: key.into_template(),
            tags: tags.into_iter().map(ParsedText::into_template).collect(),
            version: version.map(ParsedText::into_template),
            sql: raw.sql,
            parameters,
            ttl: raw.ttl,
            jitter: raw.jitter,
            stale_while_revalidate: raw.stale_while_revalidate,
            negative_ttl: raw.negative_ttl,
            max_staleness: raw.max_staleness.unwrap_or(self.settings.api.max_staleness),
            timeout: raw.timeout.unwrap_or(TIMEOUT),
            replica: raw.replica,
        })
    }

    fn template(&mut self, text: Spanned<String>, prefix: &str) -> Option<ParsedText> {
        match Template::parse(&text.value, prefix, Some(VALUE)) {
            Ok(template) => Some(ParsedText { text, template }),
            Err(error) => {
                self.problems.push(text.part(&error.span), error.message, error.advice);
                None
            }
        }
    }

    /// Adds what the read varies by to its parameters.
    fn vary(&mut self, names: &[Spanned<String>], source: ParameterSource, parameters: &mut Vec<Parameter>) {
        for text in names {
            let name = match source {
                ParameterSource::Header => text.value.to_ascii_lowercase(),
                ParameterSource::Path | ParameterSource::Query | ParameterSource::Session => text.value.clone(),
            };
            let is_sound =
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
            let (message, advice) = if !is_sound {
                ("not a valid parameter name", "expected letters, digits, `_` and `-`")
            } else if source == ParameterSource::Header && CREDENTIALS.contains(&name.as_str()) {
                ("credentials must not become part of a key", "resolve them by `api.session`")
            } else if parameters.iter().any(|known| known.name == name) {
                ("two parameters have this name, so templates cannot tell them apart", "rename one of them")
            } else {
                parameters.push(Parameter { name, source });
                continue;
            };
            self.problems.push(text.span.clone(), message, advice);
        }
    }

    /// The one parameter of the read that resolves a token.
    fn session(&mut self, path: &Path, others: &[Parameter], key: &ParsedText) -> Vec<Parameter> {
        if let Some(other) = others.first() {
            let message = format!("the read of `session` takes the token alone, not `{}`", other.name);
            self.problems.push(path.span(), message, "remove the parameters of its path and its `vary`");
        }
        let references: Vec<_> = key.template.references().collect();
        let [reference] = &*references else {
            let message = "the key of the session must have exactly one reference, which stands for the token's sha256";
            self.problems.push(key.text.span.clone(), message, "write `session:{token}`");
            // So that its references are not reported as unknown too.
            return references.iter().map(|reference| of_session(reference)).collect();
        };
        if reference.filters.contains(&Filter::Sha256) {
            let advice = format!("write `{{{}}}`", reference.column);
            self.problems.push(key.at(reference), "the parameter already is the token's sha256", advice);
        }
        vec![of_session(reference)]
    }

    /// Checks that every reference of a template names a parameter, or a field of the value if that
    /// is allowed.
    fn check_references(&mut self, text: &ParsedText, parameters: &[Parameter], may_read_value: bool) {
        for reference in text.template.references() {
            let column = &reference.column;
            let is_known = parameters.iter().any(|parameter| parameter.name == *column);
            let (message, advice) = match reference.image {
                Image::Either if is_known => continue,
                Image::Lookup if may_read_value => continue,
                Image::Either => ("there is no such parameter".to_owned(), suggest(column, parameters)),
                Image::Lookup => {
                    let advice = "only `tags` may name fields of the value".to_owned();
                    ("the value is not known when its key is looked up".to_owned(), advice)
                }
                Image::Old | Image::New => {
                    let advice = if is_known { format!("write `{{{column}}}`") } else { suggest(column, parameters) };
                    ("a read has no `old` and `new` row".to_owned(), advice)
                }
            };
            self.problems.push(text.at(reference), message, advice);
        }
    }

    /// Checks that the key tells requests apart.
    fn check_key(&mut self, key: &ParsedText, parameters: &[Parameter]) {
        for parameter in parameters.iter().filter(|parameter| parameter.source == ParameterSource::Path) {
            if !key.template.references().any(|reference| reference.column == parameter.name) {
                let message = format!("the key is the same for every `{}` of the path", parameter.name);
                self.problems.push(key.text.span.clone(), message, format!("add `:{{{}}}`", parameter.name));
            }
        }
        for pair in key.template.parts().windows(2) {
            if let [TemplatePart::Reference(_), TemplatePart::Reference(second)] = pair {
                let message = "nothing separates this value from the one before";
                self.problems.push(key.at(second), message, "add a separator between them, as in `{a}:{b}`");
            }
        }
    }
}

fn of_session(reference: &Reference) -> Parameter {
    Parameter { name: reference.column.clone(), source: ParameterSource::Session }
}

/// Names the parameter that may have been meant, or all of them.
fn suggest(name: &str, parameters: &[Parameter]) -> String {
    let names: Vec<_> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{{{near}}}`?"),
        None if names.is_empty() => "the read has no parameters: its path and `vary` name none".to_owned(),
        None => {
            let names: Vec<_> = names.iter().map(|name| format!("`{{{name}}}`")).collect();
            format!("expected one of {}", names.join(", "))
        }
    }
}

/// The varied parameters that the key does not name, each with the label under which it is
/// appended.
fn appended(parameters: &[Parameter], key: &Template) -> Vec<(usize, Vec<u8>)> {
    let is_named = |parameter: &Parameter| key.references().any(|reference| reference.column == parameter.name);
    let varied = |parameter: &Parameter| matches!(parameter.source, ParameterSource::Query | ParameterSource::Header);
    let missing = parameters.iter().enumerate().filter(|(_, parameter)| varied(parameter) && !is_named(parameter));
    missing.map(|(at, parameter)| (at, format!("{}=", parameter.name).into_bytes())).collect()
}

/// The parameters that some template names, and whether one of them folds their case.
fn named<'a>(parameters: &[Parameter], templates: impl Iterator<Item = &'a Template>) -> Vec<(usize, bool)> {
    let references: Vec<_> =
        templates.flat_map(Template::references).filter(|reference| reference.image != Image::Lookup).collect();
    let named = |(at, parameter): (usize, &Parameter)| {
        let mut uses = references.iter().filter(|reference| reference.column == parameter.name).peekable();
        uses.peek()?;
        let folds = |filter: &Filter| matches!(filter, Filter::Lower | Filter::Upper);
        Some((at, uses.any(|reference| reference.filters.iter().any(folds))))
    };
    parameters.iter().enumerate().filter_map(named).collect()
}
