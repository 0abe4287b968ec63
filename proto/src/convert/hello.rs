//! The Hello: how our components know each other inside NSM messages
//! (`extra_context["vl3"]`, base64 of protobuf).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use vl3_core::ids::{DomainName, Generation, InstanceId, NetworkUid};

use super::{FieldError, instance_id, network_uid};
use crate::vl3::router::v1 as wire;

/// The one key of ours in `extra_context`.
pub const HELLO_KEY: &str = "vl3";

/// Enough for every field at its limit.
const ENCODED_MAX: usize = 2048;
const NAME: &str = "1 to 253 characters without spaces";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HelloRole {
    Router,
    Workload,
    Leaf,
}

/// Who speaks, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol versions that the speaker speaks. Whether one of them is spoken here is
    /// for the reader to say.
    pub version_min: u32,
    pub version_max: u32,
    pub uid: NetworkUid,
    pub domain: DomainName,
    /// Router name, or the workload's name.
    pub name: String,
    pub instance: InstanceId,
    /// Of the speaker's lease; 0 for a workload.
    pub generation: Generation,
    pub dials_only: bool,
    pub role: HelloRole,
}

impl Hello {
    /// The Hello of a context, unset where the peer has no marker (a stock component).
    pub fn from_extra_context(
        extra: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, FieldError> {
        extra
            .get(HELLO_KEY)
            .map(|value| Self::decode(value))
            .transpose()
    }

    pub fn decode(text: &str) -> Result<Self, FieldError> {
        let field = "context.extra_context[\"vl3\"]";
        let bad = |allowed| FieldError::new(field, text, allowed);
        if text.len() > ENCODED_MAX {
            return Err(bad("at most 2048 characters"));
        }
        let bytes = STANDARD
            .decode(text)
            .map_err(|_| bad("standard base64 of a Hello"))?;
        let message = wire::Hello::decode(bytes.as_slice())
            .map_err(|_| bad("base64 of an encoded vl3.router.v1.Hello"))?;
        Self::from_message(&message)
    }

    fn from_message(message: &wire::Hello) -> Result<Self, FieldError> {
        if message.version_min == 0 || message.version_max < message.version_min {
            let range = format!("{}..{}", message.version_min, message.version_max);
            return Err(FieldError::new("hello.version", range, "a range from 1 on"));
        }
        let role = match message.role() {
            wire::Role::Router => HelloRole::Router,
            wire::Role::Workload => HelloRole::Workload,
            wire::Role::Leaf => HelloRole::Leaf,
            wire::Role::Unspecified => {
                return Err(FieldError::new(
                    "hello.role",
                    message.role.to_string(),
                    "1 (router), 2 (workload) or 3 (leaf)",
                ));
            }
        };
        let named = (1..=253).contains(&message.name.len())
            && !message
                .name
                .chars()
                .any(|c| c.is_whitespace() || c.is_control());
        if !named {
            return Err(FieldError::new("hello.name", &message.name, NAME));
        }
        Ok(Self {
            version_min: message.version_min,
            version_max: message.version_max,
            uid: network_uid("hello.uid", &message.uid)?,
            domain: DomainName::new(&message.domain)
                .map_err(|error| FieldError::new("hello.domain", error.value, error.allowed))?,
            name: message.name.clone(),
            instance: instance_id("hello.instance", &message.instance)?,
            generation: Generation(message.generation),
            dials_only: message.dials_only,
            role,
        })
    }

    pub fn encode(&self) -> String {
        let role = match self.role {
            HelloRole::Router => wire::Role::Router,
            HelloRole::Workload => wire::Role::Workload,
            HelloRole::Leaf => wire::Role::Leaf,
        };
        let message = wire::Hello {
            version_min: self.version_min,
            version_max: self.version_max,
            uid: self.uid.0.to_vec(),
            domain: self.domain.to_string(),
            name: self.name.clone(),
            instance: self.instance.0.to_vec(),
            generation: self.generation.0,
            dials_only: self.dials_only,
            role: role.into(),
        };
        STANDARD.encode(message.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 3,
            uid: NetworkUid([1; 16]),
            domain: DomainName::new("east").unwrap(),
            name: "red-east".to_owned(),
            instance: InstanceId([2; 16]),
            generation: Generation(3),
            dials_only: true,
            role: HelloRole::Router,
        }
    }

    #[test]
    fn a_hello_round_trips() {
        assert_eq!(Hello::decode(&hello().encode()).unwrap(), hello());
        let extra = BTreeMap::from([(HELLO_KEY.to_owned(), hello().encode())]);
        assert_eq!(Hello::from_extra_context(&extra).unwrap(), Some(hello()));
        assert_eq!(Hello::from_extra_context(&BTreeMap::new()).unwrap(), None);
    }

    #[test]
    fn a_bad_hello_names_its_field() {
        for (text, field) in [
            ("%%%".to_owned(), "context.extra_context[\"vl3\"]"),
            ("A".repeat(4096), "context.extra_context[\"vl3\"]"),
            (
                STANDARD.encode(wire::Hello::default().encode_to_vec()),
                "hello.version",
            ),
        ] {
            assert_eq!(Hello::decode(&text).unwrap_err().field, field);
        }
        for (version_min, version_max) in [(0, 1), (3, 2)] {
            let wrong = Hello {
                version_min,
                version_max,
                ..hello()
            };
            assert_eq!(
                Hello::decode(&wrong.encode()).unwrap_err().field,
                "hello.version"
            );
        }
        let mut wrong = hello();
        wrong.name = "two words".to_owned();
        assert_eq!(
            Hello::decode(&wrong.encode()).unwrap_err().field,
            "hello.name"
        );
    }
}
