//! Every service in one process: the default of `cargo run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    all_in_one::main()
}
