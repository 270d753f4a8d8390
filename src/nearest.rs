//! The known name that a misspelt name probably means.
//!
//! Owns the largest distance between the two. It must not know what is named. Invariant: it only
//! advises; nothing is corrected.

/// The known name that `name` probably means, if one is near enough.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(name.len().max(candidate.len()) / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("delte", ["delete", "table"]), Some("delete"));
        assert_eq!(nearest("Emial", ["id", "email"]), Some("email"));
        assert_eq!(nearest("frobnicate", ["id", "email"]), None);
    }
}
