//! The `engraft` program; everything is in the library.

fn main() -> std::process::ExitCode {
    engraft::cli::run()
}
