//! The templates that make a key, with their table and the values.
//!
//! Owns how they are printed. It must not search; [`Template::invert`] does.
//!
//! [`Template::invert`]: crate::rules::Template::invert

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::printable;
use crate::config::Spanned;
use crate::key::CacheKey;
use crate::plan::ActionKind;
use crate::rules::{Image, ReferenceValue, Rule, RuleSet, Template, Trigger};

/// A template that makes a key.
pub(super) struct TemplateMatch<'a> {
    pub(super) rule: &'a Rule,
    pub(super) kind: ActionKind,
    template: &'a Spanned<Template>,
    given: Vec<ReferenceValue<'a>>,
}

/// Every template that makes a key, in the order of the file. A channel is not a key.
pub(super) fn matches<'a>(rules: &'a RuleSet, key: &CacheKey) -> Vec<TemplateMatch<'a>> {
    let mut matches = Vec::new();
    for rule in rules.rules() {
        for (kind, template) in rule.actions().filter(|(kind, _)| kind.names_key()) {
            if let Some(given) = template.value.invert(key.as_bytes()) {
                matches.push(TemplateMatch { rule, kind, template, given });
            }
        }
    }
    matches
}

impl TemplateMatch<'_> {
    /// Two lines.
    pub(super) fn text(&self, file: &ConfigFile) -> String {
        let place = file.place(self.template.span.start);
        let (rule, written) = (printable(self.rule.name.as_bytes()), file.excerpt(&self.template.span));
        let mut text = format!("  {place}  rule `{rule}`, `{}: {written}`\n    ", self.kind.field());
        // Writing to a String cannot fail.
        let _ = write!(text, "{} {}", self.subject(), printable(self.rule.table.value.to_string().as_bytes()));
        for given in &self.given {
            let value = match &given.value {
                None => "?".to_owned(),
                Some(value) if value.is_empty() => "\"\"".to_owned(),
                Some(value) => printable(value),
            };
            let _ = write!(text, ", {} = {value}", printable(self.expression(given).as_bytes()));
        }
        text.push('\n');
        text
    }

    pub(super) fn json(&self, file: &ConfigFile) -> Value {
        let mut object = Map::new();
        object.insert("rule".to_owned(), self.rule.name.clone().into());
        file.insert_place(self.template.span.start, &mut object);
        object.insert("action".to_owned(), self.kind.field().into());
        object.insert("template".to_owned(), file.text.get(self.template.span.clone()).into());
        object.insert(self.subject().to_owned(), self.rule.table.value.to_string().into());
        let values = self.given.iter().map(|given| {
            let value = given.value.as_ref().map(|value| String::from_utf8_lossy(value));
            json!({"of": self.expression(given), "value": value})
        });
        object.insert("values".to_owned(), values.collect());
        Value::Object(object)
    }

    fn subject(&self) -> &'static str {
        match self.rule.trigger {
            Trigger::Table => "table",
            Trigger::Event => "event",
        }
    }

    /// The expression that a value is known of, such as `lower(email)`.
    fn expression(&self, given: &ReferenceValue<'_>) -> String {
        let column = &given.reference.column;
        let alias = self.rule.for_each.as_ref().map_or("", |for_each| &for_each.alias);
        let read = match given.reference.image {
            Image::Either => column.clone(),
            Image::Old => format!("old.{column}"),
            Image::New => format!("new.{column}"),
            Image::Lookup => format!("{alias}.{column}"),
        };
        given.reference.filters.iter().fold(read, |inner, filter| format!("{}({inner})", filter.word()))
    }
}
