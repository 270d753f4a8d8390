//! The types of a condition, as far as a table's columns tell them.
//!
//! Owns what is reported before any row is seen: the `cel` crate finds a wrong type only when it
//! evaluates. It must not know catalogs. Invariant: what it reports fails, or decides nothing, for
//! every row; NULL is no type, since any column may be it.

use std::ops::Range;

use cel::common::ast::operators::{
    CONDITIONAL, EQUALS, GREATER, GREATER_EQUALS, IN, INDEX, LESS, LESS_EQUALS, LOGICAL_AND, LOGICAL_NOT, LOGICAL_OR,
    NEGATE, NOT_EQUALS,
};
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};

use super::bind::{BoundExpression, after, join};
use super::error::InvalidCondition;
use super::functions::{CelType, FUNCTIONS, METHODS, arithmetic, find, is_operator, symbol};
use super::value;
use crate::change::ColumnKind;

/// What is wrong with the types of a condition.
pub(super) fn check(
    condition: &BoundExpression,
    kind_of: &dyn Fn(&str) -> Option<ColumnKind>,
) -> Vec<InvalidCondition> {
    let mut checker = Checker { condition, kind_of, macros: Vec::new(), found: Vec::new() };
    let result = checker.infer(&condition.tree);
    if !result.may_be(CelType::Bool) {
        let message = format!("the condition is {}, not true or false", result.noun());
        checker.report(0..condition.text.len(), message, "compare it with something");
    }
    checker.found
}

struct Checker<'a> {
    condition: &'a BoundExpression,
    kind_of: &'a dyn Fn(&str) -> Option<ColumnKind>,
    /// The variables of the macros around the expression at hand, the innermost last.
    macros: Vec<(&'a str, CelType)>,
    found: Vec<InvalidCondition>,
}

impl<'a> Checker<'a> {
    fn report(&mut self, span: Range<usize>, message: String, advice: impl Into<String>) {
        self.found.push(InvalidCondition::new(span, message, advice));
    }

    fn infer(&mut self, expression: &'a IdedExpr) -> CelType {
        match &expression.expr {
            Expr::Literal(literal) => of_literal(literal),
            Expr::Ident(name) => self.variable(name),
            Expr::Call(call) => self.call(expression, call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Select(select) => {
                let object = self.infer(&select.operand);
                if !object.may_be(CelType::Map) {
                    let message = format!("{} has no field `{}`", object.noun(), select.field);
                    self.report(self.span(expression), message, "only JSON has fields");
                }
                if select.test { CelType::Bool } else { CelType::Any }
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.infer(element);
                }
                CelType::List
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.infer(&entry.key);
                        self.infer(&entry.value);
                    }
                }
                CelType::Map
            }
            Expr::Struct(_) | Expr::Unspecified => CelType::Any,
        }
    }

    fn variable(&self, name: &str) -> CelType {
        if let Some((_, known)) = self.macros.iter().rev().find(|(variable, _)| *variable == name) {
            return *known;
        }
        if let Some(used) = value::column_of(name).and_then(|at| self.condition.columns.get(at)) {
            return (self.kind_of)(&used.column).map_or(CelType::Any, CelType::of_kind);
        }
        match name {
            "op" | "table" => CelType::Text,
            value::COMMIT_TIME => CelType::Timestamp,
            // The rest of our own ask whether something is known.
            _ if name.starts_with('@') => CelType::Bool,
            _ => CelType::Name,
        }
    }

    fn call(&mut self, expression: &'a IdedExpr, call: &'a CallExpr) -> CelType {
        if !is_operator(&call.func_name) {
            return self.function(expression, call);
        }
        let arguments: Vec<CelType> = call.args.iter().map(|argument| self.infer(argument)).collect();
        let operator = call.func_name.as_str();
        match (operator, arguments.as_slice()) {
            (LOGICAL_AND | LOGICAL_OR | LOGICAL_NOT, types) => {
                for (argument, found) in call.args.iter().zip(types) {
                    self.require_bool(argument, *found, operator);
                }
                CelType::Bool
            }
            (CONDITIONAL, &[test, yes, no]) => {
                if let Some(argument) = call.args.first() {
                    self.require_bool(argument, test, operator);
                }
                if yes == no { yes } else { CelType::Any }
            }
            (NEGATE, &[number]) => {
                if !number.may_be(CelType::Int) && !number.may_be(CelType::Double) {
                    let message = format!("`-` does not take {}", number.noun());
                    self.report(self.span(expression), message, "it takes a number");
                }
                number
            }
            (IN, &[item, collection]) => self.membership(call, item, collection),
            (INDEX, &[object, index]) => self.index(expression, object, index),
            (_, &[left, right]) => self.binary(expression, operator, left, right),
            _ => CelType::Any,
        }
    }

    fn binary(&mut self, expression: &'a IdedExpr, operator: &str, left: CelType, right: CelType) -> CelType {
        let (result, fits, why) = match operator {
            EQUALS | NOT_EQUALS => (CelType::Bool, left.may_equal(right), "which are never equal"),
            LESS | LESS_EQUALS | GREATER | GREATER_EQUALS => {
                (CelType::Bool, left.may_precede(right), "which have no order")
            }
            _ => {
                let result = arithmetic(operator, left, right);
                (result.unwrap_or(CelType::Any), result.is_some(), "which it is not defined for")
            }
        };
        if !fits {
            let message = format!("`{}` between {} and {}, {why}", symbol(operator), left.noun(), right.noun());
            self.report(self.span(expression), message, advice_for(left, right));
        }
        result
    }

    fn function(&mut self, expression: &'a IdedExpr, call: &'a CallExpr) -> CelType {
        let table = if call.target.is_some() { METHODS } else { FUNCTIONS };
        let all = call.target.as_deref().into_iter().chain(&call.args);
        let arguments: Vec<CelType> = all.map(|argument| self.infer(argument)).collect();
        let Some(function) = find(table, &call.func_name) else { return CelType::Any };
        if !function.accepts(&arguments) {
            let message = format!("`{}` does not take {}", function.name, nouns(&arguments));
            let takes: Vec<String> = function.takes.iter().map(|overload| nouns(overload)).collect();
            self.report(self.span(expression), message, format!("it takes {}", takes.join(", or ")));
        }
        function.gives
    }

    fn membership(&mut self, call: &'a CallExpr, item: CelType, collection: CelType) -> CelType {
        let Some(argument) = call.args.last() else { return CelType::Bool };
        if !collection.may_be(CelType::List) && !collection.may_be(CelType::Map) {
            let message = format!("`in` looks into a list or a map, not into {}", collection.noun());
            let advice =
                if collection == CelType::Text { "use `contains`" } else { "write a list, as in `['a', 'b']`" };
            self.report(self.span(argument), message, advice);
        }
        if let Expr::List(list) = &argument.expr {
            for element in &list.elements {
                // Whatever is wrong inside it has been reported when the list was looked at.
                let Expr::Literal(literal) = &element.expr else { continue };
                let found = of_literal(literal);
                if !item.may_equal(found) {
                    let message = format!("{} is looked for, which is never {}", item.noun(), found.noun());
                    self.report(self.span(element), message, advice_for(item, found));
                }
            }
        }
        CelType::Bool
    }

    fn index(&mut self, expression: &'a IdedExpr, object: CelType, index: CelType) -> CelType {
        let fits = match object {
            CelType::List => index.is_numeric() || index == CelType::Any,
            CelType::Any | CelType::Map => true,
            _ => false,
        };
        if !fits {
            let message = format!("{} cannot be indexed by {}", object.noun(), index.noun());
            self.report(self.span(expression), message, "only JSON and lists have elements");
        }
        CelType::Any
    }

    /// A macro: its step folds the elements into what it began with.
    fn comprehension(&mut self, tree: &'a ComprehensionExpr) -> CelType {
        let range = self.infer(&tree.iter_range);
        if !range.may_be(CelType::List) && !range.may_be(CelType::Map) {
            let message = format!("a macro goes through a list or a map, not through {}", range.noun());
            self.report(self.span(&tree.iter_range), message, "only JSON has elements");
        }
        let begun = self.infer(&tree.accu_init);
        let outside = self.macros.len();
        self.macros.extend([(tree.accu_var.as_str(), begun), (tree.iter_var.as_str(), CelType::Any)]);
        self.infer(&tree.loop_step);
        let result = self.infer(&tree.result);
        self.macros.truncate(outside);
        result
    }

    fn require_bool(&mut self, argument: &'a IdedExpr, found: CelType, operator: &str) {
        if !found.may_be(CelType::Bool) {
            let message = format!("`{}` takes true or false, not {}", symbol(operator), found.noun());
            self.report(self.span(argument), message, "compare it with something");
        }
    }

    /// The place of a whole expression: its own token and those of its parts.
    fn span(&self, expression: &IdedExpr) -> Range<usize> {
        let own = self.condition.spans.get(&expression.id).cloned().unwrap_or(0..self.condition.text.len());
        let (parts, closed): (Vec<&IdedExpr>, bool) = match &expression.expr {
            Expr::Call(call) => {
                let closed = !is_operator(&call.func_name) || call.func_name == INDEX;
                (call.target.as_deref().into_iter().chain(&call.args).collect(), closed)
            }
            Expr::Select(select) => (vec![&*select.operand], select.test),
            Expr::List(list) => (list.elements.iter().collect(), true),
            Expr::Comprehension(tree) => (vec![&tree.iter_range, &tree.loop_step], true),
            _ => (Vec::new(), false),
        };
        let span = parts.into_iter().fold(own, |whole, part| join(whole, self.span(part)));
        let text = &self.condition.text;
        let end = match &expression.expr {
            Expr::Select(select) if select.test => {
                after(text, span.end, ".").and_then(|at| after(text, at, &select.field)).unwrap_or(span.end)
            }
            _ => span.end,
        };
        let bracket = after(text, end, ")").or_else(|| after(text, end, "]")).filter(|_| closed);
        span.start..bracket.unwrap_or(end)
    }
}

fn nouns(types: &[CelType]) -> String {
    types.iter().map(|one| one.noun()).collect::<Vec<_>>().join(" and ")
}

fn of_literal(literal: &LiteralValue) -> CelType {
    match literal {
        LiteralValue::Boolean(_) => CelType::Bool,
        LiteralValue::Bytes(_) => CelType::Bytes,
        LiteralValue::Double(_) => CelType::Double,
        LiteralValue::Int(_) => CelType::Int,
        LiteralValue::Null => CelType::Null,
        LiteralValue::String(_) => CelType::Text,
        LiteralValue::UInt(_) => CelType::Uint,
    }
}

fn advice_for(left: CelType, right: CelType) -> &'static str {
    match (left, right) {
        (CelType::Timestamp, CelType::Text) | (CelType::Text, CelType::Timestamp) => {
            "write a moment as `timestamp('2026-01-31T00:00:00Z')`"
        }
        (CelType::Timestamp, number) | (number, CelType::Timestamp) if number.is_numeric() => {
            "write a moment as `timestamp('2026-01-31T00:00:00Z')`, a span of time as `duration('90m')`"
        }
        (CelType::Bool, CelType::Text) | (CelType::Text, CelType::Bool) => "write `true` and `false` without quotes",
        (CelType::Text, number) | (number, CelType::Text) if number.is_numeric() => {
            "write a number without quotes and a text in quotes, or convert with `int(…)`, `double(…)`, `string(…)`"
        }
        (left, right) if left.is_numeric() && right.is_numeric() => {
            "write a double with a point, as in `2.0`, or convert with `double(…)` or `int(…)`"
        }
        _ => "both sides must be of one type",
    }
}

#[cfg(test)]
mod tests {
    use super::super::Condition;
    use super::*;

    fn kind_of(column: &str) -> Option<ColumnKind> {
        match column {
            "name" => Some(ColumnKind::Text),
            "age" => Some(ColumnKind::Integer),
            "price" => Some(ColumnKind::Numeric),
            "active" => Some(ColumnKind::Boolean),
            "data" => Some(ColumnKind::Json),
            "at" => Some(ColumnKind::Timestamp),
            _ => None,
        }
    }

    fn problems(text: &str) -> Vec<(String, String, String)> {
        let found = Condition::parse(text).unwrap().check(&kind_of);
        let problem = |one: InvalidCondition| (text[one.span].to_owned(), one.message, one.advice);
        found.into_iter().map(problem).collect()
    }

    #[test]
    fn valid_conditions_are_not_reported() {
        for text in [
            "old.name != new.name",
            "new.age > 1.5 && new.price > 10 && new.age == 7.0",
            "new.price * 2.0 > 10",
            "new.age % 2 == 0 && -new.age < 3",
            "new.active",
            "!new.active || new.active < old.active",
            "new.name in ['a', 'b', null] && new.age in [1, 2u, 3.0]",
            "'a' in new.data && new.age in new.data.list",
            "new.data.x[0].y == 3 && has(new.data.z) && has(old.name)",
            "new.data.exists(t, t == 'x' || t == 3) && new.data.map(t, t + 1)[0] == 2",
            "new.data.filter(t, t > 1).all(t, t < 9) && new.data.exists_one(t, t == 1)",
            "new.at > timestamp('2026-01-01T00:00:00Z') && commit.at - new.at > duration('1h')",
            "new.at + duration('1h') < commit.at && new.at.getHours('Europe/Amsterdam') == 3",
            "new.missing == 3 && new.missing == 'x' && new.missing + 1 == 2",
            "new.name == null || null != new.age || new.data == null",
            "op == 'insert' ? new.active : old.active",
            "(op == 'insert' ? 1 : 'x') == 1",
            "type(new.age) == int && size(new.name) + 1 > 3 && new.name.matches('^a')",
            "dyn(new.age) == 'x'",
        ] {
            let found = problems(text);
            assert!(found.is_empty(), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_can_never_be_is_reported() {
        let check = |text: &str, at: &str, message: &str| {
            let found = problems(text);
            assert!(matches!(&found[..], [one] if one.0 == at && one.1.contains(message)), "{text}: {found:?}");
        };
        check("new.age == 'x'", "new.age == 'x'", "an int and a string, which are never equal");
        check("op == 1 || new.active", "op == 1", "never equal");
        check("new.name < 3", "new.name < 3", "no order");
        check("[new.age] < [2]", "[new.age] < [2]", "no order");
        check("new.age < null", "new.age < null", "no order");
        check("new.age + 1.5 > 2.0", "new.age + 1.5", "`+` between an int and a double");
        check("new.price % 2.0 == 0.0", "new.price % 2.0", "not defined");
        check("-new.name == 'x'", "-new.name", "`-` does not take a string");
        check("!new.age", "new.age", "`!` takes true or false, not an int");
        check("new.active && new.name", "new.name", "`&&` takes true or false");
        check("new.age ? true : false", "new.age", "`? :` takes true or false");
        check("new.age", "new.age", "the condition is an int");
        check("new.age + 1", "new.age + 1", "the condition is an int");
        check("new.age in ['a', 3]", "'a'", "never a string");
        check("'a' in new.name", "new.name", "into a list or a map");
        check("new.name.first == 'x'", "new.name.first", "a string has no field `first`");
        check("has(new.name.first)", "has(new.name.first)", "no field");
        check("new.name[0] == 'x'", "new.name[0]", "cannot be indexed");
        check("size(new.age) > 0", "size(new.age)", "`size` does not take an int");
        check("new.name.startsWith(3)", "new.name.startsWith(3)", "a string and an int");
        check("new.name.exists(t, t == 'x')", "new.name", "goes through a list");
        check("new.data.all(t, size(t))", "size(t)", "`&&` takes true or false");
        check("new.data.filter(t, 3).size() == 1", "3", "takes true or false");
    }

    #[test]
    fn a_moment_is_not_a_string() {
        let found = problems("new.at > '2026-01-01'");
        assert!(found[0].2.contains("timestamp('"), "{found:?}");
    }
}
