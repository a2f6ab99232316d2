//! The history service as a process of its own.

fn main() -> anyhow::Result<()> {
    chassis::main("history", history::run)
}
