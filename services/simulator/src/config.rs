//! What a run is told: options of the command line, of the environment, or of the caller.

use std::{path::PathBuf, time::Duration};

/// The options of a run. All-in-one flattens them into its own command line and sets `gateway_url` itself.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Config {
    /// Where the gateway answers
    #[arg(long, visible_alias = "url", env = "GATEWAY_URL", default_value = "http://127.0.0.1:8080")]
    pub gateway_url: String,

    /// Drones in the air and at the bases
    #[arg(long, env = "SIMULATOR_DRONES", default_value_t = 200)]
    pub drones: usize,

    /// Customers that take turns to order
    #[arg(long, env = "SIMULATOR_CUSTOMERS", default_value_t = 200)]
    pub customers: usize,

    /// Orders a second, by an open loop; 0 for none
    #[arg(long, env = "SIMULATOR_ORDERS_PER_SECOND", default_value_t = 1.0)]
    pub orders_per_second: f64,

    /// Random gaps between orders (exponential) instead of even ones
    #[arg(long, env = "SIMULATOR_RANDOM_GAPS")]
    pub random_gaps: bool,

    /// How much faster than real drones these fly, drain and charge
    #[arg(long, env = "SIMULATOR_TIME_SCALE", default_value_t = 10.0)]
    pub time_scale: f64,

    /// Ordering stops after this time (90, 90s, 10m, 1h); never unless given
    #[arg(long, env = "SIMULATOR_DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,

    /// After ordering has stopped, how long to fly on at most while deliveries are open
    #[arg(long, env = "SIMULATOR_DRAIN", default_value = "10m", value_parser = parse_duration)]
    pub drain: Duration,

    /// Every random choice follows from this number
    #[arg(long, env = "SIMULATOR_SEED", default_value_t = 7)]
    pub seed: u64,

    /// Write every accepted delivery into this file, one JSON object a line
    #[arg(long, env = "SIMULATOR_ACCEPTED")]
    pub accepted: Option<PathBuf>,

    /// The share of missions on which the drone breaks down, falls silent or repeats itself, 0 to 1
    #[arg(long, env = "SIMULATOR_MISBEHAVE", default_value_t = 0.01)]
    pub misbehave: f64,

    /// The share of deliveries that are cancelled shortly after they were ordered, 0 to 1
    #[arg(long, env = "SIMULATOR_CANCEL_SHARE", default_value_t = 0.02)]
    pub cancel_share: f64,

    /// The shortest way from pickup to drop-off, in metres
    #[arg(long, env = "SIMULATOR_TRIP_MIN_M", default_value_t = 1_500.0)]
    pub trip_min_m: f64,

    /// The longest way from pickup to drop-off, in metres
    #[arg(long, env = "SIMULATOR_TRIP_MAX_M", default_value_t = 3_500.0)]
    pub trip_max_m: f64,

    /// How long loading and unloading take each, in seconds before the time scale
    #[arg(long, env = "SIMULATOR_HANDOVER_SECONDS", default_value_t = 90.0)]
    pub handover_seconds: f64,

    /// How often a drone reports in the air or on a mission
    #[arg(long, env = "SIMULATOR_REPORT_EVERY", default_value = "1s", value_parser = parse_duration)]
    pub report_every: Duration,

    /// How often a drone reports on the ground without a mission
    #[arg(long, env = "SIMULATOR_GROUND_REPORT_EVERY", default_value = "10s", value_parser = parse_duration)]
    pub ground_report_every: Duration,

    /// Orders without an answer at a time, beyond which an order is not offered
    #[arg(long, env = "SIMULATOR_MAX_IN_FLIGHT", default_value_t = 2_000)]
    pub max_in_flight: usize,
}

/// An option that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{option} {fault}")]
pub struct InvalidConfig {
    /// Its name on the command line.
    pub option: &'static str,
    /// What is wrong with it.
    pub fault: &'static str,
}

/// Past this the registered speed would leave the range that the fleet accepts (10 km/s).
const FASTEST_TIME_SCALE: f64 = 400.0;
/// One id per drone is held in memory, and one request registers it: far more than one process can fly.
const MOST_DRONES: usize = 1_000_000;
/// Their names have four digits or more; each holds a token.
const MOST_CUSTOMERS: usize = 100_000;
/// One order a hundredth of a millisecond is beyond what one process can send.
const MOST_ORDERS_PER_SECOND: f64 = 100_000.0;
/// The city is some 6 km wide; a longer trip would never be found.
const LONGEST_TRIP_M: f64 = 6_000.0;

impl Config {
    /// The options when none is given and the environment is silent.
    pub fn new() -> Self {
        Self {
            gateway_url: "http://127.0.0.1:8080".to_owned(),
            drones: 200,
            customers: 200,
            orders_per_second: 1.0,
            random_gaps: false,
            time_scale: 10.0,
            duration: None,
            drain: Duration::from_secs(600),
            seed: 7,
            accepted: None,
            misbehave: 0.01,
            cancel_share: 0.02,
            trip_min_m: 1_500.0,
            trip_max_m: 3_500.0,
            handover_seconds: 90.0,
            report_every: Duration::from_secs(1),
            ground_report_every: Duration::from_secs(10),
            max_in_flight: 2_000,
        }
    }

    /// The first option that cannot be.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let share = 0.0..=1.0;
        let checks = [
            ("drones", self.drones <= MOST_DRONES, "must be at most 1000000"),
            ("customers", (1..=MOST_CUSTOMERS).contains(&self.customers), "must be 1 to 100000"),
            (
                "orders-per-second",
                (0.0..=MOST_ORDERS_PER_SECOND).contains(&self.orders_per_second),
                "must be 0 to 100000",
            ),
            (
                "time-scale",
                self.time_scale > 0.0 && self.time_scale <= FASTEST_TIME_SCALE,
                "must be more than 0 and at most 400",
            ),
            ("misbehave", share.contains(&self.misbehave), "must be 0 to 1"),
            ("cancel-share", share.contains(&self.cancel_share), "must be 0 to 1"),
            ("trip-min-m", self.trip_min_m >= 1.0, "must be at least 1"),
            (
                "trip-max-m",
                self.trip_max_m > self.trip_min_m && self.trip_max_m <= LONGEST_TRIP_M,
                "must be more than trip-min-m and at most 6000",
            ),
            ("handover-seconds", (0.0..=3_600.0).contains(&self.handover_seconds), "must be 0 to 3600"),
            ("report-every", self.report_every >= Duration::from_millis(100), "must be at least 0.1s"),
            ("ground-report-every", self.ground_report_every >= self.report_every, "must be at least report-every"),
            ("max-in-flight", self.max_in_flight > 0, "must be at least 1"),
        ];
        for (option, good, fault) in checks {
            if !good {
                return Err(InvalidConfig { option, fault });
            }
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// `90`, `90s`, `1.5m` or `2h` as a duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit_seconds) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60.0),
        Some(number) if text.ends_with('h') => (number, 3_600.0),
        Some(number) => (number, 1.0),
        None => (text, 1.0),
    };
    let seconds: f64 = number.trim().parse().map_err(|_| "must be like 90, 90s, 10m or 1h".to_owned())?;
    Duration::try_from_secs_f64(seconds * unit_seconds).map_err(|_| "must be a time that can pass".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    #[test]
    fn an_empty_command_line_is_the_default() {
        let matches = Config::augment_args(clap::Command::new("test")).get_matches_from(["test"]);
        assert_eq!(Config::from_arg_matches(&matches).unwrap(), Config::default());
        assert_eq!(Config::default().check(), Ok(()));
    }

    #[test]
    fn durations_are_read_with_and_without_a_unit() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7_200)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("-1s").is_err());
    }

    #[test]
    fn a_fault_names_the_option() {
        let bad = Config { time_scale: f64::NAN, ..Config::default() };
        assert_eq!(bad.check().unwrap_err().option, "time-scale");
        let bad = Config { trip_max_m: 100.0, ..Config::default() };
        assert!(bad.check().unwrap_err().to_string().starts_with("--trip-max-m "));
    }
}
