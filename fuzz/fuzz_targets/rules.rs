//! The YAML loader, the rule compiler, and with them templates and conditions.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unstale::config::Document;
use unstale::rules::RuleSet;

fuzz_target!(|text: &str| {
    let Ok(document) = Document::parse(text, &|name| (name.len() % 2 == 0).then(|| name.to_owned())) else { return };
    if let Err(problems) = RuleSet::compile(document.rules, document.lookups, &document.settings) {
        let _ = problems.render("invalidation.yaml", text, 1, false);
    }
});
