//! The function `unstale.emit` for slot mode, which writes events to the log.
//!
//! Owns `sql/emit.sql`. It must not know which rules use events. [`super::outbox`] installs another
//! function of this name.

use tokio_postgres::{Client, Error};

use super::step::Step;

/// Creates the function by which applications emit events.
pub const EMIT: &str = include_str!("../../sql/emit.sql");

/// Installs the function if rules need it, or if there is one already.
pub(super) async fn install(client: &Client, is_needed: bool) -> Result<Option<Step>, Error> {
    // One that writes to an outbox is replaced: in slot mode no process reads the outbox.
    const INSTALLED: &str = "select prosrc like '%pg_logical_emit_message%' from pg_proc \
         where oid = to_regprocedure('unstale.emit(text, jsonb)')";
    let before: Option<bool> = client.query_opt(INSTALLED, &[]).await?.map(|row| row.get(0));
    if !is_needed && before.is_none() {
        return Ok(None);
    }
    client.batch_execute(EMIT).await?;
    Ok(Some(Step::of(before != Some(true), "function unstale.emit".to_owned())))
}
