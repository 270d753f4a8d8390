//! One op as `dry-run --json` prints it.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::cmd::changes::summary::rule_name;
use crate::plan::{ActionKind, Op, RuleId};
use crate::rules::RuleSet;

/// One op as the JSON that `--json` prints.
#[derive(Serialize)]
pub(super) struct JsonOp<'a> {
    /// With `--diff`: `gained` or `lost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<&'static str>,
    rule: &'a str,
    op: ActionKind,
    key: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

impl<'a> JsonOp<'a> {
    pub(super) fn new(diff: Option<&'static str>, rules: &'a RuleSet, rule: RuleId, op: Op<'a>) -> Self {
        let data = op.data().and_then(|data| serde_json::from_slice::<&RawValue>(data).ok());
        let key = String::from_utf8_lossy(op.name());
        Self { diff, rule: rule_name(rules, rule), op: op.kind(), key, data }
    }
}
