//! Events that applications emit, read as changes, and no further than rules need.
//!
//! Owns their form in the log and in the outbox. It must not know rules. Invariants: what no rule
//! reads is not parsed, copied or remembered; if a payload cannot be read, or is above
//! [`EVENT_BYTES_MAX`], no field is known; repeated warnings are logged at growing intervals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::value::RawValue;

use super::images::{Images, JsonImage};
use crate::backoff::Notices;
use crate::change::{Change, Operation, TableName};
use crate::limits::{EVENT_BYTES_MAX, EVENT_HEAD_BYTES_MAX};

/// The events that matter, and the fields of each.
#[derive(Clone, Debug, Default)]
pub struct WantedEvents(Option<Arc<BTreeMap<String, BTreeSet<String>>>>);

impl WantedEvents {
    /// These events with these fields.
    pub fn of(events: BTreeMap<String, BTreeSet<String>>) -> Self {
        Self(Some(Arc::new(events)))
    }

    /// Every event with every field.
    pub const fn all() -> Self {
        Self(None)
    }

    fn wants(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|events| events.contains_key(name))
    }

    fn wants_field(&self, name: &str, field: &str) -> bool {
        self.0.as_ref().is_none_or(|events| events.get(name).is_some_and(|fields| fields.contains(field)))
    }

    /// Those whose names are not ASCII.
    fn beyond_ascii(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|events| events.keys()).map(String::as_str).filter(|name| !name.is_ascii())
    }
}

/// Reads events.
#[derive(Debug, Default)]
pub struct EventReader {
    wanted: WantedEvents,
    images: Images,
    too_long: Notices,
    nameless: Notices,
}

/// The content of a logical message of `unstale.emit`.
#[derive(serde::Deserialize)]
struct Emitted<'a> {
    name: String,
    #[serde(borrow)]
    payload: &'a RawValue,
}

impl EventReader {
    /// Reads these events.
    pub fn new(wanted: WantedEvents) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// The event in a logical message. None: it does not matter.
    pub fn emitted(&mut self, content: &[u8]) -> Option<Change> {
        let leading = leading_name(content);
        if leading.as_ref().is_some_and(|name| !self.wanted.wants(name)) {
            return None;
        }
        if content.len() > EVENT_BYTES_MAX {
            let Some(name) = leading else { return self.nameless() };
            return Some(self.too_long(&name, content.len()));
        }
        // Messages in a database that is not in UTF-8 may not be UTF-8 either.
        match serde_json::from_str::<Emitted<'_>>(&String::from_utf8_lossy(content)) {
            Ok(Emitted { name, payload }) => self.wanted.wants(&name).then(|| self.event(&name, payload.get())),
            Err(_) => self.nameless(),
        }
    }

    /// The events that an entry of the outbox may be: several if the name's encoding is not known.
    /// Without a payload no field is known.
    pub fn in_outbox(&mut self, name: &[u8], payload: Option<&[u8]>, is_raw: bool) -> Vec<Change> {
        if is_raw && !name.is_ascii() {
            let names: Vec<_> = self.wanted.beyond_ascii().map(ToOwned::to_owned).collect();
            return names.iter().map(|name| self.unknown(name)).collect();
        }
        let name = String::from_utf8_lossy(name);
        if !self.wanted.wants(&name) {
            return Vec::new();
        }
        let Some(payload) = payload.filter(|payload| payload.len() <= EVENT_BYTES_MAX) else {
            return vec![self.too_long(&name, payload.map_or(EVENT_BYTES_MAX, <[u8]>::len))];
        };
        let readable = std::str::from_utf8(payload).ok().filter(|payload| !is_raw || payload.is_ascii());
        vec![match readable {
            Some(payload) => self.event(&name, payload),
            None => self.unknown(&name),
        }]
    }

    /// The change that an event is.
    fn event(&mut self, name: &str, payload: &str) -> Change {
        let Ok(mut fields) = serde_json::from_str::<JsonImage>(payload) else { return self.unknown(name) };
        fields.retain(|field, _| self.wanted.wants_field(name, field));
        self.images.change(TableName::new("", name), Operation::Event, None, Some(&fields))
    }

    /// An event of which no field is known.
    fn unknown(&mut self, name: &str) -> Change {
        self.images.change(TableName::new("", name), Operation::Event, None, Some(&JsonImage::new()))
    }

    fn too_long(&mut self, event: &str, bytes: usize) -> Change {
        if self.too_long.due(Instant::now()) {
            tracing::warn!(
                event,
                bytes,
                limit = EVENT_BYTES_MAX,
                "the content of an event is above the limit, so none of its fields is known: everything that its \
                 rules can name is deleted; emit only what rules read"
            );
        }
        self.unknown(event)
    }

    fn nameless(&mut self) -> Option<Change> {
        if self.nameless.due(Instant::now()) {
            tracing::warn!("an event without a name was ignored; emit events by `select unstale.emit(name, payload)`");
        }
        None
    }
}

/// The name of an event, if the content begins with it, as that of `unstale.emit` does. Reads only
/// the beginning.
fn leading_name(content: &[u8]) -> Option<String> {
    let head = content.get(..EVENT_HEAD_BYTES_MAX).unwrap_or(content);
    let mut rest = head;
    for token in ["{", "\"name\"", ":"] {
        rest = rest.trim_ascii_start().strip_prefix(token.as_bytes())?;
    }
    let rest = String::from_utf8_lossy(rest);
    serde_json::Deserializer::from_str(&rest).into_iter::<String>().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Cell;

    fn wanted() -> WantedEvents {
        WantedEvents::of([("sold".to_owned(), ["id".to_owned()].into())].into())
    }

    fn content(name: &str, payload: &str) -> Vec<u8> {
        format!(r#"{{"name" : "{name}", "payload" : {payload}}}"#).into_bytes()
    }

    #[test]
    fn only_what_rules_read_is_kept() {
        let mut events = EventReader::new(wanted());
        let change = events.emitted(&content("sold", r#"{"id": 7, "other": 1}"#)).unwrap();
        let names: Vec<_> = change.relation.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!((names, change.new.unwrap().cells()), (vec!["id"], &[Cell::of("7")][..]));
        assert!(events.emitted(&content("bought", "{}")).is_none());
        assert!(events.in_outbox(b"bought", Some(b"{}"), false).is_empty());
        let mut all = EventReader::default();
        assert_eq!(all.emitted(&content("bought", r#"{"a":1}"#)).unwrap().relation.columns.len(), 1);
    }

    #[test]
    fn a_payload_of_an_event_that_no_rule_has_is_not_parsed() {
        assert!(EventReader::new(wanted()).emitted(br#"{"name":"bought","payload":no json"#).is_none());
        // Of one that a rule has, the whole must be JSON.
        assert!(EventReader::new(wanted()).emitted(br#"{"name":"sold","payload":no json"#).is_none());
    }

    #[test]
    fn a_payload_that_is_no_object_has_no_known_field() {
        let mut events = EventReader::new(wanted());
        for payload in ["", "7", "[]", "null", "\"secret\"", "{\"a\":}"] {
            let change = events.in_outbox(b"sold", Some(payload.as_bytes()), false).remove(0);
            assert!(change.relation.columns.is_empty() && change.new.is_some(), "{payload}");
        }
    }

    #[test]
    fn above_the_limit_no_field_is_known() {
        let long = format!(r#"{{"id":"{}"}}"#, "a".repeat(EVENT_BYTES_MAX));
        let mut events = EventReader::new(wanted());
        let nothing = |change: &Change| change.relation.columns.is_empty() && change.operation == Operation::Event;
        assert!(nothing(&events.emitted(&content("sold", &long)).unwrap()));
        assert!(nothing(&events.in_outbox(b"sold", Some(long.as_bytes()), false)[0]));
        assert!(nothing(&events.in_outbox(b"sold", None, false)[0]));
        assert!(events.emitted(long.as_bytes()).is_none(), "it has no name");
    }

    #[test]
    fn text_of_an_unknown_encoding_is_not_known() {
        let named = [("sold".to_owned(), BTreeSet::new()), ("verkäuft".to_owned(), BTreeSet::new())];
        let mut events = EventReader::new(WantedEvents::of(named.into()));
        let found = events.in_outbox(b"verk\xe4uft", Some(b"{}"), true);
        assert_eq!(found.iter().map(|change| change.relation.name.to_string()).collect::<Vec<_>>(), ["verkäuft"]);
        let found = events.in_outbox(b"sold", Some(b"{\"id\":\"\xe4\"}"), true);
        assert!(found.len() == 1 && found[0].relation.columns.is_empty());
    }

    #[test]
    fn a_name_is_read_from_the_beginning_only() {
        let check = |content: &str, expected: Option<&str>| {
            assert_eq!(leading_name(content.as_bytes()).as_deref(), expected, "{content}");
        };
        check(r#"{"name":"a","payload":"#, Some("a"));
        check(r#" { "name" : "a\"\u00e9" "#, Some("a\"é"));
        check(r#"{"payload":{},"name":"a"}"#, None);
        check(r#"{"name":7}"#, None);
        check(&format!(r#"{{"name":"{}"}}"#, "a".repeat(EVENT_HEAD_BYTES_MAX)), None);
        check("", None);
    }
}
