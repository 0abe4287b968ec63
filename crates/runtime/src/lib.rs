//! Shell kit of the roles: typed configuration, telemetry, supervised tasks, readiness,
//! admin endpoint, gRPC serve and dial, the network document in force, clock and retry.

mod admin;
pub mod clock;
pub mod config;
mod context;
mod documents;
pub mod grpc;
mod readiness;
mod retry;
mod rundir;
mod said;
mod start;
mod tasks;
pub mod telemetry;

pub use config::{Common, Configure, Section};
pub use context::{Metrics, RoleContext};
pub use documents::{DocumentAlarms, Documents};
pub use readiness::{Readiness, ReadyItem};
pub use retry::Retry;
pub use rundir::{claim_socket, make_dir};
pub use said::Said;
pub use start::run_role;
pub use tasks::Tasks;
pub use tokio_util::sync::CancellationToken;
