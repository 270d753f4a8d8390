//! Command lines in shell blocks, parsed as far as the documentation uses the shell.
//!
//! Owns words, quotes, comments, pipes and redirections. It must not know any command. Invariant:
//! nothing inside quotes is a separator.

/// The simple commands of a script, each as its words, without redirections and without variables
/// set in front.
pub(super) fn commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut characters = script.chars().peekable();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => match characters.next() {
                Some('\n') | None => {}
                Some(escaped) => word.get_or_insert_default().push(escaped),
            },
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => while characters.next_if(|&c| c != '\n').is_some() {},
            (None, '\n' | '|' | ';' | '&') => {
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    commands.push(words);
    commands.into_iter().map(simple).filter(|command| !command.is_empty()).collect()
}

/// Without leading variables and redirections.
fn simple(words: Vec<String>) -> Vec<String> {
    let is_variable = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        })
    };
    let mut kept = Vec::new();
    let mut words = words.into_iter().skip_while(is_variable);
    while let Some(word) = words.next() {
        match word.as_str() {
            ">" | "<" | ">>" | "2>" => drop(words.next()),
            _ => kept.push(word),
        }
    }
    kept
}

#[test]
fn a_script_is_split_into_commands() {
    let script = "# a comment\nA=b unstale run --flag   # another\necho '{\"a\": \"x|y\"}' |\n  unstale dry-run --file - \\\n    \
                  --json > out.txt && make x ARGS=\"--for 10s\"\n";
    let expected: [&[&str]; 4] = [
        &["unstale", "run", "--flag"],
        &["echo", "{\"a\": \"x|y\"}"],
        &["unstale", "dry-run", "--file", "-", "--json"],
        &["make", "x", "ARGS=--for 10s"],
    ];
    assert_eq!(commands(script), expected);
}
