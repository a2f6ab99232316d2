//! The only subscriber: what becomes of deliveries releases their drones.

use std::sync::Arc;

use async_trait::async_trait;
use contracts::events::DeliveryEvent;
use messaging::{Delivered, HandleError, Handler, abort_point, outbox::chain};

use crate::{domain::ending_of, fleet::Fleet};

/// Handles `delivery.events`: one transaction a batch; an event's effect is judged by (delivery, attempt) alone.
pub(crate) struct DeliveryEnds {
    /// Whose drones.
    pub(crate) fleet: Arc<Fleet>,
}

#[async_trait]
impl Handler for DeliveryEnds {
    async fn handle(&mut self, batch: &[Delivered]) -> Vec<Result<(), HandleError>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut endings = Vec::new();
        let mut waiting_for_store = Vec::new();
        for (number, record) in batch.iter().enumerate() {
            match DeliveryEvent::decode(&record.event) {
                Ok(event) => {
                    if let Some(ending) = event.and_then(|event| ending_of(&event.data)) {
                        endings.push(ending);
                        waiting_for_store.push(number);
                    }
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error.into())),
            }
        }
        match self.fleet.end(&endings).await {
            Ok(()) => abort_point("fleet.event_applied"),
            Err(error) => {
                for number in waiting_for_store {
                    results[number] = Err(HandleError::unavailable(chain(&error)));
                }
            }
        }
        results
    }
}
