//! The workspace's members and what they depend on.

use std::process::Command;

use serde_json::Value;

use crate::{assert_none, tree};

/// A package of the workspace.
pub(crate) struct Member {
    pub(crate) name: String,
    /// From the repository's root, with slashes.
    pub(crate) folder: String,
    /// Names of the members among its dependencies, and whether for tests only.
    pub(crate) members: Vec<(String, bool)>,
    pub(crate) has_features: bool,
}

impl Member {
    pub(crate) fn is_service(&self) -> bool {
        self.folder.starts_with("services/") && self.name != "all-in-one"
    }
}

/// Every member, as cargo sees it.
pub(crate) fn members() -> Vec<Member> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = Command::new(cargo).args(arguments).current_dir(tree::root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().map(member).collect()
}

fn member(package: &Value) -> Member {
    let manifest = std::path::Path::new(package["manifest_path"].as_str().unwrap());
    let folder = manifest.parent().unwrap().strip_prefix(tree::root()).unwrap();
    let dependencies = package["dependencies"].as_array().unwrap();
    let ours = dependencies.iter().filter(|dependency| dependency["path"].is_string());
    Member {
        name: package["name"].as_str().unwrap().to_owned(),
        folder: folder.to_string_lossy().replace('\\', "/"),
        members: ours.map(|it| (it["name"].as_str().unwrap().to_owned(), it["kind"] == "dev")).collect(),
        has_features: !package["features"].as_object().unwrap().is_empty(),
    }
}

#[test]
fn a_package_is_named_like_its_folder() {
    let offenders: Vec<_> = members()
        .iter()
        .filter(|member| member.folder.rsplit('/').next() != Some(&member.name))
        .map(|member| format!("{} in {}", member.name, member.folder))
        .collect();
    assert_none("one noun everywhere: folder, package, binary, image", &offenders);
}

#[test]
fn no_member_has_cargo_features() {
    let members = members();
    let offenders: Vec<_> =
        members.iter().filter(|member| member.has_features).map(|member| member.name.clone()).collect();
    assert_none("a store is chosen by its URL at run time, never by a Cargo feature", &offenders);
}

#[test]
fn every_dependency_is_the_workspaces() {
    let mut offenders = Vec::new();
    for file in tree::files().iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let mut in_dependencies = false;
        for (index, line) in file.text.lines().map(str::trim).enumerate() {
            if line.starts_with('[') {
                in_dependencies = line.trim_end_matches(']').ends_with("dependencies");
                // `[dependencies.name]` names a dependency outside of the list.
                if line.contains("dependencies.") {
                    offenders.push(file.at(index + 1, line));
                }
                continue;
            }
            let inherits = line.contains(".workspace = true") || line.contains("{ workspace = true");
            if in_dependencies && !line.is_empty() && !line.starts_with('#') && !inherits {
                offenders.push(file.at(index + 1, line));
            }
        }
    }
    assert_none("a dependency has one version, in the root's [workspace.dependencies]", &offenders);
}

#[test]
fn every_member_keeps_the_workspaces_lints() {
    let mut offenders = Vec::new();
    for file in tree::files().iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        if !file.text.contains("[lints]\nworkspace = true") {
            offenders.push(file.path.clone());
        }
    }
    assert_none("every member says `[lints] workspace = true`", &offenders);
}
