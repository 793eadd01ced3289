//! The `lazycopy` command.

#[cfg(not(lazycopy_loom))]
fn main() -> std::process::ExitCode {
    lazycopy::cli::run(std::env::args_os())
}

#[cfg(lazycopy_loom)]
fn main() {}
