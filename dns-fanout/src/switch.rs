//! Which view answers a client (R1.1): by the address that it asks and by its own.
//!
//! Each view has an engine of its own, so that nothing of one can reach another. Where several
//! views share an address, the first of them reads its sockets and hands questions of others'
//! clients over; each replies by the socket that the question came by.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use vl3_core::names::ByPrefix;

use crate::engine::{Command, Forwarded, Sender};

/// The views that share one address.
#[derive(Clone, Debug)]
pub(crate) struct Switch {
    /// The first serves whoever is no other's client.
    engines: Vec<Sender>,
    by_client: Arc<ByPrefix<usize>>,
}

/// The other views behind a UDP socket, as its reader knows them.
#[derive(Debug)]
pub(crate) struct Others {
    by_client: Arc<ByPrefix<usize>>,
    /// Each with the number under which it knows the socket. The reader itself stands first.
    views: Vec<(Sender, u32)>,
}

impl Switch {
    pub(crate) fn one(engine: Sender) -> Self {
        Self::new(vec![engine], ByPrefix::default())
    }

    /// `by_client` chooses by place in the list.
    pub(crate) fn new(engines: Vec<Sender>, by_client: ByPrefix<usize>) -> Self {
        Self {
            engines,
            by_client: Arc::new(by_client),
        }
    }

    /// The engine of a client's view.
    pub(crate) fn engine(&self, client: IpAddr) -> Option<&Sender> {
        let place = self.by_client.lookup(client.to_canonical()).unwrap_or(0);
        self.engines.get(place)
    }

    /// Lets the first view read the sockets, and the others reply by them.
    pub(crate) async fn listen(&self, sockets: Vec<UdpSocket>, number: u32) -> anyhow::Result<()> {
        let Some((first, others)) = self.engines.split_first() else {
            return Ok(());
        };
        if others.is_empty() {
            // Err: the engine ended, which is told elsewhere.
            let _ended = first.send(Command::Listen(sockets)).await;
            return Ok(());
        }
        for (number, socket) in (number..).zip(sockets) {
            let mut views = vec![(first.clone(), number)];
            for other in others {
                let lent = socket.try_clone()?;
                // Before the first question can be handed over.
                let _ended = other.send(Command::Lend(number, lent)).await;
                views.push((other.clone(), number));
            }
            let others = Arc::new(Others {
                by_client: Arc::clone(&self.by_client),
                views,
            });
            let _ended = first.send(Command::Share(socket, others)).await;
        }
        Ok(())
    }
}

/// What becomes of a datagram.
pub(crate) enum Handed {
    /// It is the reader's own.
    Own,
    Over,
    /// The other view is too far behind.
    Behind,
}

impl Others {
    /// Hands a question of another view's client over.
    pub(crate) fn hand_over(
        &self,
        client: SocketAddr,
        local: Option<IpAddr>,
        message: &[u8],
    ) -> Handed {
        let place = self.by_client.lookup(client.ip().to_canonical());
        let Some((engine, socket)) = place
            .filter(|place| *place > 0)
            .and_then(|place| self.views.get(place))
        else {
            return Handed::Own;
        };
        let forwarded = Forwarded {
            socket: *socket,
            client,
            local,
            message: message.to_vec(),
        };
        if engine.try_send(Command::Forwarded(forwarded)) {
            Handed::Over
        } else {
            Handed::Behind
        }
    }
}
