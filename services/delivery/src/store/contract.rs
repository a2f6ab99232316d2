//! The suite that every store of deliveries passes.
