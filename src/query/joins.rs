//! Which rows a query reads only together with others, or only if they are the ones that were asked for.
//!
//! Owns what of a parsed query tells that. It must not know rules or reads. Invariant: what it says of a relation holds
//! wherever the query reads it; of whatever is written in another way than it knows it says nothing.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, Row};

use super::tree::Node;
use crate::change::TableName;

/// The primary keys of these relations, and the foreign keys among them, with every `=` by which those compare. Keys do
/// not hold for the rows of heirs, and what is not validated or deferred not for every row.
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

/// What is known of relations from how they are joined.
#[derive(Debug, Default)]
pub(super) struct Joins {
    /// For a relation those of which a row refers, by a foreign key, to each of its rows that the query uses.
    pub(super) companions: BTreeMap<TableName, Vec<TableName>>,
    /// Without the one row of this relation whose primary key is given the query returns no row, and it reads no other.
    pub(super) looked_up: BTreeSet<TableName>,
}

/// A primary key, or a foreign key.
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

/// One place where a query reads a relation.
#[derive(Debug)]
struct Scan {
    relation: u32,
    /// What must hold of its rows.
    equations: Vec<Equation>,
    /// Where it has no row there is no result.
    is_required: bool,
}

/// A column is equal to something.
#[derive(Debug)]
struct Equation {
    operator: u32,
    column: i16,
    other: Other,
}

#[derive(Debug, PartialEq, Eq)]
enum Other {
    /// A column of the relation that is read at this place: so many queries further out, and its number there.
    Column { place: (usize, usize), relation: u32, column: i16 },
    /// A parameter, or what else is no row's.
    Given,
}

/// What the trees of a query's view, with whether it is the view itself, and of everything in it tell.
pub(super) async fn ask(client: &Client, trees: &[(bool, String)]) -> Result<Joins, Error> {
    let Some(scans) = scans(trees) else { return Ok(Joins::default()) };
    let relations: Vec<u32> = scans.iter().map(|scan| scan.relation).collect();
    let rows = client.query(CONSTRAINTS, &[&relations]).await?;
    Ok(judge(&scans, &rows.iter().map(constraint).collect::<Vec<_>>()))
}

fn constraint(row: &Row) -> Constraint {
    let name = |schema: usize, table: usize| {
        let (schema, table): (Option<String>, Option<String>) = (row.get(schema), row.get(table));
        schema.zip(table).map(|(schema, table)| TableName::new(schema, table))
    };
    let referenced = name(5, 6).zip(row.get::<_, Option<Vec<i16>>>(7));
    Constraint {
        relation: row.get(0),
        name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        columns: row.get(3),
        referenced: referenced.map(|(name, columns)| Referenced { relation: row.get(4), name, columns }),
        operators: row.get(8),
    }
}

fn judge(scans: &[Scan], constraints: &[Constraint]) -> Joins {
    let mut joins = Joins::default();
    for constraint in constraints {
        let read = constraint.referenced.as_ref().map_or(constraint.relation, |referenced| referenced.relation);
        let ours: Vec<&Scan> = scans.iter().filter(|scan| scan.relation == read).collect();
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

impl Scan {
    /// Each row is equal to what a row of the other relation refers to, in all columns of the foreign key.
    fn is_accompanied(&self, key: &Constraint, referenced: &Referenced) -> bool {
        let mut places = self.equations.iter().filter_map(|equation| match equation.other {
            Other::Column { place, relation, .. } if relation == key.relation => Some(place),
            _ => None,
        });
        places.any(|place| {
            let mut pairs = key.columns.iter().zip(&referenced.columns);
            pairs.all(|(&theirs, &own)| {
                self.has(key, own, &Other::Column { place, relation: key.relation, column: theirs })
            })
        })
    }

    fn is_looked_up(&self, key: &Constraint) -> bool {
        self.is_required && key.columns.iter().all(|&column| self.has(key, column, &Other::Given))
    }

    fn has(&self, key: &Constraint, column: i16, other: &Other) -> bool {
        let is_it = |equation: &&Equation| equation.column == column && equation.other == *other;
        self.equations.iter().filter(is_it).any(|equation| key.operators.contains(&equation.operator))
    }
}

/// Every place where the trees read a relation; nothing if one of them cannot be read.
fn scans(trees: &[(bool, String)]) -> Option<Vec<Scan>> {
    let mut scans = Vec::new();
    for (is_whole, tree) in trees {
        let node = Node::parse(tree)?;
        let mut walk = Walk { is_whole: *is_whole, queries: Vec::new(), scans: Vec::new() };
        walk.visit(&node);
        scans.extend(walk.scans);
    }
    Some(scans)
}

/// On the way through a tree.
struct Walk<'n, 'a> {
    /// It is not something in a query, but the query.
    is_whole: bool,
    /// What each query has under `from`, the innermost last.
    queries: Vec<&'n [Node<'a>]>,
    scans: Vec<Scan>,
}

impl<'n, 'a> Walk<'n, 'a> {
    fn visit(&mut self, node: &'n Node<'a>) {
        let is_query = node.is("QUERY");
        if is_query {
            self.queries.push(node.items("rtable"));
            let is_outermost = self.is_whole && self.queries.len() == 1;
            if let Some(from) = node.field("jointree") {
                self.join(from, &[], is_outermost && !makes_rows(node));
            }
        }
        node.children().into_iter().for_each(|child| self.visit(child));
        if is_query {
            self.queries.pop();
        }
    }

    /// An outer join's condition holds of the side that may be missing, and says nothing of the other.
    fn join(&mut self, node: &'n Node<'a>, conditions: &[&'n Node<'a>], is_required: bool) {
        let narrowed = [conditions, node.field("quals").as_slice()].concat();
        if node.is("FROMEXPR") {
            node.items("fromlist").iter().for_each(|item| self.join(item, &narrowed, is_required));
        } else if node.is("JOINEXPR") {
            let kind: Option<u8> = node.number("jointype");
            for (side, keeps, drops) in [("larg", LEFT, RIGHT), ("rarg", RIGHT, LEFT)] {
                let holds = kind == Some(INNER) || kind == Some(drops);
                let conditions: &[&'n Node<'a>] = if holds { &narrowed } else { conditions };
                if let Some(side) = node.field(side) {
                    self.join(side, conditions, is_required && (kind == Some(INNER) || kind == Some(keeps)));
                }
            }
        } else if let Some(number) = node.number("rtindex") {
            let Some(relation) = self.relation((0, number)) else { return };
            let mut equations = Vec::new();
            conditions.iter().for_each(|condition| self.equations(number, condition, &mut equations));
            self.scans.push(Scan { relation, equations, is_required });
        }
    }

    /// The relation that is read there, if it is one.
    fn relation(&self, (outwards, number): (usize, usize)) -> Option<u32> {
        let entry = self.queries.iter().rev().nth(outwards)?.get(number.checked_sub(1)?)?;
        match entry.number::<u8>("rtekind") {
            Some(0) => entry.number("relid"),
            _ => None,
        }
    }

    fn equations(&self, number: usize, condition: &Node<'a>, found: &mut Vec<Equation>) {
        if condition.is("BOOLEXPR") && condition.word("boolop") == Some("and") {
            condition.items("args").iter().for_each(|part| self.equations(number, part, found));
        } else if let ("OPEXPR", [left, right], Some(operator)) =
            (condition.name(), condition.items("args"), condition.number("opno"))
        {
            for (own, other) in [(left, right), (right, left)] {
                let column = column(own).filter(|(place, _)| *place == (0, number)).map(|(_, column)| column);
                if let Some((column, other)) = column.zip(self.other(other)) {
                    found.push(Equation { operator, column, other });
                }
            }
        }
    }

    fn other(&self, node: &Node<'a>) -> Option<Other> {
        match column(node) {
            Some((place, column)) => Some(Other::Column { place, relation: self.relation(place)?, column }),
            None => is_given(node).then_some(Other::Given),
        }
    }
}

const INNER: u8 = 0;
const LEFT: u8 = 1;
const RIGHT: u8 = 3;

/// Whether there may be a result although no row is there.
fn makes_rows(query: &Node<'_>) -> bool {
    let has = |clause: &str| query.word(clause) != Some("<>");
    query.word("hasAggs") != Some("false") || ["groupClause", "groupingSets", "havingQual"].into_iter().any(has)
}

/// The place and the column, of what is nothing but one, if of another type that is written the same.
fn column(node: &Node<'_>) -> Option<((usize, usize), i16)> {
    if node.is("RELABELTYPE") {
        return column(node.field("arg")?);
    }
    if !node.is("VAR") {
        return None;
    }
    Some(((node.number("varlevelsup")?, node.number("varno")?), node.number("varattno")?))
}

fn is_given(node: &Node<'_>) -> bool {
    !node.is("VAR") && !node.is("QUERY") && node.children().into_iter().all(is_given)
}

#[cfg(test)]
mod tests {
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
        let joins = judge(&scans(&[(true, tree.to_owned())]).unwrap(), &[foreign, primary]);
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
