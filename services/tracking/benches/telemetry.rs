//! Positions into Redis through the store against `redis-benchmark` with the commands that one position takes, in turns.
//!
//! Needs `TEST_REDIS_URL` and `redis-benchmark`. Prints one line of JSON for the table that `load-tests/stores` makes.

use std::{process::Command, sync::Arc, time::Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use contracts::{
    Clock, Coordinate, DroneId, SystemClock,
    api::{Confirmation, default_region},
    commands::{AssignedDrone, OpenFlight},
    events::PositionFix,
    flight::Airframe,
};
use redis::AsyncCommands;
use serde_json::json;
use tracking::bench::Positions;

/// Keys deleted in one go afterwards.
const DELETED_AT_ONCE: usize = 1_000;

/// How much is written, and how.
#[derive(Debug, Clone, Parser)]
struct Settings {
    /// Flights in the air.
    #[arg(long, default_value_t = 20_000)]
    flights: usize,
    /// Reports of each in one turn.
    #[arg(long, default_value_t = 10)]
    reports: usize,
    /// Turns of each side; the table has the medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connections of redis-benchmark; the store has one.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Commands in a pipeline of redis-benchmark.
    #[arg(long, default_value_t = 128)]
    pipeline: usize,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "its only output")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let server = testkit::real::url("TEST_REDIS_URL").context("TEST_REDIS_URL is not set")?;
    let prefix = testkit::real::unique("bench");
    let url = format!("{server}?prefix={prefix}");
    let mut positions = Positions::open(&url, Arc::new(SystemClock), &commands(&settings)?).await?;
    let fix = a_fix_of(&server, &prefix, &mut positions).await?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    // The first turn warms both sides up.
    for round in 0..=settings.rounds {
        let of_store = report(&settings, &mut positions, round).await?;
        let of_server = redis_benchmark(&settings, &server, &prefix, &fix)?;
        if round > 0 {
            ours.push(of_store);
            raw.push(of_server);
        }
    }
    drop(positions);
    clear(&server, &prefix).await?;
    let line = json!({
        "row": "telemetry",
        "ours": median(&mut ours),
        "raw": median(&mut raw),
        "fix_bytes": fix.len(),
        "flights": settings.flights,
        "connections": settings.connections,
        "pipeline": settings.pipeline,
        "rounds": settings.rounds,
    });
    println!("{line}");
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn commands(settings: &Settings) -> anyhow::Result<Vec<OpenFlight>> {
    let now = SystemClock.now();
    let place = Coordinate { latitude: 43.296_482, longitude: 5.369_78 };
    let mut commands = Vec::with_capacity(settings.flights);
    for _ in 0..settings.flights {
        commands.push(OpenFlight {
            delivery_id: SystemClock.new_delivery_id(),
            attempt: 1,
            fence: 1,
            step_deadline: now + chrono::Duration::hours(1),
            customer_id: "0198a1b2-customer-of-the-benchmark".parse()?,
            home_region: default_region(),
            drone: AssignedDrone {
                drone_id: DroneId(SystemClock.new_id()),
                base_id: "north".parse()?,
                airframe: Airframe { payload_kg: 4.0, range_m: 20_000.0, speed_mps: 10.0 },
                position: place,
                battery: 1.0,
            },
            pickup: place,
            dropoff: Coordinate { latitude: 43.310_218, longitude: 5.405_61 },
            weight_kg: 1.0,
            confirmation: Confirmation::None,
            deadline: now + chrono::Duration::minutes(30),
        });
    }
    Ok(commands)
}

fn fix(sequence: usize) -> PositionFix {
    let position = Coordinate { latitude: 43.3 + sequence as f64 * 1e-5, longitude: 5.4 + sequence as f64 * 1e-5 };
    PositionFix { position, battery: 0.731_5, at: SystemClock.now(), sequence: sequence as u64 }
}

/// Has every flight report so often: positions a second.
async fn report(settings: &Settings, positions: &mut Positions, round: usize) -> anyhow::Result<f64> {
    let started = Instant::now();
    for number in 0..settings.reports {
        positions.report(fix(round * settings.reports + number)).await?;
    }
    Ok((settings.flights * settings.reports) as f64 / started.elapsed().as_secs_f64())
}

/// What the store keeps of a report, as it keeps it.
async fn a_fix_of(server: &str, prefix: &str, positions: &mut Positions) -> anyhow::Result<String> {
    positions.report(fix(0)).await?;
    let mut connection = redis::Client::open(server)?.get_multiplexed_async_connection().await?;
    let keys: Vec<String> = matching(server, &format!("{prefix}:*:flight:*"), Some(1)).await?;
    Ok(connection.hget(keys.first().context("no flight is stored")?, "fix").await?)
}

/// Positions a second, where each takes the commands of the store's script one by one: the time of each is its share.
fn redis_benchmark(settings: &Settings, server: &str, prefix: &str, fix: &str) -> anyhow::Result<f64> {
    // As long as the store's own keys: redis-benchmark puts a number of twelve digits there.
    let flight = format!("{prefix}:tracking:{{128}}:flight:01920000-0000-7000-8000-__rand_int__");
    let index = format!("{prefix}:tracking:{{128}}:positions");
    let member = "01920000-0000-7000-8000-__rand_int__";
    let commands: [&[&str]; 3] = [
        &["HSET", &flight, "version", "17", "fix", fix],
        &["HGET", &flight, "version"],
        &["GEOADD", &index, "5.405611", "43.310218", member],
    ];
    let mut seconds = 0.0;
    for command in commands {
        seconds += 1.0 / rate_of(settings, server, command)?;
    }
    Ok(1.0 / seconds)
}

/// A command's rate in a second.
fn rate_of(settings: &Settings, server: &str, command: &[&str]) -> anyhow::Result<f64> {
    let count = settings.flights * settings.reports;
    let numbers = [("-n", count), ("-r", settings.flights), ("-c", settings.connections), ("-P", settings.pipeline)];
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-u", server, "--csv"]);
    for (option, number) in numbers {
        benchmark.arg(option).arg(number.to_string());
    }
    let output = benchmark.args(command).output().context("redis-benchmark is not installed")?;
    ensure!(output.status.success(), "redis-benchmark: {}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout)?;
    // "command","rate","latency",...: the command may hold commas and quotes, and six latencies follow the rate.
    let rate = told.lines().last().and_then(|line| line.rsplit("\",\"").nth(6));
    Ok(rate.with_context(|| format!("redis-benchmark said {told}"))?.parse()?)
}

/// Keys of a pattern, or one of them at least.
async fn matching(server: &str, pattern: &str, enough: Option<usize>) -> anyhow::Result<Vec<String>> {
    let mut connection = redis::Client::open(server)?.get_multiplexed_async_connection().await?;
    let mut found = connection.scan_match::<_, String>(pattern).await?;
    let mut keys = Vec::new();
    while let Some(key) = found.next_item().await {
        keys.push(key?);
        if enough.is_some_and(|enough| keys.len() >= enough) {
            break;
        }
    }
    Ok(keys)
}

/// Leaves nothing behind.
async fn clear(server: &str, prefix: &str) -> anyhow::Result<()> {
    let mut connection = redis::Client::open(server)?.get_multiplexed_async_connection().await?;
    for keys in matching(server, &format!("{prefix}:*"), None).await?.chunks(DELETED_AT_ONCE) {
        connection.unlink::<_, ()>(keys).await?;
    }
    Ok(())
}
