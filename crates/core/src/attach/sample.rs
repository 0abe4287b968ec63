//! Workloads' ports as the data plane has them: a level, where events are edges that may be lost.

use std::collections::BTreeMap;

use crate::forward::PortId;
use crate::router::context::Context;
use crate::router::{ConnectionId, Endpoint, PortSample};

use super::Attach;

impl Attach {
    /// Whose each port is; made once for all samples.
    pub(crate) fn by_port(&self) -> BTreeMap<PortId, ConnectionId> {
        self.served
            .iter()
            .filter_map(|(connection, served)| Some((served.port?, connection.clone())))
            .collect()
    }

    /// `learned`: where an authentic packet came from.
    pub(crate) fn sampled(
        &mut self,
        connection: &ConnectionId,
        sample: &PortSample,
        learned: Option<Endpoint>,
        ctx: &mut Context<'_>,
    ) {
        if let (Some(served), Some(at)) = (self.served.get_mut(connection), sample.last_receive) {
            served.heard = served.heard.max(at);
        }
        if let Some(endpoint) = learned {
            Self::learned_of(connection, endpoint, ctx);
        }
        if sample.failed {
            self.failed(connection, ctx);
        }
    }
}
