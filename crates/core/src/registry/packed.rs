//! An endpoint of another domain as a registry keeps it: one allocation of a few hundred
//! bytes instead of dozens, because there may be hundreds of thousands.

use core::fmt;
use std::sync::Arc;

use super::object::{Endpoint, Labels};
use crate::ids::DomainName;
use crate::time::Wall;

/// Cheap to clone; equal when the endpoints are. Every text is preceded by its length, every
/// list by its count, in the order of the fields of [`Packed::endpoint`].
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Arc<[u8]>);

impl Packed {
    pub fn new(endpoint: &Endpoint) -> Self {
        let mut bytes = Vec::with_capacity(512);
        let into = &mut bytes;
        text(into, &endpoint.name);
        text(into, &endpoint.url);
        texts(into, &endpoint.services);
        texts(into, &endpoint.path_ids);
        match endpoint.registered {
            None => into.push(0),
            Some(Wall(nanos)) => {
                into.push(1);
                number(into, nanos);
            }
        }
        count(into, endpoint.labels.len());
        for (service, labels) in &endpoint.labels {
            text(into, service);
            count(into, labels.len());
            for (key, value) in labels {
                text(into, key);
                text(into, value);
            }
        }
        Self(bytes.into())
    }

    /// Under its own name.
    pub fn name(&self) -> &str {
        Reader(&self.0).text()
    }

    pub fn url(&self) -> &str {
        let mut reader = Reader(&self.0);
        reader.text();
        reader.text()
    }

    pub fn services(&self) -> impl Iterator<Item = &str> + '_ {
        let mut reader = Reader(&self.0);
        reader.text();
        reader.text();
        let services = reader.count();
        (0..services).map(move |_| reader.text())
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn endpoint(&self) -> Endpoint {
        self.shown(|name| name.to_owned(), |service| service.to_owned())
    }

    /// As routers of the own domain see an endpoint of `domain`: `<name>@<domain>`.
    pub(super) fn for_routers(&self, domain: &DomainName) -> Endpoint {
        self.shown(
            |name| format!("{name}@{domain}"),
            |service| service.to_owned(),
        )
    }

    /// As everybody else of the own domain sees it: services are renamed as well, so that a
    /// stock client does not take them for those of its own domain.
    pub(super) fn for_others(&self, domain: &DomainName) -> Endpoint {
        let there = |name: &str| format!("{name}@{domain}");
        self.shown(there, there)
    }

    fn shown(
        &self,
        rename: impl Fn(&str) -> String,
        rename_service: impl Fn(&str) -> String,
    ) -> Endpoint {
        let mut reader = Reader(&self.0);
        let name = rename(reader.text());
        let url = reader.text().to_owned();
        let services = (0..reader.count())
            .map(|_| rename_service(reader.text()))
            .collect();
        let path_ids = (0..reader.count())
            .map(|_| reader.text().to_owned())
            .collect();
        let registered = (reader.number() == 1).then(|| Wall(reader.number()));
        let labels = (0..reader.count()).map(|_| {
            let service = rename_service(reader.text());
            let pairs = (0..reader.count()).map(|_| {
                let key = reader.text().to_owned();
                (key, reader.text().to_owned())
            });
            (service, pairs.collect::<Labels>())
        });
        Endpoint {
            labels: labels.collect(),
            name,
            services,
            url,
            registered,
            path_ids,
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint().fmt(f)
    }
}

/// Seven bits a byte, lowest first.
fn number(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn count(into: &mut Vec<u8>, count: usize) {
    number(into, count as u64);
}

fn text(into: &mut Vec<u8>, text: &str) {
    count(into, text.len());
    into.extend_from_slice(text.as_bytes());
}

fn texts(into: &mut Vec<u8>, list: &[String]) {
    count(into, list.len());
    list.iter().for_each(|element| text(into, element));
}

/// Reads what [`Packed::new`] wrote; beyond the end everything is empty.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> u64 {
        let mut value = 0;
        let mut shift = 0;
        while let Some((byte, rest)) = self.0.split_first() {
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 63 {
                break;
            }
        }
        value
    }

    fn count(&mut self) -> usize {
        usize::try_from(self.number()).unwrap_or(0)
    }

    fn text(&mut self) -> &'a str {
        let count = self.count();
        let (text, rest) = self.0.split_at_checked(count).unwrap_or_default();
        self.0 = rest;
        core::str::from_utf8(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn any_endpoint() -> impl Strategy<Value = Endpoint> {
        let texts = || prop::collection::vec(".{0,200}", 0..4);
        let labels = prop::collection::btree_map(".{0,9}", ".{0,40}", 0..9);
        let labels = prop::collection::btree_map(".{0,9}", labels, 0..4);
        let registered = prop::option::of(any::<u64>());
        (".{0,20}", texts(), labels, ".{0,40}", registered, texts()).prop_map(
            |(name, services, labels, url, registered, path_ids)| Endpoint {
                name,
                services,
                labels,
                url,
                registered: registered.map(Wall),
                path_ids,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_unchanged(a in any_endpoint(), b in any_endpoint()) {
            let packed = Packed::new(&a);
            prop_assert_eq!(&packed.endpoint(), &a);
            prop_assert_eq!(packed.name(), &a.name);
            prop_assert_eq!(packed.url(), &a.url);
            prop_assert_eq!(packed.services().collect::<Vec<_>>(), a.services.iter().collect::<Vec<_>>());
            prop_assert_eq!(packed == Packed::new(&b), a == b);
        }
    }

    #[test]
    fn routers_see_another_name_and_everybody_else_other_services_too() {
        let endpoint = Endpoint {
            name: "red-west".to_owned(),
            services: vec!["red".to_owned()],
            labels: BTreeMap::from([("red".to_owned(), Labels::new())]),
            ..Endpoint::default()
        };
        let west = DomainName::new("west").unwrap();
        let shown = Packed::new(&endpoint).for_routers(&west);
        assert_eq!(
            (shown.name.as_str(), &shown.services),
            ("red-west@west", &endpoint.services)
        );
        assert_eq!(shown.labels, endpoint.labels);
        let shown = Packed::new(&endpoint).for_others(&west);
        assert_eq!(shown.name, "red-west@west");
        assert_eq!(shown.services, ["red@west"]);
        assert!(shown.labels.contains_key("red@west"));
    }
}
