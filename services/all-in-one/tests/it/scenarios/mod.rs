//! One module per scenario; each ends with a clean audit of the raw stores.

mod abort_points;
mod authorization;
mod bad_input;
mod cancel;
mod crash;
mod degraded;
mod hanging_stores;
mod happy_path;
mod idempotency;
mod lost_drone;
mod no_drone;
mod poison;
mod restart;
mod the_program;
mod too_heavy;
mod two_instances;
