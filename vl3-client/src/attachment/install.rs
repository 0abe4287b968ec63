//! From an accepted answer to an interface that carries packets, and back.

use std::net::IpAddr;

use anyhow::Context;
use vl3_core::heal::Input;
use vl3_core::{Machine, Ticket};
use vl3_runtime::clock;

use super::{Attachment, Event, Shell};
use crate::answer::{Accepted, DataPath};
use crate::host::Wanted;
use crate::plan::Joined;
use crate::probe::Prober;

impl Attachment {
    pub(super) async fn install(&mut self, ticket: Ticket) {
        let outcome = self.try_install().await;
        if let Err(error) = &outcome {
            tracing::warn!(
                network = %self.parts.template.network,
                error = format!("{error:#}"),
                "answer could not be installed"
            );
        }
        let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
        self.parts
            .status
            .send_modify(|status| status.last_error = error);
        self.machine.handle(
            Input::Installed {
                ticket,
                ok: outcome.is_ok(),
            },
            clock::now(),
            &mut self.out,
        );
    }

    async fn try_install(&mut self) -> anyhow::Result<()> {
        let accepted = self
            .accepted
            .clone()
            .context("there is no answer to install")?;
        let parts = &self.parts;
        match (&mut self.shell, &accepted.path) {
            (Shell::Tun(tun), DataPath::Tun(answer)) => {
                if !tun.is_attached() {
                    self.path_epoch += 1;
                }
                let (epoch, events) = (self.path_epoch, self.events.clone());
                tun.install(&parts.interface, answer.as_ref(), &parts.tasks, move || {
                    // Full: the probes find out, too.
                    let _full = events.try_send(Event::PathEnded(epoch));
                })
                .await?;
            }
            (Shell::Wireguard(plane), DataPath::Wireguard { endpoint, key }) => plane.install(
                &parts.interface,
                &accepted.addresses,
                &accepted.routes,
                accepted.mtu,
                *endpoint,
                *key,
            )?,
            (Shell::Tun(_), DataPath::Wireguard { .. })
            | (Shell::Wireguard(_), DataPath::Tun(_)) => {
                anyhow::bail!("the answer is for another mechanism")
            }
        }
        let wanted = Wanted {
            joined: Joined {
                interface: parts.interface.clone(),
                mtu: accepted.mtu,
                addresses: accepted.addresses.clone(),
                routes: accepted.routes.clone(),
                table: parts.attach.table,
                spare_table: parts.attach.spare_table,
            },
            dns_servers: accepted.dns_servers.clone(),
            search: accepted.search.clone(),
        };
        parts
            .host
            .set(parts.position, Some(wanted))
            .await
            .context("set the interface up")?;
        self.aim_prober(&accepted);
        Ok(())
    }

    /// Probes go to the router's IPv6 address where it has one: it never collides.
    fn aim_prober(&mut self, accepted: &Accepted) {
        let Some((source, target)) = probe_ends(accepted) else {
            self.prober = None;
            return;
        };
        if self
            .prober
            .as_ref()
            .is_some_and(|prober| prober.runs_between(source, target))
        {
            return;
        }
        let events = self.events.clone();
        let started = Prober::start(source, target, &self.parts.tasks, move |reply| {
            // Full: the next reply says the same.
            let _full = events.try_send(Event::Replied(reply));
        });
        match started {
            Ok(prober) => self.prober = Some(prober),
            Err(error) => {
                tracing::warn!(%error, "no probes: health rests on the workload's own traffic");
                self.prober = None;
            }
        }
    }

    pub(super) async fn uninstall(&mut self) {
        self.stop_followers();
        self.prober = None;
        if let Err(error) = self.parts.host.set(self.parts.position, None).await {
            tracing::warn!(%error, "addresses or routes could not be taken away");
        }
        if let Shell::Tun(tun) = &mut self.shell {
            tun.remove();
        }
    }
}

/// Own and router's address of one family, IPv6 first.
fn probe_ends(accepted: &Accepted) -> Option<(IpAddr, IpAddr)> {
    [true, false].into_iter().find_map(|v6| {
        let own = accepted
            .addresses
            .iter()
            .find(|address| address.is_ipv6() == v6)?;
        let router = accepted
            .router_addresses
            .iter()
            .find(|address| address.is_ipv6() == v6)?;
        Some((*own, *router))
    })
}
