//! The problems of a file, each with its position.
//!
//! Owns the list of problems and its rendering with line, column and caret. It must not know YAML
//! or rules. Invariant: messages never contain values of environment variables.

use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// One problem of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The position, in bytes of the file.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What was expected, or what to do; it is shown at the caret.
    pub advice: String,
}

/// All problems of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem.
    pub fn push(&mut self, span: Range<usize>, message: impl Into<String>, advice: impl Into<String>) {
        self.0.push(Problem { span, message: message.into(), advice: advice.into() });
    }

    /// Adds the problems of another comparison with the same file.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of problems.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The problems; in the order of the file after [`Problems::sort`].
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// Sorts by position and removes duplicates.
    pub fn sort(&mut self) {
        self.0.sort_by_key(|problem| problem.span.start);
        self.0.dedup();
    }

    /// Renders every problem with `path:line:column`, the line and a caret. `text` may be a part of
    /// the file; it begins at `first_line`.
    pub fn render(&self, path: &str, text: &str, first_line: usize, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut shown = String::new();
        for problem in &self.0 {
            let mut printable = String::new();
            // Writing to a String cannot fail.
            let _ = crate::key::write_printable(&mut printable, problem.message.as_bytes());
            let annotation = AnnotationKind::Primary.span(within(text, &problem.span)).label(&problem.advice);
            let report = [Level::ERROR
                .primary_title(printable)
                .element(Snippet::source(text).line_start(first_line).path(path).annotation(annotation))];
            shown.push_str(&renderer.render(&report));
            shown.push_str("\n\n");
        }
        let count = self.0.len();
        let s = if count == 1 { "" } else { "s" };
        shown.push_str(&format!("{path}: {count} problem{s}\n"));
        shown
    }
}

/// The span, clamped to the text and to its character boundaries.
fn within(text: &str, span: &Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(span.start.min(text.len()));
    let end = text.ceil_char_boundary(span.end.clamp(start, text.len()));
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_its_place() {
        let mut problems = Problems::default();
        problems.push(4..7, "unknown word `two`", "did you mean `too`?");
        let shown = problems.render("a.yaml", "one\ntwo\n", 1, false);
        assert!(shown.contains("a.yaml:2:1"), "{shown}");
        assert!(shown.contains("^^^ did you mean `too`?"), "{shown}");
    }

    #[test]
    fn a_span_outside_the_text_is_harmless() {
        let mut problems = Problems::default();
        problems.push(40..90, "late", "");
        problems.push(1..2, "inside a character", "");
        assert!(problems.render("a.yaml", "é", 1, false).contains("2 problems"));
    }
}
