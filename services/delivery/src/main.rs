//! The delivery service as a process of its own.

fn main() -> anyhow::Result<()> {
    chassis::main("delivery", delivery::run)
}
