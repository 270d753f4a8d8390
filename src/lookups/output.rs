//! Where the ops that follow from answers go.
//!
//! Owns the two ways. Invariant: patterns and sets that follow from answers are swept together with
//! those that are known already, under the same limit.

use tokio::sync::mpsc;

use crate::plan::Plan;
use crate::rules::RuleSet;

/// Where the ops that follow from answers go.
#[derive(Debug)]
pub enum LookupOutput<'a> {
    /// Into a plan.
    Plan(&'a mut Plan),
    /// To the receiver, which applies them. Patterns and sets join the plan of sweeps instead.
    Channel(&'a mpsc::Sender<Plan>, &'a mut Plan),
}

impl LookupOutput<'_> {
    /// Hands over one piece.
    pub async fn send(&mut self, rules: &RuleSet, mut piece: Plan) {
        match self {
            Self::Plan(plan) => plan.append(piece),
            Self::Channel(sender, sweeps) => {
                piece.take_sweeps().into_iter().for_each(|(rule, removal)| sweeps.remove(rule, removal));
                sweeps.limit_sweeps(|asked| rules.removals_of(asked));
                if !piece.is_empty() {
                    // Fails only if the receiver was dropped, and with it what waited for the
                    // piece.
                    let _ = sender.send(piece).await;
                }
            }
        }
    }
}
