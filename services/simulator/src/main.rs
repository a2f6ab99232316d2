//! The simulator as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    simulator::main()
}
