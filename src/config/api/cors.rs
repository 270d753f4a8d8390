//! `cors:`: which other origins may read.
//!
//! Owns its fields and the syntax of origins. It must not know HTTP.

use std::time::Duration;

use crate::config::fields::Fields;
use crate::config::node::Node;
use crate::config::problem::Problems;
use crate::config::span::Spanned;
use crate::config::units::DAY;

/// Which other origins may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// `*` alone, or origins.
    pub origins: Vec<String>,
    /// How long a browser may cache the response to a preflight.
    pub max_age: Duration,
}

pub(super) fn read_cors(node: Spanned<Node>, problems: &mut Problems) -> Option<Cors> {
    let mut fields = Fields::of(node, "`cors`", problems)?;
    let span = fields.span.clone();
    let has_origins = fields.has_any(&["origins"]);
    let origins = fields.texts("origins");
    if !has_origins {
        let advice = "add `origins: [\"https://app.example.com\"]`, or `\"*\"`";
        fields.problems().push(span, "`cors` has no `origins`", advice);
    }
    let several = origins.len() > 1;
    for origin in &origins {
        let (message, advice) = match &*origin.value {
            "*" if several => ("`*` means every origin", "remove the others, or this one"),
            "*" => continue,
            text if is_origin(text) => continue,
            _ => ("not an origin", "expected `https://app.example.com`, without a path"),
        };
        fields.problems().push(origin.span.clone(), message, advice);
    }
    let max_age = fields.duration("max_age", Duration::ZERO..=DAY).unwrap_or(Duration::from_secs(600));
    fields.finish();
    Some(Cors { origins: origins.into_iter().map(|origin| origin.value).collect(), max_age })
}

/// Whether a browser may send this string as `Origin`.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    !scheme.is_empty() && !host.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) && !host.contains('/')
}
