//! `GET /events`: what clients receive, and that none misses an event without a flush.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};

use redis::Commands as _;
use serde_json::{Value, json};

use super::{Api, File, Instance};
use crate::support::{EVENT_MAX, wait_until};

const CHANNEL: &str = "v1:invalidations";
const LAST: &str = "v1:unstale:{unstale}:last";

/// One client of `/events`. HTTP/1.0 has no chunks, so the body is the events and nothing else.
struct Follower {
    reader: BufReader<TcpStream>,
}

/// The text between two empty lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    id: Option<String>,
    data: String,
}

impl Event {
    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The keys that the event reports as deleted.
    fn deletes(&self, key: &str) -> bool {
        let ops = self.json()["ops"].as_array().cloned().unwrap_or_default();
        self.name == "invalidation" && ops.contains(&json!({"op": "delete", "key": key}))
    }

    fn flushes(&self, reason: &str, id: Option<&str>) -> bool {
        self.name == "flush" && self.json() == json!({"reason": reason}) && self.id.as_deref() == id
    }
}

fn address(instance: &Instance) -> SocketAddr {
    let log = instance.process.log();
    let line = log.iter().find(|line| line.contains(r#""message":"serving""#)).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    line["address"].as_str().unwrap().parse().unwrap()
}

impl Follower {
    /// Connects and reads the hello, which may contain an event id.
    fn open(instance: &Instance, path: &str, last: Option<&[u8]>) -> (Self, Option<String>) {
        let stream = TcpStream::connect(address(instance)).unwrap();
        stream.set_read_timeout(Some(EVENT_MAX)).unwrap();
        let mut follower = Self { reader: BufReader::new(stream) };
        let mut request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n").into_bytes();
        if let Some(last) = last {
            request.extend([b"Last-Event-ID: ", last, b"\r\n"].concat());
        }
        follower.reader.get_mut().write_all(&[&request, &b"\r\n"[..]].concat()).unwrap();
        let head: Vec<_> = std::iter::from_fn(|| follower.line().filter(|line| !line.is_empty())).collect();
        assert!(head[0].split(' ').nth(1) == Some("200"), "{head:?}");
        let has = |field: &str| head.iter().any(|line| line.eq_ignore_ascii_case(field));
        assert!(has("content-type: text/event-stream") && has("cache-control: no-store"), "{head:?}");
        assert!(!head.iter().any(|line| line.to_ascii_lowercase().starts_with("content-encoding")), "{head:?}");
        let hello = follower.block().unwrap();
        assert_eq!((hello.name.as_str(), hello.data.as_str()), ("", ""));
        (follower, hello.id)
    }

    /// Follows from now on, once the instance has a position.
    fn new(instance: &Instance) -> (Self, String) {
        let mut found = None;
        wait_until(EVENT_MAX, "the instance listens to Redis", || {
            let (follower, id) = Self::open(instance, "/events", None);
            found = id.map(|id| (follower, id));
            found.is_some()
        });
        found.unwrap()
    }

    /// Resumes after this event.
    fn resume(instance: &Instance, last: &str) -> Self {
        Self::open(instance, "/events", Some(last.as_bytes())).0
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.ends_with('\n').then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The next block, even if it is only a comment; None at the end of the stream.
    fn block(&mut self) -> Option<Event> {
        let mut event = Event::default();
        loop {
            let line = self.line()?;
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => return Some(event),
                "" | "retry" => {}
                "event" => event.name = value.to_owned(),
                "id" => event.id = Some(value.to_owned()),
                "data" => event.data += value,
                _ => panic!("there is no field {line:?}"),
            }
        }
    }

    /// The next event.
    fn next(&mut self) -> Event {
        loop {
            let event = self.block().expect("the stream goes on");
            if !event.name.is_empty() {
                return event;
            }
        }
    }
}

fn change(api: &Api, user: &str) {
    api.world.sql(&format!("update users set name = name || '!' where id = '{user}'"));
}

/// Changes a user; the event for that must be the next.
fn changed(api: &Api, follower: &mut Follower, user: &str) -> Event {
    change(api, user);
    let event = follower.next();
    assert!(event.deletes(&format!("v1:user:{user}")), "{event:?}");
    event
}

#[test]
fn a_client_receives_events_as_they_were_broadcast() {
    let api = File::default().start();
    let (mut follower, before) = Follower::new(&api);
    let first = changed(&api, &mut follower, "u1");
    assert_eq!(before, "none", "nothing was ever broadcast before");
    let second = changed(&api, &mut follower, "u2");
    let message = second.json();
    assert_eq!(message["id"].as_str(), second.id.as_deref());
    assert_eq!(message["prev"].as_str(), first.id.as_deref());
    let last: Option<String> = api.world.redis().get(LAST).unwrap();
    assert_eq!(last, second.id);
    assert_eq!(Follower::new(&api).1, last.unwrap(), "who comes later begins there");
    let head = api.head("/events");
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
}

#[test]
fn a_client_that_resumes_receives_what_it_missed() {
    let api = File::default().start();
    let (mut follower, start) = Follower::new(&api);
    let first = changed(&api, &mut follower, "u1").id.unwrap();
    drop(follower);
    // One by one: changes that are committed together make one event.
    for user in ["u2", "u3"] {
        change(&api, user);
        api.world.settle();
    }
    for path in ["/events".to_owned(), format!("/events?last_event_id={start}")] {
        // The header is newer than the query: a browser sends it when it reconnects by itself.
        let (mut follower, _) = Follower::open(&api, &path, Some(first.as_bytes()));
        assert!(follower.next().deletes("v1:user:u2") && follower.next().deletes("v1:user:u3"), "{path}");
    }
    let (mut follower, _) = Follower::open(&api, &format!("/events?last_event_id={start}"), None);
    let told: Vec<_> = (0..3).map(|_| follower.next()).collect();
    assert!(told.iter().zip(["u1", "u2", "u3"]).all(|(event, user)| event.deletes(&format!("v1:user:{user}"))));
    let mut follower = Follower::resume(&api, told[2].id.as_deref().unwrap());
    changed(&api, &mut follower, "u4");
}

#[test]
fn an_unknown_last_event_id_gets_a_flush() {
    let api = File::default().start();
    let (mut follower, _) = Follower::new(&api);
    let newest = changed(&api, &mut follower, "u1").id.unwrap();
    let long = [b'x'; 8_000];
    let prefix = &newest.as_bytes()[..newest.len() - 1];
    for last in [&b"unknown"[..], b"\xff\xfe", b"\x80event: flush", b"*", prefix, &long] {
        let (mut follower, _) = Follower::open(&api, "/events", Some(last));
        let flush = follower.next();
        assert!(flush.flushes("resume", Some(&newest)), "{}: {flush:?}", last.escape_ascii());
    }
    for last in ["%0D%0A%0D%0Aevent:%20x", "%00", "%ff", "%", "a%0ab"] {
        let (mut follower, _) = Follower::open(&api, &format!("/events?last_event_id={last}"), None);
        let flush = follower.next();
        assert!(flush.flushes("resume", Some(&newest)), "{last}: {flush:?}");
    }
    let mut follower = Follower::resume(&api, "unknown");
    assert!(follower.next().flushes("resume", Some(&newest)));
    changed(&api, &mut follower, "u2");
}

#[test]
fn a_client_can_resume_at_another_instance() {
    let api = File::default().start();
    let (mut follower, _) = Follower::new(&api);
    let first = changed(&api, &mut follower, "u1").id.unwrap();
    let other = Api::serve_alone(&api.world, "");
    let (_, known) = Follower::new(&other);
    assert_eq!(known, first);
    let mut moved = Follower::resume(&other, &first);
    let second = changed(&api, &mut follower, "u2");
    assert_eq!(moved.next(), second);
}

#[test]
fn a_gap_in_the_chain_is_a_flush() {
    let api = File::default().start();
    let (mut follower, _) = Follower::new(&api);
    changed(&api, &mut follower, "u1");
    let publish = |message: &str| api.world.redis().publish::<_, _, ()>(CHANNEL, message).unwrap();
    publish(r#"{"v":1,"id":"x-2","prev":"x-1","epoch":1,"lsn":"0/1","at":"","ops":[]}"#);
    assert!(follower.next().flushes("gap", Some("x-1")));
    assert_eq!(follower.next().id.as_deref(), Some("x-2"));
    for hostile in ["", "{}", "x\n\nevent: invalidation\ndata: {}\n\n", r#"{"id":"a\nid: b","prev":null,"epoch":1}"#] {
        publish(hostile);
        let flush = follower.next();
        assert!(flush.flushes("gap", None), "{hostile:?}: {flush:?}");
    }
    change(&api, "u2");
    assert!(follower.next().name == "flush" && follower.next().deletes("v1:user:u2"));
}

/// Ends the instance's subscription; it subscribes again by itself.
fn cut(api: &Api) {
    let mut redis = api.world.redis();
    let killed: u64 = redis::cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]).query(&mut redis).unwrap();
    assert_eq!(killed, 1);
    wait_until(EVENT_MAX, "it subscribes again", || {
        let (_, count): (String, u64) = redis::cmd("PUBSUB").arg(&["NUMSUB", CHANNEL]).query(&mut redis).unwrap();
        count == 1
    });
}

#[test]
fn a_broken_subscription_is_a_flush_only_if_something_was_missed() {
    let api = File::default().start();
    let (mut follower, _) = Follower::new(&api);
    changed(&api, &mut follower, "u1");
    cut(&api);
    changed(&api, &mut follower, "u2");
    // As if another daemon had broadcast meanwhile.
    let _: () = api.world.redis().set(LAST, "missed-1").unwrap();
    cut(&api);
    let flush = follower.next();
    assert!(flush.flushes("gap", Some("missed-1")), "{flush:?}");
    let after = changed(&api, &mut follower, "u3");
    assert_eq!(after.json()["prev"], "missed-1");
}

#[test]
fn a_redis_that_lost_its_data_is_a_flush() {
    let mut api = File::default().start();
    let (mut follower, _) = Follower::new(&api);
    changed(&api, &mut follower, "u1");
    api.world.redis.stop();
    api.world.redis.restart().unwrap();
    let flush = follower.next();
    // The daemon begins a new epoch, and announces it before or after the instance listens again.
    assert!(flush.name == "flush" && flush.json()["reason"] != "slow", "{flush:?}");
    api.world.settle();
    change(&api, "u2");
    while !follower.next().deletes("v1:user:u2") {}
}

#[test]
fn a_stopped_instance_ends_its_streams() {
    let mut api = File::default().start();
    let (mut follower, _) = Follower::new(&api);
    let last = changed(&api, &mut follower, "u1").id.unwrap();
    let mut resumed = Follower::resume(&api, &last);
    api.instance.process.signal("TERM");
    assert_eq!((follower.block(), resumed.block()), (None, None));
    assert_eq!(api.instance.process.wait(), Some(0));
}
