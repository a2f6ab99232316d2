//! The package service as a process of its own.

fn main() -> anyhow::Result<()> {
    chassis::main("package", package::run)
}
