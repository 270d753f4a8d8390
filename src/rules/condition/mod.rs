//! Conditions: `when: old.name != new.name`, in CEL.
//!
//! Owns what a condition says of one change, and which columns that takes. It must not know tables,
//! rules or what follows from a condition that fails. Invariants: only the columns it names are
//! converted; a column that the log does not carry is never taken for NULL; no text and no row
//! makes it panic or go on without end.

mod bind;
mod check;
mod engine;
mod error;
mod functions;
mod operand;
mod syntax;
mod value;

use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use cel::common::ast::IdedExpr;
use cel::common::types::CelString;
use cel::{ExecutionError, Value};

use self::bind::BoundExpression;
pub use self::error::{ConditionError, InvalidCondition};
pub use self::operand::{ColumnOperand, ColumnUse};
use self::value::{ColumnValue, Variables};
use super::template::Image;
use crate::change::ColumnKind;

/// A parsed `when:`.
///
/// CEL over `old` and `new`, whose fields are the columns; `op` (`insert`, `update`, `delete`,
/// `truncate` or `event`); `table`; and `commit.at`, a timestamp. In an image that a change does
/// not have every column is NULL.
#[derive(Clone, Debug)]
pub struct Condition {
    bound: BoundExpression,
    /// The value, if it depends on no variable.
    constant: Option<bool>,
}

impl Condition {
    /// Parses a condition of at most 4096 bytes.
    pub fn parse(text: &str) -> Result<Self, InvalidCondition> {
        let (expression, source) = syntax::parse(text)?;
        let bound = bind::bind(text, expression, &source)?;
        let constant = match bound.depends {
            true => None,
            false => Some(evaluate_constant(&bound.tree).map_err(|message| {
                InvalidCondition::new(0..text.len(), message, "compare columns, as in `old.name != new.name`")
            })?),
        };
        Ok(Self { bound, constant })
    }

    /// The text it was parsed from.
    pub fn text(&self) -> &str {
        &self.bound.text
    }

    /// The columns it reads, each of each image once, in the order of the text as CEL reads it.
    pub fn columns(&self) -> &[ColumnUse] {
        &self.bound.columns
    }

    /// What can never be as the columns' kinds are: a number compared with a text, a condition that
    /// is no bool. A column without a kind may be anything.
    pub fn check(&self, kind_of: &dyn Fn(&str) -> Option<ColumnKind>) -> Vec<InvalidCondition> {
        check::check(&self.bound, kind_of)
    }

    /// Its value, if that depends on no variable.
    pub fn constant(&self) -> Option<bool> {
        self.constant
    }

    /// Whether it holds for a change; `resolve` says what the n-th of [`Condition::columns`] stands
    /// for.
    pub fn evaluate<'a>(
        &self,
        resolve: impl Fn(usize) -> ColumnOperand<'a>,
        op: &str,
        table: &str,
        at: Option<SystemTime>,
    ) -> Result<bool, ConditionError> {
        if let Some(constant) = self.constant {
            return Ok(constant);
        }
        let variables = Variables {
            values: (0..self.bound.columns.len()).map(|column| ColumnValue::new(resolve(column))).collect(),
            op: CelString::from(op),
            table: CelString::from(table),
            at: at.filter(|_| self.bound.reads_commit_time).and_then(value::commit_time),
            units_read: AtomicUsize::new(0),
        };
        match engine::run(&self.bound.tree, Some(&variables)) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(ConditionError::Failed(not_a_bool(&other))),
            Err(ExecutionError::UndeclaredReference(name)) if variables.is_absent(&name) => {
                Err(ConditionError::Unknown)
            }
            Err(error) => Err(ConditionError::Failed(self.reason(&variables, &error))),
        }
    }

    fn reason(&self, variables: &Variables<'_>, error: &ExecutionError) -> String {
        // A variable that cannot be read is missing to CEL. Of ours, none is missing otherwise.
        let ExecutionError::UndeclaredReference(variable) = error else { return engine::reason(error) };
        let at = value::column_of(variable);
        let used = at.and_then(|at| self.bound.columns.get(at)).map(|used| match used.image {
            Image::Old => format!("`old.{}`", used.column),
            _ => format!("`new.{}`", used.column),
        });
        match (used, at.and_then(|at| variables.values.get(at))) {
            (Some(used), Some(ColumnValue::Broken(reason))) => format!("{used} {reason}"),
            (Some(used), _) => format!("{used} is too long to be read so often"),
            (None, _) => "the time of the commit is not known".to_owned(),
        }
    }
}

/// The value of an expression without variables, or why it has none.
fn evaluate_constant(expression: &IdedExpr) -> Result<bool, String> {
    match engine::run(expression, None) {
        Ok(Value::Bool(constant)) => Ok(constant),
        Ok(other) => Err(not_a_bool(&other)),
        Err(error) => Err(format!("the condition always fails: {}", engine::reason(&error))),
    }
}

fn not_a_bool(value: &Value) -> String {
    format!("the condition comes to a value of type {}, not to true or false", value.type_of())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    const KINDS: [ColumnKind; 7] = [
        ColumnKind::Boolean,
        ColumnKind::Integer,
        ColumnKind::Float,
        ColumnKind::Numeric,
        ColumnKind::Json,
        ColumnKind::Timestamp,
        ColumnKind::Text,
    ];

    /// Evaluates for an update of `users`, committed at 2027-01-15 08:00 UTC. Columns that are not
    /// given are absent.
    fn evaluate(text: &str, columns: &[(&str, ColumnOperand<'_>)]) -> Result<bool, ConditionError> {
        let condition = Condition::parse(text).unwrap();
        let resolve = |at: usize| {
            let ColumnUse { image, column, .. } = &condition.columns()[at];
            let name = if *image == Image::Old { format!("old.{column}") } else { format!("new.{column}") };
            columns.iter().find(|(known, _)| *known == name).map_or(ColumnOperand::Absent, |(_, operand)| *operand)
        };
        let at = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        condition.evaluate(resolve, "update", "users", Some(at))
    }

    fn value(text: &str, kind: ColumnKind) -> ColumnOperand<'_> {
        ColumnOperand::Value(text.as_bytes(), kind)
    }

    #[test]
    fn a_column_has_the_value_of_its_kind() {
        let check = |text: &str, new: &str, kind: ColumnKind| {
            assert_eq!(evaluate(text, &[("new.x", value(new, kind))]), Ok(true), "{text} {new}");
        };
        check("new.x", "true", ColumnKind::Boolean);
        check("!new.x", "f", ColumnKind::Boolean);
        check("new.x + 1 == 8 && new.x == 7.0 && new.x < 7.5", "7", ColumnKind::Integer);
        check("new.x * 2.0 == 3.0 && new.x > 1", "1.5", ColumnKind::Float);
        check("new.x != new.x", "NaN", ColumnKind::Float);
        check("new.x > 1e308 && -new.x < 0", "Infinity", ColumnKind::Float);
        check("new.x > 12345678901.25", "12345678901.5", ColumnKind::Numeric);
        check("new.x == 'é' && size(new.x) == 1 && new.x.matches('^.$')", "é", ColumnKind::Text);
        let json = r#"{"a": {"b": [1, 2.5, "x", null, true]}, "n": 3.0}"#;
        check("new.x.a.b[0] == 1 && new.x.a.b[1] == 2.5 && new.x.a.b[3] == null", json, ColumnKind::Json);
        check("'x' in new.x.a.b && new.x['n'] % 2 == 1 && size(new.x.a.b) == 5", json, ColumnKind::Json);
        check("has(new.x.a.b) && !has(new.x.c) && 'a' in new.x", json, ColumnKind::Json);
        check("new.x.a.b.exists(e, e == 'x') && new.x.a.b.filter(e, e != null).size() == 4", json, ColumnKind::Json);
        for text in [
            "2026-11-20 12:00:03.123+00",
            "2026-11-20 17:30:03.123+05:30",
            "2026-11-20 12:00:03.123",
            "2026-11-20T12:00:03.123Z",
        ] {
            check("new.x == timestamp('2026-11-20T12:00:03.123Z') && new.x < commit.at", text, ColumnKind::Timestamp);
        }
        check("commit.at - new.x == duration('8h')", "2027-01-15 00:00:00+00", ColumnKind::Timestamp);
    }

    #[test]
    fn a_condition_holds_or_does_not() {
        let check = |text: &str, columns: &[(&str, ColumnOperand<'_>)], expected: bool| {
            assert_eq!(evaluate(text, columns), Ok(expected), "{text} {columns:?}");
        };
        let (a, b) = (value("a", ColumnKind::Text), value("b", ColumnKind::Text));
        check("old.x != new.x", &[("old.x", a), ("new.x", b)], true);
        check("old.x != new.x", &[("old.x", a), ("new.x", a)], false);
        check("old.x != new.x", &[("old.x", ColumnOperand::Null), ("new.x", a)], true);
        check("old.x == new.x", &[("old.x", ColumnOperand::Null), ("new.x", ColumnOperand::Null)], true);
        check("new.x == null", &[("new.x", ColumnOperand::Null)], true);
        check("old['odd name'] == \"a\"", &[("old.odd name", a)], true);
        check("op == 'update' && table == 'users'", &[], true);
        check("op in ['insert', 'delete']", &[], false);
        check("has(old.x)", &[], false);
        check("has(old.x)", &[("old.x", ColumnOperand::Null)], true);
        check("has(old.x) && old.x == 'a'", &[], false);
        check("has(commit.at) && commit.at > timestamp(0)", &[], true);
        check("new.x == 'a' ? true : false", &[("new.x", a)], true);
        check("[new.x].exists(x, x == 'a')", &[("new.x", a)], true);
        check("type(new.x) == string", &[("new.x", a)], true);
        check("new.x == 'a' // a comment\n && true", &[("new.x", a)], true);
    }

    #[test]
    fn an_unknown_value_matters_only_if_the_result_depends_on_it() {
        let check = |text: &str, expected: Result<bool, ConditionError>| {
            assert_eq!(evaluate(text, &[("new.x", value("a", ColumnKind::Text))]), expected, "{text}");
        };
        check("old.x != new.x", Err(ConditionError::Unknown));
        check("old.x == 'a' || op == 'insert'", Err(ConditionError::Unknown));
        check("old.x == 'a' || op == 'update'", Ok(true));
        check("op == 'update' || old.x == 'a'", Ok(true));
        check("old.x == 'a' && op == 'insert'", Ok(false));
        check("new.x == 'a' ? op == 'update' : old.x == 'a'", Ok(true));
        check("old.x.startsWith('a')", Err(ConditionError::Unknown));
        check("old.x.data.plan == 'a'", Err(ConditionError::Unknown));
        check("new.x == 1 || old.x == 1", Err(ConditionError::Unknown));
    }

    #[test]
    fn errors_give_a_reason_and_quote_no_row() {
        let check = |text: &str, operand: ColumnOperand<'_>, reason: &str| {
            let error = evaluate(text, &[("new.x", operand)]).unwrap_err();
            let ConditionError::Failed(found) = &error else { panic!("{text}: {error:?}") };
            assert!(found.contains(reason) && !found.contains("secret"), "{text}: {found}");
        };
        check("new.x == 'a'", ColumnOperand::Value(b"secret\xff", ColumnKind::Text), "`new.x` is not UTF-8");
        check("new.x < commit.at", value("infinity", ColumnKind::Timestamp), "`new.x` is not a moment");
        check("new.x == 1", value("secret", ColumnKind::Integer), "`new.x` is not a whole number");
        check("new.x.a == 1", value("secret", ColumnKind::Json), "`new.x` is not JSON");
        check("new.x.secret == 1", value("{}", ColumnKind::Json), "not there");
        check("new.x[9] == 1", value("[\"secret\"]", ColumnKind::Json), "outside its list");
        check("new.x > 1", value("secret", ColumnKind::Text), "`>` does not take string and int");
        check("new.x + 1 == 2", value("secret", ColumnKind::Text), "`+` does not take string and int");
        check("int(new.x) == 1", value("secret", ColumnKind::Text), "`int` cannot take");
        check("1 / new.x == 1", value("0", ColumnKind::Integer), "division by zero");
        check("new.x * 2 == 1", value("9223372036854775807", ColumnKind::Integer), "out of range");
        check("new.x && true", ColumnOperand::Null, "`&&` does not take null_type");
        check("new.x", value("1", ColumnKind::Integer), "type int");
        check("new.x", ColumnOperand::Null, "type null");
        let unread =
            evaluate("op == 'update' || new.x < commit.at", &[("new.x", value("infinity", ColumnKind::Timestamp))]);
        assert_eq!(unread, Ok(true), "what is not read cannot fail");
    }

    #[test]
    fn an_unknown_commit_time_fails_what_reads_it() {
        let evaluate = |text: &str, at: Option<SystemTime>| {
            Condition::parse(text).unwrap().evaluate(|_| ColumnOperand::Absent, "insert", "users", at)
        };
        let failed = ConditionError::Failed("the time of the commit is not known".to_owned());
        assert_eq!(evaluate("commit.at > timestamp(0)", None), Err(failed.clone()));
        assert_eq!(evaluate("commit.at > timestamp(0)", UNIX_EPOCH.checked_sub(Duration::from_secs(1))), Err(failed));
        assert_eq!(evaluate("has(commit.at)", None), Ok(false));
    }

    #[test]
    fn the_columns_are_named_once() {
        let text = "old.a != new.a || old.a == 'x' || has(new . b) || new['c'] == 1";
        let condition = Condition::parse(text).unwrap();
        let uses = condition.columns().iter();
        let found: Vec<_> = uses.map(|used| (used.image, used.column.as_str(), &text[used.span.clone()])).collect();
        let expected = [
            (Image::Old, "a", "old.a"),
            (Image::New, "a", "new.a"),
            (Image::New, "b", "new . b"),
            (Image::New, "c", "new['c']"),
        ];
        assert_eq!(found, expected);
        assert_eq!(condition.text(), text);
    }

    #[test]
    fn conditions_without_inputs_are_constant() {
        let check = |text: &str, expected: Option<bool>| {
            assert_eq!(Condition::parse(text).unwrap().constant(), expected, "{text}");
        };
        check("true", Some(true));
        check("1 > 2 || 'a' in ['b']", Some(false));
        check("op == 'insert'", None);
        check("true || new.a == 1", None);
        check("has(old.a)", None);
        for text in ["1", "'true'", "null", "1 / 0 == 1", "[1][2] == 3", "[]"] {
            let error = Condition::parse(text).unwrap_err();
            assert!(error.message.contains("true or false") || error.message.contains("always fails"), "{error:?}");
        }
    }

    #[test]
    fn a_row_cannot_keep_a_condition_busy() {
        let list = format!("[{}]", vec!["1"; 20_000].join(","));
        let columns = [("new.x", value(&list, ColumnKind::Json))];
        assert_eq!(evaluate("new.x.all(e, e == 1)", &columns), Ok(true));
        let quadratic = evaluate("new.x.all(e, e in new.x)", &columns);
        assert_eq!(quadratic, Err(ConditionError::Failed("`new.x` is too long to be read so often".to_owned())));
    }

    /// What conditions are made of, and what breaks them.
    const TOKENS: &str = "old new old.a new.b new.b.c op table commit.at has( size( timestamp( int( .exists(x, .map(x, \
        .startsWith( .matches( x ( ) [ ] { } , : ? . == != < && || ! - + * % in 'a' r'\\ 1 2.5 null true";

    fn any_operand() -> impl Strategy<Value = (u8, Vec<u8>, ColumnKind)> {
        (0..8_u8, proptest::collection::vec(any::<u8>(), 0..24), proptest::sample::select(KINDS.to_vec()))
    }

    fn operand((choice, bytes, kind): &(u8, Vec<u8>, ColumnKind)) -> ColumnOperand<'_> {
        match choice {
            0 => ColumnOperand::Absent,
            1 => ColumnOperand::Null,
            _ => ColumnOperand::Value(bytes, *kind),
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = Condition::parse(&text);
        }

        #[test]
        fn no_tokens_make_it_panic(
            tokens in proptest::collection::vec(proptest::sample::select(TOKENS.split(' ').collect::<Vec<_>>()), 0..16),
            given in any_operand(),
        ) {
            if let Ok(condition) = Condition::parse(&tokens.join(" ")) {
                let _ = condition.check(&|_| Some(given.2));
                let _ = condition.evaluate(|_| operand(&given), "update", "users", None);
            }
        }

        #[test]
        fn no_row_makes_it_panic(old in any_operand(), new in any_operand(), choice in 0..6_usize) {
            let text = [
                "old.a != new.a",
                "old.a < new.a || old.a + new.a == new.a",
                "has(new.a.b) && new.a.b == old.a[0]",
                "new.a.exists(x, x == old.a) || size(new.a) > 1",
                "new.a - old.a > duration('1h') || int(new.a) == 1 || string(old.a) == 'x'",
                "new.a.getDayOfYear('Europe/Amsterdam') == timestamp(old.a).getFullYear()",
            ][choice];
            let condition = Condition::parse(text).unwrap();
            let image = |at: usize| if condition.columns()[at].image == Image::Old { &old } else { &new };
            let _ = condition.evaluate(|at| operand(image(at)), "update", "users", Some(UNIX_EPOCH));
        }
    }
}
