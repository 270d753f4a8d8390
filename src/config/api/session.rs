//! `session:`: how bearer tokens are resolved.
//!
//! Owns its fields. It must not know reads or how a token is checked.

use std::time::Duration;

use super::on_error::{ON_ERROR, OnError};
use super::path_glob::PathGlob;
use crate::config::fields::{Fields, as_text};
use crate::config::node::Node;
use crate::config::problem::Problems;
use crate::config::span::Spanned;
use crate::config::units::{DAY, SECOND};

/// How bearer tokens are resolved.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// The read that resolves a token.
    pub read: Spanned<String>,
    /// The paths that require a session.
    pub required: Vec<PathGlob>,
    /// The field of the session's JSON with the user's id; none: sessions have no user.
    pub user: Option<String>,
    /// What happens if a token cannot be resolved.
    pub on_error: OnError,
    /// How sessions in use are extended; none: they are not.
    pub sliding: Option<Sliding>,
}

/// How sessions in use are extended.
#[derive(Clone, Debug)]
pub struct Sliding {
    /// The statement; `$1` is the token's SHA-256 in hexadecimal.
    pub sql: Spanned<String>,
    /// A session is extended at most once in this time.
    pub every: Duration,
}

pub(super) fn read_session(node: Spanned<Node>, problems: &mut Problems) -> Option<SessionSettings> {
    let of = |read| SessionSettings {
        read,
        required: Vec::new(),
        user: Some("user_id".to_owned()),
        on_error: OnError::Closed,
        sliding: None,
    };
    let node = match node {
        Spanned { value: Node::Text(value), span } => return Some(of(Spanned { value, span })),
        node => node,
    };
    let mut fields = Fields::of(node, "`session`", problems)?;
    let span = fields.span.clone();
    if !fields.has_any(&["read"]) {
        fields.problems().push(span, "`session` has no `read`", "add `read: NAME`, the read that resolves a token");
    }
    let read = fields.text("read");
    let required: Vec<_> = fields
        .texts("required")
        .into_iter()
        .filter_map(|text| PathGlob::read(text, "required", fields.problems()))
        .collect();
    let user = match fields.take("user") {
        None => Some("user_id".to_owned()),
        Some(Spanned { value: Node::Null, .. }) => None,
        Some(node) => as_text(node, "user", fields.problems()).map(|text| text.value),
    };
    let on_error = fields.word("on_error", &ON_ERROR).unwrap_or(OnError::Closed);
    let sliding = fields.take("sliding").and_then(|node| read_sliding(node, fields.problems()));
    fields.finish();
    Some(SessionSettings { required, user, on_error, sliding, ..of(read?) })
}

fn read_sliding(node: Spanned<Node>, problems: &mut Problems) -> Option<Sliding> {
    let mut fields = Fields::of(node, "`sliding`", problems)?;
    let span = fields.span.clone();
    if !fields.has_any(&["sql"]) {
        let advice = "add `sql: update … where … = $1`; $1 is the token's SHA-256 in hexadecimal";
        fields.problems().push(span, "`sliding` has no `sql`", advice);
    }
    let sql = fields.text("sql");
    let every = fields.duration("every", SECOND..=DAY).unwrap_or(Duration::from_secs(60));
    fields.finish();
    Some(Sliding { sql: sql?, every })
}
