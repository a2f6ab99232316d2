//! A base station at work: flies its drones, sends their reports in batches, and follows its missions.

use std::{collections::HashMap, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::{Bytes, BytesMut};
use contracts::{
    DroneId, Timestamp,
    api::{MAX_TELEMETRY_LINES, TelemetryAnswer, UNKNOWN_DRONE_REASON},
    commands::{Mission, MissionUpdate},
};
use reqwest::Method;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    drone::{Drone, Incidents, Recalled},
    faults,
    missions::{UPDATES_QUEUED, listen},
    register::{registration, registration_call},
    reports::{time_text, write_line},
};
use crate::{
    backoff::Backoff,
    city::Base,
    gateway::{Answer, Call, Identity, NoAnswer},
    progress::{add, subtract},
    random::Random,
};

/// How long the end waits for the answers to what is under way.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// How often a base looks which drones are due. Five batches a second from each base are an even load; fewer would
/// show as jerks on the map, more would cost requests that carry next to nothing.
const TICK: Duration = Duration::from_millis(200);
/// Drones that the fleet has lost and that are registered again at a time.
const REGISTRATIONS_AT_ONCE: usize = 8;
/// A written line, in bytes: what the buffer is made for.
const LINE_BYTES: usize = 280;

/// A base station with its drones.
pub(crate) struct Station {
    shared: Shared,
    base: Base,
    identity: Arc<Identity>,
    drones: Vec<Drone>,
    by_id: HashMap<DroneId, usize>,
    random: Random,
    /// No report leaves before the first snapshot: a drone that does not know its mission would deny it.
    knows_missions: bool,
    buffer: BytesMut,
    backoff: Backoff,
    send_not_before: Timestamp,
    unregistered: Vec<usize>,
}

/// A batch of reports on its way.
struct Batch {
    body: Bytes,
    /// The drone of each line.
    lines: Vec<u32>,
}

/// What came of a request.
enum Done {
    Reports { batch: Batch, answer: Result<Answer, NoAnswer> },
    Registration { drone: usize, answer: Result<Answer, NoAnswer> },
}

impl Station {
    pub(crate) fn new(shared: Shared, base: Base, identity: Arc<Identity>, index: usize, drones: Vec<Drone>) -> Self {
        let by_id = drones.iter().enumerate().map(|(index, drone)| (drone.id, index)).collect();
        let mut station = Self {
            random: Random::of(shared.seed, "faults", index as u64),
            backoff: Backoff::new(Random::of(shared.seed, "telemetry", index as u64)),
            send_not_before: Timestamp::UNIX_EPOCH,
            shared,
            base,
            identity,
            drones,
            by_id,
            knows_missions: false,
            buffer: BytesMut::new(),
            unregistered: Vec::new(),
        };
        station.begin();
        station
    }

    /// The drones' first reports are spread over a period, and so are all later ones.
    fn begin(&mut self) {
        let now_ms = self.now_ms();
        let rules = self.shared.rules;
        for drone in &mut self.drones {
            let in_ms = self.random.between(0.0, rules.report_ms as f64) as i64;
            drone.begin(now_ms, in_ms, &rules);
        }
    }

    fn now_ms(&self) -> i64 {
        self.shared.clock.now().timestamp_millis()
    }

    /// Follows what the missions stream says.
    fn follow(&mut self, update: MissionUpdate) {
        match update {
            MissionUpdate::Snapshot { missions } => self.take_snapshot(&missions),
            MissionUpdate::Assigned { mission } => self.assign(&mission),
            MissionUpdate::Recalled { delivery_id, drone_id, attempt, .. } => {
                let Some(&index) = self.by_id.get(&drone_id) else { return };
                let now_ms = self.now_ms();
                let recalled = self.drones[index].recall(delivery_id, attempt, now_ms, &self.shared.rules);
                self.count_recall(recalled);
            }
        }
    }

    /// Whatever is not in the snapshot is over.
    fn take_snapshot(&mut self, missions: &[Mission]) {
        let now_ms = self.now_ms();
        let mut wanted = HashMap::with_capacity(missions.len());
        for mission in missions {
            wanted.insert(mission.drone_id, (mission.delivery_id, mission.attempt));
        }
        for index in 0..self.drones.len() {
            let drone = &mut self.drones[index];
            let Some(task) = drone.task else { continue };
            if wanted.get(&drone.id) != Some(&(task.delivery_id, task.attempt)) {
                let recalled = drone.recall(task.delivery_id, task.attempt, now_ms, &self.shared.rules);
                self.count_recall(recalled);
            }
        }
        for mission in missions {
            self.assign(mission);
        }
        self.knows_missions = true;
    }

    fn assign(&mut self, mission: &Mission) {
        let Some(&index) = self.by_id.get(&mission.drone_id) else { return };
        let fault = faults::draw(&mut self.random, self.shared.misbehave);
        let now_ms = self.now_ms();
        let had_one = self.drones[index].task.is_some();
        let is_new = self.drones[index].assign(mission, now_ms, &self.shared.rules, fault);
        if is_new && !had_one {
            self.shared.progress.missions.fetch_add(1, Relaxed);
        }
    }

    fn count_recall(&self, recalled: Recalled) {
        if recalled != Recalled::NotMine {
            subtract(&self.shared.progress.missions, 1);
        }
        if recalled == Recalled::Delivered {
            add(&self.shared.progress.flown, 1);
        }
    }

    /// Flies every drone that has something to do, and writes the reports that are due if a batch may leave.
    fn tick(&mut self, may_send: bool) -> Option<Batch> {
        let now = self.shared.clock.now();
        let now_ms = now.timestamp_millis();
        let rules = self.shared.rules;
        let may_send = may_send && self.knows_missions && now >= self.send_not_before;
        let at = time_text(now_ms);
        let mut incidents = Incidents::default();
        let mut lines = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        for (index, drone) in self.drones.iter_mut().enumerate() {
            if drone.wake_at_ms() > now_ms {
                continue;
            }
            let happened = drone.advance(now_ms, &rules);
            incidents.breakdowns += happened.breakdowns;
            incidents.silences += happened.silences;
            // A stuttering drone writes up to three lines.
            let has_room = lines.len() + 3 <= MAX_TELEMETRY_LINES;
            if may_send && has_room && drone.is_due(now_ms) {
                if lines.is_empty() {
                    buffer.reserve(LINE_BYTES * 64);
                }
                let report = drone.report(now_ms, &rules);
                let Some(stutter) = &mut drone.stutter else {
                    write_line(&mut buffer, &report, &at);
                    lines.push(index as u32);
                    continue;
                };
                for report in stutter.disorder(report) {
                    write_line(&mut buffer, &report, &time_text(report.at_ms));
                    lines.push(index as u32);
                }
            }
        }
        add(&self.shared.progress.breakdowns, incidents.breakdowns);
        add(&self.shared.progress.silences, incidents.silences);
        if lines.is_empty() {
            self.buffer = buffer;
            return None;
        }
        Some(Batch { body: buffer.freeze(), lines })
    }

    /// The telemetry request of a batch.
    fn send(&self, batch: Batch, requests: &mut JoinSet<Done>) {
        let (gateway, identity) = (Arc::clone(&self.shared.gateway), Arc::clone(&self.identity));
        requests.spawn(async move {
            let mut call = Call::new(Method::POST, "/api/telemetry").json(batch.body.clone());
            call.content_type = "application/x-ndjson";
            let answer = gateway.send(&identity, call).await;
            Done::Reports { batch, answer }
        });
    }

    /// Tells the fleet again of drones that it does not know any more.
    fn register_lost(&mut self, running: &mut usize, requests: &mut JoinSet<Done>) {
        while *running < REGISTRATIONS_AT_ONCE {
            let Some(drone) = self.unregistered.pop() else { return };
            let (gateway, identity) = (Arc::clone(&self.shared.gateway), Arc::clone(&self.identity));
            let registration = registration(&self.base, &self.drones[drone]);
            let path = format!("/api/fleet/{}", self.drones[drone].id);
            requests.spawn(async move {
                let answer = gateway.send(&identity, registration_call(&path, &registration)).await;
                Done::Registration { drone, answer }
            });
            *running += 1;
        }
    }

    fn settle_registration(&mut self, drone: usize, answer: &Result<Answer, NoAnswer>) {
        match answer {
            Ok(answer) if answer.status.is_success() => self.drones[drone].registered = true,
            Ok(answer) if !answer.is_passing() => {
                tracing::warn!(drone = %self.drones[drone].id, status = %answer.status, "the fleet refuses a drone");
            }
            // Behind all others, so that one drone's bad luck does not hold them up.
            _ => self.unregistered.insert(0, drone),
        }
    }

    /// Counts what became of a batch; what was not stored is due again.
    fn settle_reports(&mut self, batch: Batch, answer: Result<Answer, NoAnswer>) {
        let read = answer.ok().map(|answer| {
            let body = answer.status.is_success().then(|| serde_json::from_slice::<TelemetryAnswer>(&answer.body).ok());
            (answer.status, answer.retry_after, body.flatten())
        });
        match read {
            Some((_, _, Some(answer))) => {
                self.backoff.reset();
                self.count_answer(&batch, &answer);
            }
            failed => {
                self.shared.progress.report_errors.fetch_add(1, Relaxed);
                let status = failed.as_ref().map(|failed| failed.0.as_u16());
                tracing::debug!(base = %self.base.id, ?status, "telemetry was not taken");
                let asked = failed.and_then(|failed| failed.1).unwrap_or_default();
                let now = self.shared.clock.now();
                self.send_not_before = now + self.backoff.pause().max(asked);
                for &index in &batch.lines {
                    self.drones[index as usize].report_again(now.timestamp_millis());
                }
            }
        }
        // The request is over, so the buffer is usually ours alone again.
        if let Ok(mut buffer) = batch.body.try_into_mut() {
            buffer.clear();
            self.buffer = buffer;
        }
    }

    fn count_answer(&mut self, batch: &Batch, answer: &TelemetryAnswer) {
        let progress = &self.shared.progress;
        add(&progress.reports_accepted, answer.accepted);
        add(&progress.reports_stale, answer.stale);
        add(&progress.reports_rejected, answer.rejected.len());
        for rejected in &answer.rejected {
            let Some(&index) = rejected.line.checked_sub(1).and_then(|line| batch.lines.get(line)) else { continue };
            let drone = &mut self.drones[index as usize];
            // The fleet has lost its data of the drone, so it is told again.
            if rejected.reason == UNKNOWN_DRONE_REASON && drone.registered {
                drone.registered = false;
                self.unregistered.push(index as usize);
            }
        }
    }
}

/// Runs the station until it is told to stop.
pub(crate) async fn fly(mut station: Station, stop: CancellationToken) -> anyhow::Result<()> {
    let (updates_in, mut updates) = mpsc::channel(UPDATES_QUEUED);
    let mut streams = JoinSet::new();
    let clock = Arc::clone(&station.shared.clock);
    streams.spawn(listen(station.shared.clone(), Arc::clone(&station.identity), updates_in, stop.clone()));
    let mut requests = JoinSet::new();
    let (mut reporting, mut registering) = (false, 0);
    let mut next_tick = clock.now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(update) = updates.recv() => station.follow(update),
            Some(done) = requests.join_next(), if !requests.is_empty() => match done? {
                Done::Reports { batch, answer } => {
                    reporting = false;
                    station.settle_reports(batch, answer);
                }
                Done::Registration { drone, answer } => {
                    registering -= 1;
                    station.settle_registration(drone, &answer);
                }
            },
            () = clock.sleep_until(next_tick) => {
                if let Some(batch) = station.tick(!reporting) {
                    reporting = true;
                    station.send(batch, &mut requests);
                }
                station.register_lost(&mut registering, &mut requests);
                // After a pause of the whole machine there is nothing to catch up with.
                next_tick = (next_tick + TICK).max(clock.now());
            }
        }
    }
    // What is under way counts, unless its answer is late.
    let last_answers = async {
        while let Some(Ok(done)) = requests.join_next().await {
            if let Done::Reports { batch, answer } = done {
                station.settle_reports(batch, answer);
            }
        }
    };
    tokio::select! {
        () = last_answers => {}
        () = clock.sleep(LAST_ANSWERS) => {}
    }
    requests.shutdown().await;
    streams.shutdown().await;
    Ok(())
}

#[cfg(test)]
#[path = "base_tests.rs"]
mod tests;
