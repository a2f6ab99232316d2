//! One drone: where it is, what it does next, and what happens on the way. Pure: time is an argument.

use contracts::{Coordinate, DeliveryId, DroneId, Stage, commands::Mission, flight::Airframe};

use super::{
    faults::{Fault, FaultKind},
    reports::{Report, Stutter},
};

/// A drone that is free and has less than this goes home to charge.
const GO_HOME_BELOW: f64 = 0.6;
/// A drone that is this near to its pad, in metres, is at home.
const AT_HOME_M: f64 = 30.0;

/// What a run's drones have in common. Times are milliseconds of the real clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Loading or unloading.
    pub(crate) handover_ms: i64,
    /// How long a free drone waits where it is before it goes home.
    pub(crate) idle_ms: i64,
    /// Share of a full battery in a millisecond at home.
    pub(crate) charge_per_ms: f64,
    /// Between reports in the air or on a mission.
    pub(crate) report_ms: i64,
    /// Between reports on the ground without a mission.
    pub(crate) ground_report_ms: i64,
}

/// One straight flight; position and battery follow from the time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Leg {
    from: Coordinate,
    to: Coordinate,
    length_m: f64,
    load_kg: f64,
    start_battery: f64,
    start_ms: i64,
    end_ms: i64,
}

/// What a drone is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Phase {
    /// On the ground, free; goes home then.
    Parked {
        /// When.
        until_ms: i64,
    },
    /// On its pad, charging.
    Home,
    /// Free, on the way home.
    Homing(Leg),
    /// On the way to the package.
    ToPickup(Leg),
    /// At the pickup.
    Loading {
        /// Until when.
        until_ms: i64,
    },
    /// On the way with the package.
    ToDropoff(Leg),
    /// At the drop-off.
    Unloading {
        /// Until when.
        until_ms: i64,
    },
    /// Done, until the mission is recalled.
    Delivered,
    /// On the ground with a broken drone, until the mission is recalled.
    Broken,
}

/// The mission of a drone, as far as it needs it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Task {
    pub(crate) delivery_id: DeliveryId,
    pub(crate) attempt: u32,
    pub(crate) stage: Stage,
    pickup: Coordinate,
    dropoff: Coordinate,
    weight_kg: f64,
}

/// What a drone had to tell when its mission ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recalled {
    /// It had delivered.
    Delivered,
    /// It had not.
    Unfinished,
    /// It was not its mission.
    NotMine,
}

/// Counts of what happened to drones since they were last asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Incidents {
    pub(crate) breakdowns: usize,
    pub(crate) silences: usize,
}

/// A drone.
#[derive(Debug)]
pub(crate) struct Drone {
    pub(crate) id: DroneId,
    pub(crate) airframe: Airframe,
    /// Its own place at the base.
    pad: Coordinate,
    pub(crate) position: Coordinate,
    pub(crate) battery: f64,
    pub(crate) phase: Phase,
    pub(crate) task: Option<Task>,
    /// Up to when it has been flown.
    now_ms: i64,
    last_sequence: u64,
    /// When the next report is due.
    report_at_ms: i64,
    /// Nothing is heard of it before.
    silent_until_ms: i64,
    fault: Option<Fault>,
    fault_at_ms: Option<i64>,
    pub(crate) stutter: Option<Box<Stutter>>,
    /// False until the fleet knows it; it says nothing before.
    pub(crate) registered: bool,
}

impl Drone {
    /// A free drone as the fleet knows it (or as it begins). Its first report is due at `report_at_ms`.
    pub(crate) fn new(id: DroneId, airframe: Airframe, pad: Coordinate, position: Coordinate, battery: f64) -> Self {
        Self {
            id,
            airframe,
            pad,
            position,
            battery: battery.clamp(0.0, 1.0),
            phase: Phase::Home,
            task: None,
            now_ms: 0,
            last_sequence: 0,
            report_at_ms: 0,
            silent_until_ms: 0,
            fault: None,
            fault_at_ms: None,
            stutter: None,
            registered: true,
        }
    }

    /// Begins its life at `now_ms`, with the first report `report_in_ms` later.
    pub(crate) fn begin(&mut self, now_ms: i64, report_in_ms: i64, rules: &Rules) {
        self.now_ms = now_ms;
        self.report_at_ms = now_ms + report_in_ms;
        let at_home = self.position.distance_m(&self.pad) <= AT_HOME_M;
        self.phase = if at_home { Phase::Home } else { Phase::Parked { until_ms: now_ms + rules.idle_ms } };
    }

    /// When it has to be looked at next.
    pub(crate) fn wake_at_ms(&self) -> i64 {
        let speaks_at = self.report_at_ms.max(self.silent_until_ms);
        self.next_event_ms().map_or(speaks_at, |event| event.min(speaks_at))
    }

    /// Whether a report is due.
    pub(crate) fn is_due(&self, now_ms: i64) -> bool {
        self.registered && self.report_at_ms <= now_ms && self.silent_until_ms <= now_ms
    }

    /// A report that was not stored is due again.
    pub(crate) fn report_again(&mut self, now_ms: i64) {
        self.report_at_ms = self.report_at_ms.min(now_ms);
    }

    /// Flies up to `now_ms`, through everything that happens on the way.
    pub(crate) fn advance(&mut self, now_ms: i64, rules: &Rules) -> Incidents {
        let mut incidents = Incidents::default();
        while let Some(event_ms) = self.next_event_ms().filter(|event| *event <= now_ms) {
            self.pass(event_ms, rules);
            if self.fault_at_ms.is_some_and(|at| at <= event_ms) {
                self.misbehave(event_ms, &mut incidents);
            } else {
                self.end_phase(event_ms, rules, &mut incidents);
            }
        }
        self.pass(now_ms, rules);
        incidents
    }

    fn next_event_ms(&self) -> Option<i64> {
        let end = match self.phase {
            Phase::Homing(leg) | Phase::ToPickup(leg) | Phase::ToDropoff(leg) => Some(leg.end_ms),
            Phase::Parked { until_ms } | Phase::Loading { until_ms } | Phase::Unloading { until_ms } => Some(until_ms),
            Phase::Home | Phase::Delivered | Phase::Broken => None,
        };
        match (end, self.fault_at_ms) {
            (Some(end), Some(fault)) => Some(end.min(fault)),
            (end, fault) => end.or(fault),
        }
    }

    /// Lets time pass in which nothing else happens.
    fn pass(&mut self, until_ms: i64, rules: &Rules) {
        let passed_ms = (until_ms - self.now_ms).max(0);
        self.now_ms = self.now_ms.max(until_ms);
        match self.phase {
            Phase::Homing(leg) | Phase::ToPickup(leg) | Phase::ToDropoff(leg) => self.follow(&leg),
            Phase::Home => self.battery = (self.battery + rules.charge_per_ms * passed_ms as f64).min(1.0),
            _ => {}
        }
    }

    fn follow(&mut self, leg: &Leg) {
        let whole_ms = (leg.end_ms - leg.start_ms).max(1) as f64;
        let share = ((self.now_ms - leg.start_ms) as f64 / whole_ms).clamp(0.0, 1.0);
        self.position = Coordinate {
            latitude: leg.from.latitude + (leg.to.latitude - leg.from.latitude) * share,
            longitude: leg.from.longitude + (leg.to.longitude - leg.from.longitude) * share,
        };
        let drained = self.airframe.drain(leg.length_m * share, leg.load_kg);
        self.battery = (leg.start_battery - drained).max(0.0);
    }

    /// The flight from here to there, or as far as the battery goes.
    fn leg(&self, to: Coordinate, load_kg: f64) -> Leg {
        let whole_m = self.position.distance_m(&to);
        let cost = self.airframe.drain(whole_m, load_kg);
        let within_reach = if cost > self.battery { self.battery / cost } else { 1.0 };
        let length_m = whole_m * within_reach;
        let flight_ms = (self.airframe.seconds(length_m) * 1_000.0).ceil() as i64;
        Leg {
            from: self.position,
            to: self.position.towards(&to, length_m),
            length_m,
            load_kg,
            start_battery: self.battery,
            start_ms: self.now_ms,
            end_ms: self.now_ms + flight_ms,
        }
    }

    /// A free drone gets home even with an empty battery: someone carries it.
    fn go_home(&mut self) {
        let whole_m = self.position.distance_m(&self.pad);
        let mut leg = self.leg(self.pad, 0.0);
        leg.to = self.pad;
        leg.end_ms = self.now_ms + (self.airframe.seconds(whole_m) * 1_000.0).ceil() as i64;
        self.phase = Phase::Homing(leg);
    }

    fn end_phase(&mut self, at_ms: i64, rules: &Rules, incidents: &mut Incidents) {
        match (self.phase, self.task) {
            (Phase::Homing(_), _) => self.phase = Phase::Home,
            (Phase::Parked { .. }, _) => self.go_home(),
            (Phase::ToPickup(leg), Some(task)) => {
                self.arrive(leg, task.pickup, Phase::Loading { until_ms: at_ms + rules.handover_ms }, incidents);
            }
            (Phase::ToDropoff(leg), Some(task)) => {
                self.arrive(leg, task.dropoff, Phase::Unloading { until_ms: at_ms + rules.handover_ms }, incidents);
            }
            (Phase::Loading { .. }, Some(task)) => {
                self.start_leg(Phase::ToDropoff, task.dropoff, task.weight_kg);
                self.enter(Stage::HeadedToDropoff);
            }
            (Phase::Unloading { .. }, Some(_)) => {
                self.phase = Phase::Delivered;
                self.enter(Stage::Completed);
            }
            _ => self.phase = Phase::Parked { until_ms: at_ms + rules.idle_ms },
        }
    }

    /// The end of a leg is its target, or where the battery was empty.
    fn arrive(&mut self, leg: Leg, target: Coordinate, next: Phase, incidents: &mut Incidents) {
        /// Nearer than this, in metres, is there: rounding, not a lack of energy.
        const THERE_M: f64 = 1.0;
        if leg.to.distance_m(&target) > THERE_M {
            self.break_down(incidents);
        } else {
            self.phase = next;
        }
    }

    fn start_leg(&mut self, phase: fn(Leg) -> Phase, to: Coordinate, load_kg: f64) {
        let leg = self.leg(to, load_kg);
        self.phase = phase(leg);
        let carrying = matches!(self.phase, Phase::ToDropoff(_));
        if let Some(fault) = self.fault.filter(|fault| fault.carrying == carrying) {
            self.fault = None;
            let whole_ms = (leg.end_ms - leg.start_ms) as f64;
            match fault.kind {
                FaultKind::Stutter => self.stutter = Some(Box::default()),
                FaultKind::Breakdown | FaultKind::Silence { .. } => {
                    self.fault_at_ms = Some(leg.start_ms + (whole_ms * fault.share) as i64);
                    self.fault = Some(fault);
                }
            }
        }
    }

    fn misbehave(&mut self, at_ms: i64, incidents: &mut Incidents) {
        self.fault_at_ms = None;
        match self.fault.take().map(|fault| fault.kind) {
            Some(FaultKind::Breakdown) => self.break_down(incidents),
            Some(FaultKind::Silence { for_ms }) => {
                self.silent_until_ms = at_ms + for_ms;
                incidents.silences += 1;
            }
            Some(FaultKind::Stutter) | None => {}
        }
    }

    fn break_down(&mut self, incidents: &mut Incidents) {
        incidents.breakdowns += 1;
        self.fault_at_ms = None;
        self.phase = Phase::Broken;
        self.enter(Stage::Failed);
    }

    /// A new stage is reported at once.
    fn enter(&mut self, stage: Stage) {
        if let Some(task) = &mut self.task {
            task.stage = stage;
        }
        self.report_at_ms = self.report_at_ms.min(self.now_ms);
    }

    /// Takes a mission on, or learns that the one it has was changed. True where it is a new one.
    pub(crate) fn assign(&mut self, mission: &Mission, now_ms: i64, rules: &Rules, fault: Option<Fault>) -> bool {
        self.advance(now_ms, rules);
        let known = self.task.filter(|task| task.delivery_id == mission.delivery_id);
        if known.is_some_and(|task| task.attempt > mission.attempt) {
            return false;
        }
        if let Some(task) = known.filter(|task| task.attempt == mission.attempt) {
            self.change(task, mission);
            return false;
        }
        // Before its first report in this run the drone is where the flight has seen it last.
        if let Some(position) = mission.last_position.filter(|_| self.last_sequence == 0) {
            self.position = position;
        }
        self.last_sequence = self.last_sequence.max(mission.last_sequence.unwrap_or(0));
        self.task = Some(Task {
            delivery_id: mission.delivery_id,
            attempt: mission.attempt,
            stage: Stage::HeadedToPickup,
            pickup: mission.pickup,
            dropoff: mission.dropoff,
            weight_kg: mission.weight_kg,
        });
        self.fault = fault;
        self.fault_at_ms = None;
        self.stutter = None;
        match mission.stage {
            Stage::HeadedToDropoff => self.start_leg(Phase::ToDropoff, mission.dropoff, mission.weight_kg),
            Stage::Completed => self.phase = Phase::Delivered,
            Stage::Failed => self.phase = Phase::Broken,
            _ => self.start_leg(Phase::ToPickup, mission.pickup, 0.0),
        }
        let begun = mission.stage.is_flight() || mission.stage == Stage::Failed;
        self.enter(if begun { mission.stage } else { Stage::HeadedToPickup });
        true
    }

    /// The same mission with another pickup or drop-off: a customer changed their mind.
    fn change(&mut self, task: Task, mission: &Mission) {
        let (pickup_moved, dropoff_moved) = (task.pickup != mission.pickup, task.dropoff != mission.dropoff);
        self.task =
            Some(Task { pickup: mission.pickup, dropoff: mission.dropoff, weight_kg: mission.weight_kg, ..task });
        match self.phase {
            Phase::ToPickup(_) if pickup_moved => self.start_leg(Phase::ToPickup, mission.pickup, 0.0),
            Phase::ToDropoff(_) if dropoff_moved => {
                self.start_leg(Phase::ToDropoff, mission.dropoff, mission.weight_kg);
            }
            _ => {}
        }
    }

    /// The mission is over: the drone is free, says so at once, and goes home if it must.
    pub(crate) fn recall(&mut self, delivery_id: DeliveryId, attempt: u32, now_ms: i64, rules: &Rules) -> Recalled {
        self.advance(now_ms, rules);
        let Some(task) = self.task.filter(|task| task.delivery_id == delivery_id && task.attempt <= attempt) else {
            return Recalled::NotMine;
        };
        self.task = None;
        self.fault = None;
        self.fault_at_ms = None;
        self.stutter = None;
        if self.phase == Phase::Delivered && self.battery >= GO_HOME_BELOW {
            self.phase = Phase::Parked { until_ms: now_ms + rules.idle_ms };
        } else {
            self.go_home();
        }
        self.report_at_ms = self.report_at_ms.min(now_ms);
        if task.stage == Stage::Completed { Recalled::Delivered } else { Recalled::Unfinished }
    }

    /// The report that is due now; the next one is a period later, in the same rhythm.
    pub(crate) fn report(&mut self, now_ms: i64, rules: &Rules) -> Report {
        let on_the_ground = self.task.is_none() && matches!(self.phase, Phase::Parked { .. } | Phase::Home);
        let period_ms = if on_the_ground { rules.ground_report_ms } else { rules.report_ms };
        let late_ms = now_ms - self.report_at_ms;
        self.report_at_ms = if late_ms < period_ms { self.report_at_ms + period_ms } else { now_ms + period_ms };
        self.last_sequence = u64::try_from(now_ms).unwrap_or(1).max(self.last_sequence + 1);
        Report {
            drone_id: self.id,
            mission: self.task.map(|task| (task.delivery_id, task.attempt, task.stage)),
            sequence: self.last_sequence,
            at_ms: now_ms,
            position: self.position,
            battery: self.battery,
        }
    }
}

#[cfg(test)]
#[path = "drone_tests.rs"]
mod tests;
