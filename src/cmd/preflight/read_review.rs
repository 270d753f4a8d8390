//! One read, compared with the database and the rules.
//!
//! Owns the words about a read's SQL and its parameters. [`crate::query`] asks the database, and
//! [`coverage`] compares its answer with the rules. It must not run a read. Invariant: an error is
//! what keeps the reads from being served, and nothing else.

use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{Client, Error};

use crate::cmd::config_file::ConfigFile;
use crate::cmd::display::counted;
use crate::config::Problems;
use crate::query::{self, Notation, ParameterUse, Query, RejectedQuery};
use crate::reads::{Parameter, ParameterSource, Read, coverage};
use crate::rules::{Filter, Image, Lint, Reference, RuleSet};

/// What is wrong with one read.
#[derive(Default)]
pub(in crate::cmd) struct ReadReview {
    /// PostgreSQL cannot answer its SQL as the API needs it.
    pub(in crate::cmd) problems: Problems,
    /// What it depends on and no rule removes. A certain lint keeps it from being served.
    pub(in crate::cmd) lints: Vec<Lint>,
    /// Why its columns and functions are not known, in the server's words.
    pub(in crate::cmd) unseen: Option<String>,
}

impl ReadReview {
    /// Reviews a read. The rules have every table's schema filled in.
    pub(in crate::cmd) async fn of(
        client: &Client,
        file: &ConfigFile,
        rules: &RuleSet,
        read: &Read,
    ) -> Result<Self, Error> {
        let mut review = Self::default();
        match query::analyse(client, &read.sql.value).await? {
            Err(refusal) => refused(read, refusal, &mut review.problems),
            Ok(query) => {
                shape(read, &query, &mut review.problems);
                review.lints = coverage::gaps(read, &query.relations, rules, &file.settings.namespace);
                review.lints.extend(calls(read, &query));
                review.lints.extend(loose(read, &query));
                review.lints.extend(notations(read, &query));
                // A view cannot be made of a statement that writes, and that is reported already.
                review.unseen = query.unseen.filter(|_| !query.writes);
            }
        }
        Ok(review)
    }
}

fn refused(read: &Read, refusal: RejectedQuery, problems: &mut Problems) {
    let mut message = format!("PostgreSQL refuses read `{}`: {}", read.name, refusal.message);
    if let Some(line) = refusal.line {
        message.push_str(&format!(", in line {line} of its SQL"));
    }
    let advice = match refusal.hint {
        Some(hint) => hint,
        None if refusal.is_forbidden => "GRANT SELECT on what the read uses to the role of source.url".to_owned(),
        None => "expected one `select`".to_owned(),
    };
    problems.push(read.sql.span.clone(), message, advice);
}

/// The parameters and columns of a read.
fn shape(read: &Read, query: &Query, problems: &mut Problems) {
    let name = &read.name;
    let mut push = |message: String, advice: &str| problems.push(read.sql.span.clone(), message, advice);
    if query.writes {
        push(format!("read `{name}` changes or locks rows"), "expected a `select` that only reads");
    }
    let (wanted, given) = (query.parameters.len(), read.parameters.len());
    let values = read.parameters.iter().enumerate();
    let values: Vec<_> = values.map(|(at, parameter)| format!("${} is {}", at + 1, parameter.name)).collect();
    let values = if values.is_empty() { "there are none".to_owned() } else { values.join(", ") };
    let message = format!("the SQL of read `{name}` takes {}, and the read gives {given}", counted(wanted, "value"));
    if wanted > given {
        push(message, &format!("name every value in `path` or `vary`; now {values}"));
    } else if wanted < given {
        push(message, &format!("use every value in the SQL, or remove it from `path` or `vary`: {values}"));
    }
    match query.columns.first() {
        None => push(format!("read `{name}` returns no column"), "expected one column of JSON"),
        Some(&(Type::JSON | Type::JSONB | Type::TEXT)) => {}
        Some(other) => {
            let message = format!("read `{name}` returns {} and not JSON", other.name());
            push(message, "expected json, jsonb, or JSON as text: `json_build_object(…)`, `to_json(…)`");
        }
    }
    let valid_until =
        "expected one column of JSON, and at most a second one: a timestamptz that says until when it is valid";
    if query.columns.len() > 2 {
        push(format!("read `{name}` returns {} columns", query.columns.len()), valid_until);
    } else if let Some(other) = query.columns.get(1).filter(|other| **other != Type::TIMESTAMPTZ) {
        push(format!("the second column of read `{name}` is of type {}", other.name()), valid_until);
    }
}

/// Functions on which the result depends, beside the tables that are known.
fn calls(read: &Read, query: &Query) -> Vec<Lint> {
    let name = &read.name;
    let mut lints = Vec::new();
    let mut warn = |id: &'static str, message: String, why: &str, fix: &str| {
        let (why, fix) = (why.to_owned(), fix.to_owned());
        lints.push(Lint { id, certain: false, span: read.span.clone(), message, why, fix });
    };
    if !query.functions.is_empty() {
        let message = format!(
            "read `{name}` calls {}, which may read tables that PostgreSQL does not report",
            query.functions.join(", ")
        );
        let why =
            "PostgreSQL does not report what the body of such a function reads, so it was not compared with the rules";
        let fix = "make sure that every table in it has a rule for this read. A body in BEGIN ATOMIC is analysed; a \
                   function whose result depends only on its arguments should be IMMUTABLE";
        warn("read-function", message, why, fix);
    }
    // The second column says until when a value is valid.
    if !query.time_functions.is_empty() && query.columns.len() < 2 {
        let message = format!("read `{name}` depends on the time: {}", query.time_functions.join(", "));
        let why = "time passes without a change of any row, so the value is served until its ttl ends";
        warn(
            "read-volatile",
            message,
            why,
            "return as a second column a timestamptz that says until when the value is valid",
        );
    }
    if !query.volatile_functions.is_empty() {
        let message =
            format!("read `{name}` depends on the session or on chance: {}", query.volatile_functions.join(", "));
        let why = "the first request decides what all others are served";
        warn("read-volatile", message, why, "make it a parameter, or remove it");
    }
    lints
}

/// Parameters whose type prevents caching.
fn loose(read: &Read, query: &Query) -> Vec<Lint> {
    let lint = |(parameter, kind): (&Parameter, &Type)| {
        let (name, read_name) = (&parameter.name, &read.name);
        let shown = match kind.kind() {
            Kind::Array(of) => format!("{}[]", of.name()),
            _ => kind.name().to_owned(),
        };
        let (how, fix) = match Notation::of(kind) {
            Notation::Text | Notation::One => return None,
            Notation::Folded if read.folds(name) => return None,
            Notation::Folded => ("in upper and lower case", format!("write `{{{name}|lower}}` in every template")),
            Notation::Several => {
                let types = "text, integers, uuid, boolean, date, timestamp or an enum";
                ("in several ways", format!("cast it, as in `$1::bigint`, to a type with one notation: {types}"))
            }
        };
        let message = format!(
            "parameter `{name}` of read `{read_name}` is {shown}. Equal values may be written {how}, so nothing is cached"
        );
        let why = "a rule removes only what is cached under the notation that PostgreSQL writes".to_owned();
        Some(Lint { id: "read-parameter", certain: false, span: read.span.clone(), message, why, fix })
    };
    read.parameters.iter().zip(&query.parameters).filter_map(lint).collect()
}

/// Text that the SQL compares in another form than the keys contain. With a `version`, the key may
/// contain more than rules can make, because rules make the version.
fn notations(read: &Read, query: &Query) -> Vec<Lint> {
    let keys = std::iter::once((&read.key, read.version.is_some()));
    let others = read.tags.iter().chain(&read.version).map(|template| (template, false));
    let templates: Vec<_> = keys.chain(others).collect();
    let mut lints: Vec<Lint> = Vec::new();
    for (number, take) in &query.parameter_uses {
        let at = number.saturating_sub(1);
        let Some((parameter, kind)) = read.parameters.get(at).zip(query.parameters.get(at)) else { continue };
        let is_text = matches!(*kind, Type::TEXT | Type::VARCHAR | Type::NAME);
        if !is_text || parameter.source == ParameterSource::Session {
            continue;
        }
        let is_other = |(reference, is_free): &(&Reference, bool)| {
            let is_ours = reference.image != Image::Lookup && reference.column == parameter.name;
            let named = named(reference);
            is_ours && named != *take && (!is_free || named != ParameterUse::AsIs)
        };
        let mut references = templates
            .iter()
            .flat_map(|(template, is_free)| template.value.references().map(move |found| (found, *is_free)));
        let Some((reference, _)) = references.find(is_other) else { continue };
        let lint = notation(read, *number, *take, reference);
        if !lints.contains(&lint) {
            lints.push(lint);
        }
    }
    lints
}

/// In which form a template contains a value.
fn named(reference: &Reference) -> ParameterUse {
    match reference.filters.first() {
        Some(Filter::Lower) => ParameterUse::Lower,
        Some(Filter::Upper) => ParameterUse::Upper,
        Some(Filter::Sha256 | Filter::Urlencode) | None => ParameterUse::AsIs,
    }
}

fn notation(read: &Read, number: usize, take: ParameterUse, reference: &Reference) -> Lint {
    let (name, column) = (&read.name, &reference.column);
    let words = |take: ParameterUse| match take {
        ParameterUse::AsIs => "as it is",
        ParameterUse::Lower => "in lower case",
        ParameterUse::Upper => "in upper case",
        ParameterUse::Otherwise => "otherwise than by `column = …`",
    };
    let message = format!(
        "the SQL of read `{name}` compares `{column}` {}, and its keys contain it {}",
        words(take),
        words(named(reference))
    );
    let fix = match (take, named(reference)) {
        (ParameterUse::Lower, _) => format!("write `{{{column}|lower}}` in the read and in the rules"),
        (ParameterUse::Upper, _) => format!("write `{{{column}|upper}}` in the read and in the rules"),
        (_, ParameterUse::Lower) => format!("compare `lower(column) = lower(${number})`"),
        (_, ParameterUse::Upper) => format!("compare `upper(column) = upper(${number})`"),
        (ParameterUse::AsIs | ParameterUse::Otherwise, _) => {
            format!("compare `column = ${number}`, or use a `version` that does not contain `{column}`")
        }
    };
    let why = "one row then has keys that no rule makes, or two rows share a key".to_owned();
    Lint { id: "read-notation", certain: false, span: read.sql.span.clone(), message, why, fix }
}
