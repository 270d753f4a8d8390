//! Conflicts between the reads of a file, and with what is reserved.
//!
//! Owns the comparison of paths and of the names that reads cache under. It must not know how a
//! read is compiled. Invariant: no two reads answer one path or may ever cache under one name.

use super::read::Read;
use crate::config::Problems;
use crate::key::{Glob, RESERVED, TAG};

/// The API's own paths.
const RESERVED_PATHS: [&str; 4] = ["/stats", "/events", "/openapi.json", "/healthz"];

/// Adds every conflict to the problems.
pub(super) fn check(reads: &[Read], namespace: &str, problems: &mut Problems) {
    check_paths(reads, problems);
    check_reserved(reads, namespace, problems);
    check_names(reads, problems);
}

fn check_paths(reads: &[Read], problems: &mut Problems) {
    let mut router = matchit::Router::new();
    for read in reads {
        let (path, name) = (read.path.as_str(), &read.name);
        if RESERVED_PATHS.contains(&path) {
            problems.push(read.path.span(), "the API itself uses this path", "choose another path");
        }
        let message = match router.insert(path, ()) {
            Ok(()) => continue,
            Err(matchit::InsertError::Conflict { with }) => {
                let other = reads.iter().find(|other| other.path.as_str() == with);
                let other = other.map_or(with.as_str(), |other| other.name.as_str());
                format!("read `{name}` has the same path as read `{other}`")
            }
            Err(error) => format!("the path of read `{name}` is not valid: {error}"),
        };
        problems.push(read.path.span(), message, "choose another path");
    }
}

/// Whether a name may begin like what the namespace reserves.
fn check_reserved(reads: &[Read], namespace: &str, problems: &mut Problems) {
    for (beginning, what) in [(RESERVED, "the state of unstale"), (TAG, "the sets of `tags`")] {
        let mut reserved = Glob::new();
        reserved.push_literal(format!("{namespace}{beginning}").as_bytes());
        reserved.push_any();
        for name in reads.iter().flat_map(|read| read.version.iter().chain([&read.key])) {
            if name.value.glob().intersects(&reserved) {
                let message = format!("names that begin with `{beginning}` are reserved for {what}");
                problems.push(name.span.clone(), message, "choose another prefix");
            }
        }
    }
}

/// Whether a name of one read may be a name of another one.
fn check_names(reads: &[Read], problems: &mut Problems) {
    let globs: Vec<_> = reads.iter().map(|read| (read, read.glob())).collect();
    for (at, (read, glob)) in globs.iter().enumerate() {
        if let Some((other, _)) = globs.iter().take(at).find(|(_, other)| glob.intersects(other)) {
            let message = format!("a key of read `{}` may equal a key of read `{}`", read.name, other.name);
            problems.push(read.key.span.clone(), message, "give each a prefix of its own");
        }
        let is_version =
            |other: &&Read| other.version.as_ref().is_some_and(|version| version.value.glob().intersects(glob));
        if let Some(other) = reads.iter().find(is_version) {
            let message = format!("a key of read `{}` may equal a version key of read `{}`", read.name, other.name);
            problems.push(read.key.span.clone(), message, "give each a prefix of its own");
        }
    }
}
