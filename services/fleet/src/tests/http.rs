//! Fleet over HTTP, with a real listener: who may do what, and what the others see.

use std::time::Duration;

use contracts::{
    DroneId, Stage,
    api::{MAX_TELEMETRY_LINES, Page, Role},
    commands::{
        Commands, DroneBase, DroneIds, DroneReport, DroneStatus, FleetDrone, Outcomes, ReleaseOutcome, ReportFault,
        ReportOutcome, ReserveOutcome,
    },
    events::{DeliveryEvent, DeliveryEventKind, FleetEvent, FleetEventKind, Topic},
};
use futures::StreamExt;
use reqwest::{Method, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use testkit::{World, serving, until};
use tokio::task::JoinSet;

use super::make;
use crate::{Config, run};

struct Service {
    world: World,
    url: String,
    http: reqwest::Client,
    tasks: JoinSet<anyhow::Result<()>>,
}

async fn service() -> Service {
    let world = World::new().await;
    let (node, url) = world.node("fleet", &[]).await;
    let store = format!("sqlite:{}", world.path("fleet.db").display());
    let mut tasks = JoinSet::new();
    serving(&mut tasks, node.door.opened(), run(Config { store }, node)).await;
    let service = Service { world, url, http: chassis::client::http_client().unwrap(), tasks };
    until("fleet is ready", async || {
        let answer = service.http.get(format!("{}/health/ready", service.url)).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    service
}

impl Service {
    async fn ask(&self, who: (&str, Role), method: Method, path: &str, body: Option<&impl Serialize>) -> Response {
        let token = self.world.token(who.0, who.1);
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap()
    }

    async fn status(&self, who: (&str, Role), method: Method, path: &str) -> u16 {
        self.ask(who, method, path, None::<&()>).await.status().as_u16()
    }

    async fn put(&self, who: (&str, Role), number: u128, base: &str) -> u16 {
        let path = format!("/drones/{}", make::drone_id(number));
        self.ask(who, Method::PUT, &path, Some(&make::facts(base))).await.status().as_u16()
    }

    async fn command<C: Serialize, O: DeserializeOwned>(&self, who: (&str, Role), path: &str, command: C) -> O {
        let answer = self.ask(who, Method::POST, path, Some(&Commands { commands: vec![command] })).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json::<Outcomes<O>>().await.unwrap().outcomes.remove(0)
    }

    async fn report(&self, who: (&str, Role), report: DroneReport) -> ReportOutcome {
        self.command(who, "/commands/reports", report).await
    }

    async fn drone(&self, number: u128) -> FleetDrone {
        let path = format!("/drones/{}", make::drone_id(number));
        self.ask(DELIVERY, Method::GET, &path, None::<&()>).await.json().await.unwrap()
    }

    async fn stop(mut self) {
        self.world.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

const DELIVERY: (&str, Role) = ("delivery", Role::Service);
const OPERATOR: (&str, Role) = ("olga", Role::Operator);
const NORTH: (&str, Role) = ("north", Role::BaseStation);
const SOUTH: (&str, Role) = ("south", Role::BaseStation);
const CUSTOMER: (&str, Role) = ("alice", Role::Customer);

#[tokio::test]
async fn a_base_station_runs_its_own_drones_and_no_others() {
    let service = service().await;
    assert_eq!(service.put(NORTH, 1, "north").await, 200);
    assert_eq!(service.put(SOUTH, 2, "north").await, 403, "nobody registers for another base");
    assert_eq!(service.put(SOUTH, 1, "south").await, 404, "nor takes another's drone");
    assert_eq!(service.put(NORTH, 1, "south").await, 403);
    assert_eq!(service.put(CUSTOMER, 3, "north").await, 403);
    let own = make::drone_id(1);
    let path = format!("/drones/{own}");
    assert_eq!(service.status(SOUTH, Method::DELETE, &path).await, 404);
    assert_eq!(service.status(CUSTOMER, Method::DELETE, &path).await, 403);
    assert_eq!(service.status(NORTH, Method::POST, &format!("{path}/fail")).await, 403);
    assert_eq!(service.status(CUSTOMER, Method::GET, &path).await, 403, "services read single drones");

    // Somebody else's drone is answered as one that nobody registered.
    let unknown = ReportOutcome::Rejected { reason: ReportFault::UnknownDrone };
    assert_eq!(service.report(SOUTH, make::report(1, 1)).await, unknown);
    let other = make::drone_id(7).to_string();
    assert_eq!(service.report((&other, Role::Drone), make::report(1, 1)).await, unknown);
    assert_eq!(service.report((&own.to_string(), Role::Drone), make::report(1, 1)).await, ReportOutcome::Accepted);
    assert_eq!(service.report(NORTH, make::report(1, 1)).await, ReportOutcome::Stale);
    assert_eq!(service.report(NORTH, make::report(9, 1)).await, unknown);
    let customers = Commands { commands: vec![make::report(1, 2)] };
    let refused = service.ask(CUSTOMER, Method::POST, "/commands/reports", Some(&customers)).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);

    assert_eq!(service.put(OPERATOR, 2, "south").await, 200);
    let page: Page<FleetDrone> = service.ask(NORTH, Method::GET, "/drones", None::<&()>).await.json().await.unwrap();
    assert_eq!(page.items.iter().map(|drone| drone.drone_id).collect::<Vec<DroneId>>(), [own]);
    assert_eq!(service.status(NORTH, Method::GET, "/drones?base_id=south").await, 403);
    assert_eq!(service.status(CUSTOMER, Method::GET, "/drones").await, 403);
    let page: Page<FleetDrone> =
        service.ask(OPERATOR, Method::GET, "/drones?limit=1", None::<&()>).await.json().await.unwrap();
    assert_eq!((page.items.len(), page.next_cursor), (1, Some(own.to_string())));
    assert_eq!(service.status(NORTH, Method::DELETE, &path).await, 204);
    assert_eq!(service.drone(1).await.status, DroneStatus::Retired);
    assert_eq!(service.status(NORTH, Method::DELETE, &path).await, 204, "it is so already");
    assert_eq!(service.status(SOUTH, Method::DELETE, &path).await, 404);
    assert_eq!(service.status(NORTH, Method::DELETE, &format!("/drones/{}", make::drone_id(9))).await, 404);
    assert_eq!(service.report(NORTH, make::report(1, 5)).await, unknown, "what is retired is no drone any more");
    service.stop().await;
}

#[tokio::test]
async fn services_ask_where_drones_are_based() {
    let service = service().await;
    service.put(NORTH, 1, "north").await;
    service.put(SOUTH, 2, "south").await;
    let asked = |ids: Vec<DroneId>| DroneIds { ids };
    let three = asked([1, 2, 9].map(make::drone_id).to_vec());
    let answer = service.ask(("gateway", Role::Service), Method::POST, "/queries/bases", Some(&three)).await;
    let said: Vec<DroneBase> = answer.json().await.unwrap();
    let said: Vec<_> = said.iter().map(|drone| (drone.drone_id, drone.base_id.as_str())).collect();
    assert_eq!(said, [(make::drone_id(1), "north"), (make::drone_id(2), "south")], "of one that is not there, nothing");
    for who in [CUSTOMER, OPERATOR, NORTH] {
        let refused = service.ask(who, Method::POST, "/queries/bases", Some(&three)).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    }
    let many = asked(vec![make::drone_id(1); MAX_TELEMETRY_LINES + 1]);
    let refused = service.ask(DELIVERY, Method::POST, "/queries/bases", Some(&many)).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    service.stop().await;
}

#[tokio::test]
async fn commands_are_for_services_and_bounded() {
    let service = service().await;
    for path in ["/commands/reserve", "/commands/release"] {
        let empty: Commands<()> = Commands { commands: vec![] };
        for who in [CUSTOMER, OPERATOR, NORTH] {
            let refused = service.ask(who, Method::POST, path, Some(&empty)).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        }
        assert_eq!(service.ask(DELIVERY, Method::POST, path, Some(&empty)).await.status(), StatusCode::OK);
    }
    let many = Commands { commands: vec![make::reserve(make::delivery(1), 1); 513] };
    let refused = service.ask(DELIVERY, Method::POST, "/commands/reserve", Some(&many)).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let mut wrong = make::report(1, 1);
    wrong.fix.battery = 1.5;
    let wrong = Commands { commands: vec![wrong] };
    let refused = service.ask(NORTH, Method::POST, "/commands/reports", Some(&wrong)).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(service.status(OPERATOR, Method::GET, "/drones?limit=0").await, 422);
    assert_eq!(service.http.get(format!("{}/drones", service.url)).send().await.unwrap().status(), 401);
    service.stop().await;
}

#[tokio::test]
async fn a_reserved_drone_stays_where_it_is_based_and_fails_when_an_operator_says_so() {
    let service = service().await;
    service.put(NORTH, 1, "north").await;
    let outcome: ReserveOutcome =
        service.command(DELIVERY, "/commands/reserve", make::reserve(make::delivery(1), 1)).await;
    assert!(matches!(outcome, ReserveOutcome::Reserved { ref drone } if drone.drone_id == make::drone_id(1)));
    assert_eq!(service.put(OPERATOR, 1, "south").await, 409);
    let path = format!("/drones/{}/fail", make::drone_id(1));
    assert_eq!(service.status(OPERATOR, Method::POST, &path).await, 200);
    assert_eq!(service.drone(1).await.status, DroneStatus::Failed);
    assert_eq!(service.put(OPERATOR, 1, "south").await, 200);
    let path = format!("/drones/{}/fail", make::drone_id(5));
    assert_eq!(service.status(OPERATOR, Method::POST, &path).await, 404);

    let mut fleet_events = service.world.log.subscribe("test", &[Topic::Fleet.name()]).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        for record in fleet_events.next(10).await.unwrap() {
            let event = FleetEvent::decode(&record.event).unwrap().unwrap();
            assert_eq!((event.data.delivery_id, event.data.attempt), (Some(make::delivery(1)), Some(1)));
            kinds.push(event.kind);
        }
    }
    assert_eq!(kinds, [FleetEventKind::DroneReserved, FleetEventKind::DroneFailed]);
    service.stop().await;
}

#[tokio::test]
async fn the_end_of_a_delivery_frees_its_drone_for_the_line() {
    let service = service().await;
    service.put(NORTH, 1, "north").await;
    let reserve = |number| make::reserve(make::delivery(number), 1);
    let first: ReserveOutcome = service.command(DELIVERY, "/commands/reserve", reserve(1)).await;
    assert!(matches!(first, ReserveOutcome::Reserved { .. }));
    let second: ReserveOutcome = service.command(DELIVERY, "/commands/reserve", reserve(2)).await;
    assert_eq!(second, ReserveOutcome::Waiting);
    let clock = &service.world.clock;
    let data = make::record(make::delivery(1), Stage::Completed, 1);
    let event =
        DeliveryEvent { id: clock.new_id(), time: clock.now(), kind: DeliveryEventKind::DeliveryCompleted, data };
    service.world.log.publish(vec![event.encode()]).await.unwrap();
    until("the line is served", async || (service.drone(1).await.delivery_id == Some(make::delivery(2))).then_some(()))
        .await;
    let release = make::release(make::delivery(2), 1);
    let released: ReleaseOutcome = service.command(DELIVERY, "/commands/release", release).await;
    assert_eq!(released, ReleaseOutcome::Done);
    assert_eq!(service.drone(1).await.status, DroneStatus::Idle);
    service.stop().await;
}

#[tokio::test]
async fn a_watcher_sees_its_drones_first_and_their_changes_after() {
    let service = service().await;
    service.put(NORTH, 1, "north").await;
    service.put(OPERATOR, 2, "south").await;
    assert_eq!(service.status(NORTH, Method::GET, "/drones/events?base_id=south").await, 403);
    let answer = service.ask(NORTH, Method::GET, "/drones/events", None::<&()>).await;
    let mut stream = answer.bytes_stream();
    let mut text = String::new();
    let mut messages = async |count: usize| -> Vec<Vec<FleetDrone>> {
        loop {
            let data: Vec<_> = text.split("\n\n").filter_map(|part| part.strip_prefix("data: ")).collect();
            if data.len() >= count {
                return data.iter().map(|json| serde_json::from_str(json).unwrap()).collect();
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.unwrap().unwrap().unwrap();
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    };
    let first = messages(1).await.remove(0);
    assert_eq!(first.iter().map(|drone| drone.drone_id).collect::<Vec<_>>(), [make::drone_id(1)]);
    let mut report = make::report(1, 1);
    report.fix.battery = 0.5;
    service.report(NORTH, report).await;
    service.report(SOUTH, make::report(2, 1)).await;
    let mut count = 2;
    loop {
        let changed = messages(count).await.pop().unwrap();
        assert!(changed.iter().all(|drone| drone.drone_id == make::drone_id(1)), "a base sees only its own");
        if changed[0].battery == 0.5 {
            break;
        }
        count += 1;
    }
    service.stop().await;
}
