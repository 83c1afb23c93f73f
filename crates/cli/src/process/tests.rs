use std::future::pending;

use dynamo_runtime::Phase;

use super::*;

#[test]
fn a_shutdown_ends_a_start_that_never_does() {
    let code = run(Some(1), ShutdownLimits::LOCAL, |runtime| async move {
        runtime.shutdown(ShutdownReason::Requested);
        pending().await
    });
    assert_eq!(code, ExitCode::SUCCESS);
}

#[test]
fn what_a_shutdown_interrupts_is_no_fault_of_the_set_up() {
    let fault = || anyhow::Error::new(StartError(anyhow::anyhow!("told to shut down")));
    assert!(unless_interrupted(fault(), true).is_ok());
    assert!(unless_interrupted(fault(), false).is_err());
    assert!(unless_interrupted(anyhow::anyhow!("a fault while serving"), true).is_err());
}

#[test]
fn main_is_awaited_to_its_end_and_the_runtime_closed_after_it() {
    let mut phase = None;
    let code = run(Some(1), ShutdownLimits::LOCAL, |runtime| {
        phase = Some(runtime.phase());
        async { Err(anyhow::anyhow!("it broke")) }
    });
    assert_eq!(code, ExitCode::FAILURE);
    assert_eq!(*phase.expect("main was called").borrow(), Phase::Closed);
}
