//! Rows that a query reads only joined with others, or only by the given primary key.
//!
//! Owns these proofs from keys and equations. It must not know rules or reads. Invariant: a proof
//! holds wherever the query reads the relation; for unfamiliar forms of a query nothing is proved.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, Row};

use super::scans::{EquatedTo, Equation, RelationScan, scans};
use crate::change::TableName;
use crate::postgres::lossy_text::LossyText;

/// The primary keys of these relations and the foreign keys among them, with the `=` operators of
/// their indexes. Left out: keys of tables with children by inheritance, whose rows they do not
/// cover, and keys that are not validated or are deferrable, which may be violated.
const CONSTRAINTS: &str = "select f.conrelid, cn.nspname::text, c.relname::text, f.conkey, \
            f.confrelid, tn.nspname::text, t.relname::text, f.confkey, \
            array(select o.amopopr from pg_index i \
                   cross join unnest(i.indclass::oid[]) k (class) \
                    join pg_opclass p on p.oid = k.class \
                    join pg_amop o on o.amopfamily = p.opcfamily and o.amopstrategy = 3 \
                    join pg_am m on m.oid = o.amopmethod and m.amname = 'btree' \
                   where i.indexrelid = f.conindid) \
       from pg_constraint f \
       join pg_class c on c.oid = f.conrelid and (c.relkind = 'p' or not c.relhassubclass) \
       join pg_namespace cn on cn.oid = c.relnamespace \
       left join pg_class t on t.oid = f.confrelid \
       left join pg_namespace tn on tn.oid = t.relnamespace \
      where f.contype in ('p', 'f') and f.convalidated and (f.contype = 'p' or not f.condeferrable) and f.conrelid = any ($1) \
        and (f.contype = 'p' or f.confrelid = any ($1) and (t.relkind = 'p' or not t.relhassubclass)) \
      order by f.oid";

/// What the joins of a query prove about its relations.
#[derive(Debug, Default)]
pub(super) struct Joins {
    /// For a relation, those that refer to it by a foreign key such that every row that the query
    /// uses is joined with a row that refers to it.
    pub(super) companions: BTreeMap<TableName, Vec<TableName>>,
    /// The relations of which the query reads only the row with the given primary key, and has no
    /// result without that row.
    pub(super) looked_up: BTreeSet<TableName>,
}

/// A primary key or a foreign key.
struct Constraint {
    relation: u32,
    name: TableName,
    columns: Vec<i16>,
    referenced: Option<Referenced>,
    operators: Vec<u32>,
}

struct Referenced {
    relation: u32,
    name: TableName,
    columns: Vec<i16>,
}

/// Analyses the trees of a query's view and of the views and functions in it. The flag marks the
/// view itself.
pub(super) async fn analyse(client: &Client, trees: &[(bool, String)]) -> Result<Joins, Error> {
    let Some(scans) = scans(trees) else { return Ok(Joins::default()) };
    let relations: Vec<u32> = scans.iter().map(|scan| scan.relation).collect();
    let rows = client.query(CONSTRAINTS, &[&relations]).await?;
    Ok(combine(&scans, &rows.iter().map(constraint).collect::<Vec<_>>()))
}

fn constraint(row: &Row) -> Constraint {
    let name = |schema: usize, table: usize| {
        let (schema, table): (Option<String>, Option<String>) = (row.get(schema), row.get(table));
        schema.zip(table).map(|(schema, table)| TableName::new(schema, table))
    };
    let referenced = name(5, 6).zip(row.get::<_, Option<Vec<i16>>>(7));
    Constraint {
        relation: row.get(0),
        name: TableName::new(row.get::<_, LossyText>(1).0, row.get::<_, LossyText>(2).0),
        columns: row.get(3),
        referenced: referenced.map(|(name, columns)| Referenced { relation: row.get(4), name, columns }),
        operators: row.get(8),
    }
}

fn combine(scans: &[RelationScan], constraints: &[Constraint]) -> Joins {
    let mut joins = Joins::default();
    for constraint in constraints {
        let read = constraint.referenced.as_ref().map_or(constraint.relation, |referenced| referenced.relation);
        let ours: Vec<&RelationScan> = scans.iter().filter(|scan| scan.relation == read).collect();
        match &constraint.referenced {
            Some(referenced) if ours.iter().all(|scan| scan.is_accompanied(constraint, referenced)) => {
                let companions = joins.companions.entry(referenced.name.clone()).or_default();
                companions.push(constraint.name.clone());
            }
            None if matches!(ours.as_slice(), [scan] if scan.is_looked_up(constraint)) => {
                joins.looked_up.insert(constraint.name.clone());
            }
            _ => {}
        }
    }
    joins
}

impl RelationScan {
    /// Whether each row is joined with a row that refers to it by this foreign key.
    fn is_accompanied(&self, key: &Constraint, referenced: &Referenced) -> bool {
        let mut places = self.equations.iter().filter_map(|equation| match equation.other {
            EquatedTo::Column { place, relation, .. } if relation == key.relation => Some(place),
            _ => None,
        });
        places.any(|place| {
            let mut pairs = key.columns.iter().zip(&referenced.columns);
            pairs.all(|(&theirs, &own)| {
                self.has(key, own, &EquatedTo::Column { place, relation: key.relation, column: theirs })
            })
        })
    }

    fn is_looked_up(&self, key: &Constraint) -> bool {
        self.is_required && key.columns.iter().all(|&column| self.has(key, column, &EquatedTo::Given))
    }

    fn has(&self, key: &Constraint, column: i16, other: &EquatedTo) -> bool {
        let is_it = |equation: &&Equation| equation.column == column && equation.other == *other;
        self.equations.iter().filter(is_it).any(|equation| key.operators.contains(&equation.operator))
    }
}

#[cfg(test)]
mod tests {
    use super::super::scans::{INNER, LEFT, RIGHT};
    use super::*;

    const T: u32 = 10;
    const M: u32 = 20;
    const EQUALS: u32 = 98;

    fn equal(left: &str, right: &str) -> String {
        format!("{{OPEXPR :opno {EQUALS} :args ({left} {right})}}")
    }

    fn var(outwards: usize, number: usize, column: i16) -> String {
        format!("{{VAR :varno {number} :varattno {column} :varlevelsup {outwards}}}")
    }

    /// A query of `t`, which is 1, and `m`, which is 2.
    fn query(from: &str, quals: &str, more: &str) -> String {
        format!(
            "({{QUERY :hasAggs false :rtable ({{RANGETBLENTRY :rtekind 0 :relid {T}}} {{RANGETBLENTRY :rtekind 0 \
             :relid {M}}}) :jointree {{FROMEXPR :fromlist ({from}) :quals {quals}}} :groupClause <> \
             :groupingSets <> :havingQual <>{more}}})"
        )
    }

    fn join(kind: u8, quals: &str) -> String {
        let [larg, rarg] = ["{RANGETBLREF :rtindex 1}", "{RANGETBLREF :rtindex 2}"];
        format!("{{JOINEXPR :jointype {kind} :larg {larg} :rarg {rarg} :quals {quals}}}")
    }

    /// Whether rows of `t` come with rows of `m`, and whether `t` is looked up.
    fn check(tree: &str, accompanied: bool, looked_up: bool) {
        let (t, m) = (TableName::parse("t"), TableName::parse("m"));
        let referenced = Some(Referenced { relation: T, name: t.clone(), columns: vec![1] });
        let foreign =
            Constraint { relation: M, name: m.clone(), columns: vec![3], referenced, operators: vec![EQUALS] };
        let primary =
            Constraint { relation: T, name: t.clone(), columns: vec![1], referenced: None, operators: vec![EQUALS] };
        let joins = combine(&scans(&[(true, tree.to_owned())]).unwrap(), &[foreign, primary]);
        let companions = if accompanied { vec![m] } else { Vec::new() };
        assert_eq!(joins.companions.get(&t).cloned().unwrap_or_default(), companions, "{tree}");
        assert_eq!(joins.looked_up.contains(&t), looked_up, "{tree}");
    }

    #[test]
    fn an_outer_join_keeps_rows_that_nothing_refers_to() {
        let on = equal(&var(0, 2, 3), &var(0, 1, 1));
        let both = "{RANGETBLREF :rtindex 1} {RANGETBLREF :rtindex 2}";
        check(&query(both, &on, ""), true, false);
        let and = format!("{{BOOLEXPR :boolop and :args ({{CONST}} {on})}}");
        check(&query(both, &and, ""), true, false);
        check(&query(both, &and.replace("boolop and", "boolop or"), ""), false, false);
        check(&query(&join(INNER, &on), "<>", ""), true, false);
        // `t left join m`, `t full join m`, and `m left join t`.
        check(&query(&join(LEFT, &on), "<>", ""), false, false);
        check(&query(&join(2, &on), "<>", ""), false, false);
        check(&query(&join(RIGHT, &on), "<>", ""), true, false);
        check(&query(&join(LEFT, "<>"), &on, ""), true, false);
        // Not what the foreign key compares, or by another operator.
        check(&query(both, &equal(&var(0, 2, 4), &var(0, 1, 1)), ""), false, false);
        check(&query(both, &on.replace("opno 98", "opno 99"), ""), false, false);
        let relabeled = format!("{{RELABELTYPE :arg {}}}", var(0, 2, 3));
        check(&query(both, &equal(&relabeled, &var(0, 1, 1)), ""), true, false);
    }

    #[test]
    fn what_is_read_twice_has_to_come_along_twice() {
        let on = equal(&var(0, 2, 3), &var(0, 1, 1));
        let bare = query("{RANGETBLREF :rtindex 1}", "<>", "");
        let inner = |tree: &str| format!(" :cteList ({{COMMONTABLEEXPR :ctequery {tree}}})");
        check(&query(&join(INNER, &on), "<>", &inner(&bare)), false, false);
        // `select (select … from t where t.id = m.t_id) from m`
        let outer = query("{RANGETBLREF :rtindex 1}", &equal(&var(0, 1, 1), &var(1, 2, 3)), "");
        check(&query("{RANGETBLREF :rtindex 2}", "<>", &inner(&outer)), true, false);
    }

    #[test]
    fn a_row_is_looked_up_by_its_whole_key() {
        let given = equal(&var(0, 1, 1), "{CONST :constisnull true :constvalue 2 [ 1 2 ]}");
        let one = "{RANGETBLREF :rtindex 1}";
        check(&query(one, &given, ""), false, true);
        check(&query(one, "<>", ""), false, false);
        check(&query(one, &equal(&var(0, 1, 2), "{CONST}"), ""), false, false);
        check(&query(one, &equal(&var(0, 1, 1), &format!("{{FUNCEXPR :args ({})}}", var(0, 2, 1))), ""), false, false);
        for maker in [("hasAggs false", "hasAggs true"), (":groupingSets <>", ":groupingSets ({GROUPINGSET})")] {
            check(&query(one, &given, "").replace(maker.0, maker.1), false, false);
        }
        let nested = format!("({{QUERY :hasAggs false :jointree {{FROMEXPR}} :x {}}})", query(one, &given, ""));
        check(&nested, false, false);
        // `t left join m … where t.id = $1`, and `m left join t on t.id = $1`.
        check(&query(&join(LEFT, "<>"), &given, ""), false, true);
        check(&query(&join(RIGHT, &given), "<>", ""), false, false);
        check(&query(&join(INNER, &given), "<>", ""), false, true);
    }
}
