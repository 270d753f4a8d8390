//! Templates as text, for messages and comparisons.
//!
//! Owns the canonical spelling: the namespace in front, no blanks.

use super::template::{Image, Reference, Template, TemplatePart};

/// A template as the file would say it, its namespace in front and without blanks.
pub(super) fn spell(template: &Template) -> String {
    let part = |part: &TemplatePart| match part {
        TemplatePart::Literal(literal) => String::from_utf8_lossy(literal).replace('{', "{{").replace('}', "}}"),
        TemplatePart::Reference(reference) => spell_reference(reference),
        TemplatePart::Any => "*".to_owned(),
    };
    template.parts().iter().map(part).collect()
}

pub(super) fn spell_reference(reference: &Reference) -> String {
    let image = match reference.image {
        Image::Either => "",
        Image::Old => "old.",
        Image::New => "new.",
        Image::Lookup => "lookup.",
    };
    let filters: String = reference.filters.iter().map(|filter| format!("|{}", filter.word())).collect();
    format!("{{{image}{}{filters}}}", reference.column)
}
