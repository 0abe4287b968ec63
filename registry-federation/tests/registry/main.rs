//! Registries on loopback, over real gRPC with mutual TLS.

mod federation;
mod leases;
mod objects;
mod world;
