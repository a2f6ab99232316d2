//! Telemetry: NDJSON split into reports for fleet and tracking, and their outcomes merged into one answer.

use std::collections::HashMap;

use auth::Identity;
use contracts::{
    DroneId, Stage, Timestamp,
    api::{MAX_TELEMETRY_LINES, RejectedLine, TelemetryAnswer, TelemetryLine, UNKNOWN_DRONE_REASON},
    commands::{DroneReport, FlightReport, ReportFault, ReportOutcome},
    events::PositionFix,
};

/// The longest reason given for a rejected line, in bytes: it may quote the line, and the line may be long.
const MAX_REASON_BYTES: usize = 300;

/// The reason of a line that may be stored later.
const NOT_STORED_REASON: &str = "not stored now; send it again";

/// Why a drone's reports are not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// There is no such drone, or it is somebody else's.
    Foreign,
    /// Nobody said whose it is.
    Unanswered,
}

/// The request has more lines than [`MAX_TELEMETRY_LINES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are too many lines")]
pub(crate) struct TooManyLines;

/// One request's lines, on their way to their owners.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Split {
    /// For fleet: one of every good line.
    pub(crate) drones: Vec<DroneReport>,
    /// For tracking: one of every good line that tells of a flight.
    pub(crate) flights: Vec<FlightReport>,
    /// The good lines, as many as there are reports for fleet.
    lines: Vec<GoodLine>,
    /// The bad lines.
    rejected: Vec<RejectedLine>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct GoodLine {
    /// From 1.
    number: usize,
    /// Whether it has a report for tracking, too.
    flies: bool,
}

/// Splits a body of telemetry that `speaker` sent. `explain` says what is wrong with a line that cannot be read. Blank
/// lines count in the numbers, and for nothing else.
pub(crate) fn split(
    body: &[u8],
    now: Timestamp,
    speaker: &Identity,
    explain: impl Fn(&[u8]) -> String,
) -> Result<Split, TooManyLines> {
    let only = match speaker {
        Identity::Drone(me) => Some(*me),
        _ => None,
    };
    let mut split = Split::default();
    for (index, bytes) in body.split(|byte| *byte == b'\n').enumerate() {
        let bytes = bytes.trim_ascii();
        if bytes.is_empty() {
            continue;
        }
        if split.lines.len() + split.rejected.len() == MAX_TELEMETRY_LINES {
            return Err(TooManyLines);
        }
        let number = index + 1;
        match read(bytes, now, only, &explain) {
            Ok(line) => split.take(number, &line),
            Err(reason) => split.rejected.push(RejectedLine { line: number, reason, retryable: false }),
        }
    }
    Ok(split)
}

fn read(
    bytes: &[u8],
    now: Timestamp,
    only: Option<DroneId>,
    explain: impl Fn(&[u8]) -> String,
) -> Result<TelemetryLine, String> {
    // A struct can be read from an array as well, which nobody means.
    if bytes.first() != Some(&b'{') {
        return Err("the line is not a JSON object".to_owned());
    }
    let Ok(line) = serde_json::from_slice::<TelemetryLine>(bytes) else { return Err(shortened(explain(bytes))) };
    if let Some(fault) = line.fault(now) {
        return Err(format!("{}: {}", fault.field, fault.message));
    }
    if only.is_some_and(|me| me != line.drone_id) {
        return Err(UNKNOWN_DRONE_REASON.to_owned());
    }
    Ok(line)
}

fn shortened(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        reason.push_str("...");
    }
    reason
}

impl Split {
    fn take(&mut self, number: usize, line: &TelemetryLine) {
        let fix =
            PositionFix { position: line.position(), battery: line.battery, at: line.at, sequence: line.sequence };
        let failed = line.stage == Some(Stage::Failed);
        self.drones.push(DroneReport {
            drone_id: line.drone_id,
            delivery_id: line.delivery_id,
            attempt: line.attempt,
            fix,
            failed,
        });
        let mission = line.delivery_id.zip(line.attempt).filter(|_| !failed);
        if let Some((delivery_id, attempt)) = mission {
            self.flights.push(FlightReport { delivery_id, attempt, drone_id: line.drone_id, stage: line.stage, fix });
        }
        self.lines.push(GoodLine { number, flies: mission.is_some() });
    }

    /// Takes out the lines of drones in doubt, with why they are not stored.
    pub(crate) fn leave_out(&mut self, doubts: &HashMap<DroneId, Doubt>) {
        if doubts.is_empty() {
            return;
        }
        let (lines, drones) = (std::mem::take(&mut self.lines), std::mem::take(&mut self.drones));
        let mut flights = std::mem::take(&mut self.flights).into_iter();
        for (line, drone) in lines.into_iter().zip(drones) {
            let flight = if line.flies { flights.next() } else { None };
            let Some(doubt) = doubts.get(&drone.drone_id) else {
                self.lines.push(line);
                self.drones.push(drone);
                self.flights.extend(flight);
                continue;
            };
            let (reason, retryable) = match doubt {
                Doubt::Foreign => (UNKNOWN_DRONE_REASON, false),
                Doubt::Unanswered => (NOT_STORED_REASON, true),
            };
            self.rejected.push(RejectedLine { line: line.number, reason: reason.to_owned(), retryable });
        }
    }

    /// The answer, from the outcomes of fleet and tracking; `None` of one that did not answer.
    pub(crate) fn answer(self, fleet: Option<&[ReportOutcome]>, tracking: Option<&[ReportOutcome]>) -> TelemetryAnswer {
        let mut answer = TelemetryAnswer { rejected: self.rejected, ..TelemetryAnswer::default() };
        let mut flights = 0;
        for (index, line) in self.lines.iter().enumerate() {
            let drone = outcome(fleet, index);
            let flight = line.flies.then(|| {
                flights += 1;
                outcome(tracking, flights - 1)
            });
            match merged(drone, flight) {
                ReportOutcome::Accepted => answer.accepted += 1,
                ReportOutcome::Stale => answer.stale += 1,
                ReportOutcome::Rejected { reason } => answer.rejected.push(RejectedLine {
                    line: line.number,
                    reason: words(reason).to_owned(),
                    retryable: false,
                }),
                ReportOutcome::Unavailable => answer.rejected.push(RejectedLine {
                    line: line.number,
                    reason: NOT_STORED_REASON.to_owned(),
                    retryable: true,
                }),
            }
        }
        answer.rejected.sort_by_key(|rejected| rejected.line);
        answer
    }
}

fn outcome(outcomes: Option<&[ReportOutcome]>, index: usize) -> ReportOutcome {
    outcomes.and_then(|outcomes| outcomes.get(index)).copied().unwrap_or(ReportOutcome::Unavailable)
}

/// A line's outcome: what fleet says where it refuses the drone or has not stored its state, and otherwise what tracking
/// says of the flight, or fleet where there is none. Fleet comes first because it knows whose drone that is: until it
/// has said so, nothing is told of any flight.
fn merged(drone: ReportOutcome, flight: Option<ReportOutcome>) -> ReportOutcome {
    match (drone, flight) {
        (ReportOutcome::Rejected { .. } | ReportOutcome::Unavailable, _) | (_, None) => drone,
        (_, Some(flight)) => without_foreign(flight),
    }
}

/// A flight of somebody else is answered like one that is not there.
fn without_foreign(flight: ReportOutcome) -> ReportOutcome {
    match flight {
        ReportOutcome::Rejected { reason: ReportFault::NotYourFlight | ReportFault::NotYourDrone } => {
            ReportOutcome::Stale
        }
        _ => flight,
    }
}

fn words(fault: ReportFault) -> &'static str {
    match fault {
        ReportFault::UnknownDrone | ReportFault::NotYourDrone => UNKNOWN_DRONE_REASON,
        ReportFault::NotYourFlight => "delivery_id: the drone does not fly that delivery",
        ReportFault::ClockOff => "at: must be within 10 minutes of now",
    }
}

#[cfg(test)]
mod tests {
    use chrono::Duration;
    use serde_json::{Value, json};

    use super::*;

    const DRONE: &str = "0198c5a0-0000-7000-8000-00000000000d";
    const DELIVERY: &str = "0198c5a0-0000-7000-8000-000000000001";

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH + Duration::days(20_000)
    }

    fn line(change: &Value) -> String {
        let mut line = json!({
            "drone_id": DRONE, "sequence": 7, "at": now(), "latitude": 1.0, "longitude": 2.0, "battery": 0.5,
        });
        for (key, value) in change.as_object().unwrap() {
            line[key] = value.clone();
        }
        line.to_string()
    }

    fn base() -> Identity {
        Identity::BaseStation("north".parse().unwrap())
    }

    fn split_of(lines: &[String]) -> Split {
        split(lines.join("\n").as_bytes(), now(), &base(), |_| "explained".to_owned()).unwrap()
    }

    #[test]
    fn a_flights_line_goes_to_both_and_an_idle_drones_or_a_broken_ones_only_to_fleet() {
        let split = split_of(&[
            line(&json!({})),
            line(&json!({"delivery_id": DELIVERY, "attempt": 1, "stage": "HeadedToPickup"})),
            line(&json!({"delivery_id": DELIVERY, "attempt": 1})),
            line(&json!({"delivery_id": DELIVERY, "attempt": 1, "stage": "Failed"})),
            line(&json!({"stage": "Failed"})),
        ]);
        assert_eq!(split.rejected, []);
        let failed: Vec<_> = split.drones.iter().map(|report| report.failed).collect();
        assert_eq!(failed, [false, false, false, true, true]);
        let stages: Vec<_> = split.flights.iter().map(|report| report.stage).collect();
        assert_eq!(stages, [Some(Stage::HeadedToPickup), None]);
    }

    #[test]
    fn a_bad_line_keeps_its_number_and_names_its_field() {
        let split = split_of(&[
            String::new(),
            line(&json!({"battery": 2})),
            "{".to_owned(),
            format!("[\"{DRONE}\"]"),
            line(&json!({"at": now() + Duration::minutes(11)})),
            line(&json!({"sequence": 0})),
            line(&json!({"delivery_id": DELIVERY})),
            line(&json!({"stage": "Scheduled"})),
            line(&json!({"unknown": 1})),
            line(&json!({})) + "\r",
            String::new(),
        ]);
        let rejected: Vec<_> = split.rejected.iter().map(|bad| (bad.line, bad.reason.as_str())).collect();
        assert_eq!(
            rejected,
            [
                (2, "battery: must be between 0 and 1"),
                (3, "explained"),
                (4, "the line is not a JSON object"),
                (5, "at: must be within 10 minutes of now"),
                (6, "sequence: must be between 1 and 2^63 - 1"),
                (7, "attempt: must be given exactly where delivery_id is"),
                (8, "stage: is not a stage of a flight"),
                (9, "explained"),
            ]
        );
        assert_eq!(split.lines, [GoodLine { number: 10, flies: false }]);
    }

    #[test]
    fn a_drone_speaks_only_for_itself() {
        let other = Identity::Drone(DroneId(uuid::Uuid::nil()));
        let split = split(line(&json!({})).as_bytes(), now(), &other, |_| String::new()).unwrap();
        assert_eq!(split.rejected[0].reason, UNKNOWN_DRONE_REASON);
        assert_eq!(split.drones, []);
    }

    #[test]
    fn ten_thousand_lines_are_taken_and_one_more_is_not() {
        let body = "x\n".repeat(MAX_TELEMETRY_LINES);
        let taken = split(body.as_bytes(), now(), &base(), |_| String::new()).unwrap();
        assert_eq!(taken.rejected.len(), MAX_TELEMETRY_LINES);
        let body = body + "x";
        assert_eq!(split(body.as_bytes(), now(), &base(), |_| String::new()), Err(TooManyLines));
    }

    #[test]
    fn a_long_reason_is_cut() {
        let reason = shortened("é".repeat(1_000));
        assert!(reason.len() <= MAX_REASON_BYTES + 3 && reason.ends_with("..."), "{}", reason.len());
    }

    #[test]
    fn the_lines_of_drones_in_doubt_are_taken_out_and_the_others_keep_their_outcomes() {
        let other = |number| DroneId(uuid::Uuid::from_u128(number));
        let of = |drone: DroneId| json!({"drone_id": drone, "delivery_id": DELIVERY, "attempt": 1});
        let idle = json!({"drone_id": other(1)});
        let lines = [line(&of(other(1))), line(&of(other(2))), line(&idle), line(&json!({})), line(&of(other(3)))];
        let mut split = split_of(&lines);
        split.leave_out(&HashMap::from([(other(1), Doubt::Foreign), (other(2), Doubt::Unanswered)]));
        assert_eq!(split.flights.iter().map(|report| report.drone_id).collect::<Vec<_>>(), [other(3)]);
        assert_eq!(split.drones.len(), 2);
        let fleet = [ReportOutcome::Stale, ReportOutcome::Accepted];
        let answer = split.answer(Some(&fleet), Some(&[ReportOutcome::Accepted]));
        assert_eq!((answer.accepted, answer.stale), (1, 1));
        let rejected: Vec<_> =
            answer.rejected.iter().map(|bad| (bad.line, bad.reason.as_str(), bad.retryable)).collect();
        let (foreign, unanswered) = (UNKNOWN_DRONE_REASON, NOT_STORED_REASON);
        assert_eq!(rejected, [(1, foreign, false), (2, unanswered, true), (3, foreign, false)]);
    }

    #[test]
    fn outcomes_merge_and_a_foreign_flight_is_like_none() {
        use ReportOutcome::{Accepted, Rejected, Stale, Unavailable};
        let fault = Rejected { reason: ReportFault::UnknownDrone };
        let other = Rejected { reason: ReportFault::ClockOff };
        let foreign = Rejected { reason: ReportFault::NotYourFlight };
        let not_mine = Rejected { reason: ReportFault::NotYourDrone };
        let cases = [
            (Accepted, None, Accepted),
            (Stale, None, Stale),
            (Unavailable, None, Unavailable),
            (fault, None, fault),
            (Accepted, Some(Accepted), Accepted),
            (Stale, Some(Accepted), Accepted),
            (Accepted, Some(Stale), Stale),
            (Stale, Some(Stale), Stale),
            (Unavailable, Some(Accepted), Unavailable),
            (Accepted, Some(Unavailable), Unavailable),
            (fault, Some(Unavailable), fault),
            (Unavailable, Some(other), Unavailable),
            (Accepted, Some(other), other),
            (Accepted, Some(foreign), Stale),
            (Accepted, Some(not_mine), Stale),
            (Unavailable, Some(foreign), Unavailable),
            (not_mine, Some(foreign), not_mine),
        ];
        for (drone, flight, expected) in cases {
            assert_eq!(merged(drone, flight), expected, "{drone:?} {flight:?}");
        }
    }

    #[test]
    fn the_answer_counts_every_line_once() {
        let fly = json!({"delivery_id": DELIVERY, "attempt": 1, "stage": "HeadedToPickup"});
        let lines = [line(&fly), "bad".to_owned(), line(&json!({})), line(&fly), line(&json!({}))];
        let fleet =
            [ReportOutcome::Accepted, ReportOutcome::Stale, ReportOutcome::Accepted, ReportOutcome::Unavailable];
        let tracking = [ReportOutcome::Accepted, ReportOutcome::Rejected { reason: ReportFault::ClockOff }];
        let answer = split_of(&lines).answer(Some(&fleet), Some(&tracking));
        assert_eq!((answer.accepted, answer.stale), (1, 1));
        let rejected: Vec<_> = answer.rejected.iter().map(|bad| (bad.line, bad.retryable)).collect();
        assert_eq!(rejected, [(2, false), (4, false), (5, true)]);
    }

    #[test]
    fn a_line_is_retryable_where_its_owner_was_silent() {
        let fly = json!({"delivery_id": DELIVERY, "attempt": 1, "stage": "HeadedToPickup"});
        let lines = [line(&fly), line(&json!({}))];
        let answer = split_of(&lines).answer(Some(&[ReportOutcome::Accepted, ReportOutcome::Accepted]), None);
        assert_eq!(answer.accepted, 1);
        assert!(answer.rejected[0].retryable);
        let answer = split_of(&lines).answer(None, Some(&[ReportOutcome::Accepted]));
        assert_eq!((answer.accepted, answer.rejected.len()), (0, 2));
    }
}
