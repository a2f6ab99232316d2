//! Two instances of delivery and of fleet share stores and log; one is cut off in the middle of its work.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chassis::Node;
use contracts::{Clock, DeliveryId, DroneId, Stage, SystemClock, Timestamp, api::Role};
use reqwest::Method;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Answer, User, wish},
    world::{World, within},
};

/// A second instance of a service beside the one in the world's system.
struct Second {
    url: String,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Second {
    async fn of(world: &World, service: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let node = Node {
            service,
            instance: format!("{service}-{}", world.clock.new_id()),
            listener,
            log: world.log().clone(),
            shutdown: CancellationToken::new(),
            peers: world.peers().clone(),
            clock: world.clock.clone(),
            verifier: world.issuer().verifier(),
            issuer: world.issuer().clone(),
            region: contracts::api::default_region(),
        };
        let store = world.data.store(service);
        let mut tasks = JoinSet::new();
        match service {
            "delivery" => tasks.spawn(delivery::run(delivery::Config { store, sole_owner: None }, node)),
            "fleet" => tasks.spawn(fleet::run(fleet::Config { store }, node)),
            other => panic!("no second {other}"),
        };
        Self { url, tasks }
    }

    async fn order(&self, user: &User<'_>) -> Option<DeliveryId> {
        let request = user.world.http.request(Method::POST, format!("{}/deliveries", self.url));
        let answer = Answer::of(request.bearer_auth(&user.token).json(&wish())).await;
        (answer.status == 202).then(|| answer.body["delivery_id"].as_str().unwrap().parse().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_cut_off_and_the_other_brings_everything_to_its_end() {
    let world = World::new().await;
    let second_delivery = Second::of(&world, "delivery").await;
    let second_fleet = Second::of(&world, "fleet").await;
    let ledger = world.path().join("accepted.ndjson");
    let config = simulator::Config {
        gateway_url: world.url().to_owned(),
        // Few for the load, so that most deliveries wait in the line and their grants come as events.
        drones: 20,
        customers: 10,
        orders_per_second: 8.0,
        time_scale: 60.0,
        duration: Some(Duration::from_secs(10)),
        drain: Duration::from_secs(60),
        accepted: Some(ledger.clone()),
        misbehave: 0.0,
        cancel_share: 0.1,
        handover_seconds: 45.0,
        ..simulator::Config::default()
    };
    let progress = Arc::new(simulator::Progress::default());
    let simulation = simulator::run(config, world.clock.clone(), CancellationToken::new(), progress);
    let disturbance = async {
        let dave = world.customer("dave").await;
        within(Duration::from_secs(30), "the second instance takes orders", async || {
            second_delivery.order(&dave).await.inspect(|id| world.note_accepted(*id))
        })
        .await;
        for _ in 0..30 {
            if let Some(id) = second_delivery.order(&dave).await {
                world.note_accepted(id);
            }
            SystemClock.sleep(Duration::from_millis(100)).await;
        }
        // No farewell: what they had leased, reserved and read is left as it is.
        let Second { mut tasks, .. } = second_delivery;
        tasks.abort_all();
        let Second { mut tasks, .. } = second_fleet;
        tasks.abort_all();
    };
    let (summary, ()) = tokio::join!(Box::pin(simulation), disturbance);
    assert_eq!(summary.unwrap().still_open, 0);
    for line in std::fs::read_to_string(&ledger).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        world.note_accepted(line["id"].as_str().unwrap().parse().unwrap());
    }
    dave_sees_all_end(&world).await;
    world.settle().await;
    no_drone_flew_twice_at_once(&world).await;
    world.audit().await;
}

/// The orders that did not go through the simulator.
async fn dave_sees_all_end(world: &World) {
    let dave = world.user("dave", Role::Customer).await;
    within(Duration::from_secs(90), "all of dave's deliveries are over", async || {
        let mine = dave.get("/api/deliveries?limit=100").await;
        let items = mine.body["items"].as_array()?;
        items.iter().all(|delivery| delivery["finished_at"].is_string()).then_some(())
    })
    .await;
}

/// From Scheduled to the end, a drone was one delivery's alone.
async fn no_drone_flew_twice_at_once(world: &World) {
    let mut flights: HashMap<DroneId, Vec<(Timestamp, Timestamp, DeliveryId)>> = HashMap::new();
    for row in history::audit::scan_deliveries(&world.data.lake()).await.unwrap() {
        let scheduled = row.record.stages.iter().find(|entry| entry.stage == Stage::Scheduled && row.record.attempt == 1);
        if let (Some(drone), Some(scheduled)) = (&row.record.drone, scheduled) {
            flights.entry(drone.drone_id).or_default().push((scheduled.at, row.finished_at, row.delivery_id));
        }
    }
    assert!(!flights.is_empty());
    for (drone, mut flights) in flights {
        flights.sort();
        for pair in flights.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "the drone {drone} flew two deliveries at once: {pair:?}");
        }
    }
}
