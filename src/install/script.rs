//! How the scripts of `sql/` get their parameters: from settings of the session.
//!
//! Owns that convention. It must not know what any script does.

use tokio_postgres::{Client, Error};

/// Sets the parameters, then runs a script that reads them.
pub(super) async fn run(client: &Client, script: &str, parameters: &[(&str, &str)]) -> Result<(), Error> {
    for (name, value) in parameters {
        client.execute("select set_config($1, $2, false)", &[name, value]).await?;
    }
    client.batch_execute(script).await
}
