//! Runs the scripts of `sql/`, whose parameters are settings of the session.
//!
//! Owns that convention. It must not know what a script does.

use tokio_postgres::{Client, Error};

/// Sets the parameters, then runs the script.
pub(super) async fn run(client: &Client, script: &str, parameters: &[(&str, &str)]) -> Result<(), Error> {
    for (name, value) in parameters {
        client.execute("select set_config($1, $2, false)", &[name, value]).await?;
    }
    client.batch_execute(script).await
}
