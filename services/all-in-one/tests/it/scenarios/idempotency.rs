//! One Idempotency-Key, many requests: one delivery.

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, User, wish, with},
    world::World,
};

async fn order_with(user: &User<'_>, key: &str, body: &Value) -> Answer {
    Answer::of(user.request(Method::POST, "/api/deliveries").header("idempotency-key", key).json(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_at_once_are_one_delivery() {
    let world = World::new().await;
    let (alice, bob) = (world.customer("alice").await, world.customer("bob").await);
    let body = wish();
    let answers = join_all((0..16).map(|_| order_with(&alice, "order-1", &body))).await;
    for answer in &answers {
        assert_eq!((answer.status, &answer.text), (202, &answers[0].text));
        assert_eq!(answer.headers["location"], answers[0].headers["location"]);
    }
    let id = answers[0].body["id"].as_str().unwrap().parse().unwrap();
    world.note_accepted(id);
    let mine = alice.get("/api/deliveries").await;
    assert_eq!(mine.body["items"].as_array().unwrap().len(), 1);

    let other = order_with(&alice, "order-1", &with(wish(), &json!({"expedited": true}))).await;
    assert_eq!((other.status, other.fields()), (422, vec!["Idempotency-Key".to_owned()]), "{}", other.text);

    let of_bob = order_with(&bob, "order-1", &wish()).await;
    assert_eq!(of_bob.status, 202, "a key is a customer's own");
    assert_ne!(of_bob.body["id"], answers[0].body["id"]);
    world.note_accepted(of_bob.body["id"].as_str().unwrap().parse().unwrap());

    // Whatever has become of the delivery, the key's answer is the first one.
    assert_eq!(alice.cancel(id).await.status, 200);
    let again = order_with(&alice, "order-1", &wish()).await;
    assert_eq!((again.status, &again.text), (202, &answers[0].text));

    let id_of_bob = of_bob.body["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(bob.cancel(id_of_bob).await.status, 200);
    world.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_known_after_a_restart() {
    let mut world = World::new().await;
    let first = order_with(&world.customer("alice").await, "order-1", &wish()).await;
    world.restart().await;
    let alice = world.customer("alice").await;
    let again = order_with(&alice, "order-1", &wish()).await;
    assert_eq!((again.status, &again.text), (202, &first.text));
    let id = first.body["id"].as_str().unwrap().parse().unwrap();
    world.note_accepted(id);
    assert_eq!(alice.cancel(id).await.status, 200);
    world.audit().await;
}
