//! A domain with one registry process, its routers' identities, and the verbs that look at it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use vl3_core::document::Chain;
use vl3_identity::{Source, Trust};
use vl3_runtime::clock;
use vl3_runtime::grpc::{Connection, DialError, DialUrl, Dialer, Expect};

pub(crate) struct World {
    dir: tempfile::TempDir,
    pub(crate) chain: Chain,
    port: u16,
    process: Option<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
    }
}

fn vl3(dir: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vl3"));
    command
        .args(words.split_whitespace())
        .current_dir(dir)
        .env_clear();
    command
}

fn output(dir: &Path, words: &str) -> String {
    let output = vl3(dir, words).output().expect("start vl3");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "vl3 {words}: {said}{errors}");
    said
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        output(path, "identity init east.test");
        output(path, "identity issue registry east --ttl 24h");
        let bundle = output(path, "identity bundle");
        std::fs::write(path.join("east.pem"), bundle).expect("write");
        output(path, "network init red --pool4 10.80.0.0/16");
        output(
            path,
            "network add-member red.vl3net --domain east --trust-domain east.test \
             --bundle east.pem --contact 192.0.2.1:5002 --block4 10.80.4.0/22",
        );
        let text = std::fs::read_to_string(path.join("red.vl3net")).expect("read");
        let chain = vl3_proto::document::read_armoured(&text).expect("a document");
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("its number").port();
        let config = format!(
            "domain = \"east\"\nname = \"east\"\nidentity.dir = \"registry-east\"\n\
             listen = [\"tcp://127.0.0.1:{port}\"]\nrun_dir = \"run\"\nstate_dir = \"state\"\n\
             endpoint_lifetime = \"1h\"\njournal_records = 100\nlog.level = \"warn\"\n[[network]]\ndocument = \"red.vl3net\"\n"
        );
        std::fs::write(path.join("registry.toml"), config).expect("write");
        Self {
            dir,
            chain,
            port,
            process: None,
        }
    }

    /// The identity of a router.
    pub(crate) fn source(&self, name: &str) -> Source {
        output(
            self.dir.path(),
            &format!("identity issue router {name} --ttl 24h"),
        );
        let dir: PathBuf = self.dir.path().join(format!("router-{name}"));
        Source::from_dir(&dir).expect("an identity")
    }

    pub(crate) fn start(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a log");
        let mut command = vl3(self.dir.path(), "registry --config registry.toml");
        command.stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().expect("start the registry"));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill the registry");
            process.wait().expect("the registry's end");
        }
    }

    pub(crate) async fn eventually_status(&mut self) -> Value {
        for _ in 0..600 {
            let asked = vl3(self.dir.path(), "status ./run -o json").output();
            let asked = asked.expect("start vl3");
            if asked.status.success() {
                let status: Value = serde_json::from_slice(&asked.stdout).expect("JSON");
                if status["ready"] == true {
                    return status["registry"].clone();
                }
            }
            let process = self.process.as_mut().expect("a started registry");
            if let Some(end) = process.try_wait().expect("its state") {
                panic!("the registry ended ({end}): {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the registry is not ready within 12 s: {}", self.log());
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Whether it serves at this moment.
    pub(crate) async fn is_ready(&self) -> bool {
        vl3_lab::admin::is_ready(&self.run_dir()).await
    }

    /// How often this process replaced its journal by a snapshot.
    pub(crate) async fn rewrites(&self) -> u64 {
        let (_, text) = vl3_lab::admin::get(&self.run_dir(), "/metrics")
            .await
            .expect("metrics");
        let mut lines = text.lines();
        let count =
            lines.find_map(|line| line.strip_prefix("vl3_registry_journal_rewrites_total "));
        let count = count.expect("the metric of rewrites");
        count.parse().expect("a number")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// `vl3 registry check` is clean; how many records it looked at.
    pub(crate) fn check(&self) -> u64 {
        let said = output(self.dir.path(), "registry check --state-dir state -o json");
        let report: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(report["clean"], true, "{report}");
        report["records"].as_u64().expect("a number")
    }

    pub(crate) async fn dial(&self, source: &Source) -> Result<Connection, DialError> {
        let trust = Trust::new(source);
        trust
            .set_document(self.chain.document(), clock::wall())
            .expect("a bundle");
        let url: DialUrl = format!("tcp://127.0.0.1:{}", self.port)
            .parse()
            .expect("a URL");
        Dialer::new(source.clone(), trust)
            .dial(&url, Expect::anybody())
            .await
    }
}
