//! The composition of a delivery's answer: who is asked, in which order, and how long each may take.

use std::time::Duration;

use auth::{Action, Identity};
use chassis::{ApiError, Node, Peer, PeerError, auth::Caller};
use contracts::{
    CustomerId, DeliveryId, Timestamp,
    api::{DeliveryView, HistoryItem, HistoryPage, HistoryQuery, Page},
    commands::FleetDrone,
    events::{DeliveryRecord, FlightProgress, PackageRecord},
};
use reqwest::{Method, RequestBuilder};
use serde::{Serialize, de::DeserializeOwned};

use crate::domain::{
    history::Walk,
    view::{Part, Parts, view},
};

/// How long a part other than the delivery itself is waited for: an answer without it beats a slow one with it.
const PART_DEADLINE: Duration = Duration::from_millis(500);

/// The services behind the gateway.
pub(crate) struct Services {
    pub(crate) delivery: Peer,
    pub(crate) package: Peer,
    pub(crate) fleet: Peer,
    pub(crate) tracking: Peer,
    pub(crate) history: Peer,
    pub(crate) lookup: Peer,
}

/// Why a delivery's composition ended early: it is over, unknown to `delivery`, or nobody knows.
enum Settled {
    Over(Box<DeliveryRecord>),
    Unknown,
    Silent(PeerError),
}

/// A question for one finished delivery, to lookup or history. Lookup needs the owner, because it is sharded by it.
#[derive(Debug, Serialize)]
struct DeliveryQuery<'a> {
    delivery_id: DeliveryId,
    customer_id: Option<&'a CustomerId>,
}

impl Services {
    /// Clients for them all.
    pub(crate) fn new(node: &Node) -> anyhow::Result<Self> {
        Ok(Self {
            delivery: node.peer("delivery")?,
            package: node.peer("package")?,
            fleet: node.peer("fleet")?,
            tracking: node.peer("tracking")?,
            history: node.peer("history")?,
            lookup: node.peer("lookup")?,
        })
    }

    /// The delivery as it stands: in flight from four services at once, otherwise from delivery, lookup or the lake.
    pub(crate) async fn delivery(&self, caller: &Caller, id: DeliveryId) -> Result<DeliveryView, ApiError> {
        readable(caller)?;
        let path = format!("/deliveries/{id}");
        let with_drone = async {
            let request = self.delivery.request_as(&caller.token, Method::GET, &path);
            let record: DeliveryRecord = match self.delivery.fetch(request).await {
                Ok(record) => record,
                Err(error) if error.refused_with() == Some(404) => return Err(Settled::Unknown),
                Err(error) => return Err(Settled::Silent(error)),
            };
            if record.stage.is_terminal() {
                return Err(Settled::Over(Box::new(record)));
            }
            let drone = self.drone(&record).await;
            Ok((record, drone))
        };
        let flight = async { Ok(self.flight(caller, id).await) };
        let package = async { Ok(self.package(caller, id).await) };
        match tokio::try_join!(with_drone, flight, package) {
            Ok(((record, drone), flight, package)) => {
                sees(caller, &record)?;
                Ok(view(&record, &Parts { flight, package, drone }))
            }
            Err(Settled::Over(record)) => {
                sees(caller, &record)?;
                Ok(view(&record, &Parts::NONE))
            }
            Err(Settled::Unknown) => Ok(view(&self.finished(caller, id).await?, &Parts::NONE)),
            Err(Settled::Silent(error)) => Err(error.into()),
        }
    }

    /// What the others know of a delivery in flight, all asked at once.
    pub(crate) async fn parts(&self, caller: &Caller, record: &DeliveryRecord) -> Parts {
        if record.stage.is_terminal() {
            return Parts::NONE;
        }
        let id = record.delivery_id;
        let (flight, package, drone) =
            tokio::join!(self.flight(caller, id), self.package(caller, id), self.drone(record));
        Parts { flight, package, drone }
    }

    /// A delivery that `delivery` does not keep any more: from lookup, else from the lake. 404 only when both have
    /// said so. An operator cannot name the owner, without whom lookup would have to ask all its shards, so for them
    /// it is the lake: it has every delivery that `delivery` has let go.
    pub(crate) async fn finished(&self, caller: &Caller, id: DeliveryId) -> Result<DeliveryRecord, ApiError> {
        readable(caller)?;
        let (customer_id, keepers) = match &caller.identity {
            Identity::Customer(me) => (Some(me), [Some(&self.lookup), Some(&self.history)]),
            _ => (None, [None, Some(&self.history)]),
        };
        let query = DeliveryQuery { delivery_id: id, customer_id };
        let mut silent = None;
        for peer in keepers.into_iter().flatten() {
            let request = peer.request_as(&caller.token, Method::POST, "/queries/delivery").json(&query);
            match peer.fetch::<DeliveryRecord>(request).await {
                Ok(record) => {
                    sees(caller, &record)?;
                    return Ok(record);
                }
                Err(error) if error.refused_with() == Some(404) => {}
                Err(error) => silent = Some(error),
            }
        }
        Err(silent.map_or_else(ApiError::not_found, ApiError::from))
    }

    async fn flight(&self, caller: &Caller, id: DeliveryId) -> Part<FlightProgress> {
        let request = self.tracking.request_as(&caller.token, Method::GET, &format!("/flights/{id}"));
        let flight: Part<FlightProgress> = part(&self.tracking, request).await;
        own_part(caller, flight, |flight| &flight.customer_id)
    }

    async fn package(&self, caller: &Caller, id: DeliveryId) -> Part<PackageRecord> {
        let request = self.package.request_as(&caller.token, Method::GET, &format!("/packages/{id}"));
        let package: Part<PackageRecord> = part(&self.package, request).await;
        own_part(caller, package, |package| &package.customer_id)
    }

    /// Fleet is asked in the gateway's own name: a customer may see the drone of their delivery, but not the fleet.
    async fn drone(&self, record: &DeliveryRecord) -> Part<FleetDrone> {
        let Some(drone) = &record.drone else { return Part::Absent };
        part(&self.fleet, self.fleet.request(Method::GET, &format!("/drones/{}", drone.drone_id))).await
    }

    /// A page of finished deliveries: what lookup keeps, then what only the lake has.
    pub(crate) async fn history(
        &self,
        caller: &Caller,
        customer_id: &CustomerId,
        walk: &Walk,
        limit: usize,
        now: Timestamp,
    ) -> Result<Page<HistoryItem>, ApiError> {
        let mut items = Vec::new();
        if let Some(query) = walk.of_lookup(customer_id, limit, now) {
            let page = finished_page(&self.lookup, caller, &query).await?;
            items = page.items;
            if page.next.is_some() {
                return Ok(page_before(walk, items, page.next));
            }
        }
        let left = limit.saturating_sub(items.len());
        let Some(query) = walk.of_lake(customer_id, left, now) else { return Ok(page_before(walk, items, None)) };
        let last = items.last().and_then(|item| Some((item.delivery.finished_at?, item.delivery.id)));
        if left == 0 {
            return Ok(page_before(walk, items, last));
        }
        match finished_page(&self.history, caller, &query).await {
            Ok(page) => {
                items.extend(page.items);
                Ok(page_before(walk, items, page.next))
            }
            // What lookup gave is a page of its own; the next one asks the lake again.
            Err(PeerError::Unavailable { .. }) if !items.is_empty() => Ok(page_before(walk, items, last)),
            Err(error) => Err(error.into()),
        }
    }
}

/// A page of one peer's finished deliveries. One that has somebody else's among them counts as none: without them, it
/// could not be told where the list goes on, or whether it is whole.
async fn finished_page(peer: &Peer, caller: &Caller, query: &HistoryQuery) -> Result<HistoryPage, PeerError> {
    let request = peer.request_as(&caller.token, Method::POST, "/queries/history").json(query);
    let page: HistoryPage = peer.fetch(request).await?;
    for item in &page.items {
        if judge(caller, &Action::ReadDelivery { owner: &item.customer_id }).is_err() {
            let cause = "a delivery in the answer is somebody else's".into();
            return Err(PeerError::Unavailable { peer: peer.name(), cause, problem: None });
        }
    }
    Ok(page)
}

/// A page, and the walk's cursor behind it if it goes on there.
fn page_before(walk: &Walk, items: Vec<HistoryItem>, next: Option<(Timestamp, DeliveryId)>) -> Page<HistoryItem> {
    Page { items, next_cursor: next.map(|place| walk.after(place).cursor()) }
}

async fn part<T: DeserializeOwned>(peer: &Peer, request: RequestBuilder) -> Part<T> {
    match tokio::time::timeout(PART_DEADLINE, peer.fetch(request)).await {
        Ok(Ok(value)) => Part::Known(value),
        Ok(Err(error)) if error.refused_with() == Some(404) => Part::Absent,
        Ok(Err(error)) => {
            tracing::debug!(peer = peer.name(), %error, "a part is missing");
            Part::Missing
        }
        Err(_) => Part::Missing,
    }
}

/// What is somebody else's is no part of the caller's delivery, and none was had.
fn own_part<T>(caller: &Caller, part: Part<T>, owner: impl Fn(&T) -> &CustomerId) -> Part<T> {
    match part {
        Part::Known(value) if judge(caller, &Action::ReadDelivery { owner: owner(&value) }).is_err() => Part::Missing,
        part => part,
    }
}

/// 404 for a role that may read nobody's deliveries, before anybody is asked.
pub(crate) fn readable(caller: &Caller) -> Result<(), ApiError> {
    match caller.identity {
        Identity::Customer(_) | Identity::Operator(_) => Ok(()),
        _ => Err(ApiError::not_found()),
    }
}

/// 404 for a record that the caller may not read.
pub(crate) fn sees(caller: &Caller, record: &DeliveryRecord) -> Result<(), ApiError> {
    judge(caller, &Action::ReadDelivery { owner: &record.customer_id })
}

/// 404 for what an owner has answered the caller, and the caller may not have: the owner has judged it, and so does the
/// gateway. That it is left to the gateway is the owner's fault.
pub(crate) fn judge(caller: &Caller, action: &Action<'_>) -> Result<(), ApiError> {
    let judged = caller.sees(action);
    if judged.is_err() {
        let role = caller.identity.role();
        tracing::error!(?role, ?action, "an owner has answered with what is not the caller's");
    }
    judged
}
