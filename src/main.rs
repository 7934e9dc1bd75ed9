//! The `svcdns` program; all of its code is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    svcdns::cli::main()
}
