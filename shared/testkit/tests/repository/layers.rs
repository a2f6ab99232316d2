//! Dependencies point one way: contracts <- auth, messaging <- chassis <- services <- all-in-one.

use crate::{
    assert_none,
    members::{Member, members},
    purity::mentions,
    tree,
};

/// How far up a member stands; it may depend only on what stands lower.
fn level(member: &Member) -> u32 {
    match member.name.as_str() {
        "contracts" => 0,
        "auth" | "messaging" => 1,
        "chassis" => 2,
        "testkit" => 3,
        "all-in-one" => 5,
        _ if member.is_service() => 4,
        other => panic!("{other} is new: say in this test on which level it stands"),
    }
}

#[test]
fn dependencies_point_one_way() {
    let members = members();
    let mut offenders = Vec::new();
    for member in &members {
        for (name, _) in &member.members {
            let target = members.iter().find(|other| other.name == *name).unwrap();
            // Anyone's tests may use it, whatever it stands on: another test sees to it that only tests do.
            if name != "testkit" && level(target) >= level(member) {
                offenders.push(format!("{} -> {name}", member.name));
            }
        }
    }
    assert_none("contracts <- auth, messaging <- chassis <- services <- all-in-one", &offenders);
}

#[test]
fn no_service_depends_on_another() {
    let members = members();
    let mut offenders = Vec::new();
    for member in members.iter().filter(|member| member.is_service()) {
        for (name, _) in &member.members {
            if members.iter().any(|other| other.is_service() && other.name == *name) {
                offenders.push(format!("{} -> {name}", member.name));
            }
        }
    }
    assert_none("only events and HTTP link services, not even their tests depend on another", &offenders);
}

#[test]
fn the_testkit_is_for_tests_only() {
    let mut offenders = Vec::new();
    for member in members() {
        if member.members.contains(&("testkit".to_owned(), false)) {
            offenders.push(member.name);
        }
    }
    assert_none("testkit is a dev-dependency", &offenders);
}

/// What the lowest layers and the outermost client must do without.
const KEPT_OUT: &[(&str, &[&str])] = &[
    ("shared/contracts/src/", &["axum", "sqlx", "reqwest", "messaging", "auth", "chassis"]),
    ("shared/auth/src/", &["axum", "tokio", "sqlx", "reqwest"]),
    ("shared/messaging/src/", &["axum", "reqwest"]),
    ("services/simulator/src/", &["auth", "chassis", "messaging", "sqlx"]),
    ("services/gateway/src/", &["sqlx", "object_store"]),
];

#[test]
fn a_layer_does_without_what_is_not_its_concern() {
    let mut offenders = Vec::new();
    for file in tree::rust_files() {
        let banned = KEPT_OUT.iter().filter(|(folder, _)| file.path.starts_with(folder));
        for krate in banned.flat_map(|(_, crates)| *crates) {
            for (number, line) in file.product_lines() {
                if mentions(line, krate) {
                    offenders.push(file.at(number, line));
                }
            }
        }
    }
    assert_none(
        "contracts and auth do no I/O, the simulator knows only the public API, the gateway no store",
        &offenders,
    );
}
