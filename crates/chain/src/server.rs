//! The list of elements of a component that serves `networkservice.NetworkService`, in the
//! order of a stock server.

use core::time::Duration;
use std::sync::Arc;

use crate::call::Connections;
use crate::chain::{BuildError, Chain, Element};
use crate::elements::authorize::Authorize;
use crate::elements::begin::{Begin, BeginLimits};
use crate::elements::expire::Expire;
use crate::elements::monitor::{Monitor, MonitorLimits};
use crate::elements::token::Token;
use crate::elements::trim::Trim;
use crate::elements::updatepath::{NewId, UpdatePath};
use crate::tokens::Tokens;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub begin: BeginLimits,
    pub monitor: MonitorLimits,
    /// The longest life of a connection without refresh, whatever its token claims.
    pub lifetime_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            begin: BeginLimits::default(),
            monitor: MonitorLimits::default(),
            // Stock's NSM_MAX_TOKEN_LIFETIME.
            lifetime_max: Duration::from_secs(600),
        }
    }
}

/// The chain and the monitor that its calls feed.
#[derive(Clone, Debug)]
pub struct Server {
    pub chain: Chain<Connections>,
    pub monitor: Arc<Monitor>,
}

impl Server {
    /// `tail` hands the call to the role's machine.
    pub fn new(
        name: &str,
        new_id: NewId,
        tokens: Arc<dyn Tokens>,
        limits: Limits,
        tail: impl Element<Connections>,
    ) -> Result<Self, BuildError> {
        let monitor = Monitor::new(limits.monitor);
        let chain = Chain::builder()
            .push(UpdatePath::new(name, new_id))
            .push(Begin::new(limits.begin))
            .push(Token::new(Arc::clone(&tokens)))
            .push(Authorize::new(tokens))
            .push(Expire::new(limits.lifetime_max))
            .push(Arc::clone(&monitor))
            .push(Trim)
            .push(tail)
            .build()?;
        Ok(Self { chain, monitor })
    }
}

#[cfg(test)]
pub(crate) mod tests_support {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::elements::harness::{PlainTokens, Rig, Tail, spiffe};

    /// The whole list over a recording tail; ids are `fresh-0`, `fresh-1`, ...
    pub(crate) fn full_rig() -> (Rig, Arc<Monitor>) {
        let tail = Tail::default();
        let count = AtomicU32::new(0);
        let new_id: NewId =
            Arc::new(move || format!("fresh-{}", count.fetch_add(1, Ordering::Relaxed)));
        let tokens = Arc::new(PlainTokens(spiffe("router")));
        let server = Server::new("router", new_id, tokens, Limits::default(), tail.clone())
            .expect("the order is right");
        (
            Rig {
                chain: server.chain,
                tail,
            },
            server.monitor,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::full_rig;

    #[test]
    fn the_list_is_stocks_order() {
        let (rig, _) = full_rig();
        assert_eq!(
            rig.chain.names(),
            [
                "updatepath",
                "begin",
                "token",
                "authorize",
                "expire",
                "monitor",
                "trim",
                "tail"
            ]
        );
    }
}
