//! Packages that are too heavy: for their size, which is refused at once, or for every drone there is.

use std::time::Duration;

use contracts::{Stage, commands::DroneStatus};
use serde_json::json;

use crate::{
    api::{deadline, wish, with},
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn over_the_limit_of_its_size_is_refused_and_the_field_is_named() {
    let world = World::new().await;
    let alice = world.customer("alice").await;
    for (size, limit_kg) in [("small", 1.0), ("medium", 3.0), ("large", 8.0)] {
        let package = json!({"size": size, "weight_kg": limit_kg + 0.001});
        let refused = alice.post("/api/deliveries", &with(wish(), &json!({"package": package}))).await;
        assert_eq!((refused.status, refused.fields()), (422, vec!["package.weight_kg".to_owned()]));
    }
    assert_eq!(alice.get("/api/deliveries").await.body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_heavy_for_every_drone_is_rejected_at_the_deadline() {
    let world = World::new().await;
    let (alice, operator) = (world.customer("alice").await, world.operator().await);
    let base = world.base("north").await;
    let weak = base.new_drone_with(&json!({"payload_kg": 2.0})).await;
    let package = json!({"size": "large", "weight_kg": 5.0});
    let heavy = alice.order(&with(wish(), &json!({"package": package, "deadline": deadline(&world, 3)}))).await;
    alice.sees_step(heavy, "reserve_drone waiting").await;

    let light = alice.order(&wish()).await;
    base.flies(&base.mission(light).await).await;
    alice.sees(light, Stage::Completed).await;

    world.pass(Duration::from_secs(3)).await;
    alice.sees(heavy, Stage::Rejected).await;
    operator.sees_drone(weak, DroneStatus::Idle).await;
    world.audit().await;
}
