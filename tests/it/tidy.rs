//! The shape of the code: headers, and who may name whom.

use std::path::{Path, PathBuf};

fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn every_file_says_what_it_owns() {
    for (path, text) in sources("src").into_iter().chain(sources("tests")).chain(sources("benches")) {
        assert!(text.starts_with("//! "), "{} has no header", path.display());
    }
}

/// What each part may not name, as DESIGN draws it: data flows one way and only `pipeline` and `cmd` join.
#[test]
fn imports_go_one_way() {
    const VOCABULARY: &[&str] = &[
        "config",
        "rules",
        "reads",
        "redis",
        "postgres",
        "source",
        "sink",
        "coherence",
        "pipeline",
        "api",
        "sandbox",
        "cmd",
    ];
    let forbidden: &[(&str, &[&str])] = &[
        ("change", VOCABULARY),
        ("catalog.rs", VOCABULARY),
        ("key.rs", VOCABULARY),
        ("parameter.rs", VOCABULARY),
        ("plan", VOCABULARY),
        ("config", &["rules", "reads", "redis", "source", "sink", "coherence", "pipeline", "api", "sandbox", "cmd"]),
        ("rules", &["reads", "redis", "postgres", "source", "sink", "coherence", "pipeline", "api", "sandbox", "cmd"]),
        ("reads", &["redis", "postgres", "source", "sink", "coherence", "pipeline", "api", "sandbox", "cmd"]),
        ("redis.rs", VOCABULARY),
        ("source", &["rules", "reads", "redis", "sink", "coherence", "pipeline", "api", "sandbox", "cmd"]),
        ("sink", &["rules", "reads", "source", "postgres", "config", "pipeline", "api", "sandbox", "cmd"]),
        ("coherence", &["rules", "reads", "redis", "source", "sink", "config", "pipeline", "api", "sandbox", "cmd"]),
        ("api", &["rules", "source", "sink", "pipeline", "sandbox", "cmd"]),
        ("pipeline", &["reads", "api", "sandbox", "cmd"]),
        ("sandbox", &["config", "rules", "postgres", "source", "sink", "coherence", "pipeline", "cmd"]),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for (path, text) in sources("src") {
        let inside = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        for (part, names) in forbidden {
            if inside != *part && !inside.starts_with(&format!("{part}/")) && inside != format!("{part}.rs") {
                continue;
            }
            checked += 1;
            // Tests inside a module may build what they need from anywhere.
            let code = text.split("#[cfg(test)]").next().unwrap();
            for name in *names {
                let named = code.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
                    line.contains(&format!("crate::{name}::")) || line.contains(&format!("crate::{name};"))
                });
                assert!(!named, "{inside} names {name}");
            }
        }
    }
    assert!(checked > 20, "only {checked} files were looked at");
}
