//! What an operator reads at INFO: each change of links, workloads and registry once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vl3_core::ids::WorkloadName;
use vl3_core::router::{ResolverView, RouterId, StreamId};

/// Remembers what was said.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    streams: BTreeMap<StreamId, RouterId>,
    names: BTreeMap<WorkloadName, Vec<IpAddr>>,
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    LinkUp(RouterId),
    LinkDown(RouterId),
    Attached(WorkloadName, Vec<IpAddr>),
    Gone(WorkloadName, Vec<IpAddr>),
}

impl Narrator {
    /// A link is up as long as routes are exchanged over it, by one stream or several.
    pub(crate) fn stream_started(&mut self, stream: StreamId, router: RouterId) -> Option<Line> {
        let known = self.streams.values().any(|other| *other == router);
        self.streams.insert(stream, router.clone());
        (!known).then_some(Line::LinkUp(router))
    }

    pub(crate) fn stream_ended(&mut self, stream: StreamId) -> Option<Line> {
        let router = self.streams.remove(&stream)?;
        let known = self.streams.values().any(|other| *other == router);
        (!known).then_some(Line::LinkDown(router))
    }

    pub(crate) fn published(&mut self, view: &ResolverView) -> Vec<Line> {
        let before = std::mem::replace(&mut self.names, view.names.clone());
        let all: BTreeSet<_> = before.keys().chain(self.names.keys()).collect();
        let mut lines = Vec::new();
        for name in all {
            match (before.get(name), self.names.get(name)) {
                (was, Some(is)) if was != Some(is) => {
                    lines.push(Line::Attached(name.clone(), is.clone()));
                }
                (Some(was), None) => lines.push(Line::Gone(name.clone(), was.clone())),
                _ => {}
            }
        }
        lines
    }
}

impl Line {
    pub(crate) fn log(&self) {
        match self {
            Self::LinkUp(router) => tracing::info!(%router, "link up"),
            Self::LinkDown(router) => tracing::info!(%router, "link down"),
            Self::Attached(name, addresses) => {
                tracing::info!(%name, ?addresses, "workload attached");
            }
            Self::Gone(name, addresses) => tracing::info!(%name, ?addresses, "workload gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use vl3_core::ids::{DomainName, RouterName};

    use super::*;

    #[test]
    fn a_link_of_two_streams_is_up_once_and_down_once() {
        let west = RouterId {
            name: RouterName::new("red-west").unwrap(),
            domain: DomainName::new("west").unwrap(),
        };
        let mut narrator = Narrator::default();
        assert_eq!(
            narrator.stream_started(StreamId(1), west.clone()),
            Some(Line::LinkUp(west.clone()))
        );
        assert_eq!(narrator.stream_started(StreamId(2), west.clone()), None);
        assert_eq!(narrator.stream_ended(StreamId(1)), None);
        assert_eq!(
            narrator.stream_ended(StreamId(2)),
            Some(Line::LinkDown(west))
        );
        assert_eq!(narrator.stream_ended(StreamId(2)), None);
    }

    #[test]
    fn a_workload_is_told_when_it_comes_and_when_it_goes() {
        let name = WorkloadName::new("web").unwrap();
        let addresses = vec![IpAddr::from([10, 80, 4, 2])];
        let with = ResolverView {
            names: BTreeMap::from([(name.clone(), addresses.clone())]),
            ..ResolverView::default()
        };
        let mut narrator = Narrator::default();
        assert_eq!(
            narrator.published(&with),
            [Line::Attached(name.clone(), addresses.clone())]
        );
        assert!(narrator.published(&with).is_empty());
        assert_eq!(
            narrator.published(&ResolverView::default()),
            [Line::Gone(name, addresses)]
        );
    }
}
