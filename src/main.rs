//! The `svcdns` program; the library has all of its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    svcdns::cli::main()
}
