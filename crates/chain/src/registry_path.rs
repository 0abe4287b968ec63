//! The path of a registry call: JSON in the gRPC metadata key `path`, both ways (nsm-wire 4.4).

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The metadata key, of the request and of the initial response headers.
pub const HEADER: &str = "path";

const SEGMENTS_MAX: usize = 16;
const HEADER_MAX: usize = 32 * 1024;

/// Spelled exactly as Go's encoder does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegistryPath {
    pub index: u32,
    #[serde(deserialize_with = "null_is_empty")]
    pub path_segments: Vec<RegistrySegment>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistrySegment {
    pub token: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Vec<RegistrySegment>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// What a server works with: its own position, and the caller's to give back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedPath {
    pub path: RegistryPath,
    caller_index: u32,
}

impl RegistryPath {
    pub fn parse(header: &str) -> Result<Self, Error> {
        let bad = |what: &str| Error::Invalid(format!("metadata {HEADER:?}: {what}"));
        if header.len() > HEADER_MAX {
            return Err(bad("longer than 32768 bytes"));
        }
        let path: Self =
            serde_json::from_str(header).map_err(|error| bad(&format!("no path: {error}")))?;
        if path.path_segments.len() > SEGMENTS_MAX {
            return Err(bad("more than 16 segments"));
        }
        Ok(path)
    }

    pub fn to_header(&self) -> String {
        // Strings and integers only: cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// A client's first path.
    pub fn start(token: &str) -> Self {
        Self {
            index: 0,
            path_segments: vec![RegistrySegment {
                token: token.to_owned(),
            }],
        }
    }

    /// The server's rule: the caller's token goes into its segment, ours into the next.
    pub fn serve(mut self, caller_token: &str, own_token: &str) -> Result<ServedPath, Error> {
        let caller_index = self.index;
        let segment = |token: &str| RegistrySegment {
            token: token.to_owned(),
        };
        if self.path_segments.is_empty() {
            let path = Self {
                index: 1,
                path_segments: vec![segment(caller_token), segment(own_token)],
            };
            return Ok(ServedPath {
                path,
                caller_index: 0,
            });
        }
        let index = self.index as usize;
        let Some(previous) = self.path_segments.get_mut(index) else {
            return Err(Error::Invalid(format!(
                "metadata {HEADER:?}: Index {index} is beyond the {} segments",
                self.path_segments.len()
            )));
        };
        caller_token.clone_into(&mut previous.token);
        match self.path_segments.get_mut(index + 1) {
            Some(own) => own_token.clone_into(&mut own.token),
            None => self.path_segments.push(segment(own_token)),
        }
        self.index += 1;
        Ok(ServedPath {
            path: self,
            caller_index,
        })
    }
}

impl ServedPath {
    /// The header that goes back, in the *initial* metadata.
    pub fn answer(&self) -> String {
        RegistryPath {
            index: self.caller_index,
            ..self.path.clone()
        }
        .to_header()
    }

    /// Sets the two path ids at this hop: the caller's subject and our own. Position 0 is the
    /// owner.
    pub fn set_ids(&self, path_ids: &mut Vec<String>, caller: &str, own: &str) {
        let own_index = self.path.index as usize;
        path_ids.resize(path_ids.len().max(own_index + 1), String::new());
        path_ids.truncate(SEGMENTS_MAX);
        for (at, id) in [(own_index.saturating_sub(1), caller), (own_index, own)] {
            if let Some(slot) = path_ids.get_mut(at) {
                id.clone_into(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_spelling_is_read_and_written() {
        let null = RegistryPath::parse(r#"{"Index":0,"PathSegments":null}"#).unwrap();
        assert_eq!(null, RegistryPath::default());
        let start = RegistryPath::start("t");
        assert_eq!(
            start.to_header(),
            r#"{"Index":0,"PathSegments":[{"token":"t"}]}"#
        );
        assert_eq!(RegistryPath::parse(&start.to_header()).unwrap(), start);
    }

    #[test]
    fn the_server_appends_itself_and_gives_the_callers_index_back() {
        for start in [RegistryPath::default(), RegistryPath::start("old")] {
            let served = start.serve("caller", "own").unwrap();
            assert_eq!(served.path.index, 1);
            let answer = RegistryPath::parse(&served.answer()).unwrap();
            assert_eq!(answer.index, 0);
            let tokens: Vec<_> = answer
                .path_segments
                .iter()
                .map(|s| s.token.as_str())
                .collect();
            assert_eq!(tokens, ["caller", "own"]);
            let mut ids = Vec::new();
            served.set_ids(&mut ids, "spiffe://a/x", "spiffe://a/registry");
            assert_eq!(ids, ["spiffe://a/x", "spiffe://a/registry"]);
        }
    }

    #[test]
    fn bad_paths_are_refused_by_name() {
        let beyond = RegistryPath {
            index: 4,
            ..RegistryPath::start("t")
        };
        assert!(
            beyond
                .serve("a", "b")
                .unwrap_err()
                .to_string()
                .contains("Index 4")
        );
        assert!(
            RegistryPath::parse("{")
                .unwrap_err()
                .to_string()
                .contains("\"path\"")
        );
        let many = RegistryPath {
            index: 0,
            path_segments: vec![RegistrySegment::default(); 17],
        };
        assert!(RegistryPath::parse(&many.to_header()).is_err());
    }
}
