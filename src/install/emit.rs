//! The function `unstale.emit`, as slot mode needs it: it writes events to the log.
//!
//! Owns `sql/emit.sql`. The outbox has a function of the same name, see [`super::outbox`].

use tokio_postgres::{Client, Error};

use super::step::Step;

/// The function by which applications emit events.
pub const EMIT: &str = include_str!("../../sql/emit.sql");

/// Installs the function if rules need it; nothing if they do not and it is not there.
pub(super) async fn install(client: &Client, is_needed: bool) -> Result<Option<Step>, Error> {
    // That of an outbox is replaced: nobody would read what it writes.
    const INSTALLED: &str = "select prosrc like '%pg_logical_emit_message%' from pg_proc \
         where oid = to_regprocedure('unstale.emit(text, jsonb)')";
    let before: Option<bool> = client.query_opt(INSTALLED, &[]).await?.map(|row| row.get(0));
    if !is_needed && before.is_none() {
        return Ok(None);
    }
    client.batch_execute(EMIT).await?;
    Ok(Some(Step::of(before != Some(true), "function unstale.emit".to_owned())))
}
