//! A tag and its generation, as the line of a value names them.
//!
//! Owns the text, which clients in other languages also read and write. It must not know Redis.
//! Invariant: what is read is what was written, whatever bytes a tag consists of.

/// The most digits of a generation; this library makes 32.
const GENERATION_DIGITS_MAX: usize = 64;

/// A tag and the generation that it had before the value was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagGeneration {
    /// The name of the tag, without the namespace and `tag:`. Any bytes.
    pub tag: Vec<u8>,
    /// Letters and digits.
    pub generation: String,
}

impl TagGeneration {
    /// The tags in the line of a value: `generation:tag`, separated by commas. Bytes of a tag other
    /// than ASCII letters, digits and `-._~:` are percent-encoded.
    pub(super) fn encode(tags: &[Self]) -> String {
        let mut text = String::new();
        for Self { tag, generation } in tags {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(generation);
            text.push(':');
            for &byte in tag {
                if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    text.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        text
    }

    /// Reads what [`TagGeneration::encode`] wrote. None if it is something else.
    pub(super) fn decode(text: &str) -> Option<Vec<Self>> {
        text.split(',').map(Self::decode_one).collect()
    }

    fn decode_one(text: &str) -> Option<Self> {
        let (generation, encoded) = text.split_once(':')?;
        let mut tag = Vec::with_capacity(encoded.len());
        let mut bytes = encoded.bytes();
        while let Some(byte) = bytes.next() {
            let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
            tag.push(if byte == b'%' { u8::try_from(digit()? * 16 + digit()?).ok()? } else { byte });
        }
        is_generation(generation.as_bytes()).then(|| Self { tag, generation: generation.to_owned() })
    }
}

/// Whether it can be part of the line of a value.
pub(super) fn is_generation(text: &[u8]) -> bool {
    (1..=GENERATION_DIGITS_MAX).contains(&text.len()) && text.iter().all(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag(tag: &[u8], generation: &str) -> TagGeneration {
        TagGeneration { tag: tag.to_vec(), generation: generation.to_owned() }
    }

    proptest! {
        #[test]
        fn tags_survive_the_line_of_a_value(tags in prop::collection::vec((any::<Vec<u8>>(), "[0-9a-f]{1,64}"), 1..4)) {
            let tags: Vec<_> = tags.iter().map(|(name, generation)| tag(name, generation)).collect();
            let text = TagGeneration::encode(&tags);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(TagGeneration::decode(&text), Some(tags));
        }
    }

    #[test]
    fn a_line_that_no_client_wrote_has_no_tags() {
        for text in ["", "7", ":t", "7:t,", "a b:t", "7:%", "7:%f", "7:%zz", "+:t"] {
            assert_eq!(TagGeneration::decode(text), None, "{text}");
        }
        assert_eq!(TagGeneration::decode("7:a%2cb"), Some(vec![tag(b"a,b", "7")]));
    }
}
