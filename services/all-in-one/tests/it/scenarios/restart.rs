//! A restart with a delivery at every stage: all go on to their end.

use contracts::Stage;
use testkit::until;

use crate::{api::wish, world::World};

#[tokio::test(flavor = "multi_thread")]
async fn every_delivery_goes_on_where_it_was() {
    let mut world = World::new().await;
    let (scheduled, in_flight, picked_up, waiting, cancelled) = {
        let alice = world.customer("alice").await;
        let base = world.base("north").await;
        for _ in 0..3 {
            base.new_drone().await;
        }
        let (scheduled, in_flight, picked_up) =
            (alice.order(&wish()).await, alice.order(&wish()).await, alice.order(&wish()).await);
        for id in [scheduled, in_flight, picked_up] {
            alice.sees(id, Stage::Scheduled).await;
        }
        base.reaches(&base.mission(in_flight).await, Stage::HeadedToPickup).await;
        alice.sees(in_flight, Stage::HeadedToPickup).await;
        base.reaches(&base.mission(picked_up).await, Stage::HeadedToDropoff).await;
        alice.sees(picked_up, Stage::HeadedToDropoff).await;
        let waiting = alice.order(&wish()).await;
        alice.sees_step(waiting, "reserve_drone waiting").await;
        let cancelled = alice.order(&wish()).await;
        assert_eq!(alice.cancel(cancelled).await.status, 200);
        // Whose saga has hardly begun.
        for _ in 0..4 {
            alice.order(&wish()).await;
        }
        (scheduled, in_flight, picked_up, waiting, cancelled)
    };

    world.restart().await;

    let alice = world.customer("alice").await;
    let base = world.base("north").await;
    for (id, stage) in [
        (scheduled, Stage::Scheduled),
        (in_flight, Stage::HeadedToPickup),
        (picked_up, Stage::HeadedToDropoff),
        (waiting, Stage::Requested),
        (cancelled, Stage::Cancelled),
    ] {
        assert_eq!(alice.delivery(id).await.stage, stage);
    }
    let known = base.mission(picked_up).await;
    assert_eq!((known.stage, known.last_position), (Stage::HeadedToDropoff, Some(known.pickup)));
    assert!(known.last_sequence.is_some(), "a drone can go on counting");
    until("every delivery is over", async || {
        for mission in base.missions().await {
            // One that has been flown stays for a moment: reports of it are stale, and change nothing.
            for stage in [Stage::HeadedToPickup, Stage::HeadedToDropoff, Stage::Completed] {
                base.send(&base.report(&mission, stage, mission.dropoff)).await;
            }
        }
        let mine = alice.get("/api/deliveries").await;
        let stages = mine.body["items"].as_array().unwrap().iter().map(|delivery| delivery["stage"].clone());
        let open = stages.filter(|stage| stage != "Completed" && stage != "Cancelled").count();
        (open == 0).then_some(())
    })
    .await;
    world.audit().await;
}
