//! The backlog of recent broadcasts, as text of server-sent events.
//!
//! Owns the chain (every message names the one before it) and what a client receives that resumes.
//! It must not know sockets or time. Invariants: a gap in the chain is an entry that says so;
//! memory is bounded; no text from outside can begin a line of its own.

use std::collections::VecDeque;

use axum::body::Bytes;
use serde::Deserialize;

/// The most entries that are kept.
const ENTRIES_MAX: usize = 1_024;

/// The most bytes of text in all entries.
const BYTES_MAX: usize = 4 << 20;

/// A message of more bytes becomes a flush: removing so many keys one by one is not worth it.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The longest id of a message, in bytes. Those of the daemon have fewer than 40.
const ID_BYTES_MAX: usize = 128;

/// Stands for the id before the first message.
const NONE: &str = "none";

/// How many ms a client waits before it reconnects.
const RETRY: &str = "retry: 1000\n";

/// Why a client has to discard everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushReason {
    /// A message was missed or could not be parsed.
    Gap,
    /// A new epoch began.
    Epoch,
    /// A message was too long.
    Large,
    /// Redis was not asked yet, or no longer knows the last broadcast.
    Redis,
    /// The id that the client received last is not in the backlog.
    Resume,
    /// The client was too slow, and the backlog has moved on.
    Slow,
}

impl FlushReason {
    const fn word(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Epoch => "epoch",
            Self::Large => "large",
            Self::Redis => "redis",
            Self::Resume => "resume",
            Self::Slow => "slow",
        }
    }
}

/// The fields of a message that link it to the previous one.
#[derive(Deserialize)]
struct ChainLink {
    id: String,
    prev: Option<String>,
    epoch: u64,
}

#[derive(Debug)]
struct BacklogEntry {
    /// The id after which a client resumes. None: a client cannot resume after this entry.
    id: Option<String>,
    text: Bytes,
}

/// The last broadcasts. Entries are numbered from the first one of this process.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    entries: VecDeque<BacklogEntry>,
    bytes: usize,
    /// The number of the oldest entry that is kept.
    first: u64,
    /// The id of the last broadcast, which the last entry with an id has. None before Redis was
    /// asked.
    newest: Option<String>,
    epoch: Option<u64>,
}

impl Backlog {
    /// Appends a message. Returns whether it could be parsed, so that the chain is known.
    pub(super) fn append(&mut self, payload: &[u8]) -> bool {
        let Some((link, text)) = parse(payload) else {
            // Whatever it was, it may have been an invalidation.
            self.flush(FlushReason::Gap, None);
            return false;
        };
        let is_new_epoch = self.epoch.replace(link.epoch).is_some_and(|epoch| epoch != link.epoch);
        let prev = link.prev.as_deref().unwrap_or(NONE);
        if self.newest() != Some(prev) {
            self.flush(self.gap_reason(prev), Some(prev));
        } else if is_new_epoch {
            // Without an id: a client that received `prev` from another instance has not received
            // this.
            self.flush(FlushReason::Epoch, None);
        }
        match payload.len() {
            ..=MESSAGE_BYTES_MAX => self.push(BacklogEntry { id: Some(link.id.clone()), text: text.into() }),
            _ => self.flush(FlushReason::Large, Some(&link.id)),
        }
        self.newest = Some(link.id);
        true
    }

    /// Sets the last broadcast and the epoch to what Redis reports, for lack of a message that
    /// names them.
    pub(super) fn align(&mut self, last: Option<&[u8]>, epoch: Option<&[u8]>) {
        let last = last.and_then(text).filter(|id| is_id(id)).unwrap_or(NONE);
        if self.newest() != Some(last) {
            self.flush(self.gap_reason(last), Some(last));
            self.newest = Some(last.to_owned());
        }
        self.epoch = self.epoch.or_else(|| text(epoch?)?.parse().ok());
    }

    /// Returns the number of the next entry for a client that received `last`, and the text to send
    /// first.
    pub(super) fn resume(&self, last: Option<&[u8]>) -> (u64, Bytes) {
        let newest = self.newest();
        let hello = format!(": hello\n{RETRY}");
        let Some(last) = last else {
            // An event without data sets the id to resume from, if the connection breaks before the
            // first event.
            let id = newest.map(|id| format!("id: {id}\n")).unwrap_or_default();
            return (self.end(), format!("{hello}{id}\n").into());
        };
        // The first of several entries with one id: receiving an entry twice does no harm.
        match self.entries.iter().zip(self.first..).find(|(entry, _)| entry.has_id(last)) {
            Some((_, number)) => (number + 1, format!("{hello}\n").into()),
            None => (self.end(), format!("{hello}\n{}", flush(FlushReason::Resume, newest)).into()),
        }
    }

    /// Returns the entry with this number, and advances the number. None: there is no such entry
    /// yet.
    pub(super) fn next(&self, next: &mut u64) -> Option<Bytes> {
        let Some(at) = next.checked_sub(self.first) else {
            *next = self.end();
            return Some(flush(FlushReason::Slow, self.newest()).into());
        };
        let entry = self.entries.get(usize::try_from(at).ok()?)?;
        *next += 1;
        Some(entry.text.clone())
    }

    fn newest(&self) -> Option<&str> {
        self.newest.as_deref()
    }

    /// The number of the next entry to be appended.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn gap_reason(&self, before: &str) -> FlushReason {
        if self.newest.is_none() || before == NONE { FlushReason::Redis } else { FlushReason::Gap }
    }

    fn flush(&mut self, reason: FlushReason, id: Option<&str>) {
        tracing::debug!(reason = reason.word(), "clients of /events have to discard everything");
        self.push(BacklogEntry { id: id.map(str::to_owned), text: flush(reason, id).into() });
    }

    fn push(&mut self, entry: BacklogEntry) {
        self.bytes += entry.text.len();
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes = self.bytes.saturating_sub(oldest.text.len());
            self.first += 1;
        }
    }
}

impl BacklogEntry {
    fn has_id(&self, id: &[u8]) -> bool {
        self.id.as_ref().is_some_and(|own| own.as_bytes() == id)
    }
}

/// Parses a message, and returns it as an event.
fn parse(payload: &[u8]) -> Option<(ChainLink, String)> {
    let payload = text(payload)?;
    let link: ChainLink = serde_json::from_str(payload).ok()?;
    if !is_id(&link.id) || link.prev.as_deref().is_some_and(|prev| !is_id(prev)) {
        return None;
    }
    let mut event = format!("event: invalidation\nid: {}\n", link.id);
    // Each line of the JSON needs a field name of its own.
    for line in payload.split(['\r', '\n']) {
        event.extend(["data: ", line, "\n"]);
    }
    event.push('\n');
    Some((link, event))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// An id is opaque, but it must fit on one line and into a header.
fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn flush(reason: FlushReason, id: Option<&str>) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: flush\n{id}data: {{\"reason\":\"{}\"}}\n\n", reason.word())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, prev: Option<&str>, epoch: u64) -> Vec<u8> {
        serde_json::json!({"v": 1, "id": id, "prev": prev, "epoch": epoch, "ops": []}).to_string().into_bytes()
    }

    /// A backlog whose last broadcast is `a-1`, in epoch 1.
    fn backlog() -> Backlog {
        let mut backlog = Backlog::default();
        backlog.align(Some(b"a-1"), Some(b"1"));
        backlog
    }

    /// What a client at this position receives: `a-2` for a message, `flush gap a-2` for a flush
    /// with an id.
    fn received(backlog: &Backlog, mut next: u64) -> Vec<String> {
        let mut received = Vec::new();
        while let Some(text) = backlog.next(&mut next) {
            received.push(short(&text));
        }
        received
    }

    fn short(text: &[u8]) -> String {
        let text = std::str::from_utf8(text).unwrap();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("-").to_owned();
        let id = field("id: ");
        match &*field("event: ") {
            "invalidation" => id,
            "flush" => {
                let data: serde_json::Value = serde_json::from_str(&field("data: ")).unwrap();
                format!("flush {} {id}", data["reason"].as_str().unwrap())
            }
            _ => text.to_owned(),
        }
    }

    #[test]
    fn a_chain_of_messages_is_passed_on_unchanged() {
        let mut backlog = backlog();
        let (next, opening) = backlog.resume(None);
        assert_eq!(opening, ": hello\nretry: 1000\nid: a-1\n\n");
        assert!(backlog.append(&message("a-2", Some("a-1"), 1)) && backlog.append(&message("b-1", Some("a-2"), 1)));
        assert_eq!(received(&backlog, next), ["a-2", "b-1"]);
        let expected = r#"{"v":1,"id":"a-2","prev":"a-1","epoch":1,"ops":[]}"#;
        let mut at = next;
        let text = backlog.next(&mut at).unwrap();
        assert_eq!(text, format!("event: invalidation\nid: a-2\ndata: {expected}\n\n"));
    }

    #[test]
    fn the_first_contact_with_redis_flushes_earlier_clients() {
        for (last, id) in [(Some("a-1"), "a-1"), (None, "none"), (Some("a\r\n1"), "none"), (Some(""), "none")] {
            let mut backlog = Backlog::default();
            let (next, opening) = backlog.resume(None);
            assert_eq!(opening, ": hello\nretry: 1000\n\n");
            backlog.align(last.map(str::as_bytes), None);
            assert_eq!(received(&backlog, next), [format!("flush redis {id}")]);
            assert!(received(&backlog, backlog.resume(None).0).is_empty());
        }
        let mut backlog = Backlog::default();
        backlog.align(None, Some(b"1"));
        let (next, _) = backlog.resume(None);
        backlog.append(&message("a-1", None, 1));
        assert_eq!(received(&backlog, next), ["a-1"], "the first message of all");
    }

    #[test]
    fn a_gap_in_the_chain_is_a_flush() {
        fn check(change: impl Fn(&mut Backlog), expected: &[&str]) {
            let mut backlog = backlog();
            let (next, _) = backlog.resume(None);
            change(&mut backlog);
            assert_eq!(received(&backlog, next), expected);
        }
        let append = |id: &'static str, prev: Option<&'static str>, epoch| {
            move |backlog: &mut Backlog| assert!(backlog.append(&message(id, prev, epoch)))
        };
        check(append("a-3", Some("a-2"), 1), &["flush gap a-2", "a-3"]);
        check(append("a-3", None, 1), &["flush redis none", "a-3"]);
        check(append("a-2", Some("a-1"), 2), &["flush epoch -", "a-2"]);
        check(append("b-1", Some("a-2"), 2), &["flush gap a-2", "b-1"]);
        check(|backlog| backlog.align(Some(b"a-1"), Some(b"1")), &[]);
        check(|backlog| backlog.align(Some(b"a-2"), Some(b"1")), &["flush gap a-2"]);
        check(|backlog| backlog.align(None, None), &["flush redis none"]);
        check(|backlog| backlog.align(Some(b"\xff"), None), &["flush redis none"]);
    }

    #[test]
    fn an_unknown_message_is_a_flush_and_changes_nothing_else() {
        let long = "x".repeat(ID_BYTES_MAX + 1);
        let hostile = [
            b"".to_vec(),
            b"{}".to_vec(),
            b"\xff\xfe".to_vec(),
            message("a\r\nevent: x", Some("a-1"), 1),
            message("", Some("a-1"), 1),
            message(&long, Some("a-1"), 1),
            message("a-2", Some("a\n1"), 1),
        ];
        for payload in hostile {
            let mut backlog = backlog();
            let (next, _) = backlog.resume(None);
            assert!(!backlog.append(&payload));
            assert!(backlog.append(&message("a-2", Some("a-1"), 1)));
            assert_eq!(received(&backlog, next), ["flush gap -", "a-2"]);
            assert_eq!(
                received(&backlog, backlog.resume(Some(b"a-1")).0),
                ["flush gap -", "a-2"],
                "also for a client that resumes"
            );
        }
    }

    #[test]
    fn each_line_of_a_message_is_data() {
        let mut backlog = backlog();
        let mut next = backlog.end();
        backlog.append(b"{\"id\": \"a-2\",\r\n\"prev\": \"a-1\", \"epoch\": 1}");
        let text = backlog.next(&mut next).unwrap();
        assert!(text.starts_with(b"event: invalidation\nid: a-2\ndata: {"));
        assert!(text.split(|byte| *byte == b'\n').skip(2).all(|line| line.is_empty() || line.starts_with(b"data: ")));
        assert!(!text.contains(&b'\r'));
    }

    #[test]
    fn a_client_that_resumes_receives_what_it_missed() {
        let mut backlog = backlog();
        for (id, prev) in [("a-2", "a-1"), ("a-3", "a-2"), ("a-4", "a-3")] {
            backlog.append(&message(id, Some(prev), 1));
        }
        let check = |last: &[u8], opening: &str, expected: &[&str]| {
            let (next, text) = backlog.resume(Some(last));
            assert_eq!(text, format!(": hello\nretry: 1000\n\n{opening}"));
            assert_eq!(received(&backlog, next), expected, "{}", last.escape_ascii());
        };
        check(b"a-1", "", &["a-2", "a-3", "a-4"]);
        check(b"a-2", "", &["a-3", "a-4"]);
        check(b"a-4", "", &[]);
        for unknown in [&b"a-0"[..], b"a-", b"a-22", b"\r\nevent: x\n\n", b"\xff\x00", &[b'x'; 10_000]] {
            check(unknown, "event: flush\nid: a-4\ndata: {\"reason\":\"resume\"}\n\n", &[]);
        }
    }

    #[test]
    fn a_client_that_resumes_at_another_instance_misses_nothing() {
        let mut backlog = backlog();
        assert!(
            received(&backlog, backlog.resume(Some(b"a-1")).0).is_empty(),
            "`a-1` was the last broadcast when this instance started"
        );
        backlog.append(&message("a-2", Some("a-1"), 2));
        backlog.append(&message("a-3", Some("a-2"), 2));
        assert_eq!(received(&backlog, backlog.resume(Some(b"a-1")).0), ["flush epoch -", "a-2", "a-3"]);
        assert_eq!(received(&backlog, backlog.resume(Some(b"a-2")).0), ["a-3"]);
    }

    #[test]
    fn a_client_that_is_too_slow_receives_a_flush() {
        let mut backlog = backlog();
        let (slow, _) = backlog.resume(None);
        let mut prev = "a-1".to_owned();
        for number in 2..ENTRIES_MAX + 10 {
            let id = format!("a-{number}");
            backlog.append(&message(&id, Some(&prev), 1));
            prev = id;
        }
        assert_eq!(backlog.entries.len(), ENTRIES_MAX);
        assert_eq!(received(&backlog, slow), [format!("flush slow {prev}")]);
        let (_, opening) = backlog.resume(Some(b"a-2"));
        assert!(
            opening.ends_with(flush(FlushReason::Resume, Some(&prev)).as_bytes()),
            "it is no longer in the backlog"
        );
    }

    #[test]
    fn memory_is_bounded() {
        let mut backlog = backlog();
        let padded = |id: &str, prev: &str, bytes: usize| {
            let padding = "x".repeat(bytes);
            serde_json::json!({"id": id, "prev": prev, "epoch": 1, "padding": padding}).to_string().into_bytes()
        };
        for number in 2..20 {
            backlog.append(&padded(&format!("a-{number}"), &format!("a-{}", number - 1), MESSAGE_BYTES_MAX / 2));
            assert!(
                backlog.bytes <= BYTES_MAX
                    && backlog.bytes == backlog.entries.iter().map(|entry| entry.text.len()).sum::<usize>()
            );
        }
        assert!((4..9).contains(&backlog.entries.len()), "{}", backlog.entries.len());
        let (next, _) = backlog.resume(None);
        assert!(backlog.append(&padded("a-20", "a-19", MESSAGE_BYTES_MAX)));
        assert_eq!(received(&backlog, next), ["flush large a-20"]);
    }
}
