//! The tracking service as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::main("tracking", tracking::run)
}
