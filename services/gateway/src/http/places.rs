//! Places among the open streams: so many in all, so many for one caller, and separate ones for those who fly.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use auth::Identity;
use axum::http::StatusCode;
use chassis::ApiError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Streams of deliveries open at once: each holds up to three sockets, and a process may have some tens of thousands.
const MAX_WATCHING: usize = 4_096;

/// Streams of missions and of the fleet open at once, out of reach of those who watch deliveries: without its missions
/// no drone flies. Every base station of a large fleet fits, and both kinds leave connections for requests.
const MAX_FLYING: usize = 2_048;

/// Streams that one caller has open at once: a page has one, and nobody looks at more pages than this.
const MAX_PER_CALLER: usize = 16;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Watching deliveries.
    Watching,
    /// Flying missions, or seeing the fleet.
    Flying,
}

type Held = Arc<Mutex<HashMap<Identity, usize>>>;

/// All places.
pub(super) struct Places {
    watching: Arc<Semaphore>,
    flying: Arc<Semaphore>,
    per_caller: usize,
    held: Held,
}

/// One stream's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    caller: Identity,
    held: Held,
}

impl Places {
    /// As many as a gateway has.
    pub(super) fn new() -> Self {
        Self::of(MAX_WATCHING, MAX_FLYING, MAX_PER_CALLER)
    }

    fn of(watching: usize, flying: usize, per_caller: usize) -> Self {
        Self {
            watching: Arc::new(Semaphore::new(watching)),
            flying: Arc::new(Semaphore::new(flying)),
            per_caller,
            held: Held::default(),
        }
    }

    /// A place; 429 for a caller who has too many already, 503 where all are taken.
    pub(super) fn take(&self, purpose: Purpose, caller: &Identity) -> Result<Place, ApiError> {
        let free = match purpose {
            Purpose::Watching => &self.watching,
            Purpose::Flying => &self.flying,
        };
        let mut held = lock(&self.held);
        let of_caller = held.get(caller).copied().unwrap_or_default();
        if of_caller >= self.per_caller {
            let detail = format!("at most {} streams may be open at once: close one first", self.per_caller);
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, detail));
        }
        let permit = free.clone().try_acquire_owned().map_err(|error| ApiError::unavailable(&error))?;
        held.insert(caller.clone(), of_caller + 1);
        Ok(Place { _permit: permit, caller: caller.clone(), held: self.held.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        match held.get_mut(&self.caller) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(held.remove(&self.caller)),
        }
    }
}

fn lock(held: &Held) -> MutexGuard<'_, HashMap<Identity, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{Purpose::*, *};

    fn customer(name: &str) -> Identity {
        Identity::Customer(name.parse().unwrap())
    }

    fn status(taken: Result<Place, ApiError>) -> u16 {
        taken.map_or_else(|error| error.0.status, |_| 200)
    }

    #[test]
    fn a_caller_has_so_many_and_gets_another_when_one_ends() {
        let places = Places::of(10, 10, 2);
        let mut alices = vec![places.take(Watching, &customer("alice")), places.take(Watching, &customer("alice"))];
        assert_eq!(status(places.take(Watching, &customer("alice"))), 429);
        assert_eq!(status(places.take(Watching, &customer("bob"))), 200);
        alices.pop();
        assert_eq!(status(places.take(Watching, &customer("alice"))), 200);
        alices.clear();
        assert!(lock(&places.held).is_empty(), "who has none is forgotten");
    }

    #[test]
    fn who_flies_has_places_though_all_others_are_taken() {
        let places = Places::of(1, 1, 2);
        let _watching = places.take(Watching, &customer("alice")).unwrap();
        assert_eq!(status(places.take(Watching, &customer("bob"))), 503);
        let north = Identity::BaseStation("north".parse().unwrap());
        let _flying = places.take(Flying, &north).unwrap();
        assert_eq!(status(places.take(Flying, &north)), 503);
        assert_eq!(lock(&places.held).get(&north), Some(&1), "a refusal takes nothing");
    }
}
