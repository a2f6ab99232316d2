//! The repository's files, as they lie in the folder, and which of their lines are product code.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// What is made, fetched or written at run time, wherever it lies.
const NOT_OURS: &[&str] = &[".git", "target", "node_modules", ".venv", "__pycache__"];

/// One text file.
pub(crate) struct File {
    /// From the repository's root, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    /// A file of tests only: it need not keep the rules of product code.
    pub(crate) is_test: bool,
}

impl File {
    /// Whether its name ends in one of these, without the dot.
    pub(crate) fn is(&self, extensions: &[&str]) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, extension)| extensions.contains(&extension))
    }

    /// The service it belongs to and its path inside that service's sources, if it is product code of one.
    pub(crate) fn of_service(&self) -> Option<(&str, &str)> {
        if self.is_test || !self.is(&["rs"]) {
            return None;
        }
        self.path.strip_prefix("services/")?.split_once("/src/")
    }

    /// The numbered lines of product code: no comments, no test modules.
    pub(crate) fn product_lines(&self) -> Vec<(usize, &str)> {
        if self.is_test {
            return Vec::new();
        }
        let mut lines = Vec::new();
        let mut all = self.text.lines().enumerate();
        while let Some((index, line)) = all.next() {
            if line.trim() == "#[cfg(test)]" {
                skip_item(indentation(line), &mut all);
            } else if !line.trim_start().starts_with("//") {
                lines.push((index + 1, line));
            }
        }
        lines
    }

    /// A place in it, for a message.
    pub(crate) fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {}", self.path, what.trim())
    }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Goes past the item that an attribute of that indentation belongs to.
fn skip_item<'a>(indented: usize, lines: &mut impl Iterator<Item = (usize, &'a str)>) {
    for (_, line) in lines {
        let is_outer = indentation(line) == indented && !line.trim_start().starts_with('#');
        let ends = line.starts_with('}') || line.trim_start().starts_with('}') || line.ends_with(';');
        if is_outer && ends {
            return;
        }
    }
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every text file of the repository, by path.
pub(crate) fn files() -> Vec<File> {
    let root = root();
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort();
    let mut files = Vec::new();
    for path in found {
        // What is not text is of no interest here.
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        files.push(File { is_test: path.contains("/tests/"), path, text });
    }
    let tests = test_modules(&files);
    for file in &mut files {
        let folder_or_file = file.path.strip_suffix(".rs").unwrap_or(&file.path);
        file.is_test |= tests.iter().any(|module| {
            folder_or_file.strip_prefix(module.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
    }
    files
}

/// The sources in Rust.
pub(crate) fn rust_files() -> Vec<File> {
    files().into_iter().filter(|file| file.is(&["rs"])).collect()
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        // The data folder of `cargo run` stands at the root.
        let is_data = folder == root && name == "data";
        if NOT_OURS.contains(&name.as_str()) || is_data || name.ends_with(".log") {
            continue;
        }
        if kind.is_dir() {
            walk(root, &path, found);
        } else if kind.is_file() {
            let relative = path.strip_prefix(root).unwrap();
            found.push(relative.to_string_lossy().replace('\\', "/"));
        }
    }
}

/// The modules declared under `#[cfg(test)]`, as paths without `.rs`.
fn test_modules(files: &[File]) -> HashSet<String> {
    let mut modules = HashSet::new();
    for file in files.iter().filter(|file| file.is(&["rs"])) {
        let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        let stem = name.trim_end_matches(".rs");
        let own = if ["mod", "lib", "main"].contains(&stem) { folder.to_owned() } else { format!("{folder}/{stem}") };
        let mut lines = file.text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if line != "#[cfg(test)]" {
                continue;
            }
            let next = lines.next().unwrap_or_default();
            if let Some(path) = next.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix(".rs\"]")) {
                modules.insert(format!("{folder}/{path}"));
                continue;
            }
            let declared = next.trim_start_matches("pub(crate) ").strip_prefix("mod ");
            if let Some(module) = declared.and_then(|rest| rest.strip_suffix(';')) {
                modules.insert(format!("{own}/{module}"));
            }
        }
    }
    modules
}

#[test]
fn lines_of_tests_and_comments_are_not_product_code() {
    let text = "use a;\n// said\n#[cfg(test)]\nmod contract;\nfn b() {}\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
    let file = File { path: "services/a/src/b.rs".to_owned(), text: text.to_owned(), is_test: false };
    assert_eq!(file.product_lines(), [(1, "use a;"), (5, "fn b() {}")]);
}

#[test]
fn a_module_declared_for_tests_is_a_file_of_tests() {
    let declared =
        "#[cfg(test)]\npub(crate) mod contract;\n#[cfg(test)]\n#[path = \"mod_tests.rs\"]\nmod tests;\nmod x;\n";
    let file = |path: &str| File { path: path.to_owned(), text: declared.to_owned(), is_test: false };
    let beside = HashSet::from(["s/src/store/contract".to_owned(), "s/src/store/mod_tests".to_owned()]);
    assert_eq!(test_modules(&[file("s/src/store/mod.rs")]), beside);
    let below = HashSet::from(["s/src/store/contract".to_owned(), "s/src/mod_tests".to_owned()]);
    assert_eq!(test_modules(&[file("s/src/store.rs")]), below);
}
