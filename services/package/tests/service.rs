//! The package service as its callers meet it: over HTTP and the event log.

#![allow(clippy::unwrap_used, reason = "a test says what it needs by failing")]

use std::sync::Arc;

use contracts::{
    Coordinate, DeliveryId, Stage,
    api::{Confirmation, PackageSize, PackageSpec, Role, default_region},
    commands::{Commands, MAX_COMMANDS, Outcomes, PackageOutcome, Refusal, RegisterPackage, WithdrawPackage},
    events::{
        DeliveryEvent, DeliveryEventKind, DeliveryRecord, PackageEvent, PackageEventKind, PackageRecord, PackageState,
    },
};
use reqwest::{Client, StatusCode};
use serde::Serialize;
use testkit::{World, serving, until};
use tokio::task::JoinSet;

struct Running {
    world: World,
    url: String,
    http: Client,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Running {
    async fn start() -> Self {
        let world = World::new().await;
        let (node, url) = world.node("package", &[]).await;
        let mut tasks = JoinSet::new();
        let store = format!("sqlite:{}", world.path("package.db").display());
        let config = package::Config { store, relaying: package::Relaying::Poll };
        serving(&mut tasks, node.door.opened(), package::run(config, node)).await;
        Self { world, url, http: chassis::client::http_client().unwrap(), tasks }
    }

    async fn post(&self, role: Role, path: &str, body: &impl Serialize) -> reqwest::Response {
        let token = self.world.token("delivery", role);
        self.http.post(format!("{}{path}", self.url)).bearer_auth(token).json(body).send().await.unwrap()
    }

    async fn register(&self, commands: Vec<RegisterPackage>) -> Vec<PackageOutcome> {
        let answer = self.post(Role::Service, "/commands/register", &Commands { commands }).await;
        answer.json::<Outcomes<PackageOutcome>>().await.unwrap().outcomes
    }

    async fn get(&self, id: DeliveryId, subject: &str, role: Role) -> reqwest::Response {
        let token = self.world.token(subject, role);
        self.http.get(format!("{}/packages/{id}", self.url)).bearer_auth(token).send().await.unwrap()
    }

    fn command(&self) -> RegisterPackage {
        let now = self.world.clock.now();
        RegisterPackage {
            delivery_id: self.world.clock.new_delivery_id(),
            attempt: 1,
            fence: 1,
            step_deadline: now + chrono::Duration::seconds(60),
            customer_id: "alice".parse().unwrap(),
            home_region: default_region(),
            package: PackageSpec {
                size: PackageSize::Small,
                weight_kg: 0.5,
                tag: Some("order-1".to_owned()),
                description: Some("a vase".to_owned()),
            },
        }
    }

    fn completed(&self, command: &RegisterPackage) -> DeliveryEvent {
        let now = self.world.clock.now();
        let data = DeliveryRecord {
            delivery_id: command.delivery_id,
            customer_id: command.customer_id.clone(),
            home_region: command.home_region.clone(),
            version: 5,
            stage: Stage::Completed,
            attempt: 1,
            pickup: Coordinate { latitude: 1.0, longitude: 2.0 },
            dropoff: Coordinate { latitude: 1.1, longitude: 2.0 },
            package: command.package.clone(),
            expedited: false,
            confirmation: Confirmation::None,
            requested_at: now,
            deadline: now,
            updated_at: now,
            finished_at: Some(now),
            drone: None,
            stages: Vec::new(),
            end_reason: None,
            confirmation_missing: false,
        };
        let kind = DeliveryEventKind::DeliveryCompleted;
        DeliveryEvent { id: self.world.clock.new_id(), time: now, kind, data }
    }

    async fn stop(mut self) {
        self.world.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_package_is_answered_like_an_absent_one() {
    let running = Running::start().await;
    let command = running.command();
    assert_eq!(running.register(vec![command.clone()]).await, [PackageOutcome::Done]);
    let mine = running.get(command.delivery_id, "alice", Role::Customer).await;
    assert_eq!(mine.status(), StatusCode::OK);
    let record: PackageRecord = mine.json().await.unwrap();
    assert_eq!((record.state, record.package), (PackageState::Registered, command.package));
    let foreign = running.get(command.delivery_id, "bob", Role::Customer).await;
    let absent = running.get(running.world.clock.new_delivery_id(), "bob", Role::Customer).await;
    assert_eq!((foreign.status(), absent.status()), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    assert_eq!(foreign.text().await.unwrap(), absent.text().await.unwrap());
    assert_eq!(running.get(command.delivery_id, "olga", Role::Operator).await.status(), StatusCode::OK);
    assert_eq!(running.get(command.delivery_id, "north", Role::BaseStation).await.status(), StatusCode::NOT_FOUND);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_services_say_commands_and_not_too_many_at_once() {
    let running = Running::start().await;
    let command = running.command();
    for role in [Role::Customer, Role::Operator, Role::BaseStation] {
        let one = Commands { commands: vec![command.clone()] };
        assert_eq!(running.post(role, "/commands/register", &one).await.status(), StatusCode::FORBIDDEN);
    }
    let unsigned = running.http.get(format!("{}/packages/{}", running.url, command.delivery_id)).send().await.unwrap();
    assert_eq!(unsigned.status(), StatusCode::UNAUTHORIZED);
    let many = Commands { commands: vec![command.clone(); MAX_COMMANDS + 1] };
    let answer = running.post(Role::Service, "/commands/register", &many).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(running.register(vec![command; MAX_COMMANDS]).await, vec![PackageOutcome::Done; MAX_COMMANDS]);
    let ready = running.http.get(format!("{}/health/ready", running.url)).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_lives_with_its_delivery_and_the_log_hears_of_it() {
    let running = Running::start().await;
    let (command, late) = (running.command(), running.command());
    assert_eq!(running.register(vec![command.clone()]).await, [PackageOutcome::Done]);
    let ends = vec![running.completed(&command).encode(), running.completed(&late).encode()];
    running.world.log.publish(ends).await.unwrap();
    until("the delivered package", || async {
        let answer = running.get(command.delivery_id, "alice", Role::Customer).await;
        let record: PackageRecord = answer.json().await.ok()?;
        (record.state == PackageState::Delivered).then_some(())
    })
    .await;
    until("the tombstone", || async {
        let found = running.get(late.delivery_id, "alice", Role::Customer).await;
        (found.status() == StatusCode::OK).then_some(())
    })
    .await;
    let refused = PackageOutcome::Refused { reason: Refusal::Undone };
    assert_eq!(running.register(vec![late.clone()]).await, [refused]);
    let withdraw = WithdrawPackage {
        delivery_id: late.delivery_id,
        attempt: 1,
        fence: 1,
        customer_id: late.customer_id,
        home_region: late.home_region,
        package: late.package,
    };
    let answer = running.post(Role::Service, "/commands/withdraw", &Commands { commands: vec![withdraw] }).await;
    assert_eq!(answer.json::<Outcomes<PackageOutcome>>().await.unwrap().outcomes, [PackageOutcome::Done]);
    let mut subscription = running.world.log.subscribe("test", &["package.events"]).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 2 {
        for record in subscription.next(10).await.unwrap() {
            let event = PackageEvent::decode(&Arc::clone(&record.event)).unwrap().unwrap();
            told.push((event.data.delivery_id, event.kind));
        }
    }
    let id = command.delivery_id;
    assert_eq!(told, [(id, PackageEventKind::PackageRegistered), (id, PackageEventKind::PackageDelivered)]);
    running.stop().await;
}
