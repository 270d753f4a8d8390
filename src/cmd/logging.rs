//! Log lines on standard error.
//!
//! Owns their format and level. Invariant: a log that cannot be written stops nothing.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging: text on a terminal, otherwise one JSON object a line. `RUST_LOG` overrides the
/// level.
pub(super) fn start(quiet: bool) {
    let default = if quiet { "warn" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let builder = builder.log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        builder.with_ansi(colours()).init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

/// Whether messages may be coloured: standard error is a terminal, and `NO_COLOR` is unset or
/// empty.
pub(super) fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
