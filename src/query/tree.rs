//! Parsed queries as PostgreSQL stores them: the text form of node trees (`pg_node_tree`).
//!
//! Owns the syntax of that text. It must not know what a node means. Invariant: any text is
//! handled; one that is malformed or nested too deep has no tree.

use std::str::FromStr;

/// The deepest nesting of lists and nodes. Real queries stay far below it, and it is far from
/// exhausting the stack.
const DEPTH_MAX: usize = 500;

/// A node of a tree.
#[derive(Debug)]
pub(super) enum TreeNode<'a> {
    /// `{NAME :field value …}`. Of several values of a field only the first is kept.
    Object(&'a str, Vec<(&'a str, TreeNode<'a>)>),
    /// `(… …)`
    List(Vec<TreeNode<'a>>),
    /// A number, a string, or `<>`, which means none.
    Word(&'a str),
}

impl<'a> TreeNode<'a> {
    /// Parses the tree at the beginning of a text.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        TreeReader { rest: text }.node(DEPTH_MAX)
    }

    /// The name of an object, else an empty string.
    pub(super) fn name(&self) -> &'a str {
        match self {
            Self::Object(name, _) => name,
            Self::List(_) | Self::Word(_) => "",
        }
    }

    /// Whether it is an object of this name.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name() == name
    }

    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        let Self::Object(_, fields) = self else { return None };
        fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// The word in a field.
    pub(super) fn word(&self, name: &str) -> Option<&'a str> {
        match self.field(name)? {
            Self::Word(word) => Some(*word),
            Self::Object(..) | Self::List(_) => None,
        }
    }

    pub(super) fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        self.word(name)?.parse().ok()
    }

    /// The items of the list in a field.
    pub(super) fn items(&self, name: &str) -> &[Self] {
        match self.field(name) {
            Some(Self::List(items)) => items,
            _ => &[],
        }
    }

    /// The direct children.
    pub(super) fn children(&self) -> Vec<&Self> {
        match self {
            Self::Object(_, fields) => fields.iter().map(|(_, value)| value).collect(),
            Self::List(items) => items.iter().collect(),
            Self::Word(_) => Vec::new(),
        }
    }
}

#[derive(Clone, Copy)]
struct TreeReader<'a> {
    rest: &'a str,
}

impl<'a> TreeReader<'a> {
    fn node(&mut self, depth: usize) -> Option<TreeNode<'a>> {
        let depth = depth.checked_sub(1)?;
        match self.token()? {
            "(" => self.list(depth),
            "{" => self.object(depth),
            ")" | "}" => None,
            word => Some(TreeNode::Word(word)),
        }
    }

    fn list(&mut self, depth: usize) -> Option<TreeNode<'a>> {
        let mut items = Vec::new();
        while self.peek()? != ")" {
            items.push(self.node(depth)?);
        }
        self.token()?;
        Some(TreeNode::List(items))
    }

    fn object(&mut self, depth: usize) -> Option<TreeNode<'a>> {
        let name = self.token()?;
        let mut fields = Vec::new();
        loop {
            let field = match self.token()? {
                "}" => return Some(TreeNode::Object(name, fields)),
                token => token.strip_prefix(':')?,
            };
            // The first value may begin with a colon too, if it is a name.
            fields.push((field, self.node(depth)?));
            while !self.peek()?.starts_with([':', '}']) {
                self.node(depth)?;
            }
        }
    }

    fn peek(&self) -> Option<&'a str> {
        let mut ahead = *self;
        ahead.token()
    }

    fn token(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_start_matches([' ', '\n', '\t']);
        let len = if rest.starts_with(['(', ')', '{', '}']) { 1 } else { word_len(rest) };
        let (token, rest) = rest.split_at_checked(len).filter(|(token, _)| !token.is_empty())?;
        self.rest = rest;
        Some(token)
    }
}

/// The length of a word. A backslash escapes the next character.
fn word_len(text: &str) -> usize {
    let mut is_escaped = false;
    let ends = |character: char| {
        let ends = !is_escaped && matches!(character, ' ' | '\n' | '\t' | '(' | ')' | '{' | '}');
        is_escaped = !is_escaped && character == '\\';
        ends
    };
    text.find(ends).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_read() {
        let text = r#"({A :n 7 :name :odd\ na\}me :list ({B :x <>} "q\)" (b 1 2)) :value 3 [ 1 2 0 ] :last true})"#;
        let Some(TreeNode::List(items)) = TreeNode::parse(text) else { panic!("{text}") };
        let node = &items[0];
        assert!(node.is("A") && !node.is("B"), "{node:?}");
        assert_eq!(node.number::<usize>("n"), Some(7));
        assert_eq!(node.word("name"), Some(r":odd\ na\}me"));
        assert_eq!((node.word("value"), node.word("last"), node.word("list")), (Some("3"), Some("true"), None));
        assert!(node.items("list")[0].is("B") && node.items("list").len() == 3, "{node:?}");
        assert_eq!((node.items("n").len(), node.children().len()), (0, 5));
    }

    #[test]
    fn what_is_no_tree_is_nothing() {
        for text in ["", "(", "{A :n", "{A n}", ")", "{A :n }", &"(".repeat(100_000)] {
            assert!(TreeNode::parse(text).is_none(), "{text:.20}");
        }
    }
}
