//! The customers: an open loop of orders, some cancelled again, and the wait for their end.

mod ledger;
mod places;
mod schedule;
mod settle;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use contracts::{
    Clock, Coordinate, DeliveryId, Timestamp,
    api::{Confirmation, CreateDelivery, PackageSize, PackageSpec, Role},
};
use reqwest::{
    Method, StatusCode,
    header::{HeaderName, HeaderValue},
};
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Progress,
    backoff::Backoff,
    city::City,
    gateway::{Call, Gateway, Identity},
    progress::{add, subtract},
    random::Random,
    summary::Outcomes,
};
use ledger::{Entry, Ledger};
use places::Places;
use schedule::Schedule;

/// An order that has no answer after this long is given up.
const ORDER_PATIENCE: chrono::Duration = chrono::Duration::seconds(30);
/// Requests under way at a time. With the gateway in the same process every one costs two file descriptors, and many
/// systems allow 1,024; orders beyond it wait, and their waiting counts as latency.
const REQUESTS_AT_ONCE: usize = 384;
/// Cancellations that wait for their moment; beyond it a delivery is simply not cancelled.
const CANCELS_WAITING: usize = 1_000;
/// A cancellation comes within this many seconds of the order, before the time scale: before, at and after the pickup.
const CANCEL_WITHIN_SECONDS: f64 = 200.0;
/// Tries of a cancellation that is still being decided: it is decided in the end without us.
const CANCEL_TRIES: usize = 3;
/// The share of expedited orders.
const EXPEDITED_SHARE: f64 = 0.1;
/// After this many orders in a row that were due already, others get the processor.
const BURST: u64 = 32;
/// When a run is ended from outside, answers under way are waited for this long.
const FAREWELL: Duration = Duration::from_millis(500);

/// What is in the packages.
const CONTENTS: [&str; 8] =
    ["books", "a birthday cake", "spare parts", "medicine", "flowers", "documents", "groceries", "a camera"];

/// Someone who orders, and what was accepted from them while that is of interest.
#[derive(Debug)]
struct Customer {
    identity: Identity,
    accepted: std::sync::Mutex<Vec<DeliveryId>>,
}

/// All that an order needs.
struct Desk {
    gateway: Arc<Gateway>,
    clock: Arc<dyn Clock>,
    progress: Arc<Progress>,
    customers: Vec<Customer>,
    places: Places,
    ledger: Option<Ledger>,
    /// Keys of this run are not those of another with the same seed.
    run_id: String,
    seed: u64,
    cancel_share: f64,
    cancel_within_seconds: f64,
    keeps_ids: bool,
    requests: Semaphore,
    cancels: Semaphore,
}

/// Orders until the duration or the run is over, then waits for the deliveries' ends for as long as the drain allows.
pub(crate) async fn run(
    config: &Config,
    city: &City,
    gateway: Arc<Gateway>,
    clock: Arc<dyn Clock>,
    progress: Arc<Progress>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Outcomes> {
    let ledger = match &config.accepted {
        Some(path) => Some(Ledger::open(path).await.with_context(|| format!("--accepted {}", path.display()))?),
        None => None,
    };
    let customers = (1..=config.customers).map(|number| Customer {
        identity: Identity::new(Role::Customer, format!("customer-{number:04}")),
        accepted: std::sync::Mutex::default(),
    });
    let desk = Arc::new(Desk {
        customers: customers.collect(),
        places: Places::new(city, config),
        ledger,
        run_id: clock.new_id().simple().to_string(),
        seed: config.seed,
        cancel_share: config.cancel_share,
        cancel_within_seconds: CANCEL_WITHIN_SECONDS / config.time_scale,
        keeps_ids: config.duration.is_some(),
        requests: Semaphore::new(REQUESTS_AT_ONCE),
        cancels: Semaphore::new(CANCELS_WAITING),
        gateway,
        clock,
        progress,
    });
    let orders = take_orders(config, &desk, shutdown).await;
    finish_orders(&desk, orders, shutdown).await;
    if let Some(ledger) = &desk.ledger {
        ledger.close().await?;
    }
    if config.duration.is_none() || shutdown.is_cancelled() {
        return Ok(Outcomes::default());
    }
    tracing::info!("ordering has stopped; waiting for the open deliveries");
    Ok(settle::wait_for_ends(&desk, config.drain, shutdown).await)
}

/// The open loop: every order goes out when it is due.
async fn take_orders(config: &Config, desk: &Arc<Desk>, shutdown: &CancellationToken) -> JoinSet<()> {
    let mut orders = JoinSet::new();
    let start = desk.clock.now();
    let end = config.duration.and_then(|duration| start.checked_add_signed(chrono::Duration::from_std(duration).ok()?));
    let mut schedule = Schedule::new(start, config.orders_per_second, config.random_gaps, config.seed);
    let in_flight = Arc::new(Semaphore::new(config.max_in_flight.min(Semaphore::MAX_PERMITS)));
    for number in 0.. {
        let due = schedule.next().filter(|due| end.is_none_or(|end| *due < end));
        let wake_at = due.or(end).unwrap_or(Timestamp::MAX_UTC);
        if wake_at > desk.clock.now() || number % BURST == 0 {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = desk.clock.sleep_until(wake_at) => tokio::task::consume_budget().await,
            }
        }
        let Some(due) = due else { break };
        while orders.try_join_next().is_some() {}
        match Arc::clone(&in_flight).try_acquire_owned() {
            Ok(slot) => {
                add(&desk.progress.offered, 1);
                add(&desk.progress.in_flight, 1);
                orders.spawn(Arc::clone(desk).order(number, due, slot));
            }
            Err(_) => add(&desk.progress.not_offered, 1),
        }
    }
    orders
}

/// Every order has a bounded patience, so this ends; a run ended from outside does not wait for that.
async fn finish_orders(desk: &Arc<Desk>, mut orders: JoinSet<()>, shutdown: &CancellationToken) {
    let all_done = async { while orders.join_next().await.is_some() {} };
    tokio::select! {
        () = all_done => {}
        () = async { shutdown.cancelled().await; desk.clock.sleep(FAREWELL).await; } => {}
    }
    orders.shutdown().await;
}

/// Of a 202's body, what the ledger needs.
#[derive(Deserialize)]
struct Accepted {
    id: DeliveryId,
}

/// How an order ended.
enum Answered {
    Accepted(DeliveryId),
    Refused,
    GivenUp,
}

impl Desk {
    async fn order(self: Arc<Self>, number: u64, due: Timestamp, slot: OwnedSemaphorePermit) {
        let mut random = Random::of(self.seed, "order", number);
        let customer = &self.customers[random.below(self.customers.len())];
        let body = self.draw_order(&mut random, number);
        let answered = self.post(customer, number, due, &body, random.clone()).await;
        let answered_at = self.clock.now();
        subtract(&self.progress.in_flight, 1);
        drop(slot);
        let id = match answered {
            Answered::Accepted(id) => id,
            Answered::Refused => return add(&self.progress.refused, 1),
            Answered::GivenUp => return add(&self.progress.errors, 1),
        };
        let latency = (answered_at - due).to_std().unwrap_or_default();
        self.progress.post_latency.record(latency);
        if let Some(ledger) = &self.ledger {
            ledger.add(Entry::new(id, answered_at, customer.identity.subject(), latency)).await;
        }
        if self.keeps_ids
            && let Ok(mut accepted) = customer.accepted.lock()
        {
            accepted.push(id);
        }
        add(&self.progress.accepted, 1);
        if random.chance(self.cancel_share) {
            self.cancel(customer, id, &mut random).await;
        }
    }

    /// What is ordered, from where, to where.
    fn draw_order(&self, random: &mut Random, number: u64) -> CreateDelivery {
        let (pickup, dropoff): (Coordinate, Coordinate) = self.places.trip(random);
        let size = match random.below(20) {
            0..10 => PackageSize::Small,
            10..17 => PackageSize::Medium,
            _ => PackageSize::Large,
        };
        let grams = (random.between(0.1, 1.0) * size.max_weight_kg() * 1_000.0).floor();
        CreateDelivery {
            pickup,
            dropoff,
            package: PackageSpec {
                size,
                weight_kg: grams / 1_000.0,
                tag: Some(format!("order-{number}")),
                description: Some(CONTENTS[random.below(CONTENTS.len())].to_owned()),
            },
            deadline: None,
            expedited: random.chance(EXPEDITED_SHARE),
            confirmation: Confirmation::None,
        }
    }

    /// Sends the order until there is an answer that decides, always under the same key.
    async fn post(
        &self,
        customer: &Customer,
        number: u64,
        due: Timestamp,
        order: &CreateDelivery,
        random: Random,
    ) -> Answered {
        let body = bytes::Bytes::from(serde_json::to_vec(order).unwrap_or_default());
        let Ok(key) = HeaderValue::from_str(&format!("{}-{number}", self.run_id)) else { return Answered::GivenUp };
        let mut backoff = Backoff::new(random);
        loop {
            let mut call = Call::new(Method::POST, "/api/deliveries").json(body.clone());
            call.header = Some((HeaderName::from_static("idempotency-key"), key.clone()));
            let answer = {
                let Ok(_request) = self.requests.acquire().await else { return Answered::GivenUp };
                self.gateway.send(&customer.identity, call).await
            };
            let mut pause = backoff.pause();
            match answer {
                Ok(answer) if answer.status == StatusCode::ACCEPTED => {
                    if let Ok(accepted) = serde_json::from_slice::<Accepted>(&answer.body) {
                        return Answered::Accepted(accepted.id);
                    }
                    tracing::warn!("a 202 names no delivery");
                }
                Ok(answer) if !answer.is_passing() => {
                    let body = String::from_utf8_lossy(&answer.body).into_owned();
                    tracing::debug!(status = %answer.status, body, "an order was refused");
                    return Answered::Refused;
                }
                Ok(answer) => pause = pause.max(answer.retry_after.unwrap_or_default()),
                Err(error) if error.is_final() => return Answered::Refused,
                Err(error) => tracing::debug!(%error, "an order got no answer"),
            }
            if self.clock.now() + pause > due + ORDER_PATIENCE {
                return Answered::GivenUp;
            }
            add(&self.progress.retries, 1);
            self.clock.sleep(pause).await;
        }
    }

    /// A customer changes their mind after a while. Whatever the answer is, the delivery ends.
    async fn cancel(&self, customer: &Customer, id: DeliveryId, random: &mut Random) {
        let Ok(_waiting) = self.cancels.try_acquire() else { return };
        let mut pause = Duration::from_secs_f64(random.between(0.0, self.cancel_within_seconds));
        let path = format!("/api/deliveries/{id}");
        for _ in 0..CANCEL_TRIES {
            self.clock.sleep(pause).await;
            let Ok(_request) = self.requests.acquire().await else { return };
            match self.gateway.send(&customer.identity, Call::new(Method::DELETE, &path)).await {
                Ok(answer) if answer.status.is_success() => return add(&self.progress.cancels, 1),
                Ok(answer) if !answer.is_passing() => return,
                _ => pause = Duration::from_secs(1),
            }
        }
    }
}
