//! What a statement locks or restarts, where several findings say the same.

/// A parameter that takes effect when PostgreSQL is restarted.
pub(super) const RESTART: &str = "locks nothing; takes effect when PostgreSQL is restarted";

/// A parameter that takes effect when PostgreSQL is reloaded.
pub(super) const RELOAD: &str = "locks nothing; takes effect after SELECT pg_reload_conf()";

/// A statement that takes effect at once.
pub(super) const AT_ONCE: &str = "locks nothing; takes effect at once";
