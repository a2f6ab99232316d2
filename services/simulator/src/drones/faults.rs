//! Misbehaviour: on which missions a drone breaks down, falls silent or repeats itself.

use crate::random::Random;

/// A silence lasts at least this long: past the 30 s after which a reserved drone counts as failed.
const SHORTEST_SILENCE_MS: f64 = 45_000.0;
/// And at most this long, so that the drone is soon of use again.
const LONGEST_SILENCE_MS: f64 = 75_000.0;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The drone reports Failed.
    Breakdown,
    /// Nothing is heard of it for a while, though it flies on.
    Silence {
        /// For how long.
        for_ms: i64,
    },
    /// It repeats reports and sends them out of order.
    Stutter,
}

/// What goes wrong on a mission, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// After the pickup rather than before.
    pub(crate) carrying: bool,
    /// How much of the leg has been flown then, 0 to 1.
    pub(crate) share: f64,
}

/// Draws what goes wrong on a mission; mostly nothing.
pub(crate) fn draw(random: &mut Random, probability: f64) -> Option<Fault> {
    if !random.chance(probability) {
        return None;
    }
    let kind = match random.below(3) {
        0 => FaultKind::Breakdown,
        1 => FaultKind::Silence { for_ms: random.between(SHORTEST_SILENCE_MS, LONGEST_SILENCE_MS) as i64 },
        _ => FaultKind::Stutter,
    };
    Some(Fault { kind, carrying: random.chance(0.5), share: random.between(0.1, 0.9) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_kept_and_every_kind_comes_before_and_after_pickup() {
        let mut random = Random::new(3);
        let faults: Vec<_> = (0..20_000).filter_map(|_| draw(&mut random, 0.05)).collect();
        assert!((800..1_200).contains(&faults.len()), "{}", faults.len());
        for carrying in [false, true] {
            let kinds = |wanted: fn(FaultKind) -> bool| {
                faults.iter().filter(|fault| fault.carrying == carrying && wanted(fault.kind)).count()
            };
            assert!(kinds(|kind| kind == FaultKind::Breakdown) > 100);
            assert!(kinds(|kind| matches!(kind, FaultKind::Silence { for_ms } if for_ms >= 45_000)) > 100);
            assert!(kinds(|kind| kind == FaultKind::Stutter) > 100);
        }
    }

    #[test]
    fn no_share_no_fault() {
        let mut random = Random::new(3);
        assert!((0..1_000).all(|_| draw(&mut random, 0.0).is_none()));
    }

    #[test]
    fn the_same_seed_misbehaves_alike() {
        let draws = |seed| {
            let mut random = Random::of(seed, "faults", 0);
            (0..100).map(|_| draw(&mut random, 0.3)).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
    }
}
