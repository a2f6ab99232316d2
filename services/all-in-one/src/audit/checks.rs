//! The promises as checks over a snapshot; pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use contracts::{DeliveryId, Stage, events::StageEntry};
use delivery::domain::allowed;

use super::{Check, Held, Kept, Ledger, Owned, Report, Snapshot, repeated};

/// Checks everything.
pub(super) fn check(snapshot: &Snapshot, ledger: Option<&Ledger>) -> Report {
    let deliveries: HashMap<DeliveryId, &Owned> = snapshot.deliveries.iter().map(|row| (row.id, row)).collect();
    let mut checks = Vec::new();
    if let Some(ledger) = ledger {
        checks.push(accepted_are_there(snapshot, ledger));
    }
    checks.push(rows_are_unique(snapshot));
    checks.push(all_have_ended(snapshot));
    checks.push(ended_once(snapshot));
    checks.push(kept_once("every finished delivery is once in the lake", snapshot, &snapshot.lake));
    checks.push(kept_once("every finished delivery is once in the lookup store", snapshot, &snapshot.lookup));
    checks.push(nothing_else_kept("the lake holds finished deliveries only", &deliveries, &snapshot.lake));
    checks.push(nothing_else_kept("the lookup store holds finished deliveries only", &deliveries, &snapshot.lookup));
    checks.push(Check {
        promise: 3,
        what: "no position is twice in the lake",
        examined: snapshot.positions,
        offenders: vec!["doubled position".to_owned(); snapshot.doubled_positions],
    });
    checks.push(released("no drone is reserved for what is over", &deliveries, &snapshot.reservations));
    checks.push(released("no package is registered for what is over", &deliveries, &snapshot.packages));
    checks.push(released("no flight is open for what is over", &deliveries, &snapshot.flights));
    checks.push(one_reservation_a_drone(snapshot));
    checks.push(stages_are_legal(snapshot));
    checks.push(row_agrees_with_log(snapshot));
    Report { checks, counts: counts(snapshot, ledger) }
}

fn counts(snapshot: &Snapshot, ledger: Option<&Ledger>) -> Vec<(String, usize)> {
    let mut counts = Vec::new();
    if let Some(ledger) = ledger {
        counts.push(("accepted, says the ledger".to_owned(), ledger.accepted.len()));
        counts.push(("lines of the ledger cut off".to_owned(), usize::from(ledger.torn)));
    }
    counts.push(("deliveries".to_owned(), snapshot.deliveries.len()));
    let mut by_stage: BTreeMap<Stage, usize> = BTreeMap::new();
    for row in &snapshot.deliveries {
        *by_stage.entry(row.stage).or_default() += 1;
    }
    counts.extend(by_stage.into_iter().map(|(stage, count)| (format!("  {stage}"), count)));
    counts.push(("rows in the lake".to_owned(), snapshot.lake.len()));
    counts.push(("rows in the lookup store".to_owned(), snapshot.lookup.len()));
    let unrelayed = usize::try_from(snapshot.unrelayed).unwrap_or(usize::MAX);
    counts.push(("events not yet relayed".to_owned(), unrelayed));
    counts
}

/// Promise 1. A delivery that its owner has forgotten after its retention counts where lake and lookup have it.
fn accepted_are_there(snapshot: &Snapshot, ledger: &Ledger) -> Check {
    let mut known: HashSet<DeliveryId> = snapshot.deliveries.iter().map(|row| row.id).collect();
    known.extend(snapshot.lake.iter().map(|row| row.id));
    let lost = ledger.accepted.iter().filter(|id| !known.contains(id));
    Check {
        promise: 1,
        what: "what was accepted is there",
        examined: ledger.accepted.len(),
        offenders: lost.map(|id| format!("{id} is lost")).collect(),
    }
}

fn rows_are_unique(snapshot: &Snapshot) -> Check {
    Check {
        promise: 1,
        what: "no delivery is there twice",
        examined: snapshot.deliveries.len(),
        offenders: repeated(snapshot.deliveries.iter().map(|row| row.id)).iter().map(ToString::to_string).collect(),
    }
}

fn terminals(log: &[StageEntry]) -> usize {
    log.iter().filter(|entry| entry.stage.is_terminal()).count()
}

/// Promise 2, once nothing is failing: the audit is for stores at rest.
fn all_have_ended(snapshot: &Snapshot) -> Check {
    let open = snapshot.deliveries.iter().filter(|row| terminals(&row.log) == 0);
    Check {
        promise: 2,
        what: "every delivery has ended",
        examined: snapshot.deliveries.len(),
        offenders: open.map(|row| format!("{} is {}", row.id, row.stage)).collect(),
    }
}

fn ended_once(snapshot: &Snapshot) -> Check {
    let twice = snapshot.deliveries.iter().filter(|row| terminals(&row.log) > 1);
    Check {
        promise: 2,
        what: "no delivery has ended twice",
        examined: snapshot.deliveries.len(),
        offenders: twice.map(|row| format!("{} ended {} times", row.id, terminals(&row.log))).collect(),
    }
}

/// Promise 3. Younger than the retention of either, since the owner forgets only what both have.
fn kept_once(what: &'static str, snapshot: &Snapshot, kept: &[Kept]) -> Check {
    let mut rows: HashMap<DeliveryId, Vec<&Kept>> = HashMap::new();
    for row in kept {
        rows.entry(row.id).or_default().push(row);
    }
    let mut offenders = Vec::new();
    let mut examined = 0;
    for row in &snapshot.deliveries {
        if !row.stage.is_terminal() {
            continue;
        }
        examined += 1;
        match rows.get(&row.id).map(Vec::as_slice) {
            None => offenders.push(format!("{} is missing", row.id)),
            Some([one]) if one.stage != row.stage || one.version != row.version => {
                offenders.push(format!("{} is {} there and {} at its owner", row.id, one.stage, row.stage));
            }
            Some([_]) => {}
            Some(many) => offenders.push(format!("{} is there {} times", row.id, many.len())),
        }
    }
    for id in repeated(kept.iter().map(|row| row.id)) {
        if !snapshot.deliveries.iter().any(|row| row.id == id) {
            offenders.push(format!("{id} is there more than once"));
        }
    }
    Check { promise: 3, what, examined, offenders }
}

fn nothing_else_kept(what: &'static str, deliveries: &HashMap<DeliveryId, &Owned>, kept: &[Kept]) -> Check {
    let open = |row: &&Kept| {
        let owner_says_open = deliveries.get(&row.id).is_some_and(|owned| !owned.stage.is_terminal());
        owner_says_open || !row.stage.is_terminal()
    };
    let offenders = kept.iter().filter(open).map(|row| format!("{} is kept as {}", row.id, row.stage)).collect();
    Check { promise: 3, what, examined: kept.len(), offenders }
}

/// Promise 4. What names a delivery that nobody knows is leaked, too.
fn released(what: &'static str, deliveries: &HashMap<DeliveryId, &Owned>, held: &[Held]) -> Check {
    let mut offenders = Vec::new();
    for item in held {
        let drone = item.drone.map(|drone| format!(" by drone {drone}")).unwrap_or_default();
        match deliveries.get(&item.id) {
            Some(owned) if !owned.stage.is_terminal() => {}
            Some(owned) => offenders.push(format!("{} is {}, and still held{drone}", item.id, owned.stage)),
            None => offenders.push(format!("{} is unknown, and held{drone}", item.id)),
        }
    }
    Check { promise: 4, what, examined: held.len(), offenders }
}

fn one_reservation_a_drone(snapshot: &Snapshot) -> Check {
    let mut by_drone = HashMap::new();
    let mut offenders = Vec::new();
    for item in &snapshot.reservations {
        let Some(drone) = item.drone else { continue };
        if let Some(other) = by_drone.insert(drone, item.id)
            && other != item.id
        {
            offenders.push(format!("drone {drone} is reserved for {other} and {}", item.id));
        }
    }
    Check { promise: 4, what: "no drone is reserved twice", examined: snapshot.reservations.len(), offenders }
}

/// Promise 5: the log begins with Requested and moves along the diagram; back only into a new attempt.
fn stages_are_legal(snapshot: &Snapshot) -> Check {
    let mut offenders = Vec::new();
    for row in &snapshot.deliveries {
        if let Some(fault) = log_fault(&row.log) {
            offenders.push(format!("{}: {fault}", row.id));
        }
    }
    Check {
        promise: 5,
        what: "stages only move along the diagram",
        examined: snapshot.deliveries.iter().map(|row| row.log.len()).sum(),
        offenders,
    }
}

fn log_fault(log: &[StageEntry]) -> Option<String> {
    let Some(first) = log.first() else { return Some("no stage log".to_owned()) };
    if first.stage != Stage::Requested || first.attempt != 1 {
        return Some(format!("begins with {} of attempt {}", first.stage, first.attempt));
    }
    for pair in log.windows(2) {
        let [from, to] = pair else { continue };
        let same = from.attempt == to.attempt && allowed(from.stage, to.stage);
        // A new attempt goes on from where the delivery was, or back to Scheduled.
        let back = matches!(from.stage, Stage::Scheduled | Stage::HeadedToPickup) && to.stage == Stage::Scheduled;
        let next = to.attempt > from.attempt && (back || allowed(from.stage, to.stage));
        if !same && !next {
            return Some(format!("{} of attempt {} after {} of {}", to.stage, to.attempt, from.stage, from.attempt));
        }
    }
    None
}

fn row_agrees_with_log(snapshot: &Snapshot) -> Check {
    let mut offenders = Vec::new();
    for row in &snapshot.deliveries {
        let last = row.log.last().map(|entry| entry.stage);
        if last != Some(row.stage) {
            offenders.push(format!("{} is {} and its log says {last:?}", row.id, row.stage));
        }
        if row.stage.is_terminal() != row.finished_ms.is_some() {
            offenders.push(format!("{} is {} with finish {:?}", row.id, row.stage, row.finished_ms));
        }
    }
    Check { promise: 5, what: "the row says what its log says", examined: snapshot.deliveries.len(), offenders }
}
