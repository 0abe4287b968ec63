//! Registries on loopback, over real gRPC with mutual TLS.

mod documents;
mod federation;
mod hostile;
mod leases;
mod objects;
mod operator;
mod prefixes;
mod reading;
mod renewal;
mod replicas;
#[cfg(feature = "etcd")]
mod replicas_etcd;
mod semantics;
mod world;
