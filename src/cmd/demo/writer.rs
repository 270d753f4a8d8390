//! Changes rows of the example domain, as applications do.

use rand::RngExt as _;
use tokio_postgres::Client;

use crate::cmd::failure::Failure;

/// Writes to the example domain.
pub(super) struct ExampleWriter {
    client: Client,
    users: u32,
}

impl ExampleWriter {
    /// A writer that chooses among so many users.
    pub(super) fn new(client: Client, users: u32) -> Self {
        Self { client, users }
    }

    /// Commits one change. Returns its description.
    pub(super) async fn write(&self) -> Result<String, Failure> {
        let (user, kind) = {
            let mut random = rand::rng();
            (format!("u{}", random.random_range(1..=self.users / 5)), random.random_range(0..6))
        };
        let stamp: u32 = rand::random();
        let organization = format!("o{}", stamp % (self.users / 10) + 1);
        let (text, sql, parameters) = match kind {
            0 => (
                format!("update users set email … where id = {user}"),
                "update users set email = $2 where id = $1",
                vec![user, format!("Person.{stamp}@Example.com")],
            ),
            1 => (
                format!("update users set name … where id = {user}"),
                "update users set name = $2 where id = $1",
                vec![user, format!("Name {stamp}")],
            ),
            2 => (
                format!("update feature_flags … of {organization}"),
                "update feature_flags set enabled = not enabled where organization_id = $1 and key = 'feature-1'",
                vec![organization],
            ),
            3 => (
                format!("update memberships set role … of {user}"),
                "update memberships set role = case role when 'member' then 'admin' else 'member' end \
                 where id = (select min(id) from memberships where user_id = $1)",
                vec![user],
            ),
            4 => (
                format!("update organizations set plan … {organization}"),
                "update organizations set plan = case plan when 'free' then 'team' else 'free' end where id = $1",
                vec![organization],
            ),
            _ => (
                format!("insert into sessions … for {user}"),
                "insert into sessions (id, user_id, token_hash) values ($2, $1, md5($2))",
                vec![user, format!("s{stamp}")],
            ),
        };
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = parameters.iter().map(|p| p as _).collect();
        self.client.execute(sql, &parameters).await?;
        Ok(text)
    }
}
