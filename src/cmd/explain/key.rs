//! A key explained: what makes it, what it holds, what touched it last.
//!
//! Owns how that is shown. It must not ask Redis itself. Invariant: what the file says of the key is printed also when
//! Redis is away, and nothing of a value is printed unless that is asked for.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::display::{beginning, line, millis, printable, time};
use super::super::{Failure, Loaded, print};
use super::Args;
use super::key_report::{self, KeyContent, KeyReport, concerns};
use super::origin::{Origin, origins};
use crate::change::Lsn;
use crate::coherence::watermark::Names;
use crate::key::CacheKey;
use crate::plan::ActionKind;
use crate::sink::Touch;

/// How many characters of a value are printed, if that is asked for.
const SHOWN_MAX: usize = 200;

/// How many of the ops that touched the key are shown.
const TOUCHES_MAX: usize = 5;

pub(super) async fn explain(loaded: &Loaded, given: &OsStr, args: &Args) -> Result<(), Failure> {
    let key = full_name(given.as_encoded_bytes(), &loaded.settings.namespace);
    let names = Names::new(&loaded.settings.namespace, &loaded.settings.slot);
    let origins = origins(&loaded.rules, &key);
    if !args.json {
        print(&made_by(loaded, &key, &names, &origins))?;
    }
    let looked = match args.offline {
        true => None,
        false => Some(key_report::read(&loaded.settings.redis, &names, &key).await),
    };
    match looked {
        None if args.json => print(&line(object(loaded, &key, &origins, None, args))),
        None => Ok(()),
        Some(Ok(look)) if args.json => print(&line(object(loaded, &key, &origins, Some(&look), args))),
        Some(Ok(look)) => print(&(holds(&look, &origins, args) + &touched(&look, &key))),
        Some(Err(error)) => {
            if args.json {
                print(&line(object(loaded, &key, &origins, None, args)))?;
            }
            Err(error.into())
        }
    }
}

/// The name in Redis of a key that was given with the namespace or without.
fn full_name(given: &[u8], namespace: &str) -> CacheKey {
    match given.starts_with(namespace.as_bytes()) {
        true => CacheKey::new(given),
        false => CacheKey::new([namespace.as_bytes(), given].concat()),
    }
}

fn made_by(loaded: &Loaded, key: &CacheKey, names: &Names, origins: &[Origin<'_>]) -> String {
    let mut text = format!("{key}\n\nmade by\n");
    for origin in origins {
        text.push_str(&origin.text(loaded));
    }
    if names.owns(key.as_bytes()) {
        text.push_str("  this tool itself: it is part of its state\n");
    } else if origins.is_empty() {
        text.push_str("  no template of any rule\n");
    }
    text
}

fn holds(look: &KeyReport, origins: &[Origin<'_>], args: &Args) -> String {
    let mut text = format!("\nholds\n  {}\n", held(look, origins));
    // Writing to a String cannot fail.
    let _ = match (look.ttl, &look.content) {
        (_, KeyContent::Nothing) => Ok(()),
        (Some(ttl), KeyContent::Lease) => writeln!(text, "  the lease ends in {} at the latest", time(ttl)),
        (Some(ttl), _) => writeln!(text, "  it expires in {}", time(ttl)),
        (None, _) => writeln!(text, "  it does not expire"),
    };
    if let (true, Some(value)) = (args.show_value, value(&look.content)) {
        let _ = writeln!(text, "  {}", beginning(value, SHOWN_MAX));
    }
    let epoch = look.epoch.map_or_else(String::new, |epoch| format!(", in epoch {epoch}"));
    let _ = match look.applied {
        Some(applied) => writeln!(text, "  invalidations are in force up to {applied}{epoch}"),
        None => writeln!(text, "  how far invalidations are in force, Redis does not know{epoch}"),
    };
    text
}

fn held(look: &KeyReport, origins: &[Origin<'_>]) -> String {
    match &look.content {
        KeyContent::Nothing => "nothing".to_owned(),
        KeyContent::Lease => "a lease: a reader is about to fill it".to_owned(),
        KeyContent::Value { envelope, bytes } => {
            let age = time(age(look, envelope.stored_at));
            let soft = match envelope.soft_ttl {
                0 => String::new(),
                soft => format!("; readers refresh it when it is {} old", time(Duration::from_millis(soft))),
            };
            format!("a value of {bytes} bytes, stored {age} ago, with every commit up to {}{soft}", envelope.lo)
        }
        KeyContent::Text { head, bytes } => match version(head, origins) {
            Some(version) => format!("the version {version}, which is the position {}", Lsn::new(version)),
            None => format!("a plain value of {bytes} bytes, of another application"),
        },
        KeyContent::Other { kind, members: Some(members) } => format!("a {} of {members}", printable(kind.as_bytes())),
        KeyContent::Other { kind, members: None } => format!("a {}", printable(kind.as_bytes())),
    }
}

/// How long a value has been there, by the clock of Redis.
fn age(look: &KeyReport, stored_at: u64) -> Duration {
    Duration::from_millis(look.now.saturating_sub(stored_at))
}

/// The number under a version key: a rule says that it is one.
fn version(held: &[u8], origins: &[Origin<'_>]) -> Option<u64> {
    let is_version = origins.iter().any(|origin| origin.kind == ActionKind::Bump);
    std::str::from_utf8(held).ok().filter(|_| is_version)?.parse().ok()
}

fn value(held: &KeyContent) -> Option<&[u8]> {
    match held {
        KeyContent::Value { envelope, .. } => Some(&envelope.body),
        KeyContent::Text { head, .. } => Some(head),
        KeyContent::Nothing | KeyContent::Lease | KeyContent::Other { .. } => None,
    }
}

/// The last ops that touched the key, the newest first.
fn touches<'l>(look: &'l KeyReport, key: &CacheKey) -> Vec<&'l Touch> {
    look.recent.iter().rev().filter(|touch| concerns(touch, key)).take(TOUCHES_MAX).collect()
}

fn touched(look: &KeyReport, key: &CacheKey) -> String {
    let mut text = "\nlast touched\n".to_owned();
    let touches = touches(look, key);
    for touch in &touches {
        let shown = [&touch.at, &touch.key, &touch.rule, &touch.lsn].map(|part| printable(part.as_bytes()));
        let ([at, name, rule, lsn], op) = (shown, touch.op);
        let _ = writeln!(text, "  {at}  {op} {name}  by rule `{rule}` (line {}), up to {lsn}", touch.line);
    }
    match look.recent.first() {
        _ if !touches.is_empty() => {}
        Some(oldest) => {
            let (count, since) = (look.recent.len(), printable(oldest.at.as_bytes()));
            let _ = writeln!(text, "  by none of the last {count} ops, which go back to {since}");
        }
        None => text.push_str("  no op is remembered\n"),
    }
    text
}

fn object(loaded: &Loaded, key: &CacheKey, origins: &[Origin<'_>], look: Option<&KeyReport>, args: &Args) -> Value {
    let mut object = Map::new();
    object.insert("key".to_owned(), String::from_utf8_lossy(key.as_bytes()).into());
    object.insert("made_by".to_owned(), origins.iter().map(|origin| origin.json(loaded)).collect());
    let Some(look) = look else { return Value::Object(object) };
    object.insert("holds".to_owned(), held_in_json(look, origins, args));
    object.insert("applied".to_owned(), look.applied.map(|applied| applied.to_string()).into());
    object.insert("epoch".to_owned(), look.epoch.into());
    object.insert("touched".to_owned(), json!(touches(look, key)));
    let since = look.recent.first().map(|touch| &touch.at);
    object.insert("remembered".to_owned(), json!({"ops": look.recent.len(), "since": since}));
    Value::Object(object)
}

fn held_in_json(look: &KeyReport, origins: &[Origin<'_>], args: &Args) -> Value {
    let mut object = match &look.content {
        KeyContent::Nothing => json!({"kind": "nothing"}),
        KeyContent::Lease => json!({"kind": "lease"}),
        KeyContent::Value { envelope, bytes } => json!({
            "kind": "value",
            "bytes": bytes,
            "lo": envelope.lo.to_string(),
            "age_ms": millis(age(look, envelope.stored_at)),
            "soft_ttl_ms": Some(envelope.soft_ttl).filter(|soft| *soft > 0),
        }),
        KeyContent::Text { head, bytes } => match version(head, origins) {
            Some(version) => json!({"kind": "version", "version": version, "lsn": Lsn::new(version).to_string()}),
            None => json!({"kind": "plain", "bytes": bytes}),
        },
        KeyContent::Other { kind, members } => json!({"kind": kind, "members": members}),
    };
    if let Value::Object(fields) = &mut object {
        fields.insert("ttl_ms".to_owned(), look.ttl.map(millis).into());
        if let (true, Some(value)) = (args.show_value, value(&look.content)) {
            fields.insert("beginning".to_owned(), beginning(value, SHOWN_MAX).into());
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::lease::{Envelope, Token};

    const RULES: &str = "version: 1
target: {namespace: 'v1:'}
rules:
  user:
    table: users
    delete: ['user:{id}', 'user-email:{email|lower}', 'pair:{id}:{email}']
    tags: 'u:{id}'
  flags: {event: flag.changed, bump: 'version:{org}', publish: {channel: 'user:{org}'}}
";

    fn loaded() -> Loaded {
        Loaded::parse("f.yaml".as_ref(), RULES.to_owned(), &|_| None).map_err(|failure| failure.message).unwrap()
    }

    fn args() -> Args {
        Args { key: None, change: None, lookups: false, offline: false, show_value: true, json: false }
    }

    #[test]
    fn a_key_is_made_by_what_could_have_made_it() {
        let loaded = loaded();
        let names = Names::new("v1:", "unstale");
        let check = |key: &str, expected: &[&str]| {
            let key = full_name(key.as_bytes(), "v1:");
            let said = made_by(&loaded, &key, &names, &origins(&loaded.rules, &key));
            assert!(expected.iter().all(|part| said.contains(part)), "{expected:?} are not all in {said}");
            assert_eq!(said.lines().count(), 3 + expected.len() - 1, "{said}");
        };
        check("user:7", &["v1:user:7", "f.yaml:6:15  rule `user`, `delete: user:{id}`", "table users, id = 7"]);
        check("v1:user-email:a@b", &["v1:user-email:a@b", "rule `user`", "table users, lower(email) = a@b"]);
        check("pair:1:2:3", &["v1:pair", "rule `user`", "id = ?, email = ?"]);
        check("tag:u:7", &["v1:tag:u:7", "`tags: u:{id}`", "id = 7"]);
        check("version:\x1b", &["v1:version:\\u{1b}", "rule `flags`", "event flag.changed, org = \\u{1b}"]);
        check("nothing", &["v1:nothing", "no template"]);
        check("unstale:{unstale}:applied", &["v1:unstale", "part of its state"]);
    }

    #[test]
    fn what_a_key_holds() {
        let loaded = loaded();
        let check = |key: &str, held: KeyContent, ttl: Option<u64>, expected: &[&str]| {
            let look = KeyReport {
                content: held,
                ttl: ttl.map(Duration::from_millis),
                now: 10_000,
                applied: Some(Lsn::new(0x16B_3748)),
                epoch: Some(3),
                recent: Vec::new(),
            };
            let said = holds(&look, &origins(&loaded.rules, &full_name(key.as_bytes(), "v1:")), &args());
            assert!(expected.iter().all(|part| said.contains(part)), "{expected:?} are not all in {said}");
            assert!(said.contains("up to 0/16B3748, in epoch 3"), "{said}");
        };
        let nonce = Token::of_new_value();
        let (lo, etag, body) = (Lsn::new(255), String::new(), b"{\x07}".to_vec());
        let envelope = Envelope { nonce, lo, stored_at: 7_000, soft_ttl: 60_000, etag, body };
        let value = KeyContent::Value { envelope, bytes: 3 };
        check("user:1", value, Some(57_000), &["3 bytes, stored 3s ago", "0/FF", "1m old", "in 57s", r"{\u{7}}"]);
        check("user:1", KeyContent::Lease, Some(1500), &["a lease", "ends in 1s 500ms"]);
        check("user:1", KeyContent::Nothing, None, &["holds\n  nothing\n"]);
        let text = |text: &str| KeyContent::Text { head: text.into(), bytes: text.len() as u64 };
        check("version:o", text("255"), None, &["version 255", "0/FF", "does not expire"]);
        check("user:1", text("255"), None, &["plain value of 3 bytes, of another application"]);
        check("tag:u:1", KeyContent::Other { kind: "set".to_owned(), members: Some(4) }, None, &["a set of 4"]);
    }

    #[test]
    fn what_touched_a_key_last() {
        let touch = |op, key: &str, at: u32| Touch {
            op,
            key: key.to_owned(),
            rule: "user".to_owned(),
            line: 4,
            lsn: "0/1".to_owned(),
            at: format!("at {at}"),
        };
        let mut recent: Vec<_> = (0..9).map(|at| touch(ActionKind::Delete, "v1:user:1", at)).collect();
        recent.push(touch(ActionKind::Pattern, "v1:user:*", 9));
        let (content, ttl, now, applied, epoch) = (KeyContent::Nothing, None, 0, None, None);
        let look = KeyReport { content, ttl, now, applied, epoch, recent };
        let said = touched(&look, &"v1:user:1".into());
        assert_eq!(
            said.lines().skip(2).map(|line| line.trim_start().get(..4).unwrap()).collect::<Vec<_>>(),
            ["at 9", "at 8", "at 7", "at 6", "at 5"]
        );
        assert!(touched(&look, &"v1:org:1".into()).contains("none of the last 10 ops, which go back to at 0"));
    }
}
