//! Live streams: merged from what delivery and tracking say, or passed on as they come.

use std::collections::{HashMap, HashSet, VecDeque};

use auth::Action;
use axum::{extract::State, response::Response};
use chassis::{ApiError, Path, Peer, PeerError, auth::Caller};
use contracts::{
    DeliveryId,
    api::{DeliveryView, LiveUpdate, MAX_PAGE, Page, Problem},
    events::{DeliveryRecord, FlightProgress},
};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Gateway,
    places::{Place, Purpose},
    request::User,
};
use crate::{
    aggregate::{judge, readable, sees},
    domain::view::{Part, Parts, view},
    upstream::{Absent, Heard, Source, follow, messages, reconnect_pause},
};

/// Deliveries of which a stream remembers what it told, so as to tell nothing older, and to know which may have ended
/// unheard: a customer's busy day.
const REMEMBERED: usize = 1_000;

/// Pages of deliveries that a stream of all begins with: the open ones among 500 are more than anybody watches.
const FIRST_PAGES: usize = 5;

/// Pages that are read at most for an open delivery that was told before: a customer's busiest week.
const MOST_PAGES: usize = 50;

/// How often the list is asked for before its stream is given up: a restart of delivery takes seconds, and a watcher
/// whose stream ends knows at least that it may have missed something.
const CATCH_UP_TRIES: usize = 5;

/// One delivery, live: begins with its current state, ends with its last.
#[utoipa::path(
    get, path = "/api/deliveries/{id}/events", tag = "deliveries", operation_id = "watchDelivery",
    params(("id" = DeliveryId, Path, description = "The delivery.")),
    responses(
        (status = 200, description = "Server-sent events: stages, position, ETA.", body = LiveUpdate,
            content_type = "text/event-stream"),
        (status = 404, description = "There is none, or it is somebody else's.", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "The caller has too many streams open.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn delivery(
    State(gateway): State<Gateway>,
    user: User,
    Path(id): Path<DeliveryId>,
) -> Result<Response, ApiError> {
    readable(&user)?;
    let place = gateway.places.take(Purpose::Watching, &user.identity)?;
    let ends = token_ends(&gateway, &user);
    let source = source(&gateway, &user, &gateway.services.delivery, format!("/deliveries/{id}/events"), Absent::Ends);
    let records = match source.open().await {
        Ok(first) => follow(source, Some(first)),
        Err(error) if error.refused_with() == Some(404) => {
            let record = gateway.services.finished(&user, id).await?;
            stream::iter([Heard::Message(record)]).boxed()
        }
        Err(error) => return Err(error.into()),
    };
    let live = Live {
        gateway: gateway.clone(),
        caller: user.0,
        id,
        records,
        flights: None,
        parts: None,
        last: None,
        is_cut_off: false,
    };
    let updates = stream::unfold(live, async |mut live| live.next().await.map(|update| (update, live)));
    Ok(answer(&gateway, updates.take_until(ends), place))
}

/// All my deliveries, live: begins with their current state.
#[utoipa::path(
    get, path = "/api/events", tag = "deliveries", operation_id = "watchDeliveries",
    responses(
        (status = 200, description = "Server-sent events: a delivery whenever it changes.", body = LiveUpdate,
            content_type = "text/event-stream"),
        (status = 429, description = "The caller has too many streams open.", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn mine(State(gateway): State<Gateway>, user: User) -> Result<Response, ApiError> {
    user.customer()?;
    let place = gateway.places.take(Purpose::Watching, &user.identity)?;
    let ends = token_ends(&gateway, &user);
    let source = source(&gateway, &user, &gateway.services.delivery, "/deliveries/events".to_owned(), Absent::Ends);
    let first = source.open().await?;
    let all = All {
        gateway: gateway.clone(),
        caller: user.0,
        records: follow(source, Some(first)),
        ready: VecDeque::new(),
        told: HashMap::new(),
    };
    let updates = stream::unfold(all, async |mut all| all.next().await.map(|update| (update, all)));
    Ok(answer(&gateway, updates.take_until(ends), place))
}

/// Another service's stream of missions or drones, until it, the caller's token or this service ends; of each message
/// what `own` leaves of it for the caller. Its watcher connects again.
pub(super) async fn pass_on<T>(
    gateway: &Gateway,
    caller: &Caller,
    peer: &Peer,
    path: String,
    own: fn(&Caller, T) -> Option<T>,
) -> Result<Response, ApiError>
where
    T: DeserializeOwned + Serialize + Send + 'static,
{
    let place = gateway.places.take(Purpose::Flying, &caller.identity)?;
    let response = source(gateway, caller, peer, path, Absent::Ends).open().await?;
    let watcher = caller.clone();
    let theirs = messages(response).filter_map(move |message| std::future::ready(own(&watcher, message)));
    Ok(answer(gateway, theirs.take_until(token_ends(gateway, caller)), place))
}

/// Returns when the caller's token is good no more: nobody watches longer than they may ask.
fn token_ends(gateway: &Gateway, caller: &Caller) -> impl Future<Output = ()> + Send + use<> {
    let (clock, ends_at) = (gateway.clock.clone(), caller.ends_at);
    async move { clock.sleep_until(ends_at).await }
}

fn source(gateway: &Gateway, caller: &Caller, peer: &Peer, path: String, absent: Absent) -> Source {
    Source { peer: peer.clone(), token: caller.token.clone(), path, clock: gateway.clock.clone(), absent }
}

fn answer<T: Serialize>(gateway: &Gateway, updates: impl Stream<Item = T> + Send + 'static, place: Place) -> Response {
    let held = updates.inspect(move |_| {
        let _held_as_long_as_the_stream = &place;
    });
    chassis::stream::sse(held, gateway.shutdown.clone())
}

/// One delivery's stream. It asks its sources only when its watcher is ready for more.
struct Live {
    gateway: Gateway,
    caller: Caller,
    id: DeliveryId,
    records: BoxStream<'static, Heard<DeliveryRecord>>,
    /// Followed once there is a drone.
    flights: Option<BoxStream<'static, Heard<FlightProgress>>>,
    /// `None` until the first record.
    parts: Option<Parts>,
    last: Option<DeliveryRecord>,
    /// From delivery: what it said last may not be so any more.
    is_cut_off: bool,
}

impl Live {
    async fn next(&mut self) -> Option<LiveUpdate> {
        loop {
            if self.last.as_ref().is_some_and(|record| record.stage.is_terminal()) {
                return None;
            }
            let update = match &mut self.flights {
                None => self.hear_record().await?,
                Some(flights) => tokio::select! {
                    // What is decided comes before what moved.
                    biased;
                    record = self.records.next() => self.take_record(record?).await,
                    flight = flights.next() => self.take_flight(flight),
                },
            };
            if update.is_some() {
                return update;
            }
        }
    }

    /// `None` at the stream's end, `Some(None)` where there is nothing to say.
    async fn hear_record(&mut self) -> Option<Option<LiveUpdate>> {
        let heard = self.records.next().await?;
        Some(self.take_record(heard).await)
    }

    async fn take_record(&mut self, heard: Heard<DeliveryRecord>) -> Option<LiveUpdate> {
        let record = match heard {
            Heard::Message(record) => record,
            Heard::Connected | Heard::Lost => {
                let is_cut_off = matches!(heard, Heard::Lost);
                let was_cut_off = std::mem::replace(&mut self.is_cut_off, is_cut_off);
                return if is_cut_off == was_cut_off { None } else { self.as_it_stands() };
            }
        };
        let older = self.last.as_ref().is_some_and(|last| record.version <= last.version);
        if older || record.delivery_id != self.id || sees(&self.caller, &record).is_err() {
            return None;
        }
        if self.parts.is_none() {
            self.parts = Some(self.gateway.services.parts(&self.caller, &record).await);
        }
        if record.drone.is_some() && self.flights.is_none() {
            let path = format!("/flights/{}/events", self.id);
            let tracking = &self.gateway.services.tracking;
            self.flights = Some(follow(source(&self.gateway, &self.caller, tracking, path, Absent::MayCome), None));
        }
        self.last = Some(record);
        let update = self.as_it_stands();
        if let Some(parts) = &mut self.parts {
            // From here on the flight's own reports tell of the battery.
            parts.drone = Part::Absent;
        }
        update
    }

    fn as_it_stands(&self) -> Option<LiveUpdate> {
        let mut delivery = view(self.last.as_ref()?, self.parts.as_ref()?);
        if self.is_cut_off {
            delivery.degraded.insert(0, "delivery".to_owned());
        }
        Some(LiveUpdate::Delivery { delivery })
    }

    fn take_flight(&mut self, heard: Option<Heard<FlightProgress>>) -> Option<LiveUpdate> {
        let Some(heard) = heard else {
            // Refused for good: the stages are all that is left to tell.
            self.flights = Some(stream::pending().boxed());
            return None;
        };
        let parts = self.parts.as_mut()?;
        let progress = match heard {
            Heard::Message(progress) => progress,
            // Its first message follows, unless there is no flight yet.
            Heard::Connected if parts.flight == Part::Missing => {
                parts.flight = Part::Absent;
                return self.as_it_stands();
            }
            Heard::Lost if parts.flight != Part::Missing => {
                parts.flight = Part::Missing;
                return self.as_it_stands();
            }
            Heard::Connected | Heard::Lost => return None,
        };
        if judge(&self.caller, &Action::ReadDelivery { owner: &progress.customer_id }).is_err() {
            return None;
        }
        let attempt = self.last.as_ref().map(|record| record.attempt);
        parts.flight = Part::Known(progress.clone());
        // A flight that is ahead of its delivery is told with the delivery's next record.
        (attempt == Some(progress.attempt)).then_some(LiveUpdate::Flight { progress })
    }
}

/// The stream of all of a customer's deliveries. It leaves no change out: where it cannot catch up, it ends.
struct All {
    gateway: Gateway,
    caller: Caller,
    records: BoxStream<'static, Heard<DeliveryRecord>>,
    ready: VecDeque<DeliveryRecord>,
    told: HashMap<DeliveryId, Told>,
}

/// What a watcher knows of a delivery.
struct Told {
    version: u64,
    is_over: bool,
}

impl All {
    async fn next(&mut self) -> Option<LiveUpdate> {
        loop {
            let record = match self.ready.pop_front() {
                Some(record) => record,
                None => match self.records.next().await? {
                    Heard::Message(record) => record,
                    Heard::Connected => {
                        // Asked for after the stream has begun, so that nothing falls between the two.
                        self.ready = self.catch_up().await?;
                        continue;
                    }
                    Heard::Lost => continue,
                },
            };
            if sees(&self.caller, &record).is_ok() && self.is_new(&record) {
                self.remember(&record)?;
                return Some(LiveUpdate::Delivery { delivery: DeliveryView::from(&record) });
            }
        }
    }

    fn is_new(&self, record: &DeliveryRecord) -> bool {
        self.told.get(&record.delivery_id).is_none_or(|told| record.version > told.version)
    }

    /// Makes room by forgetting what is over, which costs at most that a watcher is told something twice. `None` where
    /// that is not enough: the end of an open one that was forgotten might never be told.
    fn remember(&mut self, record: &DeliveryRecord) -> Option<()> {
        if !self.told.contains_key(&record.delivery_id) && self.told.len() >= REMEMBERED {
            self.told.retain(|_, told| !told.is_over);
            if self.told.len() >= REMEMBERED {
                return None;
            }
        }
        let told = Told { version: record.version, is_over: record.stage.is_terminal() };
        self.told.insert(record.delivery_id, told);
        Some(())
    }

    /// What may have changed unheard; `None` where that cannot be had. No stream breaks where the list is not answered:
    /// were it not asked for again here, it would not be at all.
    async fn catch_up(&mut self) -> Option<VecDeque<DeliveryRecord>> {
        for _ in 1..CATCH_UP_TRIES {
            match self.current().await {
                Ok(records) => return records,
                Err(PeerError::Unavailable { .. }) => self.gateway.clock.sleep(reconnect_pause()).await,
                Err(PeerError::Refused { .. }) => return None,
            }
        }
        self.current().await.ok().flatten()
    }

    /// The newest deliveries, open ones, and all that were told as open, oldest first. `None` where one of the last is
    /// not found.
    async fn current(&mut self) -> Result<Option<VecDeque<DeliveryRecord>>, PeerError> {
        let open = self.told.iter().filter(|(_, told)| !told.is_over);
        let mut wanted: HashSet<DeliveryId> = open.map(|(id, _)| *id).collect();
        let mut records = VecDeque::new();
        let mut cursor: Option<String> = None;
        for page_number in 1..=MOST_PAGES {
            let page = self.page(cursor.as_deref()).await?;
            for record in page.items {
                let is_wanted = wanted.remove(&record.delivery_id);
                if is_wanted || page_number == 1 || !record.stage.is_terminal() {
                    records.push_front(record);
                }
            }
            cursor = page.next_cursor;
            if cursor.is_none() || (page_number >= FIRST_PAGES && wanted.is_empty()) {
                return Ok(Some(records));
            }
        }
        Ok(None)
    }

    async fn page(&mut self, cursor: Option<&str>) -> Result<Page<DeliveryRecord>, PeerError> {
        let delivery = &self.gateway.services.delivery;
        let limit = MAX_PAGE.to_string();
        let path = super::request::with_query("/deliveries", &[("cursor", cursor), ("limit", Some(limit.as_str()))]);
        delivery.fetch(delivery.request_as(&self.caller.token, Method::GET, &path)).await
    }
}
