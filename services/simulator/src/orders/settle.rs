//! After ordering has stopped: asks the customers' lists until every accepted delivery has ended.

use std::{collections::HashSet, sync::Arc, time::Duration};

use contracts::{
    DeliveryId, Stage,
    api::{MAX_PAGE, Page},
};
use reqwest::Method;
use serde::Deserialize;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::Desk;
use crate::{drones::escape, gateway::Call, progress::add, summary::Outcomes};

/// Between two rounds: an end is seen soon after, and the system has time to bring it about.
const EVERY: Duration = Duration::from_secs(2);
/// Customers that are asked about at a time.
const LISTS_AT_ONCE: usize = 16;
/// Pages of one customer's list: a million deliveries. More is an endless list.
const MOST_PAGES: usize = 10_000;

/// Of a delivery in a list, what matters here.
#[derive(Debug, Deserialize)]
struct Listed {
    id: DeliveryId,
    stage: Stage,
}

/// One customer's deliveries whose end has not been seen.
struct Open {
    customer: usize,
    ids: HashSet<DeliveryId>,
}

/// Returns when all have ended, the drain has passed, or the run is ended from outside.
pub(super) async fn wait_for_ends(desk: &Arc<Desk>, drain: Duration, shutdown: &CancellationToken) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let mut open = Vec::new();
    for (index, customer) in desk.customers.iter().enumerate() {
        let Ok(mut accepted) = customer.accepted.lock() else { continue };
        let ids: HashSet<_> = std::mem::take(&mut *accepted).into_iter().collect();
        if !ids.is_empty() {
            open.push(Open { customer: index, ids });
        }
    }
    let give_up_at = desk.clock.now() + drain;
    loop {
        open = tokio::select! {
            () = shutdown.cancelled() => break,
            open = ask_all(desk, open, &mut outcomes) => open,
        };
        outcomes.still_open = open.iter().map(|open| open.ids.len() as u64).sum();
        if open.is_empty() || desk.clock.now() >= give_up_at {
            break;
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = desk.clock.sleep(EVERY) => {}
        }
    }
    outcomes
}

/// One round over all customers with open deliveries; those that are left.
async fn ask_all(desk: &Arc<Desk>, open: Vec<Open>, outcomes: &mut Outcomes) -> Vec<Open> {
    let slots = Arc::new(Semaphore::new(LISTS_AT_ONCE));
    let mut questions = JoinSet::new();
    for mut customer in open {
        let (desk, slots) = (Arc::clone(desk), Arc::clone(&slots));
        questions.spawn(async move {
            let _slot = slots.acquire().await;
            let ended = ask(&desk, &mut customer).await;
            (customer, ended)
        });
    }
    let mut left = Vec::new();
    while let Some(answered) = questions.join_next().await {
        let Ok((customer, ended)) = answered else { continue };
        add(&desk.progress.finished, ended.len());
        for stage in ended {
            count(stage, outcomes);
        }
        if !customer.ids.is_empty() {
            left.push(customer);
        }
    }
    left
}

fn count(stage: Stage, outcomes: &mut Outcomes) {
    match stage {
        Stage::Completed => outcomes.completed += 1,
        Stage::Failed => outcomes.failed += 1,
        Stage::Cancelled => outcomes.cancelled += 1,
        Stage::Rejected => outcomes.rejected += 1,
        _ => {}
    }
}

/// Reads a customer's list from the newest down to the oldest open delivery. The ends that were found; a page that
/// cannot be had is left for the next round.
async fn ask(desk: &Desk, open: &mut Open) -> Vec<Stage> {
    let identity = &desk.customers[open.customer].identity;
    let mut ended = Vec::new();
    let mut unseen = open.ids.len();
    let mut cursor: Option<String> = None;
    for _ in 0..MOST_PAGES {
        let path = match &cursor {
            Some(cursor) => format!("/api/deliveries?limit={MAX_PAGE}&cursor={}", escape(cursor)),
            None => format!("/api/deliveries?limit={MAX_PAGE}"),
        };
        let Ok(answer) = desk.gateway.send(identity, Call::new(Method::GET, &path)).await else { break };
        if !answer.status.is_success() {
            break;
        }
        let Ok(page) = serde_json::from_slice::<Page<Listed>>(&answer.body) else { break };
        for delivery in page.items {
            if !open.ids.contains(&delivery.id) {
                continue;
            }
            unseen = unseen.saturating_sub(1);
            if delivery.stage.is_terminal() {
                open.ids.remove(&delivery.id);
                ended.push(delivery.stage);
            }
        }
        cursor = page.next_cursor;
        if unseen == 0 || cursor.is_none() {
            break;
        }
    }
    ended
}
