//! The SQL expression for the text of a value.
//!
//! Owns the one text form that keys are made of, wherever the value comes from: the result of the
//! type's output function, as the log has it, but `true` and `false` for a boolean. It must not
//! know rows. The session's settings are those of [`super::session`].

/// The expression for the text of an expression of this type; domains count as the type beneath.
pub(crate) fn text_of(value: &str, base_type: u32) -> String {
    match base_type {
        // A cast to text calls the output function for these types; for others it may not.
        16 | 17 | 20 | 21 | 23 | 25 | 26 | 114 | 700 | 701 | 1043 | 1082 | 1083 | 1114 | 1184 | 1186 | 1266 | 1700
        | 2950 | 3802 => format!("{value}::text"),
        // `is not null` is false for a composite that contains only NULLs.
        _ => format!("case when {value} is distinct from null then format('%s', {value}) end"),
    }
}
