//! The source files, parsed: what each defines, and which other file each name in it comes from.
//!
//! Owns the resolution of paths, through `use` and re-exports. It must not judge. Limit: what
//! stands inside the arguments of a macro is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, UseTree};

/// A path from the root of the crate: `["sink", "encode"]`.
pub(super) type ModulePath = Vec<String>;

/// One file of `src`.
pub(super) struct SourceFile {
    /// Relative to `src`, with forward slashes.
    pub(super) name: String,
    pub(super) text: String,
    pub(super) module: ModulePath,
    /// The types that it defines outside of tests, each with its line.
    pub(super) types: Vec<(String, usize)>,
    /// Functions outside of tests: name, first line, last line.
    pub(super) functions: Vec<(String, usize, usize)>,
    /// Lines that are neither blank nor comments nor tests.
    pub(super) code_lines: usize,
    /// The first segments of paths that lead to another crate.
    pub(super) crates: BTreeSet<String>,
    /// Paths to items of this crate, absolute.
    paths: BTreeSet<ModulePath>,
    /// What `use` brings into scope: the name, and the absolute path that it stands for.
    imports: BTreeMap<String, ModulePath>,
    children: BTreeSet<String>,
}

/// All files of `src`, by module.
pub(super) struct Tree {
    pub(super) files: Vec<SourceFile>,
    by_module: BTreeMap<ModulePath, usize>,
}

impl Tree {
    /// Reads the repository's own `src`.
    pub(super) fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let texts = rust_files(&root).into_iter().map(|path| {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
            (name, std::fs::read_to_string(&path).unwrap())
        });
        Self::parse(texts.filter(|(name, _)| name != "main.rs"))
    }

    /// Parses files, given by name and text.
    pub(super) fn parse(texts: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut files: Vec<_> = texts.into_iter().map(|(name, text)| SourceFile::parse(name, text)).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let by_module = files.iter().enumerate().map(|(index, file)| (file.module.clone(), index)).collect();
        Self { files, by_module }
    }

    /// For each file, by index, the other files whose items it names.
    pub(super) fn edges(&self) -> Vec<BTreeSet<usize>> {
        let mut edges = Vec::new();
        for (index, file) in self.files.iter().enumerate() {
            let targets = file.paths.iter().filter_map(|path| self.resolve(path, 0)).map(|(target, _)| target);
            edges.push(targets.filter(|target| *target != index).collect());
        }
        edges
    }

    /// The file that defines the item at this path; and whether the path ends at a module.
    fn resolve(&self, path: &[String], depth: usize) -> Option<(usize, bool)> {
        if depth > 16 {
            return None;
        }
        let mut module: ModulePath = Vec::new();
        for (position, segment) in path.iter().enumerate() {
            let here = *self.by_module.get(&module)?;
            let file = &self.files[here];
            let mut child = module.clone();
            child.push(segment.clone());
            if file.children.contains(segment) && self.by_module.contains_key(&child) {
                module = child;
                continue;
            }
            if let Some(imported) = file.imports.get(segment) {
                let rest = path.get(position + 1..).unwrap_or_default();
                let full: Vec<_> = imported.iter().chain(rest).cloned().collect();
                return self.resolve(&full, depth + 1);
            }
            return Some((here, false));
        }
        Some((*self.by_module.get(&module)?, true))
    }

    /// Groups of files that name one another in a circle.
    pub(super) fn circles(&self) -> Vec<Vec<&str>> {
        let edges = self.edges();
        let mut reaches: Vec<BTreeSet<usize>> = Vec::new();
        for start in 0..self.files.len() {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(at) = open.pop() {
                open.extend(edges[at].iter().filter(|next| seen.insert(**next)));
            }
            reaches.push(seen);
        }
        let mut circles = BTreeSet::new();
        for (index, reached) in reaches.iter().enumerate() {
            if reached.contains(&index) {
                let members = reached.iter().filter(|other| reaches[**other].contains(&index));
                circles.insert(members.map(|member| self.files[*member].name.as_str()).collect());
            }
        }
        circles.into_iter().collect()
    }
}

/// The Rust files below a directory.
pub(super) fn rust_files(directory: &Path) -> Vec<PathBuf> {
    files_with(directory, &["rs"])
}

/// The files below a directory whose names end so.
pub(super) fn files_with(directory: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

impl SourceFile {
    fn parse(name: String, text: String) -> Self {
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let stem = name.strip_suffix(".rs").unwrap_or(&name);
        let mut module: ModulePath = stem.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
            module.pop();
        }
        let mut file = Self {
            name,
            module,
            types: Vec::new(),
            functions: Vec::new(),
            code_lines: 0,
            crates: BTreeSet::new(),
            paths: BTreeSet::new(),
            imports: BTreeMap::new(),
            children: BTreeSet::new(),
            text: String::new(),
        };
        for item in &syntax.items {
            if let Item::Mod(child) = item
                && child.content.is_none()
                && !is_test(&child.attrs)
            {
                file.children.insert(child.ident.to_string());
            }
        }
        let mut tests = Vec::new();
        let mut collector = Collector { file: &mut file, tests: &mut tests };
        collector.visit_file(&syntax);
        file.code_lines = code_lines(&text, &tests);
        file.text = text;
        file
    }

    /// An absolute path of this crate, if it is one; otherwise the crate is noted.
    fn absolute(&mut self, path: &[String], in_use: bool) -> Option<ModulePath> {
        let (first, rest) = path.split_first()?;
        let mut base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module.split_last().map(|(_, above)| above.to_vec()).unwrap_or_default(),
            name if self.children.contains(name) => {
                let mut base = self.module.clone();
                base.push(name.to_owned());
                base
            }
            name => {
                if in_use || !rest.is_empty() && name.starts_with(|first: char| first.is_ascii_lowercase()) {
                    self.crates.insert(name.to_owned());
                }
                return None;
            }
        };
        for segment in rest {
            match segment.as_str() {
                "super" => drop(base.pop()),
                "self" => {}
                name => base.push(name.to_owned()),
            }
        }
        Some(base)
    }
}

/// Collects what a file names, outside of its tests.
struct Collector<'a> {
    file: &'a mut SourceFile,
    tests: &'a mut Vec<(usize, usize)>,
}

impl Collector<'_> {
    fn import(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.import(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => self.import_name(&name.ident.to_string(), None, before),
            UseTree::Rename(rename) => {
                self.import_name(&rename.ident.to_string(), Some(rename.rename.to_string()), before);
            }
            UseTree::Glob(_) => self.import_name("self", Some("*".to_owned()), before),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, before)),
        }
    }

    fn import_name(&mut self, name: &str, renamed: Option<String>, before: &[String]) {
        let mut path = before.to_vec();
        if name != "self" || path.is_empty() {
            path.push(name.to_owned());
        }
        let local = renamed.unwrap_or_else(|| path.last().cloned().unwrap_or_default());
        if let Some(absolute) = self.file.absolute(&path, true) {
            self.file.paths.insert(absolute.clone());
            // What a module declares itself is not an import.
            if !self.file.children.contains(&local) {
                self.file.imports.insert(local, absolute);
            }
        }
    }

    fn define(&mut self, name: &syn::Ident) {
        self.file.types.push((name.to_string(), name.span().start().line));
    }

    fn function(&mut self, name: &syn::Ident, whole: proc_macro2::Span) {
        self.file.functions.push((name.to_string(), whole.start().line, whole.end().line));
    }
}

impl<'ast> Visit<'ast> for Collector<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(ItemMod { attrs, .. }) => attrs.as_slice(),
            Item::Fn(function) => &function.attrs,
            Item::Impl(block) => &block.attrs,
            Item::Use(import) => &import.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Const(item) => &item.attrs,
            _ => &[],
        };
        if is_test(attributes) {
            self.tests.push((item.span().start().line, item.span().end().line));
            return;
        }
        match item {
            Item::Use(import) => self.import(&import.tree, &mut Vec::new()),
            Item::Struct(item) => self.define(&item.ident),
            Item::Enum(item) => self.define(&item.ident),
            Item::Trait(item) => self.define(&item.ident),
            Item::Type(item) => self.define(&item.ident),
            Item::Fn(item) => self.function(&item.sig.ident, item.span()),
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if is_test(&item.attrs) {
            self.tests.push((item.span().start().line, item.span().end().line));
            return;
        }
        self.function(&item.sig.ident, item.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_use(&mut self, _: &'ast syn::ItemUse) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1
            && let Some(absolute) = self.file.absolute(&segments, false)
        {
            self.file.paths.insert(absolute);
        }
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// Lines that are neither blank nor comments nor in one of these ranges.
fn code_lines(text: &str, without: &[(usize, usize)]) -> usize {
    let counts = |(index, line): &(usize, &str)| {
        let number = index + 1;
        let line = line.trim_start();
        !line.is_empty()
            && !line.starts_with("//")
            && !without.iter().any(|(first, last)| (*first..=*last).contains(&number))
    };
    text.lines().enumerate().filter(counts).count()
}
