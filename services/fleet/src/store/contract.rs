//! The suite that every store of fleet passes.
