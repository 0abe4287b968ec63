//! A workload: attaches, refreshes, sends and answers echo requests.

use core::time::Duration;
use std::net::IpAddr;

use ipnet::IpNet;
use vl3_core::ids::{Generation, InstanceId, PublicKey};
use vl3_core::router::{
    Answer, ConnectionId, FdEvent, FdSession, Hello, HelloRole, Input, MechanismAnswer,
    MechanismWish, Request, WorkloadAnswer,
};

use crate::broken::Broken;
use crate::cast::{Cast, domain_name};
use crate::event::{Awaits, CallBody, Chore, Event, Node, Packet, ReplyBody};
use crate::world::World;

/// How long a workload's token lives.
pub const TOKEN_LIFE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Workload {
    pub alive: bool,
    pub lives: u32,
    pub key: PublicKey,
    pub connection: Option<ConnectionId>,
    /// The router process it talks to.
    pub router: Option<usize>,
    pub answer: Option<WorkloadAnswer>,
    pub session: Option<FdSession>,
    /// With which its descriptor was handed over.
    pub ticket: Option<[u8; 16]>,
    pub refused: Option<String>,
    /// A chain of Live chores is under way; only the newest counts.
    pub step: u64,
}

impl Workload {
    pub fn new(index: usize, _cast: &Cast) -> Self {
        let mut key = [0x77; 32];
        key[0] = u8::try_from(index).unwrap_or(u8::MAX);
        Self {
            alive: false,
            lives: 0,
            key: PublicKey(key),
            connection: None,
            router: None,
            answer: None,
            session: None,
            ticket: None,
            refused: None,
            step: 0,
        }
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.answer
            .iter()
            .flat_map(|answer| answer.addresses.iter().map(IpNet::addr))
    }

    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses().find(|address| address.is_ipv6() == v6)
    }
}

impl World {
    pub fn start_workload(&mut self, index: usize) {
        let workload = &mut self.workloads[index];
        if workload.alive {
            return;
        }
        workload.alive = true;
        workload.lives += 1;
        workload.connection = None;
        workload.answer = None;
        workload.session = None;
        workload.ticket = None;
        self.live_again(index, 1);
        let to = self.life(Node::Workload(index));
        self.later(
            Duration::from_secs(2),
            Event::Chore {
                to,
                chore: Chore::KeepAlive,
            },
        );
    }

    /// Goes without a word.
    pub fn kill_workload(&mut self, index: usize) {
        let Some((router, session)) = self.workloads[index]
            .router
            .zip(self.workloads[index].session)
        else {
            self.workloads[index].alive = false;
            self.workloads[index].answer = None;
            return;
        };
        self.workloads[index].alive = false;
        self.workloads[index].answer = None;
        self.workloads[index].session = None;
        let to = self.life(Node::Router(router));
        let input = Box::new(Input::Fd {
            session,
            event: FdEvent::Closed,
        });
        self.later(Duration::from_millis(1), Event::Local { to, input });
    }

    /// Leaves as it should.
    pub fn close_workload(&mut self, index: usize) {
        let (router, connection) = (
            self.workloads[index].router,
            self.workloads[index].connection.clone(),
        );
        if let (Some(router), Some(connection)) = (router, connection) {
            self.call(
                Node::Workload(index),
                Node::Router(router),
                CallBody::Close { connection },
                Awaits::Nothing,
            );
        }
        self.kill_workload(index);
    }

    pub fn live_again(&mut self, index: usize, millis: u64) {
        self.workloads[index].step += 1;
        let to = self.life(Node::Workload(index));
        self.later(
            Duration::from_millis(millis),
            Event::Chore {
                to,
                chore: Chore::Live,
            },
        );
    }

    pub fn workload_chore(&mut self, index: usize, chore: &Chore) {
        match chore {
            Chore::Live => self.ask_router(index),
            Chore::KeepAlive => {
                self.send_from_workload(index, Packet::KeepAlive);
                let to = self.life(Node::Workload(index));
                self.later(
                    Duration::from_secs(5),
                    Event::Chore {
                        to,
                        chore: Chore::KeepAlive,
                    },
                );
            }
            Chore::OpenWatch { .. } | Chore::Register | Chore::OpenMonitor { .. } => {}
        }
    }

    fn ask_router(&mut self, index: usize) {
        let role = self.cast.workloads[index].clone();
        // Whoever runs under the router's name: a restarted process is the same place.
        let Some(router) = self.process_of(role.router) else {
            self.live_again(index, 700);
            return;
        };
        let lives = self.workloads[index].lives;
        let workload = &mut self.workloads[index];
        if workload.router != Some(router) {
            workload.router = Some(router);
            workload.answer = None;
            workload.session = None;
        }
        let name = format!("w{index}-{lives}");
        let connection = workload
            .connection
            .get_or_insert_with(|| ConnectionId::new(&name).expect("printable"))
            .clone();
        let mechanism = if role.tun {
            MechanismWish::Tun { secret: [0; 16] }
        } else {
            MechanismWish::WireGuard {
                public_key: workload.key,
            }
        };
        let addresses: Vec<IpAddr> = workload.addresses().collect();
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&self.number().to_be_bytes());
        secret[8..].copy_from_slice(&self.rng.next_u64().to_be_bytes());
        let mechanism = match mechanism {
            MechanismWish::Tun { .. } => MechanismWish::Tun { secret },
            other @ MechanismWish::WireGuard { .. } => other,
        };
        let mut instance = [9; 16];
        instance[0] = u8::try_from(index).unwrap_or(u8::MAX);
        let request = Request {
            connection,
            peer: role.id.clone(),
            claimed: None,
            hello: Some(Hello {
                version_min: 1,
                version_max: 1,
                uid: self.cast.networks[role.network].uid,
                domain: domain_name(role.domain),
                name: role.name.to_string(),
                instance: InstanceId(instance),
                generation: Generation(0),
                dials_only: false,
                role: HelloRole::Workload,
            }),
            name: Some(role.name),
            mechanism,
            addresses,
            excluded: Vec::new(),
            mtu: 0,
            expires_in: TOKEN_LIFE,
            local: (!role.tun).then(|| self.routers[router].address.ip()),
        };
        self.call(
            Node::Workload(index),
            Node::Router(router),
            CallBody::Request(Box::new(request)),
            Awaits::Attached,
        );
    }

    /// The process that runs under a router's name; of two the newer one.
    pub fn process_of(&self, role: usize) -> Option<usize> {
        (0..self.routers.len()).rev().find(|index| {
            self.routers[*index].role == role && self.routers[*index].machine.is_some()
        })
    }

    pub fn workload_answered(&mut self, index: usize, body: ReplyBody) -> Result<(), Broken> {
        match body {
            ReplyBody::Router(answer) => match *answer {
                Ok(Answer::Workload(answer)) => {
                    self.workloads[index].refused = None;
                    let retry = self.attached(index, answer)?;
                    self.live_again(index, if retry { 100 } else { 10_000 });
                }
                Ok(_) => {}
                Err(refusal) => {
                    self.workloads[index].refused = Some(refusal.to_string());
                    self.live_again(index, 1_000);
                }
            },
            ReplyBody::Nothing => self.live_again(index, 500),
            ReplyBody::Registry(_) => {}
        }
        Ok(())
    }

    /// Whether another Request is needed soon (the descriptor is on its way).
    fn attached(&mut self, index: usize, answer: WorkloadAnswer) -> Result<bool, Broken> {
        self.check_answer(index, &answer)?;
        let Some(router) = self.workloads[index].router else {
            return Ok(true);
        };
        let secret = match answer.mechanism {
            // The ticket that is known already says that the descriptor is in place.
            MechanismAnswer::Tun { secret } => {
                let workload = &self.workloads[index];
                (workload.session.is_none() || workload.ticket != Some(secret)).then_some(secret)
            }
            MechanismAnswer::WireGuard { .. } => None,
        };
        let first = self.workloads[index].answer.is_none();
        self.workloads[index].answer = Some(answer);
        if let Some(secret) = secret {
            let session = FdSession(self.number());
            self.workloads[index].session = Some(session);
            self.workloads[index].ticket = Some(secret);
            let to = self.life(Node::Router(router));
            let input = Box::new(Input::Fd {
                session,
                event: FdEvent::Attach { secret },
            });
            self.later(Duration::from_micros(300), Event::Local { to, input });
        } else if first {
            self.send_from_workload(index, Packet::Handshake);
        }
        Ok(false)
    }

    pub fn fd_answered(&mut self, _router: usize, session: FdSession, ok: bool) {
        let Some(index) = self
            .workloads
            .iter()
            .position(|workload| workload.session == Some(session))
        else {
            return;
        };
        if !ok {
            self.workloads[index].session = None;
            self.live_again(index, 300);
        }
    }

    /// A router is gone: whoever was attached by descriptor sees its socket end.
    pub fn descriptors_end(&mut self, router: usize) {
        for index in 0..self.workloads.len() {
            if self.workloads[index].router == Some(router)
                && self.workloads[index].session.take().is_some()
            {
                self.live_again(index, 100);
            }
        }
    }

    // --- packets
}
