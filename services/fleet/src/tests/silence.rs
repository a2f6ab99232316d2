//! silence.
