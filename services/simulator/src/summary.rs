//! What a run came to.

use serde::Serialize;

use crate::progress::{Progress, read};

/// How the accepted deliveries ended, as their customers see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcomes {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) rejected: u64,
    pub(crate) still_open: u64,
}

/// A run's end result. The outcomes are counted only in a run with a duration that was not ended from outside.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Orders that were due and sent.
    pub offered: u64,
    /// Orders that were due while too many had no answer yet.
    pub not_offered: u64,
    /// Answered with 202.
    pub accepted: u64,
    /// Answered for good with anything else.
    pub refused: u64,
    /// Given up without an answer that decides.
    pub errors: u64,
    /// Half of the 202s came within this many milliseconds of their due time.
    pub post_p50_ms: f64,
    /// Nine of ten did.
    pub post_p90_ms: f64,
    /// Ninety-nine of a hundred did.
    pub post_p99_ms: f64,
    /// The slowest.
    pub post_max_ms: f64,
    /// Accepted deliveries that are Completed.
    pub completed: u64,
    /// That are Failed.
    pub failed: u64,
    /// That are Cancelled.
    pub cancelled: u64,
    /// That are Rejected.
    pub rejected: u64,
    /// That have no end yet, or were not found.
    pub still_open: u64,
    /// Telemetry lines that were stored.
    pub reports_accepted: u64,
    /// Telemetry lines that changed nothing.
    pub reports_stale: u64,
    /// Telemetry lines that were refused.
    pub reports_rejected: u64,
    /// Telemetry requests that got no answer or a bad one.
    pub report_errors: u64,
    /// Missions on which the drone broke down.
    pub breakdowns: u64,
    /// Missions on which the drone fell silent.
    pub silences: u64,
}

impl Summary {
    pub(crate) fn new(progress: &Progress, outcomes: Outcomes) -> Self {
        let millis = |share: f64| progress.post_latency.quantile(share).as_secs_f64() * 1_000.0;
        Self {
            offered: read(&progress.offered),
            not_offered: read(&progress.not_offered),
            accepted: read(&progress.accepted),
            refused: read(&progress.refused),
            errors: read(&progress.errors),
            post_p50_ms: millis(0.5),
            post_p90_ms: millis(0.9),
            post_p99_ms: millis(0.99),
            post_max_ms: progress.post_latency.max().as_secs_f64() * 1_000.0,
            completed: outcomes.completed,
            failed: outcomes.failed,
            cancelled: outcomes.cancelled,
            rejected: outcomes.rejected,
            still_open: outcomes.still_open,
            reports_accepted: read(&progress.reports_accepted),
            reports_stale: read(&progress.reports_stale),
            reports_rejected: read(&progress.reports_rejected),
            report_errors: read(&progress.report_errors),
            breakdowns: read(&progress.breakdowns),
            silences: read(&progress.silences),
        }
    }
}
