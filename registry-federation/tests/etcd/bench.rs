//! An etcd with certificates of its own, and replicas that use it.

use std::time::Duration;

use registry_federation::store::{
    Candidate, Change, Claim, Conflict, Entry, Etcd, EtcdConfig, Followed, Job, Journal, Object,
    Objects, Shared as _, Store, StoreError, Swap,
};
use tempfile::TempDir;
use tokio::sync::{broadcast, mpsc, watch};
use vl3_identity::authority::Authority;
use vl3_lab::etcd::{EtcdCluster, EtcdTls};
use vl3_runtime::clock;

/// What a busy machine may take for anything here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    pub(crate) cluster: EtcdCluster,
    pub(crate) tls: EtcdTls,
    /// Data and certificates, as long as the bench.
    _dir: TempDir,
}

impl Bench {
    /// So many members with mutual TLS.
    pub(crate) async fn start(members: usize) -> Self {
        Self::start_with(members, &[]).await
    }

    pub(crate) async fn start_with(members: usize, arguments: &[&str]) -> Self {
        vl3_identity::install_crypto_provider();
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = EtcdCluster::new(dir.path(), members).expect("an etcd");
        let authority = Authority::create("etcd.test", clock::wall()).expect("a CA");
        let mut addresses = cluster.addresses();
        // For relays.
        addresses.push(std::net::Ipv4Addr::LOCALHOST.into());
        let day = Duration::from_secs(86_400);
        let issued = authority.issue_at("etcd", &addresses, day, clock::wall());
        issued
            .expect("a certificate")
            .store(dir.path())
            .expect("files");
        let tls = EtcdTls {
            ca: dir.path().join("bundle.pem"),
            cert: dir.path().join("svid.pem"),
            key: dir.path().join("key.pem"),
        };
        let mut cluster = cluster.with_tls(tls.clone()).with_arguments(arguments);
        cluster.start().await.expect("a healthy etcd");
        Self {
            cluster,
            tls,
            _dir: dir,
        }
    }

    pub(crate) fn config(&self, name: &str) -> EtcdConfig {
        self.config_to(self.cluster.endpoints(), name)
    }

    pub(crate) fn config_to(&self, endpoints: Vec<String>, name: &str) -> EtcdConfig {
        EtcdConfig {
            ca: Some(self.tls.ca.clone()),
            cert: Some(self.tls.cert.clone()),
            key: Some(self.tls.key.clone()),
            ..EtcdConfig::new(endpoints, &format!("/vl3/{name}/"))
        }
    }
}

pub(crate) fn candidate(name: &str) -> Candidate {
    Candidate {
        id: rand::random(),
        name: name.to_owned(),
        address: format!("tcp://{name}.test:5002"),
    }
}

/// A replica that has the claim, as a store; dropped, it gives the claim up.
pub(crate) struct Replica {
    store: Box<dyn Store>,
    pub(crate) term: u64,
    pub(crate) etcd: Etcd,
}

impl Replica {
    pub(crate) fn active(config: EtcdConfig) -> Self {
        let etcd = Etcd::new(config).expect("a thread");
        let mut claim = etcd.campaign(candidate("one"));
        // The caller may be a task: it waits on another thread.
        let wait = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime
                .expect("a runtime")
                .block_on(eventually_active(&mut claim))
        };
        let term = std::thread::scope(|scope| scope.spawn(wait).join()).expect("a term");
        let store = etcd.writer(term).expect("a writer");
        Self { store, term, etcd }
    }
}

pub(crate) async fn eventually_active(claim: &mut watch::Receiver<Claim>) -> u64 {
    let active = claim.wait_for(|claim| matches!(claim, Claim::Active { .. }));
    let active = tokio::time::timeout(PATIENCE, active).await;
    match *active.expect("active in time").expect("a campaign") {
        Claim::Active { term } => term,
        Claim::Other { .. } | Claim::Unknown => unreachable!("waited for"),
    }
}

pub(crate) async fn next(feed: &mut mpsc::Receiver<Followed>) -> Followed {
    let message = tokio::time::timeout(PATIENCE, feed.recv()).await;
    message.expect("a message in time").expect("a feed")
}

impl Journal for Replica {
    fn replay(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.store.replay()
    }
    fn append(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.store.append(entries)
    }
    fn rewrite(&mut self, entries: &[Entry]) -> Result<u64, StoreError> {
        self.store.rewrite(entries)
    }
    fn history(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.store.history()
    }
}

impl Objects for Replica {
    fn list(&mut self) -> Result<Vec<Object>, StoreError> {
        self.store.list()
    }
    fn swap(&mut self, swaps: &[Swap]) -> Result<Vec<Result<u64, Conflict>>, StoreError> {
        self.store.swap(swaps)
    }
    fn watch(&mut self) -> broadcast::Receiver<Change> {
        self.store.watch()
    }
}

impl Store for Replica {
    fn commit(&mut self, job: &Job) -> Result<Vec<u64>, StoreError> {
        self.store.commit(job)
    }
}
