//! A query's plan: the relations that it reads, and whether it writes.
//!
//! Owns EXPLAIN and its JSON. It must not run the query.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use crate::change::TableName;

/// Parameters are NULL. A custom plan would remove tables because comparisons with NULL are false,
/// and pruning would remove partitions.
const WHOLE_PLAN: &str = "set local plan_cache_mode = force_generic_plan; set local enable_partition_pruning = off; \
     set local constraint_exclusion = off";

/// The facts that a plan shows.
#[derive(Debug, Default)]
pub(super) struct QueryPlan {
    pub(super) relations: BTreeSet<TableName>,
    pub(super) writes: bool,
}

/// Plans the prepared query. This checks privileges and reads no rows.
pub(super) async fn explain(client: &Client, parameters: usize) -> Result<QueryPlan, Error> {
    client.batch_execute(WHOLE_PLAN).await?;
    let nulls = vec!["null"; parameters].join(", ");
    let arguments = if nulls.is_empty() { nulls } else { format!("({nulls})") };
    let explained = format!("explain (verbose, format json) execute unstale_read{arguments}");
    let mut json = String::new();
    for message in client.simple_query(&explained).await? {
        if let SimpleQueryMessage::Row(row) = message {
            json.push_str(row.get(0).unwrap_or_default());
            json.push('\n');
        }
    }
    let mut plan = QueryPlan::default();
    // If the plan is nested too deep to be parsed, only the view's relations are known.
    walk(&serde_json::from_str(&json).unwrap_or_default(), &mut plan);
    Ok(plan)
}

fn walk(node: &Value, plan: &mut QueryPlan) {
    match node {
        Value::Object(fields) => {
            let text = |name: &str| fields.get(name).and_then(Value::as_str);
            if let Some((schema, table)) = text("Schema").zip(text("Relation Name")) {
                plan.relations.insert(TableName::new(schema, table));
            }
            plan.writes |= matches!(text("Node Type"), Some("ModifyTable" | "LockRows"));
            fields.values().for_each(|field| walk(field, plan));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, plan)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_looked_through() {
        let json = r#"[{"Plan": {"Node Type": "Nested Loop", "Plans": [
            {"Node Type": "Seq Scan", "Schema": "public", "Relation Name": "b", "Alias": "x"},
            {"Node Type": "Function Scan", "Schema": "public", "Function Name": "f"},
            {"Node Type": "Limit", "Plans": [{"Node Type": "Index Scan", "Schema": "a", "Relation Name": "b"}]}]}}]"#;
        let mut plan = QueryPlan::default();
        walk(&serde_json::from_str(json).unwrap(), &mut plan);
        let names: Vec<_> = plan.relations.iter().map(ToString::to_string).collect();
        assert_eq!((names, plan.writes), (vec!["a.b".to_owned(), "public.b".to_owned()], false));
        walk(&serde_json::json!({"Node Type": "LockRows"}), &mut plan);
        assert!(plan.writes);
    }
}
