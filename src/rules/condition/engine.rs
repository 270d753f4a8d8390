//! The interpreter of the `cel` crate.
//!
//! Owns the environment that all conditions share, since building its functions takes far longer
//! than evaluating a condition, and the words for what fails in it. Invariant: no value of a row
//! reaches those words.

use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, Value};

use super::functions::symbol;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// CEL's standard library.
pub(super) fn environment() -> &'static Env {
    &ENVIRONMENT
}

/// Evaluates an expression.
pub(super) fn run(expression: &IdedExpr, variables: Option<&dyn VariableResolver>) -> Result<Value, ExecutionError> {
    let mut context = Context::with_env(ENVIRONMENT.clone());
    if let Some(variables) = variables {
        context.set_variable_resolver(variables);
    }
    Value::resolve(expression, &context)
}

/// Why it failed. The crate's own messages quote the values.
pub(super) fn reason(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchOverload(overload) => {
            let types = overload.argument_types().join(" and ");
            format!("`{}` does not take {types}", symbol(overload.function()))
        }
        ExecutionError::UnsupportedBinaryOperator(name, left, right) => {
            format!("`{}` does not take {} and {}", sign(name), left.type_of(), right.type_of())
        }
        ExecutionError::ValuesNotComparable(left, right) => {
            format!("{} and {} have no order", left.type_of(), right.type_of())
        }
        ExecutionError::UnexpectedType { got, want } => format!("expected {want}, found {got}"),
        ExecutionError::FunctionError { function, .. } => format!("`{function}` cannot take the value it was given"),
        ExecutionError::Overflow(name, ..) => format!("the result of `{}` is out of range", sign(name)),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "division by zero".to_owned(),
        ExecutionError::NoSuchKey(_) => "a field that it reads is not there; `has(…)` asks first".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "an index lies outside its list".to_owned(),
        _ => "it cannot be computed".to_owned(),
    }
}

/// How the operator is written that the crate calls by a word.
fn sign(name: &str) -> &str {
    match name {
        "add" => "+",
        "sub" | "negate" => "-",
        "mul" => "*",
        "div" => "/",
        "rem" => "%",
        name => name,
    }
}
