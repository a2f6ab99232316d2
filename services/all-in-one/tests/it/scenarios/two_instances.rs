//! Two instances of delivery and of fleet share stores and log; one is cut off in the middle of its work.

use std::{collections::HashMap, sync::Arc, time::Duration};

use contracts::{Clock, DeliveryId, DroneId, Stage, SystemClock, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{User, wish, with},
    second::Second,
    world::{World, within},
};

/// Asks an instance of delivery for a delivery; it is accepted.
async fn order_at(second: &mut Second, user: &User<'_>) {
    let answer = second.ask(user, Method::POST, "/deliveries", Some(&wish_in_the_city())).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    user.world.note_accepted(answer.body["delivery_id"].as_str().unwrap().parse().unwrap());
}

/// A kilometre through the city that the simulator's drones are based in.
fn wish_in_the_city() -> Value {
    let pickup = json!({"latitude": 43.290, "longitude": 5.380});
    with(wish(), &json!({"pickup": pickup, "dropoff": {"latitude": 43.299, "longitude": 5.380}}))
}

/// Drones that fly sixty times as fast as real ones: few, so that most deliveries wait in the line and their grants come
/// as events.
fn drones(world: &World) -> simulator::Config {
    simulator::Config {
        gateway_url: world.url().to_owned(),
        drones: 20,
        orders_per_second: 0.0,
        time_scale: 60.0,
        misbehave: 0.0,
        handover_seconds: 45.0,
        ..simulator::Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_cut_off_and_the_other_brings_everything_to_its_end() {
    let world = World::new().await;
    let mut second_delivery = Second::of(&world, "delivery").await;
    let second_fleet = Second::of(&world, "fleet").await;
    let landing = CancellationToken::new();
    let flying = simulator::run(drones(&world), world.clock.clone(), landing.clone(), Arc::default());
    let mut flying = JoinSet::from_iter([Box::pin(flying)]);

    let (alice, dave) = (world.customer("alice").await, world.customer("dave").await);
    for number in 0..40 {
        let at_the_first = alice.order(&wish_in_the_city()).await;
        if number % 8 == 0 {
            assert_eq!(alice.cancel(at_the_first).await.status, 200);
        }
        order_at(&mut second_delivery, &dave).await;
        SystemClock.sleep(Duration::from_millis(100)).await;
    }
    // No farewell: what they had leased, reserved and read is left as it is.
    drop((second_delivery, second_fleet));
    for _ in 0..20 {
        alice.order(&wish_in_the_city()).await;
        SystemClock.sleep(Duration::from_millis(100)).await;
    }

    for customer in [&alice, &dave] {
        within(Duration::from_secs(90), "all deliveries are over", async || {
            if let Some(landed) = flying.try_join_next() {
                panic!("the drones have landed: {landed:?}");
            }
            let mine = customer.get("/api/deliveries?limit=100").await;
            let items = mine.body["items"].as_array()?;
            items.iter().all(|delivery| delivery["finished_at"].is_string()).then_some(())
        })
        .await;
    }
    landing.cancel();
    flying.join_next().await.unwrap().unwrap().unwrap();
    world.settle().await;
    no_drone_flew_twice_at_once(&world).await;
    world.audit().await;
}

/// From Scheduled to the end, a drone was one delivery's alone.
async fn no_drone_flew_twice_at_once(world: &World) {
    let mut flights: HashMap<DroneId, Vec<(Timestamp, Timestamp, DeliveryId)>> = HashMap::new();
    for row in history::audit::scan_deliveries(&world.stores.lake).await.unwrap() {
        let scheduled =
            row.record.stages.iter().find(|entry| entry.stage == Stage::Scheduled && row.record.attempt == 1);
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
