//! A value with its position in the file.
//!
//! Owns positions, in bytes. It must not know YAML.

use std::ops::Range;

/// A value and its position in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// The position, in bytes.
    pub span: Range<usize>,
}

impl<T> Spanned<T> {
    /// The place of a part of the text of `text_len` bytes that this was parsed from: exact when
    /// the file holds the text as it is, else (it has escapes or variables) the whole.
    pub fn part_of_text(&self, text_len: usize, part: &Range<usize>) -> Range<usize> {
        let exact = self.span.len() == text_len;
        if exact { self.span.start + part.start..self.span.start + part.end } else { self.span.clone() }
    }

    /// The same position with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned { value: f(self.value), span: self.span }
    }
}

impl Spanned<String> {
    /// The position of a part of the string. If the file contains the string with escapes or
    /// variables, the position of the whole string.
    pub fn part(&self, part: &Range<usize>) -> Range<usize> {
        self.part_of_text(self.value.len(), part)
    }
}
