//! Measuring from inside a host, without any program of the machine: every socket is opened in
//! the host's namespace and used from the caller's runtime.

mod dns;
mod echo;
mod forge;
mod memory;
mod socket;
mod stream;

pub use dns::{Answer, QueryType, Rcode, ask, reverse_name};
pub use echo::{Answered, Continuous, EchoReport, echo, echo_until};
pub use forge::inject;
pub use memory::{memory_kib_of_tree, tree_of};
pub use stream::{LongConnection, Throughput, throughput};
