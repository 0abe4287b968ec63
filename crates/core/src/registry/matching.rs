//! Which objects a Find means (nsm-wire 4.2): an unset field of the query is any.

use super::object::{Endpoint, Labels, Match, Service, labels_per_service_size, texts};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointQuery {
    /// Equal; empty = any.
    pub name: String,
    /// Every one is in the endpoint's list.
    pub services: Vec<String>,
    /// Per queried key: the endpoint has the key and every queried pair.
    pub labels: BTreeMap<String, Labels>,
    /// Part of the endpoint's URL.
    pub url: String,
    /// Expires in that Unix second.
    pub expires_unix_secs: Option<u64>,
}

impl EndpointQuery {
    /// The measure of its size limit: a watch keeps its query.
    pub fn size(&self) -> usize {
        self.name.len()
            + self.url.len()
            + texts(&self.services)
            + labels_per_service_size(&self.labels)
    }

    /// Whether it names something of another domain (`name@domain`): what other domains say is
    /// no answer to anything else, as stock registries hold it in a place of its own.
    pub fn asks_elsewhere(&self) -> bool {
        let names = self.services.iter().chain(self.labels.keys());
        names.chain([&self.name]).any(|name| name.contains('@'))
    }

    pub fn matches(&self, endpoint: &Endpoint, expires_unix_secs: u64) -> bool {
        (self.name.is_empty() || self.name == endpoint.name)
            && self
                .services
                .iter()
                .all(|service| endpoint.services.contains(service))
            && self.labels.iter().all(|(service, wanted)| {
                endpoint.labels.get(service).is_some_and(|labels| {
                    wanted
                        .iter()
                        .all(|(key, value)| labels.get(key) == Some(value))
                })
            })
            && endpoint.url.contains(&self.url)
            && self
                .expires_unix_secs
                .is_none_or(|wanted| wanted == expires_unix_secs)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceQuery {
    pub name: String,
    pub payload: String,
    /// Equal in order, if given.
    pub matches: Vec<Match>,
}

impl ServiceQuery {
    /// The measure of its size limit: a watch keeps its query.
    pub fn size(&self) -> usize {
        self.name.len() + self.payload.len() + self.matches.iter().map(Match::size).sum::<usize>()
    }

    pub fn matches(&self, service: &Service) -> bool {
        (self.name.is_empty() || self.name == service.name)
            && (self.payload.is_empty() || self.payload == service.payload)
            && (self.matches.is_empty() || self.matches == service.matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        let labels = Labels::from([
            ("app".to_owned(), "x".to_owned()),
            ("zone".to_owned(), "1".to_owned()),
        ]);
        Endpoint {
            name: "nse-1".to_owned(),
            services: vec!["a".to_owned(), "b".to_owned()],
            labels: BTreeMap::from([("a".to_owned(), labels)]),
            url: "tcp://192.0.2.1:5010".to_owned(),
            ..Endpoint::default()
        }
    }

    #[test]
    fn an_empty_query_means_every_endpoint() {
        assert!(EndpointQuery::default().matches(&endpoint(), 7));
    }

    #[test]
    fn an_at_sign_in_any_name_asks_another_domain() {
        let query = |edit: fn(&mut EndpointQuery)| {
            let mut query = EndpointQuery::default();
            edit(&mut query);
            query.asks_elsewhere()
        };
        assert!(!query(|_| {}));
        assert!(!query(|query| query.url = "tcp://a@b".to_owned()));
        assert!(query(|query| query.name = "nse@west".to_owned()));
        assert!(query(
            |query| query.services = vec!["a".to_owned(), "b@west".to_owned()]
        ));
        assert!(query(|query| {
            query.labels.insert("a@west".to_owned(), Labels::new());
        }));
    }

    #[test]
    fn every_field_of_a_service_query_narrows_it() {
        let rule = |weight| Match {
            routes: vec![super::super::Destination {
                weight,
                ..Default::default()
            }],
            ..Match::default()
        };
        let service = Service {
            name: "a".to_owned(),
            payload: "IP".to_owned(),
            matches: vec![rule(1), rule(2)],
            ..Service::default()
        };
        let matches = |name: &str, payload: &str, rules: Vec<Match>| {
            let query = ServiceQuery {
                name: name.to_owned(),
                payload: payload.to_owned(),
                matches: rules,
            };
            query.matches(&service)
        };
        assert!(matches("", "", Vec::new()));
        assert!(matches("a", "IP", vec![rule(1), rule(2)]));
        assert!(!matches("b", "", Vec::new()));
        assert!(!matches("", "ETHERNET", Vec::new()));
        assert!(!matches("", "", vec![rule(2), rule(1)]), "in order");
        assert!(!matches("", "", vec![rule(1)]), "and whole");
    }

    #[test]
    fn every_field_of_a_query_narrows_it() {
        let matches = |query: EndpointQuery| query.matches(&endpoint(), 7);
        assert!(matches(EndpointQuery {
            services: vec!["b".into(), "a".into()],
            ..Default::default()
        }));
        assert!(!matches(EndpointQuery {
            services: vec!["a".into(), "c".into()],
            ..Default::default()
        }));
        assert!(matches(EndpointQuery {
            url: "192.0.2.1".into(),
            ..Default::default()
        }));
        assert!(!matches(EndpointQuery {
            url: "192.0.2.2".into(),
            ..Default::default()
        }));
        assert!(!matches(EndpointQuery {
            name: "nse".into(),
            ..Default::default()
        }));
        assert!(matches(EndpointQuery {
            expires_unix_secs: Some(7),
            ..Default::default()
        }));
        assert!(!matches(EndpointQuery {
            expires_unix_secs: Some(8),
            ..Default::default()
        }));
        let wanted = |service: &str, value: &str| EndpointQuery {
            labels: BTreeMap::from([(
                service.to_owned(),
                Labels::from([("app".into(), value.into())]),
            )]),
            ..Default::default()
        };
        assert!(matches(wanted("a", "x")));
        assert!(!matches(wanted("a", "y")));
        assert!(!matches(wanted("b", "x")));
    }
}
