//! Holds `services/CONFIGURATION.md` true: its tables are compared with the options of every program.

use std::collections::BTreeSet;

use chassis::config::{NodeConfig, SERVICES};
use clap::{Arg, ArgAction, Args, Command, CommandFactory, builder::Resettable};

use super::CommandLine;

const DOCUMENT: &str = include_str!("../../../CONFIGURATION.md");

/// What a table of variables begins with; the document has others.
const HEADER: &str = "| variable | meaning | default | examples |";

const COMMON: &str = "Every service";
const SIMULATOR: &str = "simulator";
const OBJECT_STORES: &str = "The lake on S3 or Azure";

/// What is read without being an option: section, variable, default.
const NOT_OPTIONS: [(&str, &str, &str); 3] = [
    (COMMON, "LOG", "`warn`"),
    (COMMON, messaging::abort::ABORT_AT, "none"),
    // The simulator does without the services' chassis.
    (SIMULATOR, "RUST_LOG", "`info`"),
];

/// A variable as the document tells it.
struct Row {
    section: String,
    variable: String,
    meaning: String,
    default: String,
    examples: String,
}

/// The rows of all tables of variables.
fn rows(document: &str) -> Vec<Row> {
    let (mut section, mut in_table) = (String::new(), false);
    let mut rows = Vec::new();
    for line in document.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        }
        in_table = line == HEADER || (in_table && line.starts_with('|'));
        if !in_table || line == HEADER || line.starts_with("|---") {
            continue;
        }
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
        let [_, variable, meaning, default, examples, _] = &cells[..] else {
            panic!("expected four cells: {line}");
        };
        rows.push(Row {
            section: section.clone(),
            variable: variable.trim_matches('`').to_owned(),
            meaning: meaning.clone(),
            default: default.clone(),
            examples: examples.clone(),
        });
    }
    rows
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Every option that a variable can give, with the section that should have it.
fn options() -> Vec<(&'static str, Arg)> {
    let mut options = of_command(COMMON, &NodeConfig::augment_args(Command::new(COMMON)));
    for service in SERVICES {
        options.extend(of_command(service, &service_command(service)));
    }
    let simulator = of_command(SIMULATOR, &simulator::Config::augment_args(Command::new(SIMULATOR)));
    let mut own = of_command("all-in-one", &CommandLine::command());
    // It has the simulator's options as they are. One that differed would stay among its own.
    let said = |option: &Arg| (variable_of(option), default_of(option));
    own.retain(|(_, option)| !simulator.iter().any(|(_, other)| said(other) == said(option)));
    options.extend(simulator);
    options.extend(own);
    options
}

fn service_command(service: &'static str) -> Command {
    let command = Command::new(service);
    match service {
        "gateway" => gateway::Config::augment_args(command),
        "delivery" => delivery::Config::augment_args(command),
        "package" => package::Config::augment_args(command),
        "fleet" => fleet::Config::augment_args(command),
        "tracking" => tracking::Config::augment_args(command),
        "history" => history::Config::augment_args(command),
        "lookup" => lookup::Config::augment_args(command),
        other => panic!("{other} is new: say here what configures it"),
    }
}

/// The options of a command and of its subcommands that have variables.
fn of_command(section: &'static str, command: &Command) -> Vec<(&'static str, Arg)> {
    let with_variable = command.get_arguments().filter(|option| option.get_env().is_some());
    let mut options: Vec<_> = with_variable.map(|option| (section, option.clone())).collect();
    for subcommand in command.get_subcommands() {
        options.extend(of_command(section, subcommand));
    }
    options
}

fn variable_of(option: &Arg) -> String {
    option.get_env().unwrap().to_str().unwrap().to_owned()
}

/// As the document says it.
fn default_of(option: &Arg) -> String {
    let values: Vec<_> = option.get_default_values().iter().map(|value| value.to_str().unwrap()).collect();
    match (option.get_action().takes_values(), &values[..]) {
        (false, _) => "`false`".to_owned(),
        (true, []) if option.is_required_set() => "required".to_owned(),
        (true, []) => "none".to_owned(),
        (true, values) => format!("`{}`", values.join(",")),
    }
}

/// The variables of object stores' clients that the help of `LAKE` names.
fn credentials(options: &[(&str, Arg)]) -> BTreeSet<String> {
    let (_, lake) =
        options.iter().find(|(section, option)| *section == "history" && variable_of(option) == "LAKE").unwrap();
    let help = lake.get_help().unwrap().to_string();
    let words = help.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("AWS_") || word.starts_with("AZURE_")).map(str::to_owned).collect()
}

/// Where the document and the programs differ.
fn differences(document: &str) -> Vec<String> {
    let said = |section: &str, variable: &str, default: &str| format!("{section}: {variable}, {default}");
    let options = options();
    let mut expected = BTreeSet::new();
    expected.extend(options.iter().map(|(section, option)| said(section, &variable_of(option), &default_of(option))));
    expected.extend(NOT_OPTIONS.map(|(section, variable, default)| said(section, variable, default)));
    expected.extend(credentials(&options).iter().map(|variable| said(OBJECT_STORES, variable, "none")));
    let documented: BTreeSet<_> =
        rows(document).iter().map(|row| said(&row.section, &row.variable, &row.default)).collect();
    let missing = expected.difference(&documented).map(|entry| format!("not documented: {entry}"));
    let foreign = documented.difference(&expected).map(|entry| format!("documented, but not so: {entry}"));
    missing.chain(foreign).collect()
}

/// What a program says to a value of one of its options, whatever the environment of the test says.
fn offer(option: &Arg, value: &str) -> Result<(), clap::Error> {
    let flag = option.get_long().unwrap();
    let given = [format!("--{flag}={value}")];
    let mut option = option.clone().env(Resettable::Reset);
    if !option.get_action().takes_values() {
        // A flag has no value on a command line, but its variable has one.
        option = option.action(ArgAction::Set);
    }
    Command::new("program").no_binary_name(true).arg(option).try_get_matches_from(given).map(drop)
}

#[test]
fn every_variable_is_documented_with_its_default_and_no_other() {
    let differences = differences(DOCUMENT);
    assert!(differences.is_empty(), "services/CONFIGURATION.md\n  {}\n", differences.join("\n  "));
}

#[test]
fn a_row_that_is_missing_wrong_misplaced_or_nobodys_is_found() {
    let store = "| `FLEET_STORE` | drones and reservations;";
    let found = |from: &str, to: &str| {
        assert!(DOCUMENT.contains(from), "{from}");
        differences(&DOCUMENT.replacen(from, to, 1))
    };
    let missing = "not documented: fleet: FLEET_STORE, required".to_owned();
    let nobodys = "documented, but not so: fleet: FLEET_SHOP, required".to_owned();
    assert_eq!(found(store, "FLEET_STORE"), std::slice::from_ref(&missing));
    assert_eq!(found(store, &store.replace("STORE", "SHOP")), [missing, nobodys]);
    assert_eq!(found("## lookup\n", "## lookups\n").len(), 2);
    for default in ["| `127.0.0.1:0` |", "| `poll` |", "| `false` |", "| `20000` |", "| required |", "| none |"] {
        assert_eq!(found(default, "| `1` |").len(), 2, "{default}");
    }
    assert_eq!(found("| `AWS_REGION` |", "| `AWS_REGIONS` |").len(), 2);
    assert_eq!(found("| `LOG` |", "| `LOGS` |").len(), 2);
}

#[test]
fn a_services_flag_is_its_variable_in_lower_case() {
    let services = options().into_iter().filter(|(section, _)| *section == COMMON || SERVICES.contains(section));
    for (section, option) in services {
        let expected = variable_of(&option).to_lowercase().replace('_', "-");
        assert_eq!(option.get_long(), Some(expected.as_str()), "{section}");
    }
}

#[test]
fn every_example_is_taken_by_its_option() {
    let options = options();
    for row in rows(DOCUMENT) {
        let named = |(section, option): &&(&str, Arg)| *section == row.section && variable_of(option) == row.variable;
        // That the others are nobody's option is for another test to judge.
        let Some((_, option)) = options.iter().find(named) else { continue };
        let examples = quoted(&row.examples);
        assert!(!examples.is_empty(), "{}: {} has no example", row.section, row.variable);
        for example in examples {
            offer(option, example).unwrap_or_else(|error| panic!("{}: {}: {error}", row.section, row.variable));
        }
    }
}

#[test]
fn a_services_store_is_documented_with_every_scheme_that_it_takes() {
    let rows = rows(DOCUMENT);
    let stores =
        |(section, option): &(&str, Arg)| SERVICES.contains(section) && variable_of(option).ends_with("_STORE");
    let stores: Vec<_> = options().into_iter().filter(stores).collect();
    assert_eq!(stores.len(), 5, "delivery, package, fleet, tracking, lookup");
    for (section, option) in stores {
        let variable = variable_of(&option);
        let refusal = offer(&option, "no URL").unwrap_err().to_string();
        let (_, schemes) = refusal.split_once("begins with one of ").unwrap();
        let schemes: Vec<_> = schemes.lines().next().unwrap().split(", ").map(|it| it.trim_end_matches(':')).collect();
        let row = rows.iter().find(|row| row.section == section && row.variable == variable).unwrap();
        assert_eq!(quoted(&row.meaning), schemes, "{variable}");
    }
}
