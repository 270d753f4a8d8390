//! libpq's connection parameters, from a `postgres://` URL and the environment.
//!
//! Owns the syntax of the URL and the list of parameters. It must not know what values mean.
//! Invariant: no error repeats the URL, which may contain a password.

use percent_encoding::percent_decode_str;

use crate::nearest::nearest;

/// Why a URL is not an [`super::Address`]. The messages never repeat the URL.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidAddress {
    /// Not `postgres://` or `postgresql://`.
    #[error("not a postgres:// URL")]
    Scheme,
    /// A `%` without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("bad percent-encoding in the {0}; write reserved characters of a password as %XX")]
    Encoding(&'static str),
    /// Not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// An unknown parameter after `?`.
    #[error("unknown parameter `{name}`{}", .near.as_ref().map(|near| format!(", did you mean `{near}`?")).unwrap_or_default())]
    Parameter {
        /// The parameter's name.
        name: String,
        /// A similar name that exists.
        near: Option<&'static str>,
    },
    /// A value that the parameter does not accept, and what it accepts.
    #[error("the parameter `{0}` does not accept this value; expected {1}")]
    Value(&'static str, &'static str),
}

/// The supported parameters, each with libpq's environment variable.
const PARAMETERS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("dbname", "PGDATABASE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("application_name", "PGAPPNAME"),
    ("options", "PGOPTIONS"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

/// Parameters of libpq that are accepted and have no effect.
const IGNORED: &[&str] = &[
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
];

/// The parameters of a URL, in order; the last one of a name counts.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Splits a URL into parameters.
    pub(super) fn of_url(url: &str) -> Result<Self, InvalidAddress> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or(InvalidAddress::Scheme)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, places) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));

        let mut names = Vec::new();
        let mut ports = Vec::new();
        for place in places.split(',') {
            let bracketed = place.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            let (name, port) = match bracketed {
                Some((name, port)) => (name, port.strip_prefix(':').unwrap_or(port)),
                None => place.rsplit_once(':').unwrap_or((place, "")),
            };
            names.push(decode(name, "host")?);
            ports.push(port.to_owned());
        }
        let mut given = vec![
            ("host".to_owned(), names.join(",")),
            ("user".to_owned(), decode(user, "user")?),
            ("password".to_owned(), decode(password, "password")?),
            ("dbname".to_owned(), decode(database, "database")?),
        ];
        if ports.iter().any(|port| !port.is_empty()) {
            given.push(("port".to_owned(), ports.join(",")));
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let known = || PARAMETERS.iter().map(|(name, _)| *name);
            if !known().any(|parameter| parameter == name) && !IGNORED.contains(&name) {
                return Err(InvalidAddress::Parameter { near: nearest(name, known()), name: name.to_owned() });
            }
            given.push((name.to_owned(), decode(value, "parameters")?));
        }
        Ok(Self(given))
    }

    /// The value in the URL, else in the environment variable. An empty value counts as missing.
    pub(super) fn value(&self, name: &str, environment: &impl Fn(&str) -> Option<String>) -> Option<String> {
        let given = self.0.iter().rev().find(|(key, value)| key == name && !value.is_empty());
        let variable = PARAMETERS.iter().find(|(parameter, _)| *parameter == name).map(|(_, variable)| *variable);
        given.map(|(_, value)| value.clone()).or_else(|| environment(variable?).filter(|value| !value.is_empty()))
    }
}

fn decode(text: &str, part: &'static str) -> Result<String, InvalidAddress> {
    let stray = text.match_indices('%').any(|(at, _)| {
        let digits = text.as_bytes().get(at + 1..at + 3);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if stray {
        return Err(InvalidAddress::Encoding(part));
    }
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| InvalidAddress::Encoding(part))
}
