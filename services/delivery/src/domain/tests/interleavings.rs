//! Anything in any order: faults, events late and doubled, commands held up, time passing.

use proptest::prelude::*;

use super::simulator::{Fault, Happening, Scenario, Simulator};

#[derive(Debug, Clone, Copy)]
enum Move {
    Step,
    Faulty(Fault),
    Happens(Happening),
    Repeat(usize),
    HearLast,
    Arrive(usize),
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => Just(Move::Step),
        4 => prop::sample::select(&Fault::ALL[..]).prop_map(Move::Faulty),
        2 => prop::sample::select(&Happening::ALL[..]).prop_map(Move::Happens),
        1 => (0usize..64).prop_map(Move::Repeat),
        1 => Just(Move::HearLast),
        1 => (0usize..64).prop_map(Move::Arrive),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_delivery_ends_once_and_holds_nothing(
        scenario in prop::sample::select(&Scenario::ALL[..]),
        moves in prop::collection::vec(moves(), 0..60),
    ) {
        let mut simulator = Simulator::new(scenario);
        for one in moves {
            match one {
                Move::Step => {
                    simulator.step(None);
                }
                Move::Faulty(fault) => {
                    simulator.step(Some(fault));
                }
                Move::Happens(happening) => {
                    simulator.happen(happening);
                }
                Move::Repeat(index) => simulator.repeat(index),
                Move::HearLast => simulator.hear_last(),
                Move::Arrive(index) => simulator.arrive(index),
            }
        }
        simulator.finish();
        simulator.check_end();
    }
}
