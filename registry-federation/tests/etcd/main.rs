//! The engine over an etcd, with real servers.

mod bench;
mod faults;
mod fence;
mod relay;
#[path = "../engines/suite.rs"]
mod suite;

use bench::{Bench, Replica};
use registry_federation::store::Store;

#[tokio::test(flavor = "multi_thread")]
async fn etcd_does_what_every_engine_does() {
    let bench = Bench::start(1).await;
    tokio::task::block_in_place(|| {
        let next = std::cell::Cell::new(0);
        suite::every_engine(&|| {
            next.set(next.get() + 1);
            let config = bench.config(&format!("suite-{}", next.get()));
            Box::new(move || Box::new(Replica::active(config.clone())) as Box<dyn Store>)
        });
    });
}
