//! The `migrate` command, also installed as `kubectl-migrate`. All of it lives in [`orchestrator::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    orchestrator::cli::main()
}
