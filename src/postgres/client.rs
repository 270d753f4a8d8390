//! Ordinary SQL connections, for the catalog and for set-up.
//!
//! Owns the translation of an [`Address`] for tokio-postgres and of its errors for the user. It must not
//! know what is asked over the connection.

use std::io;

use secrecy::ExposeSecret as _;
use tokio_postgres::{Client, Config, config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::{Address, ChannelBinding, Host, SslMode};
use super::error::{ConnectError, ServerError};
use super::tls::client_config;

/// Connects; the connection is driven by a task that ends with the client.
pub async fn connect(address: &Address) -> Result<Client, ConnectError> {
    let connector = MakeRustlsConnect::new(client_config(address)?);
    let (client, connection) = config(address).connect(connector).await.map_err(|error| explain(address, &error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an SQL connection ended");
        }
    });
    Ok(client)
}

fn config(address: &Address) -> Config {
    let mut config = Config::new();
    for host in &address.hosts {
        match host {
            Host::Tcp(name, port) => config.host(name).port(*port),
            Host::Unix(directory, port) => config.host_path(directory).port(*port),
        };
    }
    config.user(&address.user).dbname(&address.database).application_name(&address.application_name);
    if let Some(password) = &address.password {
        config.password(password.expose_secret());
    }
    if let Some(options) = &address.options {
        config.options(options);
    }
    config.ssl_mode(match address.ssl_mode {
        SslMode::Disable => config::SslMode::Disable,
        SslMode::Prefer => config::SslMode::Prefer,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => config::SslMode::Require,
    });
    config.channel_binding(match address.channel_binding {
        ChannelBinding::Disable => config::ChannelBinding::Disable,
        ChannelBinding::Prefer => config::ChannelBinding::Prefer,
        ChannelBinding::Require => config::ChannelBinding::Require,
    });
    config.connect_timeout(address.connect_timeout);
    config
}

fn explain(address: &Address, error: &tokio_postgres::Error) -> ConnectError {
    if let Some(refusal) = error.as_db_error() {
        return ConnectError::Refused(ServerError::from(refusal));
    }
    let cause = std::error::Error::source(error).map(ToString::to_string);
    let text = cause.unwrap_or_else(|| error.to_string());
    if error.to_string().contains("TLS") {
        return ConnectError::Tls(text);
    }
    if text.contains("password") {
        return ConnectError::Login("the server asks for a password; put one into source.url or PGPASSWORD");
    }
    let kind = || io::Error::other(text.clone());
    ConnectError::Unreachable(address.hosts.iter().map(|host| (host.clone(), kind())).collect())
}
