//! A role from start to stop, seen from its admin socket.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vl3_identity::authority::Authority;
use vl3_runtime::config::{Common, Loaded};
use vl3_runtime::{RoleContext, clock, run_role};

/// An identity directory below `dir`, as [`Common::in_dir`] names it.
fn common(dir: &Path) -> Common {
    let authority = Authority::create("east.test", clock::wall()).unwrap();
    let issued = authority
        .issue("vl3/router/r", Duration::from_secs(600), clock::wall())
        .unwrap();
    issued.store(&dir.join("identity")).unwrap();
    Common::in_dir("router", "r", dir)
}

async fn exchange(dir: &Path, request: &str) -> Option<String> {
    let mut stream = UnixStream::connect(dir.join("run/admin.sock")).await.ok()?;
    stream
        .write_all(format!("{request} HTTP/1.0\r\n\r\n").as_bytes())
        .await
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

async fn eventually(dir: &Path, request: &str, part: &str) -> String {
    for _ in 0..500 {
        if let Some(answer) = exchange(dir, request).await
            && answer.contains(part)
        {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{request} was not answered with {part:?} within 5 s");
}

async fn role(lease: tokio::sync::oneshot::Receiver<()>, ctx: RoleContext) -> anyhow::Result<()> {
    let item = ctx.readiness.item("lease");
    ctx.set_status(|| async { json!({ "links": [] }) });
    let shutdown = ctx.shutdown.clone();
    ctx.set_command("leave", move |_| {
        let shutdown = shutdown.clone();
        async move {
            shutdown.cancel();
            Ok(json!({ "left": true }))
        }
    });
    lease.await?;
    item.set(true);
    ctx.shutdown.cancelled().await;
    Ok(())
}

#[tokio::test]
async fn a_role_shows_itself_takes_commands_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, lease) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(run_role(
        Loaded {
            common: common(dir.path()),
            config: lease,
        },
        role,
    ));

    let dir = dir.path();
    eventually(dir, "GET /readyz", "503").await;
    eventually(dir, "GET /readyz", "waiting for lease").await;
    sender.send(()).unwrap();
    eventually(dir, "GET /readyz", "200 OK").await;
    eventually(dir, "GET /healthz", "200 OK").await;
    eventually(dir, "GET /metrics", "# EOF").await;
    let status = eventually(dir, "GET /status", "200 OK").await;
    let status: Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(status["identity"]["id"], "spiffe://east.test/vl3/router/r");
    assert_eq!(status["router"], json!({ "links": [] }));
    eventually(dir, "POST /command/dance", "router has no command dance").await;

    let second = run_role(
        Loaded {
            common: Common::in_dir("router", "r", dir),
            config: (),
        },
        |(), _| async { Ok(()) },
    );
    let error = second.await.unwrap_err().to_string();
    assert!(error.contains("another instance answers"), "{error}");

    eventually(dir, "POST /command/leave", "\"left\":true").await;
    running.await.unwrap().unwrap();
    assert!(!dir.join("run/admin.sock").exists());
}

#[tokio::test]
async fn a_failed_task_ends_the_role_with_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = Loaded {
        common: common(dir.path()),
        config: (),
    };
    let run = run_role(loaded, |(), ctx| async move {
        ctx.tasks
            .spawn("links", async { anyhow::bail!("no route") });
        std::future::pending().await
    });
    let error = run.await.unwrap_err();
    assert_eq!(format!("{error:#}"), "task links: no route");
}

#[tokio::test]
async fn garbage_at_the_admin_socket_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (_sender, lease) = tokio::sync::oneshot::channel();
    let _running = tokio::spawn(run_role(
        Loaded {
            common: common(dir.path()),
            config: lease,
        },
        role,
    ));
    let dir = dir.path();
    eventually(dir, "GET /healthz", "200 OK").await;
    for garbage in [
        "\u{16}\u{3}\u{1}",
        "GET",
        &"x".repeat(100_000),
        "POST /command/leave garbage",
    ] {
        let _whatever = exchange(dir, garbage).await;
    }
    eventually(dir, "GET /healthz", "200 OK").await;
}

#[tokio::test]
async fn what_is_no_request_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, lease) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(run_role(
        Loaded {
            common: common(dir.path()),
            config: lease,
        },
        role,
    ));
    sender.send(()).unwrap();
    eventually(dir.path(), "GET /readyz", "200 OK").await;
    let none = eventually(dir.path(), "GET /metrics", "vl3_admin_connections_refused").await;
    assert!(none.contains("refused_total 0\n"), "{none}");
    for noise in [&b"\x16\x03\x01\xff\xff"[..], b"nonsense\r\n\r\n"] {
        let mut stream = UnixStream::connect(dir.path().join("run/admin.sock"))
            .await
            .unwrap();
        stream.write_all(noise).await.unwrap();
    }
    let refused = "vl3_admin_connections_refused_total 2\n";
    eventually(dir.path(), "GET /metrics", refused).await;
    eventually(dir.path(), "GET /nothing", "404 Not Found").await;
    eventually(dir.path(), "GET /metrics", refused).await;
    exchange(dir.path(), "POST /command/leave").await.unwrap();
    running.await.unwrap().unwrap();
}
