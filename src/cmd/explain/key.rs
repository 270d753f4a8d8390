//! A key, explained: which rules make it, what it holds, what touched it last.
//!
//! Owns how that is printed. It must not ask Redis itself. Invariants: what the rules say about the
//! key is printed even if Redis is not available; a value is printed only with `--show-value`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::args::ExplainArgs;
use super::key_report::{self, KeyContent, KeyReport, concerns};
use super::template_match::{TemplateMatch, matches};
use crate::change::Lsn;
use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::{beginning, json_line, millis, printable, time};
use crate::cmd::failure::Failure;
use crate::cmd::stdout::print;
use crate::coherence::watermark::Names;
use crate::key::CacheKey;
use crate::plan::ActionKind;
use crate::sink::Touch;

/// How many characters of a value are printed with `--show-value`.
const SHOWN_MAX: usize = 200;

/// How many of the ops that touched the key are shown.
const TOUCHES_MAX: usize = 5;

pub(super) async fn explain(file: &ConfigFile, given: &OsStr, args: &ExplainArgs) -> Result<(), Failure> {
    let key = full_name(given.as_encoded_bytes(), &file.settings.namespace);
    let names = Names::new(&file.settings.namespace, &file.settings.slot);
    let matches = matches(&file.rules, &key);
    if !args.json {
        print(&made_by(file, &key, &names, &matches))?;
    }
    let report = match args.offline {
        true => None,
        false => Some(key_report::read(&file.settings.redis, &names, &key).await),
    };
    match report {
        None if args.json => print(&json_line(object(file, &key, &matches, None, args))),
        None => Ok(()),
        Some(Ok(report)) if args.json => print(&json_line(object(file, &key, &matches, Some(&report), args))),
        Some(Ok(report)) => print(&(holds(&report, &matches, args) + &touched(&report, &key))),
        Some(Err(error)) => {
            if args.json {
                print(&json_line(object(file, &key, &matches, None, args)))?;
            }
            Err(error.into())
        }
    }
}

/// The name of a key in Redis. It may be given with the namespace or without.
fn full_name(given: &[u8], namespace: &str) -> CacheKey {
    match given.starts_with(namespace.as_bytes()) {
        true => CacheKey::new(given),
        false => CacheKey::new([namespace.as_bytes(), given].concat()),
    }
}

fn made_by(file: &ConfigFile, key: &CacheKey, names: &Names, matches: &[TemplateMatch<'_>]) -> String {
    let mut text = format!("{key}\n\nmade by\n");
    for found in matches {
        text.push_str(&found.text(file));
    }
    if names.owns(key.as_bytes()) {
        text.push_str("  unstale itself: it is part of its state\n");
    } else if matches.is_empty() {
        text.push_str("  no template of any rule\n");
    }
    text
}

fn holds(report: &KeyReport, matches: &[TemplateMatch<'_>], args: &ExplainArgs) -> String {
    let mut text = format!("\nholds\n  {}\n", content(report, matches));
    // Writing to a String cannot fail.
    let _ = match (report.ttl, &report.content) {
        (_, KeyContent::Nothing) => Ok(()),
        (Some(ttl), KeyContent::Lease) => writeln!(text, "  the lease ends in {} at the latest", time(ttl)),
        (Some(ttl), _) => writeln!(text, "  it expires in {}", time(ttl)),
        (None, _) => writeln!(text, "  it does not expire"),
    };
    if let (true, Some(value)) = (args.show_value, value(&report.content)) {
        let _ = writeln!(text, "  {}", beginning(value, SHOWN_MAX));
    }
    let epoch = report.epoch.map_or_else(String::new, |epoch| format!(", in epoch {epoch}"));
    let _ = match report.applied {
        Some(applied) => writeln!(text, "  invalidations are in force up to {applied}{epoch}"),
        None => writeln!(text, "  Redis does not know how far invalidations are in force{epoch}"),
    };
    text
}

fn content(report: &KeyReport, matches: &[TemplateMatch<'_>]) -> String {
    match &report.content {
        KeyContent::Nothing => "nothing".to_owned(),
        KeyContent::Lease => "a lease: a reader is about to fill it".to_owned(),
        KeyContent::Value { envelope, bytes } => {
            let age = time(age(report, envelope.stored_at));
            let soft = match envelope.soft_ttl {
                0 => String::new(),
                soft => format!("; readers refresh it when it is {} old", time(Duration::from_millis(soft))),
            };
            format!("a value of {bytes} bytes, stored {age} ago, with every commit up to {}{soft}", envelope.lo)
        }
        KeyContent::Text { head, bytes } => match version(head, matches) {
            Some(version) => format!("the version {version}, which is the position {}", Lsn::new(version)),
            None => format!("a plain value of {bytes} bytes, of another application"),
        },
        KeyContent::Other { kind, members: Some(members) } => format!("a {} of {members}", printable(kind.as_bytes())),
        KeyContent::Other { kind, members: None } => format!("a {}", printable(kind.as_bytes())),
    }
}

/// The age of a value, by the clock of Redis.
fn age(report: &KeyReport, stored_at: u64) -> Duration {
    Duration::from_millis(report.now.saturating_sub(stored_at))
}

/// The number in a version key. A rule with `bump` says that it is one.
fn version(held: &[u8], matches: &[TemplateMatch<'_>]) -> Option<u64> {
    let is_version = matches.iter().any(|found| found.kind == ActionKind::Bump);
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
fn touches<'l>(report: &'l KeyReport, key: &CacheKey) -> Vec<&'l Touch> {
    report.recent.iter().rev().filter(|touch| concerns(touch, key)).take(TOUCHES_MAX).collect()
}

fn touched(report: &KeyReport, key: &CacheKey) -> String {
    let mut text = "\nlast touched\n".to_owned();
    let touches = touches(report, key);
    for touch in &touches {
        let shown = [&touch.at, &touch.key, &touch.rule, &touch.lsn].map(|part| printable(part.as_bytes()));
        let ([at, name, rule, lsn], op) = (shown, touch.op);
        let _ = writeln!(text, "  {at}  {op} {name}  by rule `{rule}` (line {}), up to {lsn}", touch.line);
    }
    match report.recent.first() {
        _ if !touches.is_empty() => {}
        Some(oldest) => {
            let (count, since) = (report.recent.len(), printable(oldest.at.as_bytes()));
            let _ = writeln!(text, "  by none of the last {count} ops, which go back to {since}");
        }
        None => text.push_str("  no op is recorded\n"),
    }
    text
}

fn object(
    file: &ConfigFile,
    key: &CacheKey,
    matches: &[TemplateMatch<'_>],
    report: Option<&KeyReport>,
    args: &ExplainArgs,
) -> Value {
    let mut object = Map::new();
    object.insert("key".to_owned(), String::from_utf8_lossy(key.as_bytes()).into());
    object.insert("made_by".to_owned(), matches.iter().map(|found| found.json(file)).collect());
    let Some(report) = report else { return Value::Object(object) };
    object.insert("holds".to_owned(), held_in_json(report, matches, args));
    object.insert("applied".to_owned(), report.applied.map(|applied| applied.to_string()).into());
    object.insert("epoch".to_owned(), report.epoch.into());
    object.insert("touched".to_owned(), json!(touches(report, key)));
    let since = report.recent.first().map(|touch| &touch.at);
    object.insert("remembered".to_owned(), json!({"ops": report.recent.len(), "since": since}));
    Value::Object(object)
}

fn held_in_json(report: &KeyReport, matches: &[TemplateMatch<'_>], args: &ExplainArgs) -> Value {
    let mut object = match &report.content {
        KeyContent::Nothing => json!({"kind": "nothing"}),
        KeyContent::Lease => json!({"kind": "lease"}),
        KeyContent::Value { envelope, bytes } => json!({
            "kind": "value",
            "bytes": bytes,
            "lo": envelope.lo.to_string(),
            "age_ms": millis(age(report, envelope.stored_at)),
            "soft_ttl_ms": Some(envelope.soft_ttl).filter(|soft| *soft > 0),
        }),
        KeyContent::Text { head, bytes } => match version(head, matches) {
            Some(version) => json!({"kind": "version", "version": version, "lsn": Lsn::new(version).to_string()}),
            None => json!({"kind": "plain", "bytes": bytes}),
        },
        KeyContent::Other { kind, members } => json!({"kind": kind, "members": members}),
    };
    if let Value::Object(fields) = &mut object {
        fields.insert("ttl_ms".to_owned(), report.ttl.map(millis).into());
        if let (true, Some(value)) = (args.show_value, value(&report.content)) {
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

    fn file() -> ConfigFile {
        ConfigFile::parse("f.yaml".as_ref(), RULES.to_owned(), &|_| None).map_err(|failure| failure.message).unwrap()
    }

    fn args() -> ExplainArgs {
        ExplainArgs { key: None, change: None, lookups: false, offline: false, show_value: true, json: false }
    }

    #[test]
    fn every_template_that_makes_a_key_is_listed() {
        let file = file();
        let names = Names::new("v1:", "unstale");
        let check = |key: &str, expected: &[&str]| {
            let key = full_name(key.as_bytes(), "v1:");
            let said = made_by(&file, &key, &names, &matches(&file.rules, &key));
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
    fn the_content_of_a_key_is_printed() {
        let file = file();
        let check = |key: &str, held: KeyContent, ttl: Option<u64>, expected: &[&str]| {
            let report = KeyReport {
                content: held,
                ttl: ttl.map(Duration::from_millis),
                now: 10_000,
                applied: Some(Lsn::new(0x16B_3748)),
                epoch: Some(3),
                recent: Vec::new(),
            };
            let said = holds(&report, &matches(&file.rules, &full_name(key.as_bytes(), "v1:")), &args());
            assert!(expected.iter().all(|part| said.contains(part)), "{expected:?} are not all in {said}");
            assert!(said.contains("up to 0/16B3748, in epoch 3"), "{said}");
        };
        let nonce = Token::of_new_value();
        let (lo, etag, body) = (Lsn::new(255), String::new(), b"{\x07}".to_vec());
        let envelope = Envelope { nonce, lo, stored_at: 7_000, soft_ttl: 60_000, etag, tags: Vec::new(), body };
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
    fn the_last_ops_on_a_key_are_listed() {
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
        let report = KeyReport { content, ttl, now, applied, epoch, recent };
        let said = touched(&report, &"v1:user:1".into());
        assert_eq!(
            said.lines().skip(2).map(|line| line.trim_start().get(..4).unwrap()).collect::<Vec<_>>(),
            ["at 9", "at 8", "at 7", "at 6", "at 5"]
        );
        assert!(touched(&report, &"v1:org:1".into()).contains("none of the last 10 ops, which go back to at 0"));
    }
}
