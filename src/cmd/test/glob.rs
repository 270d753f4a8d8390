//! Which globs cover which names and globs.

/// A token of a glob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GlobToken {
    Byte(u8),
    Any,
}

/// The tokens of a name that is not a glob.
pub(super) fn literal_tokens(name: &[u8]) -> Vec<GlobToken> {
    name.iter().copied().map(GlobToken::Byte).collect()
}

/// The tokens of a glob, as it is written.
pub(super) fn tokens(glob: &[u8]) -> Vec<GlobToken> {
    let mut tokens = Vec::with_capacity(glob.len());
    let mut bytes = glob.iter().copied();
    while let Some(byte) = bytes.next() {
        tokens.push(match byte {
            b'*' => GlobToken::Any,
            b'\\' => GlobToken::Byte(bytes.next().unwrap_or(byte)),
            _ => GlobToken::Byte(byte),
        });
    }
    tokens
}

/// Whether `wide` matches everything that `narrow` matches. Only a star covers a star.
pub(super) fn covers(wide: &[GlobToken], narrow: &[GlobToken]) -> bool {
    let (mut pattern, mut rest) = (wide, narrow);
    // Where to continue if what follows the last star does not match: one token further.
    let mut retry: Option<(&[GlobToken], &[GlobToken])> = None;
    loop {
        match (pattern, rest) {
            ([GlobToken::Any, after @ ..], _) => {
                retry = Some((after, rest));
                pattern = after;
                continue;
            }
            ([], []) => return true,
            ([expected, after @ ..], [found, further @ ..]) if expected == found => {
                (pattern, rest) = (after, further);
                continue;
            }
            _ => {}
        }
        match retry {
            Some((after, [_, further @ ..])) => {
                retry = Some((after, further));
                (pattern, rest) = (after, further);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_covers_what_it_matches_and_narrower_globs() {
        let check = |wide: &str, narrow: &str, expected: bool| {
            assert_eq!(covers(&tokens(wide.as_bytes()), &tokens(narrow.as_bytes())), expected, "{wide} {narrow}");
        };
        check("user:*", "user:7", true);
        check("user:*", "users:7", false);
        check("user:*", "user:*", true);
        check("user:*", "*", false);
        check("search:*:*", "search:7:*", true);
        check("search:7:*", "search:*:*", false);
        check("a*z", "a*b*z", true);
        check("a*z", "a*b", false);
        check(r"a\*", "a*", false);
        check("a*", r"a\*", true);
        check("", "", true);
        check("", "a", false);
    }
}
