//! What the names of a condition stand for.
//!
//! Owns binding: every `old.x` becomes one flat variable that is found without building a map, and
//! every other name is known or refused. It must not know types. Invariant: evaluation meets no
//! name that has not been seen here.

use std::collections::HashMap;
use std::ops::Range;

use cel::common::ast::operators::INDEX;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, SourceInfo};
use cel::common::types::CelString;

use super::error::InvalidCondition;
use super::functions::{FUNCTIONS, MACROS, METHODS, find, is_operator};
use super::operand::ColumnUse;
use super::{engine, value};
use crate::nearest::nearest;
use crate::rules::template::Image;

/// A condition whose names are bound.
#[derive(Clone, Debug)]
pub(super) struct BoundExpression {
    /// The text that it was parsed from.
    pub(super) text: String,
    /// The tree, in which columns and `commit.at` are variables by the names that `value` gives
    /// them.
    pub(super) tree: IdedExpr,
    pub(super) columns: Vec<ColumnUse>,
    /// The place of each node of the tree, as far as the parser tells it.
    pub(super) spans: HashMap<u64, Range<usize>>,
    /// Whether its value depends on the change at all.
    pub(super) depends: bool,
    pub(super) reads_commit_time: bool,
}

const VARIABLES: [&str; 5] = ["old", "new", "op", "table", "commit"];

/// Binds the names of a tree.
pub(super) fn bind(text: &str, mut tree: IdedExpr, source: &SourceInfo) -> Result<BoundExpression, InvalidCondition> {
    let mut binder = ExpressionBinder { text, source, element: None, bound: BoundNames::default() };
    binder.expression(&mut tree)?;
    let BoundNames { columns, spans, depends, reads_commit_time } = binder.bound;
    Ok(BoundExpression { text: text.to_owned(), tree, columns, spans, depends, reads_commit_time })
}

/// What binding finds out about a tree.
#[derive(Default)]
struct BoundNames {
    columns: Vec<ColumnUse>,
    spans: HashMap<u64, Range<usize>>,
    depends: bool,
    reads_commit_time: bool,
}

struct ExpressionBinder<'a> {
    text: &'a str,
    source: &'a SourceInfo,
    /// The variable of the macro around the expression at hand.
    element: Option<String>,
    bound: BoundNames,
}

impl ExpressionBinder<'_> {
    fn expression(&mut self, expression: &mut IdedExpr) -> Result<(), InvalidCondition> {
        let id = expression.id;
        let token = self.token(id);
        self.bound.spans.insert(id, token.clone());
        if let Some((variable, span)) = self.reference(&expression.expr)? {
            self.bound.spans.insert(id, span);
            expression.expr = Expr::Ident(variable);
            return Ok(());
        }
        match &mut expression.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.variable(name, token),
            Expr::Select(select) => {
                let span = match select.test {
                    true => self.before(&token, "has").start..token.end,
                    false => token.start..self.after(token.end, &select.field).unwrap_or(token.end),
                };
                self.bound.spans.insert(id, span);
                self.expression(&mut select.operand)
            }
            Expr::Call(call) => self.call(id, call, token),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, &token),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.expression(element)),
            Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.expression(&mut entry.key)?;
                    self.expression(&mut entry.value)
                }
                EntryExpr::StructField(_) => Err(no_structs(token.clone())),
            }),
            Expr::Struct(_) | Expr::Unspecified => Err(no_structs(token)),
        }
    }

    /// The variable for a column or for `commit.at`, and its place, if the expression is one.
    fn reference(&mut self, expression: &Expr) -> Result<Option<(String, Range<usize>)>, InvalidCondition> {
        match expression {
            Expr::Select(SelectExpr { operand, field, test }) => {
                let Expr::Ident(root) = &operand.expr else { return Ok(None) };
                let span = self.member(operand.id, field);
                match (root.as_str(), image(root)) {
                    (_, Some(image)) => Ok(Some((self.column(image, field, &span, *test), span))),
                    ("commit", _) if field == "at" => {
                        self.bound.depends = true;
                        self.bound.reads_commit_time = true;
                        let variable = if *test { value::COMMIT_TIME_IS_KNOWN } else { value::COMMIT_TIME };
                        Ok(Some((variable.to_owned(), span)))
                    }
                    ("commit", _) => {
                        let message = format!("unknown variable `commit.{field}`");
                        Err(InvalidCondition::new(span, message, "of a commit there is only `commit.at`"))
                    }
                    _ => Ok(None),
                }
            }
            Expr::Call(CallExpr { func_name, args, .. }) if func_name == INDEX => {
                let [object, index] = args.as_slice() else { return Ok(None) };
                let Expr::Ident(root) = &object.expr else { return Ok(None) };
                let Some(image) = image(root) else { return Ok(None) };
                let span = self.token(object.id);
                let Expr::Literal(LiteralValue::String(name)) = &index.expr else {
                    let message = format!("the column of `{root}` is not named");
                    return Err(InvalidCondition::new(span, message, format!("name it, as in `{root}[\"name\"]`")));
                };
                let last = self.token(index.id).end;
                let span = span.start..self.after(last, "]").unwrap_or(last);
                Ok(Some((self.column(image, name.inner(), &span, false), span)))
            }
            _ => Ok(None),
        }
    }

    fn column(&mut self, image: Image, name: &str, span: &Range<usize>, test: bool) -> String {
        self.bound.depends = true;
        let columns = &mut self.bound.columns;
        let known = columns.iter().position(|used| used.image == image && used.column == name);
        let at = known.unwrap_or_else(|| {
            columns.push(ColumnUse { image, column: name.to_owned(), span: span.clone() });
            columns.len() - 1
        });
        if test { value::column_is_known(at) } else { value::column(at) }
    }

    fn variable(&mut self, name: &str, span: Range<usize>) -> Result<(), InvalidCondition> {
        let error = |message: String, advice: String| Err(InvalidCondition::new(span.clone(), message, advice));
        match name {
            "op" | "table" => {
                self.bound.depends = true;
                Ok(())
            }
            "old" | "new" => {
                let operation = if name == "old" { "insert" } else { "delete" };
                let advice = format!("name a column, as in `{name}.id`; without such a row, `op == '{operation}'`");
                error(format!("`{name}` alone is no value"), advice)
            }
            "commit" => error("`commit` alone is no value".to_owned(), "write `commit.at`".to_owned()),
            // The parser's own, in what it makes of macros: no name in CEL begins so.
            _ if name.starts_with('@') => Ok(()),
            _ if self.element.as_deref() == Some(name) => Ok(()),
            _ if engine::environment().types().find_type(name).is_some() => Ok(()),
            _ => {
                let advice = match nearest(name, VARIABLES.into_iter().chain(self.element.as_deref())) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => {
                        format!("a column is `old.{name}` or `new.{name}`; there are `op`, `table` and `commit.at`")
                    }
                };
                error(format!("unknown variable `{name}`"), advice)
            }
        }
    }

    fn call(&mut self, id: u64, call: &mut CallExpr, token: Range<usize>) -> Result<(), InvalidCondition> {
        let mut span = token;
        if !is_operator(&call.func_name) {
            let name = self.before(&span, &call.func_name);
            known(call, &name)?;
            span = name.start..span.end;
            self.bound.spans.insert(id, span.clone());
        }
        if let Some(target) = call.target.as_deref_mut() {
            self.expression(target)?;
        }
        call.args.iter_mut().try_for_each(|argument| self.expression(argument))?;
        if call.func_name == "matches" {
            self.pattern(call)?;
        }
        let literal = |argument: &IdedExpr| matches!(argument.expr, Expr::Literal(_));
        if call.target.is_some() || call.args.is_empty() || !call.args.iter().all(literal) {
            return Ok(());
        }
        // What is the same for every row, such as `timestamp('2026-13-01')`, fails now rather than
        // with every row.
        let whole = IdedExpr { id, expr: Expr::Call(call.clone()) };
        engine::run(&whole, None).map(|_| ()).map_err(|error| {
            let span = call.args.iter().fold(span, |whole, argument| join(whole, self.token(argument.id)));
            let span = span.start..self.after(span.end, ")").unwrap_or(span.end);
            InvalidCondition::new(span, format!("this always fails: {}", engine::reason(&error)), "correct it")
        })
    }

    /// Checks what `matches` looks for. The expression is compiled anew for every row, so it had
    /// better be right.
    fn pattern(&self, call: &CallExpr) -> Result<(), InvalidCondition> {
        let Some(pattern) = call.args.last() else { return Ok(()) };
        let span = self.bound.spans.get(&pattern.id).cloned().unwrap_or(0..self.text.len());
        if !matches!(pattern.expr, Expr::Literal(LiteralValue::String(_))) {
            let advice = "write it in quotes, as in `matches('^a')`";
            return Err(InvalidCondition::new(span, "the regular expression is not a literal", advice));
        }
        if self.element.is_some() {
            let advice = "use `contains`, `startsWith` or `endsWith`";
            return Err(InvalidCondition::new(span, "`matches` for every element of a list", advice));
        }
        let nothing = IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::String(CelString::from(""))) };
        let arguments = vec![nothing, pattern.clone()];
        let trial = CallExpr { func_name: "matches".to_owned(), target: None, args: arguments };
        match engine::run(&IdedExpr { id: 0, expr: Expr::Call(trial) }, None) {
            Ok(_) => Ok(()),
            Err(_) => {
                let advice = "expected the syntax of https://docs.rs/regex, in `r'…'` so that backslashes stay";
                Err(InvalidCondition::new(span, "not a regular expression", advice))
            }
        }
    }

    /// What a macro was rewritten to. One inside another would cost the square of what a row holds.
    fn comprehension(&mut self, tree: &mut ComprehensionExpr, token: &Range<usize>) -> Result<(), InvalidCondition> {
        self.expression(&mut tree.iter_range)?;
        let name = tree.iter_var.as_str();
        let start = self.after(token.end, name).map(|end| end - name.len());
        let span = start.map_or(token.clone(), |start| start..start + name.len());
        if self.element.is_some() {
            let advice = "put one after the other, or use `in`";
            return Err(InvalidCondition::new(span, "a macro inside another", advice));
        }
        if VARIABLES.contains(&name) || name.starts_with('.') {
            let message = format!("`{name}` cannot name the elements of a list");
            return Err(InvalidCondition::new(span, message, "choose another name, as in `exists(x, x == 1)`"));
        }
        self.element = Some(name.to_owned());
        for part in [&mut tree.accu_init, &mut tree.loop_cond, &mut tree.loop_step, &mut tree.result] {
            self.expression(part)?;
        }
        self.element = None;
        Ok(())
    }

    /// The place of the token that a node was made of: of an operator or call, only the operator or
    /// bracket.
    fn token(&self, id: u64) -> Range<usize> {
        let whole = self.text.len();
        let Some((first, last)) = self.source.offset_for(id) else { return 0..whole };
        let place = |offset: u32| usize::try_from(offset).unwrap_or(whole);
        let start = place(first).min(whole);
        start..place(last).saturating_add(1).clamp(start, whole)
    }

    fn after(&self, at: usize, word: &str) -> Option<usize> {
        after(self.text, at, word)
    }

    /// The place of the word before a token; of the token itself if it is another.
    fn before(&self, token: &Range<usize>, word: &str) -> Range<usize> {
        let before = self.text.get(..token.start).unwrap_or_default().trim_end();
        if before.ends_with(word) { before.len() - word.len()..before.len() } else { token.clone() }
    }

    /// The place of `root.field`.
    fn member(&self, root: u64, field: &str) -> Range<usize> {
        let root = self.token(root);
        let end = self.after(root.end, ".").and_then(|at| self.after(at, field));
        root.start..end.unwrap_or(root.end)
    }
}

/// Where a word ends that follows at a place of the text, with nothing but blanks before it.
pub(super) fn after(text: &str, at: usize, word: &str) -> Option<usize> {
    let rest = text.get(at..)?;
    let found = rest.trim_start();
    found.starts_with(word).then(|| at + rest.len() - found.len() + word.len())
}

/// The smallest place that holds both.
pub(super) fn join(one: Range<usize>, other: Range<usize>) -> Range<usize> {
    one.start.min(other.start)..one.end.max(other.end)
}

fn image(root: &str) -> Option<Image> {
    match root {
        "old" => Some(Image::Old),
        "new" => Some(Image::New),
        _ => None,
    }
}

fn no_structs(span: Range<usize>) -> InvalidCondition {
    InvalidCondition::new(span, "there are no messages to construct", "expected an expression over `old` and `new`")
}

/// Whether a call names a function that takes so many arguments.
fn known(call: &CallExpr, span: &Range<usize>) -> Result<(), InvalidCondition> {
    let name = call.func_name.as_str();
    let is_method = call.target.is_some();
    let (table, other) = if is_method { (METHODS, FUNCTIONS) } else { (FUNCTIONS, METHODS) };
    let (message, advice) = match find(table, name) {
        Some(function) if function.takes_count(call.args.len() + usize::from(is_method)) => return Ok(()),
        Some(_) => {
            let given = call.args.len();
            let s = if given == 1 { "" } else { "s" };
            (format!("`{name}` does not take {given} argument{s}"), "see the list of functions of CEL".to_owned())
        }
        None => (format!("unknown function `{name}`"), advice_for(name, is_method, find(other, name).is_some())),
    };
    Err(InvalidCondition::new(span.clone(), message, advice))
}

fn advice_for(name: &str, is_method: bool, is_known_otherwise: bool) -> String {
    if name == "has" {
        return "it asks for a field, as in `has(old.data.plan)`".to_owned();
    }
    if MACROS.contains(&name) {
        return format!("it goes through a list, as in `new.tags.{name}(tag, tag == 'x')`");
    }
    if is_known_otherwise {
        let call = if is_method { format!("`{name}(new.name)`") } else { format!("`new.name.{name}(…)`") };
        return format!("it is called as {call}");
    }
    let functions = if is_method { METHODS } else { FUNCTIONS };
    match nearest(name, functions.iter().map(|function| function.name).chain(MACROS.iter().copied())) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "there are `size`, `contains`, `startsWith`, `endsWith`, `matches`, `int`, `timestamp` and others"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Condition;

    #[test]
    fn a_name_that_means_nothing_is_refused() {
        let check = |text: &str, at: &str, advice: &str| {
            let error = Condition::parse(text).map(|_| ()).unwrap_err();
            let found = text.get(error.span.clone()).unwrap();
            assert!(found == at && error.advice.contains(advice), "{text}: {error:?}");
        };
        check("old == null", "old", "`op == 'insert'`");
        check("new != null && new.a == 1", "new", "`op == 'delete'`");
        check("nwe.name == 'x'", "nwe", "did you mean `new`?");
        check("name == 'x'", "name", "`old.name` or `new.name`");
        check(".op == 'x'", "op", "op");
        check("commit == 1", "commit", "`commit.at`");
        check("commit . lsn == 1", "commit . lsn", "`commit.at`");
        check("old[new.name] == 1", "old", "`old[\"name\"]`");
        check("sise(old.name) > 3", "sise", "did you mean `size`?");
        check("old.name.startWith('x')", "startWith", "did you mean `startsWith`?");
        check("startsWith(old.name, 'x')", "startsWith", "`new.name.startsWith(…)`");
        check("timestamp(old.a, 'x') == commit.at", "timestamp", "functions of CEL");
        check("new.tags.exist(t, t == 1)", "exist", "did you mean `exists`?");
        check("new.tags.exists(t)", "exists", "goes through a list");
        check("new.tags.all(x, x.all(y, y))", "y", "`in`");
        check("new.tags.all(op, op == 1)", "op", "another name");
        check("new.tags.all(x, x.matches('a'))", "'a'", "contains");
        check("new.a.matches(new.b)", "new.b", "in quotes");
        check("new.a.matches('(')", "'('", "regex");
        check("commit.at > timestamp('soon')", "timestamp('soon')", "correct");
        check("new.a == 1 + 'a'", "1 + 'a'", "correct");
        check("Row{a: 1} == new.a", "{", "`old` and `new`");
    }
}
