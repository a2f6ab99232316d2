//! Telemetry lines, written straight into the request's buffer.

use bytes::{BufMut as _, BytesMut};
use chrono::{DateTime, SecondsFormat};
use contracts::{Coordinate, DeliveryId, DroneId, Stage};
use uuid::fmt::Hyphenated;

/// What a drone says of itself at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Report {
    pub(crate) drone_id: DroneId,
    /// The delivery, its attempt, and how far the drone has come.
    pub(crate) mission: Option<(DeliveryId, u32, Stage)>,
    pub(crate) sequence: u64,
    pub(crate) at_ms: i64,
    pub(crate) position: Coordinate,
    pub(crate) battery: f64,
}

/// The reports that a stuttering drone holds back or repeats.
#[derive(Debug, Default)]
pub(crate) struct Stutter {
    withheld: Option<Report>,
    sent: Option<Report>,
}

impl Stutter {
    /// What is sent instead of `report`: now nothing, then several out of order and one of them twice.
    pub(crate) fn disorder(&mut self, report: Report) -> Vec<Report> {
        let Some(withheld) = self.withheld.take() else {
            self.withheld = Some(report);
            return self.sent.into_iter().collect();
        };
        self.sent = Some(report);
        vec![report, withheld, report]
    }
}

/// The time as every line of a batch gives it; made once per batch.
pub(crate) fn time_text(at_ms: i64) -> String {
    DateTime::from_timestamp_millis(at_ms).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Writes one line of NDJSON in the shape of `TelemetryLine`. By hand, because 24,000 lines a second are written
/// beside the system under load.
pub(crate) fn write_line(out: &mut BytesMut, report: &Report, at: &str) {
    out.put_slice(b"{\"drone_id\":\"");
    put_uuid(out, report.drone_id.0.hyphenated());
    if let Some((delivery_id, attempt, stage)) = report.mission {
        out.put_slice(b"\",\"delivery_id\":\"");
        put_uuid(out, delivery_id.0.hyphenated());
        out.put_slice(b"\",\"attempt\":");
        put_number(out, u64::from(attempt));
        out.put_slice(b",\"stage\":\"");
        out.put_slice(stage.as_str().as_bytes());
    }
    out.put_slice(b"\",\"sequence\":");
    put_number(out, report.sequence);
    out.put_slice(b",\"at\":\"");
    out.put_slice(at.as_bytes());
    out.put_slice(b"\",\"latitude\":");
    put_millionths(out, report.position.latitude);
    out.put_slice(b",\"longitude\":");
    put_millionths(out, report.position.longitude);
    out.put_slice(b",\"battery\":");
    put_millionths(out, report.battery);
    out.put_slice(b"}\n");
}

fn put_uuid(out: &mut BytesMut, id: Hyphenated) {
    let mut buffer = [0; Hyphenated::LENGTH];
    out.put_slice(id.encode_lower(&mut buffer).as_bytes());
}

fn put_number(out: &mut BytesMut, mut number: u64) {
    /// The digits of the largest 64-bit number.
    const MOST_DIGITS: usize = 20;
    let mut digits = [0; MOST_DIGITS];
    let mut start = MOST_DIGITS;
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.put_slice(&digits[start..]);
}

/// A number with six decimals: of a degree, that is a tenth of a metre.
fn put_millionths(out: &mut BytesMut, value: f64) {
    let millionths = (value * 1e6).round() as i64;
    if millionths < 0 {
        out.put_u8(b'-');
    }
    let size = millionths.unsigned_abs();
    put_number(out, size / 1_000_000);
    out.put_u8(b'.');
    let mut divisor = 100_000;
    while divisor > 0 {
        out.put_u8(b'0' + (size / divisor % 10) as u8);
        divisor /= 10;
    }
}

#[cfg(test)]
mod tests {
    use contracts::{Timestamp, api::TelemetryLine};
    use uuid::Uuid;

    use super::*;

    fn report(sequence: u64) -> Report {
        Report {
            drone_id: DroneId(Uuid::from_u128(7)),
            mission: Some((DeliveryId(Uuid::from_u128(9)), 2, Stage::HeadedToDropoff)),
            sequence,
            at_ms: 1_700_000_000_123,
            position: Coordinate { latitude: 43.300_001, longitude: -5.000_37 },
            battery: 0.25,
        }
    }

    fn parsed(report: &Report) -> TelemetryLine {
        let mut out = BytesMut::new();
        write_line(&mut out, report, &time_text(report.at_ms));
        assert_eq!(out.last(), Some(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_line_says_what_the_drone_said() {
        let line = parsed(&report(1_700_000_000_123));
        assert_eq!(line.drone_id, DroneId(Uuid::from_u128(7)));
        assert_eq!((line.delivery_id, line.attempt), (Some(DeliveryId(Uuid::from_u128(9))), Some(2)));
        assert_eq!(line.stage, Some(Stage::HeadedToDropoff));
        assert_eq!(line.sequence, 1_700_000_000_123);
        assert_eq!(line.at.timestamp_millis(), 1_700_000_000_123);
        assert_eq!(line.position(), Coordinate { latitude: 43.300_001, longitude: -5.000_37 });
        assert_eq!(line.battery.to_bits(), 0.25_f64.to_bits());
        let now = Timestamp::from_timestamp_millis(1_700_000_000_000).unwrap();
        assert_eq!(line.fault(now), None);
    }

    #[test]
    fn a_free_drone_names_no_mission() {
        let line = parsed(&Report { mission: None, battery: 1.0, ..report(1) });
        assert_eq!((line.delivery_id, line.attempt, line.stage), (None, None, None));
        assert_eq!(line.battery.to_bits(), 1.0_f64.to_bits());
    }

    #[test]
    fn a_stuttering_drone_repeats_and_reorders_but_says_everything_in_the_end() {
        let mut stutter = Stutter::default();
        let mut said = Vec::new();
        for sequence in 1..=6 {
            said.extend(stutter.disorder(report(sequence)).into_iter().map(|report| report.sequence));
        }
        assert_eq!(said, [2, 1, 2, 2, 4, 3, 4, 4, 6, 5, 6]);
    }
}
