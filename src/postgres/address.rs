//! The address of a PostgreSQL server: hosts, database, credentials and TLS settings.
//!
//! Owns the meaning of libpq's connection parameters. It must not connect. Source: the PostgreSQL
//! manual, libpq, "Connection Strings" and "Environment Variables". Invariant: the URL overrides
//! the environment.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::parameters::{InvalidAddress, Parameters};
use super::target::TargetSessionAttrs;

/// A host or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or IP address, and a port.
    Tcp(String, u16),
    /// The directory of a Unix socket, and the port in the socket's name.
    Unix(PathBuf, u16),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name, port) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Tcp(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(directory, port) => write!(f, "{}/.s.PGSQL.{port}", directory.display()),
        }
    }
}

/// When to use TLS and what to verify, as libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server offers it, without verification.
    Prefer,
    /// Always; without verification unless there is a root certificate.
    Require,
    /// Always; a root must have signed the certificate.
    VerifyCa,
    /// Always; a root must have signed the certificate, and it must name the host.
    VerifyFull,
}

/// Whether SCRAM is bound to the TLS channel, as libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Always; otherwise the login fails.
    Require,
}

/// A server, a database in it, and the credentials.
#[derive(Clone, Debug)]
pub struct Address {
    /// The hosts, tried in order.
    pub hosts: Vec<Host>,
    /// Which of them are accepted.
    pub target: TargetSessionAttrs,
    /// The address of the only host, if its name was resolved before.
    pub resolved: Option<SocketAddr>,
    /// The role.
    pub user: String,
    /// The password, if any.
    pub password: Option<SecretString>,
    /// The database.
    pub database: String,
    /// When to use TLS.
    pub ssl_mode: SslMode,
    /// File of trusted root certificates, or `system`.
    pub ssl_root_cert: Option<PathBuf>,
    /// Files of the client's certificate and its private key.
    pub ssl_client: Option<(PathBuf, PathBuf)>,
    /// SCRAM channel binding.
    pub channel_binding: ChannelBinding,
    /// The time limit for each host.
    pub connect_timeout: Duration,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Command-line options for the session.
    pub options: Option<String>,
}

impl fmt::Display for Address {
    /// Hosts and database, without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.hosts.iter().map(ToString::to_string).collect();
        write!(f, "{} (database {})", hosts.join(", "), self.database)
    }
}

const LONGEST_CONNECT_SECONDS: u64 = 3600;

impl Address {
    /// Parses a URL. Missing parameters come from libpq's environment variables, then from libpq's
    /// defaults.
    pub fn parse(url: &str, environment: &impl Fn(&str) -> Option<String>) -> Result<Self, InvalidAddress> {
        let given = Parameters::of_url(url)?;
        let value = |name: &str| given.value(name, environment);

        let ssl_mode = match value("sslmode").as_deref() {
            None | Some("prefer") => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("require") => SslMode::Require,
            Some("verify-ca") => SslMode::VerifyCa,
            Some("verify-full") => SslMode::VerifyFull,
            Some(_) => {
                return Err(InvalidAddress::Value("sslmode", "disable, prefer, require, verify-ca or verify-full"));
            }
        };
        let channel_binding = match value("channel_binding").as_deref() {
            None | Some("prefer") => ChannelBinding::Prefer,
            Some("disable") => ChannelBinding::Disable,
            Some("require") => ChannelBinding::Require,
            Some(_) => return Err(InvalidAddress::Value("channel_binding", "disable, prefer or require")),
        };
        let seconds = match value("connect_timeout") {
            None => 10,
            Some(text) => text.parse().map_err(|_| InvalidAddress::Value("connect_timeout", "a number of seconds"))?,
        };
        let ssl_client = match (value("sslcert"), value("sslkey")) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            _ => return Err(InvalidAddress::Value("sslcert", "a file, together with `sslkey`")),
        };
        let user = value("user").or_else(|| environment("USER")).unwrap_or_else(|| "postgres".to_owned());
        Ok(Self {
            hosts: hosts(value("host").as_deref(), value("port").as_deref())?,
            target: TargetSessionAttrs::parse(value("target_session_attrs").as_deref())?,
            resolved: None,
            database: value("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: value("password").map(SecretString::from),
            ssl_mode,
            ssl_root_cert: value("sslrootcert").map(PathBuf::from),
            ssl_client,
            channel_binding,
            // In libpq zero means no limit; the daemon retries, so an hour has the same effect.
            connect_timeout: Duration::from_secs(match seconds {
                0 => LONGEST_CONNECT_SECONDS,
                seconds => seconds.min(LONGEST_CONNECT_SECONDS),
            }),
            application_name: value("application_name").unwrap_or_else(|| "unstale".to_owned()),
            options: value("options"),
        })
    }
}

impl Address {
    /// The same with the one server that a connection has reached, so that the next connection
    /// reaches it, too.
    pub(crate) fn reached(&self, host: &Host, resolved: Option<SocketAddr>) -> Self {
        Self { hosts: vec![host.clone()], resolved, ..self.clone() }
    }
}

/// Combines hosts with ports: one port for all, or one for each.
fn hosts(names: Option<&str>, ports: Option<&str>) -> Result<Vec<Host>, InvalidAddress> {
    let ports: Vec<u16> = ports
        .unwrap_or("")
        .split(',')
        .map(|port| match port {
            "" => Ok(5432),
            port => port.parse().ok().filter(|&port| port > 0).ok_or(InvalidAddress::Port),
        })
        .collect::<Result<_, _>>()?;
    let host = |(at, name): (usize, &str)| {
        let port = ports.get(at).or(ports.last()).copied().unwrap_or(5432);
        match name {
            "" => Host::Tcp("127.0.0.1".to_owned(), port),
            directory if directory.starts_with('/') => Host::Unix(directory.into(), port),
            name => Host::Tcp(name.to_owned(), port),
        }
    };
    Ok(names.unwrap_or("").split(',').enumerate().map(host).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    fn parse(url: &str) -> Address {
        Address::parse(url, &|_| None).unwrap()
    }

    #[test]
    fn a_full_url_is_taken_apart() {
        let address = parse("postgres://ann:p%40ss@db.example:5433/app?sslmode=verify-full&sslrootcert=/ca.pem");
        assert_eq!(address.hosts, [Host::Tcp("db.example".into(), 5433)]);
        assert_eq!((address.user.as_str(), address.database.as_str()), ("ann", "app"));
        assert_eq!(address.password.as_ref().unwrap().expose_secret(), "p@ss");
        assert_eq!((address.ssl_mode, address.ssl_root_cert), (SslMode::VerifyFull, Some("/ca.pem".into())));
    }

    #[test]
    fn hosts_of_every_kind() {
        let check = |url: &str, expected: &[&str]| {
            let hosts: Vec<_> = parse(url).hosts.iter().map(ToString::to_string).collect();
            assert_eq!(hosts, expected, "{url}");
        };
        check("postgres://", &["127.0.0.1:5432"]);
        check("postgresql://h", &["h:5432"]);
        check("postgres://[::1]:6000/d", &["[::1]:6000"]);
        check("postgres://a,b:7/d", &["a:5432", "b:7"]);
        check("postgres:///d?host=/run/pg&port=7", &["/run/pg/.s.PGSQL.7"]);
        check("postgres://u@%2Frun%2Fpg/d", &["/run/pg/.s.PGSQL.5432"]);
    }

    #[test]
    fn the_environment_fills_what_the_url_leaves_out() {
        let environment = |name: &str| match name {
            "PGHOST" => Some("/sock".to_owned()),
            "PGUSER" => Some("bob".to_owned()),
            "PGPASSWORD" => Some("env".to_owned()),
            "PGSSLMODE" => Some("disable".to_owned()),
            _ => None,
        };
        let address = Address::parse("postgres://ann@/app", &environment).unwrap();
        assert_eq!(address.hosts, [Host::Unix("/sock".into(), 5432)]);
        assert_eq!((address.user.as_str(), address.ssl_mode), ("ann", SslMode::Disable));
        assert_eq!(address.password.unwrap().expose_secret(), "env");
        assert_eq!(Address::parse("postgres://", &environment).unwrap().database, "bob");
    }

    #[test]
    fn what_is_wrong_is_named_without_the_password() {
        let check = |url: &str, expected: &str| {
            let error = Address::parse(url, &|_| None).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{url}: {error}");
        };
        check("mysql://u:hunter2@h/d", "not a postgres:// URL");
        check("postgres://u:hunter2%@h/d", "password");
        check("postgres://u:hunter2%4@h/d", "password");
        check("postgres://u:hunter2%ff@h/d", "password");
        check("postgres://u:hunter2@h:0/d", "port");
        check("postgres://u:hunter2@h:x/d", "port");
        check("postgres://u@h/d?sslmod=require", "did you mean `sslmode`?");
        check("postgres://u@h/d?sslmode=requre", "verify-full");
        check("postgres://u@h/d?sslcert=/c", "sslkey");
        check("postgres://u@h/d?target_session_attrs=master", "prefer-standby");
        assert!(!format!("{:?}", parse("postgres://u:hunter2@h/d")).contains("hunter2"));
    }
}
