//! city.
mod districts;
mod generate;
mod shape;
mod streets;
mod terrain;
pub use generate::generate;
