//! The columns that a condition reads, and what they stand for in one change.
//!
//! Owns these words. It must not know CEL.

use std::ops::Range;

use crate::change::ColumnKind;
use crate::rules::template::Image;

/// A column that a condition reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnUse {
    /// The row before or the row after.
    pub image: Image,
    /// The column's name.
    pub column: String,
    /// Where the text first names it.
    pub span: Range<usize>,
}

/// What a [`ColumnUse`] stands for in one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnOperand<'a> {
    /// A value, in PostgreSQL's text format, and what it is.
    Value(&'a [u8], ColumnKind),
    /// NULL, or the change has no such image.
    Null,
    /// Not carried by the log.
    Absent,
}
