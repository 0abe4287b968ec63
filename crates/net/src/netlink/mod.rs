//! One handle per namespace: interfaces, addresses, routes, rules.

mod address;
mod link;
mod route;
mod rule;

use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

use crate::error::Error;
use crate::namespace::Namespace;

pub use link::Link;
pub use route::{Route, TABLE_MAIN};
pub use rule::Rule;

/// A netlink connection of one namespace, usable from any task of any runtime. Clones share it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Opens a connection in the calling thread's namespace. Must be called inside a tokio
    /// runtime, on which the connection then lives.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _multicast) = rtnetlink::new_connection()
            .map_err(|source| Error::kernel("open a netlink socket", source))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The same for another namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        namespace.run(move || {
            let _inside = runtime.enter();
            Self::open()
        })
    }

    /// Sends one request and collects what comes back until the acknowledgement.
    async fn request(
        &self,
        operation: impl Fn() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let mut replies = handle.request(request).map_err(|_| Error::Closed {
            operation: operation(),
        })?;
        let mut answer = Vec::new();
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => answer.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Error::kernel(operation(), error.to_io()));
                }
                _ => {}
            }
        }
        Ok(answer)
    }
}

/// The number is an idempotent success for one kind of request.
fn accept(result: Result<Vec<RouteNetlinkMessage>, Error>, fine: &[i32]) -> Result<(), Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.errno().is_some_and(|errno| fine.contains(&errno)) => Ok(()),
        Err(error) => Err(error),
    }
}
