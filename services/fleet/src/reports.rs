//! Reports of drones: judged, and coalesced to the latest of each drone, before they are stored.

use std::collections::HashMap;

use chrono::Duration;
use contracts::{
    BaseId, DroneId, Timestamp,
    api::MAX_CLOCK_OFF_MINUTES,
    commands::{DroneReport, ReportFault, ReportOutcome},
    events::PositionFix,
};

use crate::{index::Notable, store::LatestReport};

/// Reports stored in one transaction: some 10 ms of the one writer, so that reservations need not wait long.
pub(crate) const REPORTS_PER_TRANSACTION: usize = 2_500;

/// A report, and in whose name it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// What is reported.
    pub(crate) said: DroneReport,
    /// The base that speaks for the drone, and may as long as the drone is its own; none where the drone itself does.
    pub(crate) base: Option<BaseId>,
}

/// What becomes of one report.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Decided without the store.
    Known(ReportOutcome),
    /// As the drone's latest report in the batch, which is at that place.
    With(usize),
}

/// A batch of reports, one for each drone.
#[derive(Debug, Default)]
pub(crate) struct Coalesced {
    /// The latest of each drone.
    pub(crate) latest: Vec<LatestReport>,
    fates: Vec<Fate>,
    /// Where each of `latest` is among the reports.
    places: Vec<usize>,
}

/// The places of reports by turns, in each of which a drone is spoken for in one name: what was said in another must
/// neither be refused nor let through with it. One turn is the rule, since few drones have two voices; there are never
/// more than requests, each of which comes in one name.
pub(crate) fn turns(reports: &[Report]) -> Vec<Vec<usize>> {
    let mut speakers: HashMap<DroneId, (usize, Option<&BaseId>)> = HashMap::with_capacity(reports.len());
    let mut turns: Vec<Vec<usize>> = Vec::new();
    for (place, report) in reports.iter().enumerate() {
        let speaker = report.base.as_ref();
        let (turn, before) = speakers.entry(report.said.drone_id).or_insert((0, speaker));
        if *before != speaker {
            *turn += 1;
            *before = speaker;
        }
        if *turn == turns.len() {
            turns.push(Vec::new());
        }
        turns[*turn].push(place);
    }
    turns
}

/// Coalesces reports of one turn. `notable` says of each what is known here of its drone.
pub(crate) fn coalesce(reports: &[&Report], notable: &[Notable], now: Timestamp) -> Coalesced {
    let mut coalesced = Coalesced::default();
    let mut of_drone: HashMap<DroneId, usize> = HashMap::with_capacity(reports.len());
    for (place, (report, notable)) in reports.iter().zip(notable).enumerate() {
        let DroneReport { drone_id, fix, .. } = &report.said;
        if (fix.at - now).abs() > Duration::minutes(MAX_CLOCK_OFF_MINUTES) {
            coalesced.fates.push(Fate::Known(ReportOutcome::Rejected { reason: ReportFault::ClockOff }));
            continue;
        }
        let earlier = of_drone.get(drone_id).copied();
        let newest = earlier.map_or(notable.last_sequence, |number| coalesced.latest[number].sequence);
        if fix.sequence <= newest {
            coalesced.fates.push(Fate::Known(ReportOutcome::Stale));
            continue;
        }
        let mut latest = latest_of(report, *notable);
        let number = match earlier {
            Some(number) => {
                latest.failed_at = latest.failed_at.or(coalesced.latest[number].failed_at);
                coalesced.latest[number] = latest;
                coalesced.places[number] = place;
                number
            }
            None => {
                coalesced.latest.push(latest);
                coalesced.places.push(place);
                of_drone.insert(*drone_id, coalesced.latest.len() - 1);
                coalesced.latest.len() - 1
            }
        };
        coalesced.fates.push(Fate::With(number));
    }
    coalesced
}

fn latest_of(Report { said, base }: &Report, notable: Notable) -> LatestReport {
    LatestReport {
        drone_id: said.drone_id,
        base: base.clone(),
        position: said.fix.position,
        battery: said.fix.battery,
        sequence: said.fix.sequence,
        failed_at: said.failed.then_some(said.fix.sequence),
        recovers: notable.failed && !said.failed && said.delivery_id.is_none(),
        announce: notable.announce,
    }
}

impl Coalesced {
    /// The outcome of each report, given those of `latest`.
    pub(crate) fn outcomes(&self, latest: &[ReportOutcome]) -> Vec<ReportOutcome> {
        let outcome = |fate: &Fate| match *fate {
            Fate::Known(outcome) => outcome,
            Fate::With(number) => latest.get(number).copied().unwrap_or(ReportOutcome::Unavailable),
        };
        self.fates.iter().map(outcome).collect()
    }

    /// The positions that were stored, and whether other instances hear of them.
    pub(crate) fn stored<'a>(
        &'a self,
        reports: &'a [&'a Report],
        latest: &'a [ReportOutcome],
    ) -> impl Iterator<Item = (DroneId, &'a PositionFix, bool)> {
        let stored = self.latest.iter().zip(&self.places).zip(latest);
        stored
            .filter(|(_, outcome)| **outcome == ReportOutcome::Accepted)
            .map(|((latest, place), _)| (latest.drone_id, &reports[*place].said.fix, latest.announce))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::make;

    /// What drones say for themselves, coalesced.
    fn coalesced_of(reports: &[Report], notable: &[Notable]) -> Coalesced {
        coalesce(&reports.iter().collect::<Vec<_>>(), notable, make::now())
    }

    #[test]
    fn in_a_turn_nobody_speaks_for_a_drone_that_another_speaks_for() {
        let of = |base: &str, number, sequence| Report {
            base: Some(base.parse().unwrap()),
            ..make::spoken(make::report(number, sequence))
        };
        let own = |number, sequence| make::spoken(make::report(number, sequence));
        assert_eq!(turns(&[of("north", 1, 1), of("north", 1, 2), own(2, 1), of("south", 3, 1)]), [[0, 1, 2, 3]]);
        let two_voices = [own(1, 1), of("north", 1, 2), of("north", 2, 1), own(1, 3), own(1, 4)];
        assert_eq!(turns(&two_voices), [vec![0, 2], vec![1], vec![3, 4]], "one after the other, as they came");
        assert!(turns(&[]).is_empty());
        let latest = coalesced_of(&two_voices[1..3], &[Notable::default(); 2]).latest;
        assert!(latest.iter().all(|latest| latest.base == two_voices[1].base));
    }

    #[test]
    fn of_each_drone_only_the_latest_is_stored_and_old_or_odd_ones_change_nothing() {
        let now = make::now();
        let mut late = make::report(3, 9);
        late.fix.at = now - Duration::minutes(11);
        let reports = [make::report(1, 4), make::report(2, 7), make::report(1, 6), make::report(1, 5), late];
        let reports = reports.map(make::spoken);
        let reports = reports.each_ref();
        let known = [0, 7, 0, 0, 0].map(|last_sequence| Notable { last_sequence, ..Notable::default() });
        let coalesced = coalesce(&reports, &known, now);
        assert_eq!(coalesced.latest.iter().map(|latest| latest.sequence).collect::<Vec<_>>(), [6]);
        let clock_off = ReportOutcome::Rejected { reason: ReportFault::ClockOff };
        let (accepted, stale) = (ReportOutcome::Accepted, ReportOutcome::Stale);
        assert_eq!(coalesced.outcomes(&[accepted]), [accepted, stale, accepted, stale, clock_off]);
        assert_eq!(coalesced.stored(&reports, &[accepted]).count(), 1);
        assert_eq!(coalesced.stored(&reports, &[stale]).count(), 0);
    }

    #[test]
    fn a_failure_is_not_lost_in_the_report_after_it() {
        let mut broken = make::report(1, 4);
        broken.failed = true;
        let reports = [broken, make::report(1, 5)].map(make::spoken);
        let coalesced = coalesced_of(&reports, &[Notable::default(); 2]);
        assert_eq!((coalesced.latest[0].sequence, coalesced.latest[0].failed_at), (5, Some(4)));
    }

    #[test]
    fn a_failed_drone_recovers_by_a_report_without_mission_only() {
        let failed = [Notable { failed: true, ..Notable::default() }];
        let recovers = |report| coalesced_of(&[make::spoken(report)], &failed).latest[0].recovers;
        assert!(recovers(make::report(1, 1)));
        let mut flying = make::report(1, 1);
        flying.delivery_id = Some(make::delivery(1));
        flying.attempt = Some(1);
        assert!(!recovers(flying));
        let mut broken = make::report(1, 1);
        broken.failed = true;
        assert!(!recovers(broken));
    }
}
