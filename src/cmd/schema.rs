//! `unstale schema`: the JSON Schema of `invalidation.yaml`, for editors.

use super::failure::Failure;
use super::stdout::print;

/// JSON Schema, 2020-12. The parser decides. The schema says the same where a schema can; a test
/// compares them.
const SCHEMA: &str = include_str!("../config/schema.json");

#[derive(Debug, clap::Args)]
#[command(after_help = "For completion in an editor, run `unstale schema > invalidation.schema.json` and make this \
                        the first line of the file: `# yaml-language-server: $schema=invalidation.schema.json`")]
pub(super) struct SchemaArgs {}

pub(super) fn run(_: SchemaArgs) -> Result<(), Failure> {
    print(SCHEMA)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::SCHEMA;
    use crate::config::Document;

    fn schema() -> Value {
        serde_json::from_str(SCHEMA).unwrap()
    }

    /// The advice of every problem of a file, which all have this message, in the order of the
    /// file.
    fn advice(text: &str, message: &str) -> Vec<String> {
        let problems = Document::parse(text, &|_| None).unwrap_err();
        let found: Vec<_> = problems.iter().collect();
        assert!(found.iter().all(|problem| problem.message.starts_with(message)), "{found:?}");
        found.iter().map(|problem| problem.advice.clone()).collect()
    }

    /// The words in "expected one of `a`, `b`".
    fn words(advice: &str) -> BTreeSet<String> {
        let listed = advice.strip_prefix("expected one of ").unwrap_or_else(|| panic!("{advice}"));
        listed.split(", ").map(|word| word.trim_matches('`').to_owned()).collect()
    }

    /// An unknown field in every mapping, in the order of the file.
    const UNKNOWN_FIELDS: &str = "
version: 1
zzzzzzzzzzzzzzzz: 0
source: {zzzzzzzzzzzzzzzz: 0, outbox: {zzzzzzzzzzzzzzzz: 0}}
target: {zzzzzzzzzzzzzzzz: 0}
defaults: {zzzzzzzzzzzzzzzz: 0}
lookups: {l: {sql: select 1, zzzzzzzzzzzzzzzz: 0}}
rules:
  r:
    table: t
    zzzzzzzzzzzzzzzz: 0
    set: {key: k, columns: [a], zzzzzzzzzzzzzzzz: 0}
    publish: {channel: c, zzzzzzzzzzzzzzzz: 0}
    stream: {name: s, zzzzzzzzzzzzzzzz: 0}
reads: {r: {path: /r, key: r, sql: select 1, zzzzzzzzzzzzzzzz: 0, vary: {zzzzzzzzzzzzzzzz: 0}}}
api:
  zzzzzzzzzzzzzzzz: 0
  cors: {origins: '*', zzzzzzzzzzzzzzzz: 0}
  rate_limits: {l: {path: /l, limit: 1, window: 1m, zzzzzzzzzzzzzzzz: 0}}
  session: {read: r, zzzzzzzzzzzzzzzz: 0, sliding: {sql: select 1, zzzzzzzzzzzzzzzz: 0}}
tests:
  - {it: x, insert: t, row: {a: 1}, zzzzzzzzzzzzzzzz: 0, expect: {zzzzzzzzzzzzzzzz: 0}}
";

    const MAPPINGS: [&str; 19] = [
        "",
        "/$defs/source",
        "/$defs/outbox",
        "/$defs/target",
        "/$defs/defaults",
        "/$defs/lookup",
        "/$defs/rule",
        "/$defs/set",
        "/$defs/publish",
        "/$defs/stream",
        "/$defs/read",
        "/$defs/vary",
        "/$defs/api",
        "/$defs/cors",
        "/$defs/rate_limit",
        "/$defs/session",
        "/$defs/sliding",
        "/$defs/test",
        "/$defs/expect",
    ];

    #[test]
    fn the_schema_has_the_parsers_fields() {
        let schema = schema();
        let advice = advice(UNKNOWN_FIELDS, "unknown field `zzzzzzzzzzzzzzzz`");
        assert_eq!(advice.len(), MAPPINGS.len(), "{advice:?}");
        for (mapping, advice) in MAPPINGS.iter().zip(advice) {
            let properties = schema.pointer(&format!("{mapping}/properties")).and_then(Value::as_object).unwrap();
            assert_eq!(properties.keys().cloned().collect::<BTreeSet<_>>(), words(&advice), "{mapping}");
        }
    }

    #[test]
    fn the_schema_has_the_parsers_words() {
        let text = "
version: 1
source: {mode: zzzzzzzzzzzzzzzz}
defaults: {truncate: zzzzzzzzzzzzzzzz, unknown: zzzzzzzzzzzzzzzz}
rules: {r: {table: t, ops: zzzzzzzzzzzzzzzz, delete: k}}
api:
  rate_limits:
    l: {path: /l, limit: 1, window: 1m, by: zzzzzzzzzzzzzzzz, algorithm: zzzzzzzzzzzzzzzz, on_error: zzzzzzzzzzzzzzzz}
  session: {read: r, on_error: zzzzzzzzzzzzzzzz}
";
        let advice = advice(text, "unknown value for");
        let schema = schema();
        let names = ["mode", "truncate", "unknown", "operation", "by", "algorithm", "on_error", "on_error"];
        for (name, advice) in names.iter().zip(&advice) {
            let known = schema.pointer(&format!("/$defs/{name}/enum")).and_then(Value::as_array).unwrap();
            let known: BTreeSet<_> = known.iter().map(|word| word.as_str().unwrap().to_owned()).collect();
            assert_eq!(known, words(advice), "{name}");
        }
        assert_eq!(advice.len(), names.len());
    }

    /// Calls `f` for every schema inside a schema.
    fn each<'a>(schema: &'a Value, f: &mut impl FnMut(&'a Value)) {
        f(schema);
        match schema {
            Value::Object(fields) => fields.values().for_each(|field| each(field, f)),
            Value::Array(items) => items.iter().for_each(|item| each(item, f)),
            _ => {}
        }
    }

    #[test]
    fn the_schema_is_closed_and_describes_every_field() {
        let schema = schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert!(schema["$id"].as_str().unwrap().starts_with("urn:"));
        let mut mappings = 0;
        each(&schema, &mut |part| {
            if let Some(reference) = part.get("$ref").and_then(Value::as_str) {
                let target = reference.strip_prefix('#').and_then(|pointer| schema.pointer(pointer));
                assert!(target.is_some(), "{reference} leads nowhere");
            }
            let Some(properties) = part.get("properties").and_then(Value::as_object) else { return };
            mappings += 1;
            assert_eq!(part.get("additionalProperties"), Some(&Value::Bool(false)), "{part}");
            for (name, property) in properties {
                let description = property.get("description").and_then(Value::as_str).unwrap_or_default();
                assert!(description.len() > 10, "{name} is not described");
            }
        });
        assert_eq!(mappings, MAPPINGS.len());
    }
}
