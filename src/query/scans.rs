//! Every place where a query reads a relation, and the equations that hold for its rows there.
//!
//! Owns the walk through the trees. It must not know keys. Invariant: an equation is reported only
//! if it holds for every row.

use super::tree::TreeNode;

/// One place where a query reads a relation.
#[derive(Debug)]
pub(super) struct RelationScan {
    pub(super) relation: u32,
    /// The equations that hold for its rows.
    pub(super) equations: Vec<Equation>,
    /// Whether the query has no result if no row is found here.
    pub(super) is_required: bool,
}

/// An equation between a column and something.
#[derive(Debug)]
pub(super) struct Equation {
    pub(super) operator: u32,
    pub(super) column: i16,
    pub(super) other: EquatedTo,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum EquatedTo {
    /// A column of another relation. Its place: how many queries further out, and its number there.
    Column { place: (usize, usize), relation: u32, column: i16 },
    /// A parameter or constant.
    Given,
}

/// Every place where the trees read a relation; none if a tree cannot be parsed.
pub(super) fn scans(trees: &[(bool, String)]) -> Option<Vec<RelationScan>> {
    let mut scans = Vec::new();
    for (is_whole, tree) in trees {
        let node = TreeNode::parse(tree)?;
        let mut walk = TreeWalk { is_whole: *is_whole, queries: Vec::new(), scans: Vec::new() };
        walk.visit(&node);
        scans.extend(walk.scans);
    }
    Some(scans)
}

/// The state of a walk through a tree.
struct TreeWalk<'n, 'a> {
    /// Whether the tree is the query itself, not a view or function in it.
    is_whole: bool,
    /// The range tables of the enclosing queries, innermost last.
    queries: Vec<&'n [TreeNode<'a>]>,
    scans: Vec<RelationScan>,
}

impl<'n, 'a> TreeWalk<'n, 'a> {
    fn visit(&mut self, node: &'n TreeNode<'a>) {
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

    /// The condition of an outer join holds only for the nullable side.
    fn join(&mut self, node: &'n TreeNode<'a>, conditions: &[&'n TreeNode<'a>], is_required: bool) {
        let narrowed = [conditions, node.field("quals").as_slice()].concat();
        if node.is("FROMEXPR") {
            node.items("fromlist").iter().for_each(|item| self.join(item, &narrowed, is_required));
        } else if node.is("JOINEXPR") {
            let kind: Option<u8> = node.number("jointype");
            for (side, keeps, drops) in [("larg", LEFT, RIGHT), ("rarg", RIGHT, LEFT)] {
                let holds = kind == Some(INNER) || kind == Some(drops);
                let conditions: &[&'n TreeNode<'a>] = if holds { &narrowed } else { conditions };
                if let Some(side) = node.field(side) {
                    self.join(side, conditions, is_required && (kind == Some(INNER) || kind == Some(keeps)));
                }
            }
        } else if let Some(number) = node.number("rtindex") {
            let Some(relation) = self.relation((0, number)) else { return };
            let mut equations = Vec::new();
            conditions.iter().for_each(|condition| self.equations(number, condition, &mut equations));
            self.scans.push(RelationScan { relation, equations, is_required });
        }
    }

    /// The relation at a place, if it is one.
    fn relation(&self, (outwards, number): (usize, usize)) -> Option<u32> {
        let entry = self.queries.iter().rev().nth(outwards)?.get(number.checked_sub(1)?)?;
        match entry.number::<u8>("rtekind") {
            Some(0) => entry.number("relid"),
            _ => None,
        }
    }

    fn equations(&self, number: usize, condition: &TreeNode<'a>, found: &mut Vec<Equation>) {
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

    fn other(&self, node: &TreeNode<'a>) -> Option<EquatedTo> {
        match column(node) {
            Some((place, column)) => Some(EquatedTo::Column { place, relation: self.relation(place)?, column }),
            None => is_given(node).then_some(EquatedTo::Given),
        }
    }
}

pub(super) const INNER: u8 = 0;
pub(super) const LEFT: u8 = 1;
pub(super) const RIGHT: u8 = 3;

/// Whether a query may have a result without rows from its relations.
fn makes_rows(query: &TreeNode<'_>) -> bool {
    let has = |clause: &str| query.word(clause) != Some("<>");
    query.word("hasAggs") != Some("false") || ["groupClause", "groupingSets", "havingQual"].into_iter().any(has)
}

/// The place and number of a column; a relabelled type with the same text form does not matter.
fn column(node: &TreeNode<'_>) -> Option<((usize, usize), i16)> {
    if node.is("RELABELTYPE") {
        return column(node.field("arg")?);
    }
    if !node.is("VAR") {
        return None;
    }
    Some(((node.number("varlevelsup")?, node.number("varno")?), node.number("varattno")?))
}

fn is_given(node: &TreeNode<'_>) -> bool {
    !node.is("VAR") && !node.is("QUERY") && node.children().into_iter().all(is_given)
}
