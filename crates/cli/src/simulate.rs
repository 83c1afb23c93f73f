//! `dynamo simulate`.

use std::process::ExitCode;

use dynamo_simulate::{SimulateArgs, run as simulate};

/// Runs the simulation to its end.
pub fn run(args: SimulateArgs) -> ExitCode {
    match simulate(args) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
