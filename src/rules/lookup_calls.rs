//! Whether rules call lookups as the database knows them.
//!
//! Owns the comparison. It must not ask the database; [`crate::lookups`] does.

use super::rule_set::RuleSet;
use super::template::Image;
use crate::config::Problems;
use crate::nearest::nearest;

impl RuleSet {
    /// Reports the rules that call the lookup at position `lookup` with a wrong number of values,
    /// or that read columns that it does not return.
    pub fn check_calls(&self, lookup: usize, columns: &[&str], parameters: usize, problems: &mut Problems) {
        for rule in self.rules() {
            let Some(for_each) = rule.for_each.as_ref().filter(|for_each| for_each.lookup == lookup) else { continue };
            let given = for_each.arguments.len();
            if given != parameters {
                let place = for_each.arguments.first().map_or(&rule.span, |argument| &argument.span);
                let message = format!("the lookup takes {parameters} values, and rule `{}` gives {given}", rule.name);
                problems.push(place.clone(), message, "each `$n` of its `sql` needs a value");
            }
            rule.each_template(&mut |template| {
                for reference in template.value.references().filter(|reference| reference.image == Image::Lookup) {
                    if columns.contains(&reference.column.as_str()) {
                        continue;
                    }
                    let message = format!("the lookup returns no column `{}`", reference.column);
                    let advice = match nearest(&reference.column, columns.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("it returns {}", columns.join(", ")),
                    };
                    problems.push(template.place_of(reference), message, advice);
                }
            });
        }
    }
}
