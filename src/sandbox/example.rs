//! The example domain: users, organizations, memberships, flags and sessions, as the shipped rules
//! have them.
//!
//! Owns `sql/example/`. It must not know rules.

use tokio_postgres::{Client, Error};

const SCHEMA: &str = include_str!("../../sql/example/schema.sql");
const SEED: &str = include_str!("../../sql/example/seed.sql");

/// Creates the tables, and this many users.
pub async fn create(client: &Client, users: u32) -> Result<(), Error> {
    client.batch_execute(SCHEMA).await?;
    client.execute("select set_config('unstale.users', $1, false)", &[&users.to_string()]).await?;
    client.batch_execute(SEED).await
}
