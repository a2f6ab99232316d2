//! Every service in one process: the default of `cargo run`.

use std::process::ExitCode;

/// A fifth of the processor time went to the C library's allocator, whose arenas suit many threads badly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    all_in_one::main()
}
