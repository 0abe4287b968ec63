//! Registries alone: 3 to 12 domains that lease, register, publish and tell each other, under
//! faults of their own, against what was promised to whom. Leaner than the world of routers
//! and packets, so that very many seeds can be played.

pub mod answers;
mod cast;
mod checks;
mod clients;
mod director;
pub mod faults;
mod node;
mod pipes;
mod probes;
pub mod run;
pub mod scale;
mod seen;
mod truth;
pub mod world;
