//! The tracking service as a process of its own.

fn main() -> anyhow::Result<()> {
    chassis::main("tracking", tracking::run)
}
