//! The fleet service as a process of its own.

fn main() -> anyhow::Result<()> {
    chassis::config::main("fleet", fleet::run)
}
