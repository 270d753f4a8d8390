//! The types of conditions, and the functions and operators over them.
//!
//! Owns the tables of what takes what, as the standard library of the `cel` crate declares it. It
//! must not know syntax trees. Invariant: nothing stands here that the crate does not have, so what
//! is not found is refused.

use cel::common::ast::operators::{ADD, DIVIDE, MODULO, MULTIPLY, SUBSTRACT};

use self::CelType::{Any, Bool, Bytes, Double, Duration, Int, List, Map, Name, Null, Text, Timestamp, Uint};
use crate::change::ColumnKind;

/// What is known of a value before there is one. Any of them may be NULL when it comes from a
/// column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CelType {
    /// Not known: JSON, a column that is not in the catalog, an element of a list.
    Any,
    Bool,
    Bytes,
    Double,
    Duration,
    Int,
    List,
    Map,
    /// The name of a type: `int` in `type(old.x) == int`.
    Name,
    Null,
    Text,
    Timestamp,
    Uint,
}

impl CelType {
    /// What a column of this kind becomes.
    pub(super) fn of_kind(kind: ColumnKind) -> Self {
        match kind {
            ColumnKind::Boolean => Bool,
            ColumnKind::Integer => Int,
            ColumnKind::Float | ColumnKind::Numeric => Double,
            ColumnKind::Json => Any,
            ColumnKind::Timestamp => Timestamp,
            ColumnKind::Text => Text,
        }
    }

    /// The word for messages.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Any => "any value",
            Bool => "a bool",
            Bytes => "bytes",
            Double => "a double",
            Duration => "a duration",
            Int => "an int",
            List => "a list",
            Map => "a map",
            Name => "a type",
            Null => "null",
            Text => "a string",
            Timestamp => "a timestamp",
            Uint => "a uint",
        }
    }

    /// Whether a value of this type may be one of the other.
    pub(super) fn may_be(self, other: Self) -> bool {
        self == other || self == Any || other == Any
    }

    pub(super) fn is_numeric(self) -> bool {
        matches!(self, Double | Int | Uint)
    }

    /// Whether `==` can ever hold. Numbers of all types compare by value, and everything compares
    /// with NULL.
    pub(super) fn may_equal(self, other: Self) -> bool {
        self.may_be(other) || self == Null || other == Null || self.is_numeric() && other.is_numeric()
    }

    /// Whether `<` is defined.
    pub(super) fn may_precede(self, other: Self) -> bool {
        let ordered = |one| matches!(one, Any | Bool | Bytes | Double | Duration | Int | Text | Timestamp | Uint);
        ordered(self) && ordered(other) && (self.may_be(other) || self.is_numeric() && other.is_numeric())
    }
}

/// A function or method.
#[derive(Debug)]
pub(super) struct CelFunction {
    pub(super) name: &'static str,
    /// The arguments of each overload; a method's first is what it is called on.
    pub(super) takes: &'static [&'static [CelType]],
    pub(super) gives: CelType,
}

impl CelFunction {
    pub(super) fn takes_count(&self, count: usize) -> bool {
        self.takes.iter().any(|overload| overload.len() == count)
    }

    pub(super) fn accepts(&self, arguments: &[CelType]) -> bool {
        self.takes.iter().any(|overload| {
            overload.len() == arguments.len()
                && overload.iter().zip(arguments).all(|(takes, given)| takes.may_be(*given))
        })
    }
}

const fn function(name: &'static str, takes: &'static [&'static [CelType]], gives: CelType) -> CelFunction {
    CelFunction { name, takes, gives }
}

/// The function of that name in one of the tables.
pub(super) fn find(table: &'static [CelFunction], name: &str) -> Option<&'static CelFunction> {
    table.iter().find(|function| function.name == name)
}

/// Called as `size(x)`.
pub(super) const FUNCTIONS: &[CelFunction] = &[
    function("bool", &[&[Bool], &[Text]], Bool),
    function("bytes", &[&[Text], &[Bytes]], Bytes),
    function("double", &[&[Double], &[Int], &[Uint], &[Text]], Double),
    function("duration", &[&[Text], &[Duration]], Duration),
    function("dyn", &[&[Any]], Any),
    function("int", &[&[Int], &[Uint], &[Double], &[Text], &[Timestamp]], Int),
    function("matches", &[&[Text, Text]], Bool),
    function("size", &[&[Text], &[Bytes], &[List], &[Map]], Int),
    function("string", &[&[Text], &[Bool], &[Int], &[Uint], &[Double], &[Bytes], &[Timestamp], &[Duration]], Text),
    function("timestamp", &[&[Text], &[Timestamp], &[Int]], Timestamp),
    function("type", &[&[Any]], Name),
    function("uint", &[&[Uint], &[Int], &[Double], &[Text]], Uint),
];

/// Called as `x.size()`. Those of a timestamp take a time zone or count in UTC.
pub(super) const METHODS: &[CelFunction] = &[
    function("contains", &[&[Text, Text]], Bool),
    function("endsWith", &[&[Text, Text]], Bool),
    function("getDate", &[&[Timestamp], &[Timestamp, Text]], Int),
    function("getDayOfMonth", &[&[Timestamp], &[Timestamp, Text]], Int),
    function("getDayOfWeek", &[&[Timestamp], &[Timestamp, Text]], Int),
    function("getDayOfYear", &[&[Timestamp], &[Timestamp, Text]], Int),
    function("getFullYear", &[&[Timestamp], &[Timestamp, Text]], Int),
    function("getHours", &[&[Timestamp], &[Timestamp, Text], &[Duration]], Int),
    function("getMilliseconds", &[&[Timestamp], &[Timestamp, Text], &[Duration]], Int),
    function("getMinutes", &[&[Timestamp], &[Timestamp, Text], &[Duration]], Int),
    function("getMonth", &[&[Timestamp], &[Timestamp, Text]], Int),
    function("getSeconds", &[&[Timestamp], &[Timestamp, Text], &[Duration]], Int),
    function("matches", &[&[Text, Text]], Bool),
    function("size", &[&[Text], &[Bytes], &[List], &[Map]], Int),
    function("startsWith", &[&[Text, Text]], Bool),
];

/// What the parser rewrites; one that is still a call afterwards has the wrong number of arguments.
pub(super) const MACROS: &[&str] = &["all", "exists", "exists_one", "filter", "has", "map"];

/// What each operator makes of what. Unlike comparisons, none of them mixes numbers of different
/// types.
const ARITHMETIC: &[(&str, CelType, CelType, CelType)] = &[
    (ADD, Int, Int, Int),
    (ADD, Uint, Uint, Uint),
    (ADD, Double, Double, Double),
    (ADD, Text, Text, Text),
    (ADD, Bytes, Bytes, Bytes),
    (ADD, List, List, List),
    (ADD, Timestamp, Duration, Timestamp),
    (ADD, Duration, Timestamp, Timestamp),
    (ADD, Duration, Duration, Duration),
    (SUBSTRACT, Int, Int, Int),
    (SUBSTRACT, Uint, Uint, Uint),
    (SUBSTRACT, Double, Double, Double),
    (SUBSTRACT, Timestamp, Timestamp, Duration),
    (SUBSTRACT, Timestamp, Duration, Timestamp),
    (SUBSTRACT, Duration, Duration, Duration),
    (MULTIPLY, Int, Int, Int),
    (MULTIPLY, Uint, Uint, Uint),
    (MULTIPLY, Double, Double, Double),
    (DIVIDE, Int, Int, Int),
    (DIVIDE, Uint, Uint, Uint),
    (DIVIDE, Double, Double, Double),
    (MODULO, Int, Int, Int),
    (MODULO, Uint, Uint, Uint),
];

/// What `left operator right` gives, if it is defined.
pub(super) fn arithmetic(operator: &str, left: CelType, right: CelType) -> Option<CelType> {
    let fits = |entry: &&(&str, CelType, CelType, CelType)| {
        entry.0 == operator && entry.1.may_be(left) && entry.2.may_be(right)
    };
    let mut results = ARITHMETIC.iter().filter(fits).map(|entry| entry.3);
    let first = results.next()?;
    Some(if results.all(|result| result == first) { first } else { Any })
}

/// Whether the tree means an operator by this name; no function's name has such characters.
pub(super) fn is_operator(name: &str) -> bool {
    name.contains(|character: char| !(character.is_ascii_alphanumeric() || matches!(character, '_' | '.')))
}

/// How an operator is written: `==` for what the tree calls `_==_`.
pub(super) fn symbol(name: &str) -> &str {
    match name {
        "_?_:_" => "? :",
        "_[_]" => "[ ]",
        name if is_operator(name) => name.trim_matches(['_', '@']),
        name => name,
    }
}
