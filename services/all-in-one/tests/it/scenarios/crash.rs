//! Kills at random moments under load: nothing accepted is lost, doubled or left behind.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use contracts::{Clock, SystemClock};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::process::{KILLED, Site, finished};

/// How often the system is killed.
const KILLS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn three_kills_under_load() {
    let seed = SystemClock.now().timestamp_millis().unsigned_abs() % 1_000_000;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let site = Site::new();
    let mut system = site.start(None);
    let mut simulator = site.simulate(15, 10, seed);
    for _ in 0..KILLS {
        site.is_ready().await;
        SystemClock.sleep(Duration::from_millis(random.random_range(500..4_000))).await;
        system.start_kill().unwrap();
        assert_eq!(system.wait().await.unwrap().signal(), Some(KILLED), "{}", site.said());
        system = site.start(None);
    }
    finished(&mut simulator, &site).await;
    site.settle().await;
    site.stop_and_audit(system, &[]).await;
}
