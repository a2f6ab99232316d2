//! What every file keeps to, whatever its language.

use crate::{assert_none, tree};

/// A file that is longer becomes a folder of the same name.
const MOST_LINES: usize = 500;

/// Lines of all files for which `is_fault` holds.
fn faults(files: &[tree::File], is_fault: impl Fn(&str) -> bool) -> Vec<String> {
    let mut offenders = Vec::new();
    for file in files {
        for (index, line) in file.text.lines().enumerate() {
            if is_fault(line) {
                offenders.push(file.at(index + 1, line));
            }
        }
    }
    offenders
}

#[test]
fn every_source_file_opens_by_saying_what_it_is() {
    let mut offenders = Vec::new();
    for file in tree::rust_files() {
        let opening = file.text.lines().next().unwrap_or_default();
        if opening.strip_prefix("//! ").is_none_or(|sentence| sentence.trim().is_empty()) {
            offenders.push(file.path);
        }
    }
    assert_none("the first line of a .rs file is a `//!` sentence that says what it is", &offenders);
}

#[test]
fn no_source_file_is_too_long() {
    let mut offenders = Vec::new();
    for file in tree::files().iter().filter(|file| file.is(&["rs", "js", "mjs", "css", "html", "py"])) {
        let lines = file.text.lines().count();
        if lines > MOST_LINES {
            offenders.push(format!("{}: {lines} lines", file.path));
        }
    }
    assert_none("a file past 500 lines becomes a folder of the same name", &offenders);
}

#[test]
fn nothing_is_left_undone() {
    // In pieces, so that this file does not offend.
    let marks = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("XX", "X:"),
        concat!("#[", "ignore"),
    ];
    let sources: Vec<_> = tree::files()
        .into_iter()
        .filter(|file| file.is(&["rs", "js", "mjs", "css", "html", "py", "sh", "toml"]))
        .collect();
    let offenders = faults(&sources, |line| marks.iter().any(|mark| line.contains(mark)));
    assert_none("what is there is finished, and every test runs", &offenders);
}

#[test]
fn no_queue_is_unbounded() {
    let channels = [
        concat!("unbounded", "_channel"),
        concat!("Unbounded", "Sender"),
        concat!("mpsc::", "unbounded("),
        concat!("std::sync::mpsc::", "channel"),
    ];
    let offenders = faults(&tree::rust_files(), |line| channels.iter().any(|channel| line.contains(channel)));
    assert_none("every queue is bounded, by a named constant", &offenders);
}

#[test]
fn no_path_of_a_machine_is_written_down() {
    let homes = ["root", "work", "home", "Users", "opt/wheels"].map(|folder| format!("/{folder}/"));
    let offenders = faults(&tree::files(), |line| homes.iter().any(|home| has_path(line, home)));
    assert_none("the repository works in any folder of any machine", &offenders);
}

/// Whether an absolute path begins with `home` in that line: it is not the middle of a longer path.
fn has_path(line: &str, home: &str) -> bool {
    line.match_indices(home).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|last| {
            !last.is_alphanumeric() && !matches!(last, '.' | '_' | '-' | '}' | ')' | '*' | '~' | '>')
        })
    })
}

#[test]
fn no_registry_is_written_down() {
    // Where packages come from is a machine's own setting.
    let settings = ["index-url", "replace-with", "registry=http", "registry = \"http", "GOPROXY=http", "trusted-host"];
    let mut files = tree::files();
    files.retain(|file| !file.path.starts_with("shared/testkit/tests/"));
    let offenders = faults(&files, |line| settings.iter().any(|setting| line.contains(setting)));
    assert_none("no file says where packages are fetched from", &offenders);
    files.retain(|file| file.path.ends_with("package-lock.json") || file.path.ends_with("Cargo.lock"));
    let public = ["https://registry.npmjs.org/", "registry+https://github.com/rust-lang/crates.io-index"];
    let offenders = faults(&files, |line| {
        let fetched = line.contains("\"resolved\":") || line.starts_with("source = ");
        fetched && !public.iter().any(|registry| line.contains(registry))
    });
    assert_none("lock files name the public registries", &offenders);
}

#[test]
fn a_path_in_the_middle_of_another_is_no_machines() {
    let home = format!("/{}/", "work");
    assert!(has_path(&format!("cd {home}main"), &home));
    assert!(has_path(&format!("\"{home}main\""), &home));
    assert!(!has_path(&format!("docs{home}flow.md"), &home));
}
