//! The gateway as a process of its own.

fn main() -> anyhow::Result<()> {
    chassis::config::main("gateway", gateway::run)
}
