//! The kept demo's control socket: an abstract name in the machine's own network namespace, so
//! that nothing stays when the demo ends. A request is one JSON message with the asker's standard
//! input, output and error; the answer is an exit code. Only the same user is served.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use vl3_lab::{Host, ProcessSpec};
use vl3_net::fdpass::{Connection, Listener};

use super::args::Fault;
use super::world::World;
use super::{faults, show};
use crate::status::DEMO_RUN_DIR;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    Exec { host: String, command: Vec<String> },
    Status,
    Fault(Fault),
    Down,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    code: u8,
    /// For the asker's standard error.
    error: Option<String>,
}

/// Commands run at once; one more waits.
const EXECS_MAX: usize = 32;

const POLL: std::time::Duration = std::time::Duration::from_millis(50);

fn address(name: &str) -> String {
    format!("vl3-{name}")
}

/// Takes the name; an error says who has it.
pub(super) fn listen(name: &str) -> anyhow::Result<Listener> {
    match Listener::bind_abstract(&address(name)) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = Connection::connect_abstract(&address(name))
                .and_then(|connection| connection.peer())
                .map(|peer| format!(" (process {})", peer.pid))
                .unwrap_or_default();
            bail!(
                "a demo named {name:?} is being kept already{holder}: end it with `vl3 demo down`, or keep this one \
                 under another --name"
            )
        }
        Err(error) => Err(error).context("open the control socket"),
    }
}

/// Serves requests until `down` or until the caller stops it.
pub(super) async fn serve(world: &mut World, listener: &Listener) -> anyhow::Result<()> {
    let commands = std::sync::Arc::new(tokio::sync::Semaphore::new(EXECS_MAX));
    loop {
        let connection = listener
            .accept()
            .await
            .context("accept at the control socket")?;
        match Asker::read(connection).await {
            Ok((asker, Request::Exec { host, command })) => match world.host(&host) {
                Ok(host) => {
                    let permit = std::sync::Arc::clone(&commands).acquire_owned().await?;
                    let run = world.base.join("run");
                    tokio::spawn(async move {
                        let result = exec(&host, &command, &run, &asker).await;
                        asker.answer(result).await;
                        drop(permit);
                    });
                }
                Err(error) => asker.answer(Err(error)).await,
            },
            Ok((asker, Request::Status)) => {
                let text = show::world(world).await;
                let result = asker.print(&text).map(|()| 0);
                asker.answer(result).await;
            }
            Ok((asker, Request::Fault(fault))) => {
                let result = faults::apply(world, &fault).await;
                let result = result
                    .and_then(|done| asker.print(&format!("{done}\n")))
                    .map(|()| 0);
                asker.answer(result).await;
            }
            Ok((asker, Request::Down)) => {
                asker.answer(Ok(0)).await;
                return Ok(());
            }
            Err(error) => tracing::warn!(%error, "a request at the control socket is refused"),
        }
    }
}

/// Runs a command in the host's namespaces with the asker's terminal. `vl3` in it finds the
/// demo's roles by their names.
async fn exec(host: &Host, command: &[String], run: &Path, asker: &Asker) -> anyhow::Result<u8> {
    let (program, arguments) = command.split_first().context("no command is given")?;
    let [input, output, error] = &asker.stdio;
    let spec = ProcessSpec::new("exec", program)
        .args(arguments)
        .env(DEMO_RUN_DIR, run)
        .stdio(duplicate(input)?, duplicate(output)?, duplicate(error)?);
    let mut process = host.spawn(spec)?;
    let status = tokio::select! {
        status = process.wait() => status?,
        // The asker was interrupted: so is its command, when it is dropped.
        _ = asker.connection.recv() => bail!("interrupted"),
    };
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}

fn duplicate(descriptor: &OwnedFd) -> anyhow::Result<Stdio> {
    Ok(Stdio::from(descriptor.try_clone()?))
}

struct Asker {
    connection: Connection,
    stdio: [OwnedFd; 3],
}

impl Asker {
    async fn read(connection: Connection) -> anyhow::Result<(Self, Request)> {
        let own = nix::unistd::geteuid().as_raw();
        let peer = connection.peer()?;
        if peer.uid != own {
            bail!("user {} is not user {own}", peer.uid);
        }
        let (message, descriptors) = connection.recv().await?.context("nothing was asked")?;
        let request = serde_json::from_slice(&message).context("read the request")?;
        let stdio: Result<[OwnedFd; 3], _> = descriptors.try_into();
        let stdio = stdio.map_err(|_| anyhow::anyhow!("a request needs three descriptors"))?;
        Ok((Self { connection, stdio }, request))
    }

    fn print(&self, text: &str) -> anyhow::Result<()> {
        let mut output = File::from(self.stdio[1].try_clone()?);
        Ok(output.write_all(text.as_bytes())?)
    }

    async fn answer(&self, result: anyhow::Result<u8>) {
        let reply = match result {
            Ok(code) => Reply { code, error: None },
            Err(error) => Reply {
                code: 1,
                error: Some(format!("{error:#}")),
            },
        };
        let Ok(message) = serde_json::to_vec(&reply) else {
            return;
        };
        // An asker that has gone needs no answer.
        let _ = self.connection.send(&message, &[]).await;
    }
}

/// Asks a kept demo; the exit code.
pub(super) async fn ask(name: &str, request: &Request) -> anyhow::Result<u8> {
    let connection = Connection::connect_abstract(&address(name)).with_context(|| {
        format!("no demo named {name:?} is being kept; start one with `vl3 demo --keep` (in another terminal)")
    })?;
    let message = serde_json::to_vec(request)?;
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    connection
        .send(&message, &[input.as_fd(), output.as_fd(), error.as_fd()])
        .await
        .context("ask the demo")?;
    let (answer, _) = connection.recv().await?.context("the demo ended")?;
    let reply: Reply = serde_json::from_slice(&answer).context("read the demo's answer")?;
    if let Some(error) = reply.error {
        bail!(error);
    }
    Ok(reply.code)
}

/// Waits until a kept demo is gone: its end closes the socket.
pub(super) async fn wait_gone(name: &str) {
    while Connection::connect_abstract(&address(name)).is_ok() {
        tokio::time::sleep(POLL).await;
    }
}
