//! The `svcdns` program: see the library for its rooms.

use std::process::ExitCode;

fn main() -> ExitCode {
    svcdns::cli::main()
}
