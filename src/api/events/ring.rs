//! The last broadcasts, ready to be sent, and what each follower has to be told.
//!
//! Owns the chain: every message names the one before it. It must not know sockets or time. Invariants: where the chain has
//! a gap there is an entry that says so; memory is bounded; nothing from outside can begin a line of its own.

use std::collections::VecDeque;

use axum::body::Bytes;
use serde::Deserialize;

/// How many entries are kept.
const ENTRIES_MAX: usize = 1_024;

/// How much text they may have together.
const BYTES_MAX: usize = 4 << 20;

/// A longer message becomes a flush: it names more than it is worth to forget one by one.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The longest id of a message; ours have fewer than forty bytes.
const ID_BYTES_MAX: usize = 128;

/// Stands for the id of the message before the first one.
const NONE: &str = "none";

/// How long a client waits before it connects again.
const RETRY: &str = "retry: 1000\n";

/// Why a follower has to forget everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// A message was missed, or not understood.
    Gap,
    /// A new generation of the cache began.
    Epoch,
    /// A message named more than can be told.
    Large,
    /// Redis was not asked yet, or no longer knows what was broadcast last.
    Redis,
    /// What the client was told last is not known here.
    Resume,
    /// The client did not keep up.
    Slow,
}

impl Reason {
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

/// What a message says of its place among the others.
#[derive(Deserialize)]
struct Place {
    id: String,
    prev: Option<String>,
    epoch: u64,
}

#[derive(Debug)]
struct Entry {
    /// By which a client goes on after it.
    id: Option<String>,
    text: Bytes,
}

/// The last broadcasts. Entries are numbered from the first one that ever was.
#[derive(Debug, Default)]
pub(super) struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The number of the oldest entry that is kept.
    first: u64,
    /// The id of the last broadcast; nothing before Redis was asked. Its entry is the last one that has an id.
    newest: Option<String>,
    epoch: Option<u64>,
}

impl Ring {
    /// Takes a message. Whether it said which one was before it.
    pub(super) fn take(&mut self, payload: &[u8]) -> bool {
        let Some((place, text)) = read(payload) else {
            // Whatever it was, somebody wanted something to be forgotten.
            self.flush(Reason::Gap, None);
            return false;
        };
        let is_new_epoch = self.epoch.replace(place.epoch).is_some_and(|epoch| epoch != place.epoch);
        let prev = place.prev.as_deref().unwrap_or(NONE);
        if self.newest() != Some(prev) {
            self.flush(self.doubt(prev), Some(prev));
        } else if is_new_epoch {
            // Without an id: whoever was told `prev` by another instance has not been told this.
            self.flush(Reason::Epoch, None);
        }
        match payload.len() {
            ..=MESSAGE_BYTES_MAX => self.push(Entry { id: Some(place.id.clone()), text: text.into() }),
            _ => self.flush(Reason::Large, Some(&place.id)),
        }
        self.newest = Some(place.id);
        true
    }

    /// Redis says what was broadcast last and which epoch it is, and no message said otherwise.
    pub(super) fn stand_at(&mut self, last: Option<&[u8]>, epoch: Option<&[u8]>) {
        let last = last.and_then(text).filter(|id| is_id(id)).unwrap_or(NONE);
        if self.newest() != Some(last) {
            self.flush(self.doubt(last), Some(last));
            self.newest = Some(last.to_owned());
        }
        self.epoch = self.epoch.or_else(|| text(epoch?)?.parse().ok());
    }

    /// Where a client begins that was told `last`, and what it is told first.
    pub(super) fn begin(&self, last: Option<&[u8]>) -> (u64, Bytes) {
        let newest = self.newest();
        let hello = format!(": hello\n{RETRY}");
        let Some(last) = last else {
            // An event without data only says where to go on, should the connection break before the first one.
            let id = newest.map(|id| format!("id: {id}\n")).unwrap_or_default();
            return (self.end(), format!("{hello}{id}\n").into());
        };
        // The first of several entries under one id: what was told twice does no harm.
        match self.entries.iter().zip(self.first..).find(|(entry, _)| entry.is_called(last)) {
            Some((_, number)) => (number + 1, format!("{hello}\n").into()),
            None => (self.end(), format!("{hello}\n{}", flush(Reason::Resume, newest)).into()),
        }
    }

    /// What a client is told next, whose next entry is the one with this number.
    pub(super) fn after(&self, next: &mut u64) -> Option<Bytes> {
        let Some(at) = next.checked_sub(self.first) else {
            *next = self.end();
            return Some(flush(Reason::Slow, self.newest()).into());
        };
        let entry = self.entries.get(usize::try_from(at).ok()?)?;
        *next += 1;
        Some(entry.text.clone())
    }

    fn newest(&self) -> Option<&str> {
        self.newest.as_deref()
    }

    /// The number of the entry that comes next.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn doubt(&self, before: &str) -> Reason {
        if self.newest.is_none() || before == NONE { Reason::Redis } else { Reason::Gap }
    }

    fn flush(&mut self, reason: Reason, id: Option<&str>) {
        tracing::debug!(reason = reason.word(), "whoever follows the events has to forget everything");
        self.push(Entry { id: id.map(str::to_owned), text: flush(reason, id).into() });
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.text.len();
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes = self.bytes.saturating_sub(oldest.text.len());
            self.first += 1;
        }
    }
}

impl Entry {
    fn is_called(&self, id: &[u8]) -> bool {
        self.id.as_ref().is_some_and(|own| own.as_bytes() == id)
    }
}

/// A message's place, and the event that tells it.
fn read(payload: &[u8]) -> Option<(Place, String)> {
    let payload = text(payload)?;
    let place: Place = serde_json::from_str(payload).ok()?;
    if !is_id(&place.id) || place.prev.as_deref().is_some_and(|prev| !is_id(prev)) {
        return None;
    }
    let mut event = format!("event: invalidation\nid: {}\n", place.id);
    // JSON may stand on several lines, each of which needs its own name.
    for line in payload.split(['\r', '\n']) {
        event.extend(["data: ", line, "\n"]);
    }
    event.push('\n');
    Some((place, event))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// An id is opaque, but it must fit on a line and into a header.
fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn flush(reason: Reason, id: Option<&str>) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: flush\n{id}data: {{\"reason\":\"{}\"}}\n\n", reason.word())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, prev: Option<&str>, epoch: u64) -> Vec<u8> {
        serde_json::json!({"v": 1, "id": id, "prev": prev, "epoch": epoch, "ops": []}).to_string().into_bytes()
    }

    /// A ring that stands at `a-1`, in epoch 1.
    fn ring() -> Ring {
        let mut ring = Ring::default();
        ring.stand_at(Some(b"a-1"), Some(b"1"));
        ring
    }

    /// What a client at this position is told, in short: `a-2` for a message, `flush gap a-2` for a flush that goes on after it.
    fn told(ring: &Ring, mut next: u64) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(text) = ring.after(&mut next) {
            told.push(short(&text));
        }
        told
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
    fn messages_that_follow_one_another_are_handed_on_as_they_are() {
        let mut ring = ring();
        let (next, opening) = ring.begin(None);
        assert_eq!(opening, ": hello\nretry: 1000\nid: a-1\n\n");
        assert!(ring.take(&message("a-2", Some("a-1"), 1)) && ring.take(&message("b-1", Some("a-2"), 1)));
        assert_eq!(told(&ring, next), ["a-2", "b-1"]);
        let expected = r#"{"v":1,"id":"a-2","prev":"a-1","epoch":1,"ops":[]}"#;
        let mut at = next;
        let text = ring.after(&mut at).unwrap();
        assert_eq!(text, format!("event: invalidation\nid: a-2\ndata: {expected}\n\n"));
    }

    #[test]
    fn the_first_contact_tells_those_who_were_there_before() {
        for (last, id) in [(Some("a-1"), "a-1"), (None, "none"), (Some("a\r\n1"), "none"), (Some(""), "none")] {
            let mut ring = Ring::default();
            let (next, opening) = ring.begin(None);
            assert_eq!(opening, ": hello\nretry: 1000\n\n");
            ring.stand_at(last.map(str::as_bytes), None);
            assert_eq!(told(&ring, next), [format!("flush redis {id}")]);
            assert!(told(&ring, ring.begin(None).0).is_empty());
        }
        let mut ring = Ring::default();
        ring.stand_at(None, Some(b"1"));
        let (next, _) = ring.begin(None);
        ring.take(&message("a-1", None, 1));
        assert_eq!(told(&ring, next), ["a-1"], "the first that ever was");
    }

    #[test]
    fn a_gap_in_the_chain_is_a_flush() {
        fn check(change: impl Fn(&mut Ring), expected: &[&str]) {
            let mut ring = ring();
            let (next, _) = ring.begin(None);
            change(&mut ring);
            assert_eq!(told(&ring, next), expected);
        }
        let take = |id: &'static str, prev: Option<&'static str>, epoch| {
            move |ring: &mut Ring| assert!(ring.take(&message(id, prev, epoch)))
        };
        check(take("a-3", Some("a-2"), 1), &["flush gap a-2", "a-3"]);
        check(take("a-3", None, 1), &["flush redis none", "a-3"]);
        check(take("a-2", Some("a-1"), 2), &["flush epoch -", "a-2"]);
        check(take("b-1", Some("a-2"), 2), &["flush gap a-2", "b-1"]);
        check(|ring| ring.stand_at(Some(b"a-1"), Some(b"1")), &[]);
        check(|ring| ring.stand_at(Some(b"a-2"), Some(b"1")), &["flush gap a-2"]);
        check(|ring| ring.stand_at(None, None), &["flush redis none"]);
        check(|ring| ring.stand_at(Some(b"\xff"), None), &["flush redis none"]);
    }

    #[test]
    fn what_is_no_message_is_a_flush_and_changes_nothing_else() {
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
            let mut ring = ring();
            let (next, _) = ring.begin(None);
            assert!(!ring.take(&payload));
            assert!(ring.take(&message("a-2", Some("a-1"), 1)));
            assert_eq!(told(&ring, next), ["flush gap -", "a-2"]);
            assert_eq!(told(&ring, ring.begin(Some(b"a-1")).0), ["flush gap -", "a-2"], "whoever comes back too");
        }
    }

    #[test]
    fn each_line_of_a_message_is_data() {
        let mut ring = ring();
        let mut next = ring.end();
        ring.take(b"{\"id\": \"a-2\",\r\n\"prev\": \"a-1\", \"epoch\": 1}");
        let text = ring.after(&mut next).unwrap();
        assert!(text.starts_with(b"event: invalidation\nid: a-2\ndata: {"));
        assert!(text.split(|byte| *byte == b'\n').skip(2).all(|line| line.is_empty() || line.starts_with(b"data: ")));
        assert!(!text.contains(&b'\r'));
    }

    #[test]
    fn who_comes_back_is_told_what_it_missed() {
        let mut ring = ring();
        for (id, prev) in [("a-2", "a-1"), ("a-3", "a-2"), ("a-4", "a-3")] {
            ring.take(&message(id, Some(prev), 1));
        }
        let check = |last: &[u8], opening: &str, expected: &[&str]| {
            let (next, text) = ring.begin(Some(last));
            assert_eq!(text, format!(": hello\nretry: 1000\n\n{opening}"));
            assert_eq!(told(&ring, next), expected, "{}", last.escape_ascii());
        };
        check(b"a-1", "", &["a-2", "a-3", "a-4"]);
        check(b"a-2", "", &["a-3", "a-4"]);
        check(b"a-4", "", &[]);
        for unknown in [&b"a-0"[..], b"a-", b"a-22", b"\r\nevent: x\n\n", b"\xff\x00", &[b'x'; 10_000]] {
            check(unknown, "event: flush\nid: a-4\ndata: {\"reason\":\"resume\"}\n\n", &[]);
        }
    }

    #[test]
    fn who_comes_back_to_another_instance_misses_nothing_that_it_was_not_told() {
        let mut ring = ring();
        assert!(told(&ring, ring.begin(Some(b"a-1")).0).is_empty(), "it was there itself when Redis was asked");
        ring.take(&message("a-2", Some("a-1"), 2));
        ring.take(&message("a-3", Some("a-2"), 2));
        assert_eq!(told(&ring, ring.begin(Some(b"a-1")).0), ["flush epoch -", "a-2", "a-3"]);
        assert_eq!(told(&ring, ring.begin(Some(b"a-2")).0), ["a-3"]);
    }

    #[test]
    fn who_does_not_keep_up_is_told_to_forget_everything() {
        let mut ring = ring();
        let (slow, _) = ring.begin(None);
        let mut prev = "a-1".to_owned();
        for number in 2..ENTRIES_MAX + 10 {
            let id = format!("a-{number}");
            ring.take(&message(&id, Some(&prev), 1));
            prev = id;
        }
        assert_eq!(ring.entries.len(), ENTRIES_MAX);
        assert_eq!(told(&ring, slow), [format!("flush slow {prev}")]);
        let (_, opening) = ring.begin(Some(b"a-2"));
        assert!(opening.ends_with(flush(Reason::Resume, Some(&prev)).as_bytes()), "it is not known any more");
    }

    #[test]
    fn memory_is_bounded() {
        let mut ring = ring();
        let padded = |id: &str, prev: &str, bytes: usize| {
            let padding = "x".repeat(bytes);
            serde_json::json!({"id": id, "prev": prev, "epoch": 1, "padding": padding}).to_string().into_bytes()
        };
        for number in 2..20 {
            ring.take(&padded(&format!("a-{number}"), &format!("a-{}", number - 1), MESSAGE_BYTES_MAX / 2));
            assert!(
                ring.bytes <= BYTES_MAX
                    && ring.bytes == ring.entries.iter().map(|entry| entry.text.len()).sum::<usize>()
            );
        }
        assert!((4..9).contains(&ring.entries.len()), "{}", ring.entries.len());
        let (next, _) = ring.begin(None);
        assert!(ring.take(&padded("a-20", "a-19", MESSAGE_BYTES_MAX)));
        assert_eq!(told(&ring, next), ["flush large a-20"]);
    }
}
