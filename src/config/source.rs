//! The section `source:`: where changes come from.
//!
//! Owns its fields and their defaults. It must not connect.

use super::fields::{Fields, Section};
use super::problem::Problems;
use super::settings::Mode;
use super::span::Spanned;
use crate::postgres::Address;

const DEFAULT_URL: &str = "postgres://postgres@127.0.0.1:5432/postgres";

/// The section `source`.
pub(super) struct SourceSection {
    pub(super) postgres: Option<Address>,
    pub(super) mode: Mode,
    pub(super) notify: bool,
    pub(super) slot: String,
    pub(super) publication: String,
}

pub(super) fn read_source(
    section: Section,
    environment: &impl Fn(&str) -> Option<String>,
    problems: &mut Problems,
) -> SourceSection {
    let name = || "unstale".to_owned();
    let mut source =
        SourceSection { postgres: None, mode: Mode::Slot, notify: true, slot: name(), publication: name() };
    let Some(mut fields) = Fields::of_section(section, problems) else { return source };
    let url = fields.text("url").unwrap_or(Spanned { value: DEFAULT_URL.to_owned(), span: 0..0 });
    match Address::parse(&url.value, environment) {
        Ok(parsed) => source.postgres = Some(parsed),
        Err(error) => fields.problems().push(
            url.span,
            format!("`source.url`: {error}"),
            "expected postgres://user@host:5432/database",
        ),
    }
    let modes = [("slot", Mode::Slot), ("outbox", Mode::Outbox)];
    source.mode = fields.word("mode", &modes).unwrap_or(source.mode);
    for (field, name) in [("slot", &mut source.slot), ("publication", &mut source.publication)] {
        let Some(text) = fields.text(field) else { continue };
        let advice = match field {
            "slot" if !is_slot_name(&text.value) => "expected 1 to 63 lower-case letters, digits and `_`",
            "publication" if !(1..=63).contains(&text.value.len()) => "expected 1 to 63 bytes",
            _ => {
                *name = text.value;
                continue;
            }
        };
        fields.problems().push(text.span, format!("`{field}` is not a valid name in PostgreSQL"), advice);
    }
    let outbox = fields.take("outbox");
    fields.finish();
    if let Some(mut fields) = outbox.and_then(|node| Fields::of(node, "`outbox`", problems)) {
        source.notify = fields.flag("notify").unwrap_or(true);
        fields.finish();
    }
    source
}

fn is_slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
