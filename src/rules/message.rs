//! The JSON that `publish` and `stream` send: any JSON in which each string is a template.
//!
//! Owns how it is rendered. Invariants: a string that consists of one reference becomes null if the
//! value is NULL or not known; a message is always one valid JSON value.

use serde_json::Value;

use super::template::{Rendered, Resolved, Template, TemplatePart};
use crate::limits::VALUE_BYTES_MAX;

/// The shape of a message. `T` is its templates: as the file has them, or bound to a table.
#[derive(Clone, Debug)]
pub(super) enum MessageTemplate<T> {
    Template(T),
    Literal(Value),
    List(Vec<MessageTemplate<T>>),
    Object(Vec<(String, MessageTemplate<T>)>),
}

impl<T> MessageTemplate<T> {
    /// The same shape with every template replaced.
    pub(super) fn map<U>(&self, f: &mut impl FnMut(&T) -> U) -> MessageTemplate<U> {
        match self {
            Self::Template(template) => MessageTemplate::Template(f(template)),
            Self::Literal(value) => MessageTemplate::Literal(value.clone()),
            Self::List(items) => MessageTemplate::List(items.iter().map(|item| item.map(f)).collect()),
            Self::Object(fields) => {
                MessageTemplate::Object(fields.iter().map(|(name, field)| (name.clone(), field.map(f))).collect())
            }
        }
    }

    /// Every template.
    pub(super) fn templates(&self) -> Vec<&T> {
        match self {
            Self::Template(template) => vec![template],
            Self::Literal(_) => Vec::new(),
            Self::List(items) => items.iter().flat_map(Self::templates).collect(),
            Self::Object(fields) => fields.iter().flat_map(|(_, field)| field.templates()).collect(),
        }
    }

    /// Calls `f` for every template.
    pub(super) fn each(&self, f: &mut impl FnMut(&T)) {
        match self {
            Self::Template(template) => f(template),
            Self::Literal(_) => {}
            Self::List(items) => items.iter().for_each(|item| item.each(f)),
            Self::Object(fields) => fields.iter().for_each(|(_, field)| field.each(f)),
        }
    }

    /// Writes the message as JSON, with each template's value written by `value`.
    pub(super) fn write(&self, out: &mut Vec<u8>, value: &mut impl FnMut(&T, &mut Vec<u8>)) {
        match self {
            Self::Template(template) => value(template, out),
            Self::Literal(literal) => write_json(out, literal),
            Self::List(items) => {
                out.push(b'[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    item.write(out, value);
                }
                out.push(b']');
            }
            Self::Object(fields) => {
                out.push(b'{');
                for (at, (name, field)) in fields.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    write_json(out, name);
                    out.push(b':');
                    field.write(out, value);
                }
                out.push(b'}');
            }
        }
    }
}

/// A string of a message is above [`VALUE_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FieldTooLong;

/// Writes one string: null if it is a single reference without a value. In other strings, values
/// that are NULL or not known are empty. An error, and null is written, if it is too long.
pub(super) fn write_field<'a>(
    out: &mut Vec<u8>,
    template: &Template,
    mut resolve: impl FnMut(usize) -> Resolved<'a>,
) -> Result<(), FieldTooLong> {
    if let [TemplatePart::Reference(_)] = template.parts()
        && !matches!(resolve(0), Resolved::Value(_))
    {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    let known = template.render_within(VALUE_BYTES_MAX, |at| match resolve(at) {
        Resolved::Value(value) => Resolved::Value(value),
        Resolved::Nothing | Resolved::Unknown => Resolved::Value(b""),
    });
    match known {
        Rendered::Key(text) => write_json(out, &String::from_utf8_lossy(text.as_bytes())),
        Rendered::Glob(_) | Rendered::Nothing => {
            out.extend_from_slice(b"null");
            return Err(FieldTooLong);
        }
    }
    Ok(())
}

fn write_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("text and parsed JSON always serialize, and a Vec takes any bytes");
}
