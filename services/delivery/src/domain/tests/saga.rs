//! The saga to its end: every step failed, repeated and killed once, everything that can happen at every point.

use contracts::{
    Stage,
    commands::{OpenOutcome, PackageOutcome, Refusal, ReserveOutcome},
};

use super::{
    Action, Outcome,
    participants::{Command, Participants},
    simulator::{Fault, Happening, Scenario, Simulator},
};
use crate::domain::CloseReason;

/// More points than any delivery here has without faults.
const POINTS: usize = 24;

/// Runs a scenario with a fault at one step and something happening before another.
fn run(scenario: Scenario, fault: Option<(usize, Fault)>, happening: Option<(usize, Happening)>) -> Simulator {
    let mut simulator = Simulator::new(scenario);
    for point in 0..POINTS {
        if let Some((when, what)) = happening
            && when == point
        {
            simulator.happen(what);
        }
        let fault = fault.filter(|(when, _)| *when == point).map(|(_, fault)| fault);
        if !simulator.step(fault) {
            break;
        }
    }
    simulator.finish();
    simulator
}

fn end_of(scenario: Scenario) -> Stage {
    run(scenario, None, None).delivery.record.stage
}

#[test]
fn without_faults_every_scenario_has_its_end() {
    let ends = Scenario::ALL.map(end_of);
    use Stage::{Completed, Failed, Rejected};
    assert_eq!(ends, [Completed, Completed, Completed, Rejected, Failed, Failed]);
    for scenario in Scenario::ALL {
        run(scenario, None, None).check_end();
    }
}

#[test]
fn every_step_may_fail_be_repeated_or_be_killed_once() {
    for scenario in Scenario::ALL {
        for fault in Fault::ALL {
            for point in 0..POINTS {
                let simulator = run(scenario, Some((point, fault)), None);
                let stage = simulator.delivery.record.stage;
                if !matches!(fault, Fault::Interrupted(_)) {
                    assert_eq!(stage, end_of(scenario), "{scenario:?} {fault:?} at {point}");
                }
                simulator.check_end();
            }
        }
    }
}

#[test]
fn every_step_may_fail_every_time_for_a_while() {
    for scenario in Scenario::ALL {
        for fault in [Fault::Away, Fault::AnswerLost, Fault::HeldUp, Fault::Killed, Fault::Twice] {
            for until in 0..POINTS {
                let mut simulator = Simulator::new(scenario);
                for _ in 0..until {
                    simulator.step(Some(fault));
                }
                simulator.finish();
                simulator.check_end();
            }
        }
    }
}

#[test]
fn everything_may_happen_at_every_point() {
    for scenario in Scenario::ALL {
        for happening in Happening::ALL {
            for point in 0..POINTS {
                run(scenario, None, Some((point, happening))).check_end();
            }
        }
    }
}

#[test]
fn a_cancel_before_the_pickup_cancels_and_one_after_it_does_not() {
    for point in 0..POINTS {
        let happy = Scenario::ALL[0];
        let mut simulator = Simulator::new(happy);
        for _ in 0..point {
            simulator.step(None);
        }
        let flown = |simulator: &Simulator| {
            simulator.participants.tracking.flight.as_ref().and_then(|flight| flight.flown).unwrap_or(0)
        };
        let picked_up = flown(&simulator) >= 2;
        simulator.happen(Happening::Cancel);
        simulator.finish();
        let expected = if picked_up { Stage::Completed } else { Stage::Cancelled };
        assert_eq!(simulator.delivery.record.stage, expected, "at {point}");
    }
}

#[test]
fn a_fault_at_every_step_meets_everything_at_every_point() {
    for scenario in Scenario::ALL {
        for fault in Fault::ALL {
            for happening in Happening::ALL {
                for step in 0..12 {
                    for point in 0..12 {
                        run(scenario, Some((step, fault)), Some((point, happening))).check_end();
                    }
                }
            }
        }
    }
}

#[test]
fn a_do_that_comes_after_its_undo_is_refused() {
    let command = |action| Command { action, attempt: 1, fence: 1 };
    let close = Action::CloseFlight { before: Stage::HeadedToDropoff, reason: CloseReason::Undo };
    let reason = Refusal::Undone;
    for (undo, step, refused) in [
        (Action::WithdrawPackage, Action::RegisterPackage, Outcome::Package(PackageOutcome::Refused { reason })),
        (Action::ReleaseDrone, Action::ReserveDrone, Outcome::Reserve(ReserveOutcome::Refused { reason })),
        (close, Action::OpenFlight, Outcome::Open(OpenOutcome::Refused { reason })),
    ] {
        let mut participants = Participants::default();
        participants.fleet.idle = 1;
        participants.perform(command(undo));
        assert_eq!(participants.perform(command(step)), refused);
        assert_eq!(participants.held(), Vec::<&str>::new());
    }
}

#[test]
fn a_held_up_step_that_arrives_at_any_later_point_holds_nothing_in_the_end() {
    for scenario in Scenario::ALL {
        for happening in [Happening::Cancel, Happening::DroneFails, Happening::Deadline, Happening::Expiry] {
            for held in 0..8 {
                for arrives in held..POINTS {
                    let mut simulator = Simulator::new(scenario);
                    for point in 0..POINTS {
                        simulator.step((point == held).then_some(Fault::HeldUp));
                        if point == held {
                            simulator.happen(happening);
                        }
                        if point == arrives {
                            simulator.arrive(0);
                        }
                    }
                    simulator.finish();
                    simulator.check_end();
                }
            }
        }
    }
}
