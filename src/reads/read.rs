//! One read, compiled.
//!
//! Owns what a read consists of; `names` and `tags` make names of it. It must not know how a
//! request arrives.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::path::Path;
use crate::config::Spanned;
use crate::rules::{Folding, Reference, Template};

/// A named, cached query.
#[derive(Clone, Debug)]
pub struct Read {
    /// The name in the file.
    pub name: String,
    /// Where the file says the name.
    pub span: Range<usize>,
    /// The path of its requests.
    pub path: Path,
    /// The key of its values, with the namespace.
    pub key: Spanned<Template>,
    /// The sets that its values join, with the namespace.
    pub tags: Vec<Spanned<Template>>,
    /// The version key that its values depend on, with the namespace.
    pub version: Option<Spanned<Template>>,
    /// The query. Its first column is JSON. The second, if there is one, says until when that is
    /// valid.
    pub sql: Spanned<String>,
    /// `$1`, `$2`, … of the query, in this order.
    pub parameters: Vec<Parameter>,
    /// How long a value is served without querying the database.
    pub ttl: Duration,
    /// The largest share of `ttl` that is subtracted at random, from 0 to 0.9.
    pub jitter: f64,
    /// How much longer a value is served while it is refreshed.
    pub stale_while_revalidate: Duration,
    /// How long it is cached that there is no row; None: not at all.
    pub negative_ttl: Option<Duration>,
    /// Cached values are served only if the daemon is at most this far behind.
    pub max_staleness: Duration,
    /// How long the query may take.
    pub timeout: Duration,
    /// Whether a replica may be read.
    pub replica: bool,
    /// The parameters that the key does not name, each with the label under which it is appended.
    pub(super) appended: Vec<(usize, Vec<u8>)>,
    /// The parameters that some template names, and whether one of them folds their case.
    pub(super) named: Vec<(usize, bool)>,
}

/// A parameter of a read, which each request sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The name in templates. The name of a header is in lower case.
    pub name: String,
    /// The part of the request that sets it.
    pub source: ParameterSource,
}

/// The part of a request that sets a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterSource {
    /// A segment of the path.
    Path,
    /// The query string.
    Query,
    /// A header.
    Header,
    /// The bearer token: its sha256 in lower-case hexadecimal digits.
    Session,
}

/// The values of the parameters, in their order. None: absent, or empty outside of the path; NULL
/// in the SQL.
pub type Arguments = [Option<Vec<u8>>];

impl Read {
    /// Folds case in names as this database does.
    pub(super) fn fold_as(&mut self, folding: &Arc<Folding>) {
        let templates = std::iter::once(&mut self.key).chain(&mut self.tags).chain(&mut self.version);
        templates.for_each(|template| template.value.fold_as(folding));
    }

    /// Whether some name folds case.
    pub(super) fn folds_case(&self) -> bool {
        self.references().any(Reference::folds)
    }

    /// The references of all names.
    pub(super) fn references(&self) -> impl Iterator<Item = &Reference> {
        let templates = std::iter::once(&self.key).chain(&self.tags).chain(&self.version);
        templates.flat_map(|template| template.value.references())
    }

    /// The value of the parameter with this name.
    pub(super) fn argument<'a>(&self, name: &str, arguments: &'a Arguments) -> Option<&'a [u8]> {
        let at = self.parameters.iter().position(|parameter| parameter.name == name)?;
        arguments.get(at)?.as_deref()
    }
}
