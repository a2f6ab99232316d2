//! The lookup service as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::main("lookup", lookup::run)
}
