//! How findings are shown: to people, to programs, and to GitHub.
//!
//! Owns the three formats. It must not know how anything was found. Invariants: nothing that comes
//! from a server or the file can control a terminal or end a line of a format; every finding is
//! shown in every format.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

use super::finding::{Finding, Findings, Severity, Stage};
use crate::cmd::display::{LineColumn, printable};

/// Findings, and the file that they are about.
pub(super) struct CheckReport<'a> {
    path: String,
    text: &'a str,
    findings: &'a Findings,
}

/// The object that `--json` prints.
#[derive(Serialize)]
struct JsonReport<'a> {
    ok: bool,
    findings: Vec<JsonFinding<'a>>,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    id: &'a str,
    severity: &'a str,
    #[serde(rename = "where")]
    place: Option<JsonPlace<'a>>,
    message: &'a str,
    why: &'a str,
    fix: String,
    sql: Vec<&'a str>,
    cost: String,
}

#[derive(Serialize)]
struct JsonPlace<'a> {
    file: &'a str,
    line: usize,
    column: usize,
}

impl<'a> CheckReport<'a> {
    pub(super) fn new(path: &Path, text: &'a str, findings: &'a Findings) -> Self {
        Self { path: path.display().to_string(), text, findings }
    }

    /// What passed, one line each.
    pub(super) fn passed(&self) -> String {
        self.findings.passed.iter().map(|line| format!("{}\n", printable(line))).collect()
    }

    /// The findings for which `shows` is true, each with its place, the reason, and what to do.
    pub(super) fn text(&self, colour: bool, shows: impl Fn(&Finding) -> bool) -> String {
        let mut out = String::new();
        // A statement that fixes several findings is written once.
        let mut written = HashSet::new();
        for finding in self.findings.found.iter().filter(|finding| shows(finding)) {
            match &finding.place {
                Some(place) => self.excerpt(finding, place, colour, &mut out),
                None => {
                    out.push_str(&format!("{}: {}\n", finding.severity.word(), printable(&finding.message)));
                    push_lines("fix", &finding.fix, &mut out);
                }
            }
            push_lines("why", &finding.why, &mut out);
            let statements = finding.statements.iter().filter(|statement| statement.stage != Stage::Events);
            let fresh: Vec<_> = statements.filter(|statement| written.insert(statement.text.as_str())).collect();
            let texts: Vec<_> = fresh.iter().map(|statement| statement.text.as_str()).collect();
            push_lines("run", &texts.join("\n"), &mut out);
            if !fresh.is_empty() {
                push_lines("cost", &finding.cost(), &mut out);
            }
            out.push('\n');
        }
        out
    }

    /// The place in the file, with a caret and what to do.
    fn excerpt(&self, finding: &Finding, place: &Range<usize>, colour: bool, out: &mut String) {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let level = match finding.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let fix = printable_lines(&finding.fix);
        let mut annotation = AnnotationKind::Primary.span(self.within(place));
        if !fix.is_empty() {
            annotation = annotation.label(&fix);
        }
        let snippet = Snippet::source(self.text).path(self.path.as_str()).annotation(annotation);
        let report = [level.primary_title(printable(&finding.message)).element(snippet)];
        out.push_str(&renderer.render(&report));
        out.push('\n');
    }

    /// One object.
    pub(super) fn json(&self) -> String {
        let findings = self.findings.found.iter().map(|finding| {
            let sql = finding.statements.iter().filter(|statement| statement.stage != Stage::Redis);
            JsonFinding {
                id: finding.id,
                severity: finding.severity.word(),
                place: finding.place.as_ref().map(|place| {
                    let LineColumn { line, column } = self.position(place);
                    JsonPlace { file: &self.path, line, column }
                }),
                message: &finding.message,
                why: &finding.why,
                fix: finding.advice(),
                sql: sql.map(|statement| statement.text.as_str()).collect(),
                cost: finding.cost(),
            }
        });
        let ok = self.findings.count(Severity::Error) == 0;
        let json = JsonReport { ok, findings: findings.collect() };
        let mut text = serde_json::to_string(&json).expect("texts and numbers always serialize");
        text.push('\n');
        text
    }

    /// A workflow command for each finding, which GitHub shows at the line.
    pub(super) fn github(&self) -> String {
        let command = |finding: &Finding| {
            let mut properties = String::new();
            if let Some(place) = &finding.place {
                let LineColumn { line, column } = self.position(place);
                properties = format!("file={},line={line},col={column},", property(&self.path));
            }
            let mut message = finding.message.clone();
            for (label, text) in [("why", &finding.why), ("fix", &finding.advice()), ("cost", &finding.cost())] {
                push_github(label, text, &mut message);
            }
            let title = property(&format!("unstale {}", finding.id));
            format!("::{} {properties}title={title}::{}\n", finding.severity.word(), data(&message))
        };
        self.findings.found.iter().map(command).collect()
    }

    /// The span, moved into the text and to character boundaries.
    fn within(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.text.floor_char_boundary(span.start.min(self.text.len()));
        start..self.text.ceil_char_boundary(span.end.clamp(start, self.text.len()))
    }

    fn position(&self, span: &Range<usize>) -> LineColumn {
        LineColumn::of(self.text, span.start)
    }
}

fn push_lines(label: &str, text: &str, out: &mut String) {
    for (number, line) in text.lines().enumerate() {
        let label = if number == 0 { format!("{label}:") } else { String::new() };
        out.push_str(&format!("  {label:5} {}\n", printable(line)));
    }
}

fn push_github(label: &str, text: &str, message: &mut String) {
    if !text.is_empty() {
        message.push_str(&format!("\n{label}: {text}"));
    }
}

/// A text of a workflow command.
fn data(text: &str) -> String {
    printable_lines(text).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property of a workflow command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "version: 1\nrules:\n  é: {x: y}\n";

    fn findings() -> Findings {
        let at = TEXT.find("x: y").unwrap();
        let placed = Finding::error("one", "100% wrong\u{1b}[31m").why("because,\nof this").fix("do: that");
        let placed = Finding { place: Some(at..at + 1), ..placed };
        let server = Finding::warning("two", "slow").statement(Stage::Role, "GRANT a;", "locks nothing");
        let again = Finding::warning("three", "slow, too").statement(Stage::Role, "GRANT a;", "locks nothing");
        Findings { passed: vec!["ok  this".to_owned()], found: vec![placed, server, again] }
    }

    #[test]
    fn people_see_the_place_why_and_what_to_do() {
        let findings = findings();
        let report = CheckReport::new(Path::new("a.yaml"), TEXT, &findings);
        let text = report.text(false, |_| true);
        for part in [
            "error: 100% wrong\\u{1b}[31m",
            "a.yaml:3:",
            "^ do: that",
            "  why:  because,\n        of this\n",
            "warning: slow\n  run:  GRANT a;\n  cost: locks nothing\n\nwarning: slow, too\n\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
        assert_eq!(report.passed(), "ok  this\n");
        assert!(!report.text(false, |finding| finding.id == "two").contains("100%"));
    }

    #[test]
    fn programs_see_one_object() {
        let findings = findings();
        let json = CheckReport::new(Path::new("a.yaml"), TEXT, &findings).json();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["ok"], false);
        assert_eq!(value["findings"][0]["where"], serde_json::json!({"file": "a.yaml", "line": 3, "column": 7}));
        let expected = serde_json::json!({
            "id": "two", "severity": "warning", "where": null, "message": "slow", "why": "",
            "fix": "GRANT a;", "sql": ["GRANT a;"], "cost": "locks nothing"
        });
        assert_eq!(value["findings"][1], expected);
        assert_eq!(json.lines().count(), 1);
    }

    #[test]
    fn github_sees_one_line_a_finding() {
        let findings = findings();
        let lines = CheckReport::new(Path::new("a,b:c.yaml"), TEXT, &findings).github();
        let first = "::error file=a%2Cb%3Ac.yaml,line=3,col=7,title=unstale one::100%25 wrong\\u{1b}[31m\
                     %0Awhy: because,%0Aof this%0Afix: do: that";
        let second = "::warning title=unstale two::slow%0Afix: GRANT a;%0Acost: locks nothing";
        assert_eq!(lines.lines().take(2).collect::<Vec<_>>(), [first, second]);
        assert_eq!(lines.lines().count(), 3);
    }
}
