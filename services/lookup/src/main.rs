//! The lookup service as a process of its own.

fn main() -> anyhow::Result<()> {
    chassis::main("lookup", lookup::run)
}
