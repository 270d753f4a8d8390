//! Every command that the daemon sends to Redis, itself or in a script, so that `check` can find
//! out whether the user may run them.
//!
//! Owns the list. It must not know how a permission is found out. Invariants: no command of the
//! sink or of a script is missing (the tests compare); what is called harmless changes no key
//! that exists, and reaches no subscriber.

use std::collections::BTreeSet;

use redis::Cmd;

use crate::key::{INVALIDATIONS, RESERVED};
use crate::plan::Removal;

/// What decides which commands the daemon sends.
#[derive(Clone, Copy, Debug)]
pub struct Usage<'a> {
    /// The prefix of keys and channels.
    pub namespace: &'a str,
    /// The name of the slot or outbox.
    pub slot: &'a str,
    /// Everything that the rules and reads can remove.
    pub removals: &'a [Removal],
    /// An outbox is read.
    pub outbox: bool,
    /// Some rule adds entries to streams.
    pub streams: bool,
    /// Some rule asks for second deletes.
    pub again: bool,
}

/// A command as the daemon sends it, with arguments that do no harm if it may be tried.
#[derive(Clone, Debug)]
pub struct SentCommand {
    /// The command, on a key of the daemon's own state that does not exist, or on a key that a
    /// rule can remove.
    pub command: Cmd,
    /// It may be run to find out whether it may be run.
    pub harmless: bool,
}

impl SentCommand {
    /// A command of words before a key (or a channel, or nothing) and words after it.
    pub fn new(words: &str, key: &[u8], rest: &str, harmless: bool) -> Self {
        let mut command = Cmd::new();
        for word in words.split_whitespace() {
            command.arg(word);
        }
        if !key.is_empty() {
            command.arg(key);
        }
        for word in rest.split_whitespace() {
            command.arg(word);
        }
        Self { command, harmless }
    }
}

impl Usage<'_> {
    /// A key of the daemon's own state that does not exist.
    pub fn probe_key(&self) -> Vec<u8> {
        format!("{}{RESERVED}{{{}}}:probe", self.namespace, self.slot).into_bytes()
    }

    /// The channel of broadcasts.
    pub fn channel(&self) -> Vec<u8> {
        format!("{}{INVALIDATIONS}", self.namespace).into_bytes()
    }

    /// Every command that the daemon sends, on a key or a channel of the namespace, and a script
    /// on a key of each removal.
    pub fn commands(&self) -> Vec<SentCommand> {
        let (key, channel) = (self.probe_key(), self.channel());
        let on_key = |words: &str, rest: &str, harmless| SentCommand::new(words, &key, rest, harmless);
        let mut commands = vec![
            SentCommand::new("INFO", b"", "", true),
            SentCommand::new("TIME", b"", "", true),
            SentCommand::new("SCRIPT LOAD", b"", "return", true),
            SentCommand::new("SCAN 0 COUNT", b"", "1", true),
            on_key("GET", "", true),
            on_key("MGET", "", true),
            on_key("SET", "value XX", true),
            on_key("DEL", "", true),
            on_key("UNLINK", "", true),
            on_key("TYPE", "", true),
            on_key("SSCAN", "0", true),
            on_key("SREM", "member", true),
            on_key("PEXPIRE", "1", true),
            on_key("LTRIM", "0 0", true),
            on_key("XADD", "NOMKSTREAM MAXLEN 1 * field value", true),
            on_key(EVALSHA, "", true),
            on_key("HGETALL", "", true),
            on_key("HINCRBY", "field 1", false),
            on_key("HSET", "field value", false),
            on_key("RPUSH", "element", false),
            SentCommand::new("PUBLISH", &channel, "message", false),
        ];
        if self.streams {
            commands.push(on_key("HGET", "field", true));
            commands.push(on_key("XINFO STREAM", "", true));
        }
        if self.again {
            commands.push(on_key("ZADD", "XX 1 member", true));
            commands.push(on_key("ZCARD", "", true));
            commands.push(on_key("ZRANGE", "0 0", true));
            commands.push(on_key("ZSCORE", "member", true));
            commands.push(on_key("ZREM", "member", true));
        }
        if self.outbox {
            commands.push(on_key("INCR", "", false));
            commands.push(on_key("HEXISTS", "field", true));
            commands.push(on_key("HDEL", "field", true));
        }
        let samples: BTreeSet<Vec<u8>> = self.removals.iter().map(sample).collect();
        for sample in &samples {
            // For the server, a script reads and writes its keys, as every op does.
            commands.push(SentCommand::new(EVALSHA, sample, "", true));
        }
        commands
    }
}

/// Runs a script that no server has, on one key: the server checks the keys before it looks for
/// the script.
const EVALSHA: &str = "EVALSHA 0000000000000000000000000000000000000000 1";

/// A key that the removal would remove.
fn sample(removal: &Removal) -> Vec<u8> {
    let glob = match removal {
        Removal::Key(key) | Removal::Tag(key) => return key.as_bytes().to_vec(),
        Removal::Keys(glob) | Removal::Tags(glob) => glob,
    };
    let mut key = Vec::new();
    let mut bytes = glob.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => key.extend(bytes.next()),
            b'*' => key.extend_from_slice(b"probe"),
            byte => key.push(byte),
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use redis::Arg;

    use super::super::scripts::sources;
    use super::*;

    /// What follows `before` in a text, up to a quote.
    fn named<'t>(text: &'t str, before: &str, quote: char) -> Vec<&'t str> {
        text.split(before).skip(1).filter_map(|rest| rest.split(quote).next()).collect()
    }

    #[test]
    fn no_command_of_the_sink_or_of_a_script_is_missing() {
        let usage = Usage { namespace: "v1:", slot: "s", removals: &[], outbox: true, streams: true, again: true };
        let first = |sent: &SentCommand| match sent.command.args_iter().next() {
            Some(Arg::Simple(name)) => String::from_utf8(name.to_vec()).unwrap(),
            _ => String::new(),
        };
        let listed: BTreeSet<String> = usage.commands().iter().map(first).collect();
        let scripts = sources();
        let mut sent: BTreeSet<&str> = BTreeSet::new();
        for script in &scripts {
            sent.extend(named(script, "redis.call('", '\''));
            sent.extend(named(script, "redis.pcall('", '\''));
        }
        assert!(sent.contains("XINFO") && sent.len() > 10, "{sent:?}");
        for file in [
            include_str!("again.rs"),
            include_str!("connection.rs"),
            include_str!("dataset.rs"),
            include_str!("encode.rs"),
            include_str!("link.rs"),
            include_str!("owner.rs"),
            include_str!("resume.rs"),
            include_str!("scripts.rs"),
            include_str!("sweep.rs"),
        ] {
            sent.extend(named(file, "redis::cmd(\"", '"'));
        }
        let missing: Vec<_> = sent.into_iter().filter(|name| !listed.contains(*name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn a_sample_is_what_its_glob_matches() {
        let mut glob = crate::key::Glob::new();
        glob.push_literal(br"v1:a*[b]\:");
        glob.push_any();
        let sample = sample(&Removal::Keys(glob.clone()));
        assert_eq!(sample, br"v1:a*[b]\:probe");
        assert!(glob.matches(&sample));
    }
}
