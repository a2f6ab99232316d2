//! temp
use std::{sync::Arc, time::Instant};
use contracts::{Clock, SystemClock, commands::*};
use super::make;
use crate::{fleet::Fleet, store};
#[tokio::test(flavor = "multi_thread")]
async fn perf() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("fleet.db").display());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let fleet = Fleet::new(store::open(&url, clock.clone()).await.unwrap().store, clock);
    let n = 24_000u128;
    let t = Instant::now();
    let regs: Vec<_> = (1..=n).map(|i| { let mut r = make::registration(i*7919, "north"); r.facts.position.latitude += (i % 100) as f64 * 0.001; r.facts.position.longitude += (i / 100) as f64 * 0.0005; r }).collect();
    fleet.register(&regs).await;
    println!("register {:?}", t.elapsed());
    for round in 1..=3u64 {
        let reports: Vec<_> = regs.iter().map(|r| { let mut p = make::report(1, round); p.drone_id = r.drone_id; p.fix.position = r.facts.position; p.fix.battery = 1.0 - 0.01 * round as f64; p }).collect();
        let t = Instant::now();
        let out = fleet.report(&reports).await;
        assert!(out.iter().all(|o| *o == ReportOutcome::Accepted));
        println!("reports {:?}", t.elapsed());
    }
    for round in 0..3u128 {
        let cmds: Vec<_> = (0..2000u128).map(|i| { let mut c = make::reserve(make::delivery(round * 10_000 + i), 1); c.pickup.latitude += (i % 90) as f64 * 0.001; c.pickup.longitude += (i / 90) as f64 * 0.002; c.dropoff = c.pickup; c.dropoff.latitude += 0.003; c }).collect();
        let t = Instant::now();
        let out = fleet.reserve(&cmds).await;
        let got = out.iter().filter(|o| matches!(o, ReserveOutcome::Reserved{..})).count();
        println!("reserve 2000 -> {got} {:?}", t.elapsed());
        let t = Instant::now();
        let ends: Vec<_> = cmds.iter().map(|c| crate::domain::Ending { delivery_id: c.delivery_id, up_to: 1, tombstone: true, fence: 0, reason: "x".into() }).collect();
        for chunk in ends.chunks(512) { fleet.end(chunk).await.unwrap(); }
        println!("end 2000 {:?}", t.elapsed());
        let t = Instant::now();
        let p = fleet.index.propose(cmds.iter().map(crate::domain::trip_of).collect::<Vec<_>>().iter());
        println!("propose 2000 -> {} {:?}", p.picks.iter().flatten().count(), t.elapsed());
    }
    let t = Instant::now(); let c = fleet.store.changed_since(0).await.unwrap().len(); println!("changed all {c} {:?}", t.elapsed());
    let t = Instant::now(); fleet.store.last_heard().await.unwrap(); println!("last heard {:?}", t.elapsed());
    let t = Instant::now(); fleet.store.silent(make::now(), 10).await.unwrap(); println!("silent {:?}", t.elapsed());
}
