//! What the router tells its DNS server and its operators.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::allocator::Lease;
use crate::attach::{Attach, WorkloadStatus};
use crate::forward::Route;
use crate::ids::DomainName;
use crate::links::{LinkStatus, Links};
use crate::router::RouterMachine;
use crate::router::context::Context;
use crate::router::state::StoredRoute;
use crate::router::{ClientClass, DomainServer, ResolverView, RouterId};
use crate::routes::{Disbelief, PREFIX};
use crate::time::Now;

/// The view of names at one moment. One live router per other domain, and every live sibling.
/// `is_current`: this router still speaks for its name; who replaced it knows what it does not.
pub(crate) fn view(
    attach: &Attach,
    links: &Links,
    is_current: bool,
    ctx: &Context<'_>,
) -> ResolverView {
    let mut view = ResolverView {
        names: attach.local_names(ctx),
        own_addresses: ctx.own_ips(),
        ..Default::default()
    };
    let mut clients: BTreeMap<IpNet, ClientClass> = BTreeMap::new();
    if let Some(lease) = &ctx.state.lease {
        clients.extend(lease.prefixes().map(|prefix| (prefix, ClientClass::Member)));
    }
    let own = &ctx.config.router.domain;
    for member in ctx.document.live_members(ctx.now.wall) {
        if member.domain == *own {
            clients.extend(member.blocks().map(|block| (block, ClientClass::Sibling)));
            // Siblings that cannot be known are a missing vote, never "no such name".
            if !(is_current && links.knows_all()) {
                view.servers.push(DomainServer {
                    domain: member.domain.clone(),
                    router: None,
                    addresses: Vec::new(),
                    sibling: true,
                });
            }
            // A known but dead sibling is listed too: its names are unanswered, not unknown.
            let live = servers(&member.domain, links, ctx);
            for router in links.routers_of(&member.domain) {
                let server = live
                    .iter()
                    .find(|server| server.router.as_ref() == Some(&router.name));
                let addresses = server
                    .map(|server| server.addresses.clone())
                    .unwrap_or_default();
                let (domain, router) = (member.domain.clone(), Some(router.name.clone()));
                view.servers.push(DomainServer {
                    domain,
                    router,
                    addresses,
                    sibling: true,
                });
            }
            continue;
        }
        clients.extend(member.blocks().map(|block| (block, ClientClass::Remote)));
        let live = servers(&member.domain, links, ctx).into_iter().next();
        view.servers.push(live.unwrap_or_else(|| DomainServer {
            domain: member.domain.clone(),
            router: None,
            addresses: Vec::new(),
            sibling: false,
        }));
    }
    // The own prefix is inside the own block: where both are equal the members win.
    if let Some(lease) = &ctx.state.lease {
        clients.extend(lease.prefixes().map(|prefix| (prefix, ClientClass::Member)));
    }
    view.clients = clients.into_iter().collect();
    view
}

/// The live routers of one domain, the lowest name first.
fn servers(domain: &DomainName, links: &Links, ctx: &Context<'_>) -> Vec<DomainServer> {
    let live = links
        .iter()
        .filter(|(router, link)| router.domain == *domain && link.data_up());
    live.filter_map(|(router, _)| {
        let routes = ctx.state.routes.get(router)?;
        let addresses: Vec<_> = routes
            .iter()
            .filter(|route| {
                route.preference == PREFIX
                    && route.prefix.prefix_len() < route.prefix.max_prefix_len()
            })
            .map(|route| route.prefix.network())
            .collect();
        let name = Some(router.name.clone());
        (!addresses.is_empty()).then(|| DomainServer {
            domain: domain.clone(),
            router: name,
            addresses,
            sibling: false,
        })
    })
    .collect()
}

/// Everything an operator may ask, at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    pub router: RouterId,
    pub document_version: u64,
    pub lease: Option<Lease>,
    pub lease_error: Option<String>,
    pub store_error: Option<String>,
    pub fenced: bool,
    /// Own addresses that stand on the own port.
    pub own_addresses: Vec<IpNet>,
    /// Why those of the lease do not.
    pub own_error: Option<String>,
    pub links: Vec<LinkStatus>,
    pub workloads: Vec<WorkloadStatus>,
    /// Believed routes by router, and whether a stream of it is up.
    pub received: Vec<(RouterId, bool, Vec<StoredRoute>)>,
    pub disbelieved: BTreeMap<Disbelief, u64>,
    pub table: Vec<Route>,
    pub view: ResolverView,
}

/// The same as numbers; cheap enough for every scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub links: usize,
    pub links_up: usize,
    pub workloads: usize,
    pub names: usize,
    pub routes: usize,
    pub fenced: bool,
    /// The own addresses are those of the lease; without a lease there are none to set.
    pub own_set: bool,
    pub disbelieved: BTreeMap<Disbelief, u64>,
    /// Requests of workloads that were refused, by [`crate::router::Refusal::label`].
    pub refused: BTreeMap<&'static str, u64>,
}

impl RouterMachine {
    pub fn counts(&self) -> Counts {
        Counts {
            links: self.links.iter().count(),
            links_up: self.links.iter().filter(|(_, link)| link.data_up()).count(),
            workloads: self.state.workloads.len(),
            names: self.view.names.len(),
            routes: self.table.len(),
            fenced: self.fenced,
            own_set: self.own.stands(),
            disbelieved: self.routes.disbelieved().clone(),
            refused: self.attach.refused.clone(),
        }
    }

    pub fn status(&mut self, now: Now) -> Status {
        let (mut records, mut effects) = (Vec::new(), Vec::new());
        let ctx = Context {
            config: &self.config,
            document: &self.document,
            state: &mut self.state,
            tickets: &mut self.tickets,
            ports: &mut self.ports,
            rng: &mut self.rng,
            records: &mut records,
            effects: &mut effects,
            fenced: self.fenced,
            now,
        };
        Status {
            router: self.config.router.clone(),
            document_version: self.document.version,
            lease: ctx.state.lease.clone(),
            lease_error: self.lease.last_error().map(str::to_owned),
            store_error: self.journal.last_error().map(str::to_owned),
            fenced: self.fenced,
            own_addresses: self.own.standing().to_vec(),
            own_error: self.own.last_error().map(str::to_owned),
            links: self.links.status(&ctx),
            workloads: self.attach.status(&ctx),
            received: ctx
                .state
                .routes
                .iter()
                .map(|(router, routes)| {
                    (
                        router.clone(),
                        self.routes.has_stream(router),
                        routes.clone(),
                    )
                })
                .collect(),
            disbelieved: self.routes.disbelieved().clone(),
            table: self.table.clone(),
            view: self.view.clone(),
        }
    }
}
