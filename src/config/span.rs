//! A value and where in the file it stands.
//!
//! Owns positions, in bytes of the file. It must not know YAML.

use std::ops::Range;

/// A value and the bytes of the file that it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place, in bytes.
    pub span: Range<usize>,
}

impl<T> Spanned<T> {
    /// The same place with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned { value: f(self.value), span: self.span }
    }
}

impl Spanned<String> {
    /// The place of a part of the text: exact when the file holds the text as it is, else (it has escapes or
    /// variables) the whole.
    pub fn part(&self, part: &Range<usize>) -> Range<usize> {
        let exact = self.span.len() == self.value.len();
        if exact { self.span.start + part.start..self.span.start + part.end } else { self.span.clone() }
    }
}
