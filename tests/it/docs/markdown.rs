//! Just enough Markdown to check the documentation.
//!
//! Owns what a fenced block, a code span, a link, a heading and a table row are. It must not know
//! what any of them should contain. Invariant: what is inside a fenced block is never taken for
//! prose.

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// What follows the opening fence: `yaml`, `yaml fragment`, `sh`.
    pub(super) language: String,
    /// The line of the opening fence, from 1.
    pub(super) line: usize,
    pub(super) text: String,
}

/// A piece of a page, and the line on which it begins, from 1.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) line: usize,
    pub(super) text: String,
}

/// The fenced blocks of a page.
pub(super) fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                open = Some(Block { language: language.trim().to_owned(), line: at + 1, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    blocks
}

/// The page with its fenced blocks blanked, line by line.
fn prose(page: &str) -> String {
    let mut text = String::new();
    let mut is_open = false;
    for line in page.lines() {
        let is_fence = line.starts_with("```");
        if !is_fence && !is_open {
            text.push_str(line);
        }
        text.push('\n');
        is_open ^= is_fence;
    }
    text
}

/// The code spans outside of fenced blocks, each on one line.
pub(super) fn spans(page: &str) -> Vec<Piece> {
    let prose = prose(page);
    let mut spans = Vec::new();
    let mut line = 1;
    for (at, part) in prose.split('`').enumerate() {
        if at % 2 == 1 {
            spans.push(Piece { line, text: part.split_whitespace().collect::<Vec<_>>().join(" ") });
        }
        line += part.matches('\n').count();
    }
    spans
}

/// The targets of the links outside of fenced blocks and code spans.
pub(super) fn links(page: &str) -> Vec<Piece> {
    let prose = prose(page);
    let text: String = prose.split('`').enumerate().map(|(at, part)| if at % 2 == 0 { part } else { "`" }).collect();
    let target = |(line, rest): (usize, &str)| {
        let end = rest.find(')')?;
        Some(Piece { line, text: rest[..end].to_owned() })
    };
    let mut line = 1;
    let mut parts = text.split("](").map(|part| {
        let begins = line;
        line += part.matches('\n').count();
        (begins, part)
    });
    parts.next();
    parts.filter_map(target).collect()
}

/// The headings of a page: level and text.
pub(super) fn headings(page: &str) -> Vec<(usize, String)> {
    let heading = |line: &str| {
        let level = line.bytes().take_while(|&byte| byte == b'#').count();
        let text = line.get(level..)?.strip_prefix(' ')?;
        (level > 0).then(|| (level, text.trim().to_owned()))
    };
    prose(page).lines().filter_map(heading).collect()
}

/// The anchors that GitHub gives to the headings of a page.
pub(super) fn anchors(page: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, heading) in headings(page) {
        let kept = heading.to_lowercase().replace(' ', "-");
        let slug: String = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect();
        let earlier =
            anchors.iter().filter(|anchor| **anchor == slug || anchor.starts_with(&format!("{slug}-"))).count();
        let taken = anchors.contains(&slug);
        anchors.push(if taken { format!("{slug}-{earlier}") } else { slug });
    }
    anchors
}

/// What is below a heading, up to the next heading of the same or of a higher level.
pub(super) fn section(page: &str, heading: &str) -> Option<String> {
    let mut level = None;
    let mut text = String::new();
    let mut is_open = false;
    for line in page.lines() {
        is_open ^= line.starts_with("```");
        let hashes = if is_open { 0 } else { line.bytes().take_while(|&byte| byte == b'#').count() };
        match level {
            None if hashes > 0 && line[hashes..].trim() == heading => level = Some(hashes),
            Some(above) if hashes > 0 && hashes <= above => break,
            Some(_) => {
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    level.map(|_| text)
}

/// The rows of the tables in a text, without their heads. A `\|` is part of its cell.
pub(super) fn rows(text: &str) -> Vec<Vec<String>> {
    let prose = prose(text);
    let lines: Vec<&str> = prose.lines().collect();
    let is_rule = |line: &str| line.starts_with('|') && line.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '));
    let mut rows = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let is_head = lines.get(at + 1).is_some_and(|next| is_rule(next));
        if line.starts_with('|') && !is_rule(line) && !is_head {
            rows.push(cells(line));
        }
    }
    rows
}

fn cells(line: &str) -> Vec<String> {
    let inside = line.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\u{0}");
    inside.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

#[test]
fn a_page_is_parsed() {
    let page = "# A `b` page\n\nSee [x](docs/x.md#y) and\n`code\nspan`.\n\n```yaml fragment\n# no: heading\n`no span`\n```\n\n\
                ## Part\n\n| a | b |\n|---|---|\n| `x` | 1\\|2 |\n\n### Deep\n\ntext\n\n## Part\n";
    let block = Block { language: "yaml fragment".to_owned(), line: 7, text: "# no: heading\n`no span`\n".to_owned() };
    assert_eq!(blocks(page), [block]);
    let spans: Vec<_> = spans(page).into_iter().map(|span| (span.line, span.text)).collect();
    assert_eq!(spans, [(1, "b".to_owned()), (4, "code span".to_owned()), (16, "x".to_owned())]);
    assert_eq!(links(page), [Piece { line: 3, text: "docs/x.md#y".to_owned() }]);
    assert_eq!(anchors(page), ["a-b-page", "part", "deep", "part-1"]);
    assert_eq!(rows(page), [["`x`", "1|2"]]);
    assert!(section(page, "Part").unwrap().contains("### Deep"));
    assert_eq!(section(page, "Nothing"), None);
}
