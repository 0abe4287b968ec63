//! The Hello: the wire's and the core's.

use vl3_core::router as core;
use vl3_proto::{FieldError, Hello, HelloRole};

/// Leaves are served from a later version on: until then they are refused by name.
pub(crate) fn to_core(hello: Hello) -> Result<core::Hello, FieldError> {
    let role = match hello.role {
        HelloRole::Router => core::HelloRole::Router,
        HelloRole::Workload => core::HelloRole::Workload,
        HelloRole::Leaf => {
            return Err(FieldError::new(
                "hello.role",
                "3 (leaf)",
                "1 (router) or 2 (workload)",
            ));
        }
    };
    Ok(core::Hello {
        version_min: hello.version_min,
        version_max: hello.version_max,
        uid: hello.uid,
        domain: hello.domain,
        name: hello.name,
        instance: hello.instance,
        generation: hello.generation,
        dials_only: hello.dials_only,
        role,
    })
}

pub(crate) fn to_wire(hello: core::Hello) -> Hello {
    let role = match hello.role {
        core::HelloRole::Router => HelloRole::Router,
        core::HelloRole::Workload => HelloRole::Workload,
    };
    Hello {
        version_min: hello.version_min,
        version_max: hello.version_max,
        uid: hello.uid,
        domain: hello.domain,
        name: hello.name,
        instance: hello.instance,
        generation: hello.generation,
        dials_only: hello.dials_only,
        role,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machine judges the range, so it must see the peer's.
    #[test]
    fn the_range_of_versions_is_the_speakers() {
        let hello = Hello {
            version_min: 2,
            version_max: 3,
            uid: vl3_core::ids::NetworkUid([1; 16]),
            domain: "east".parse().unwrap(),
            name: "red-east".to_owned(),
            instance: vl3_core::ids::InstanceId([2; 16]),
            generation: vl3_core::ids::Generation(1),
            dials_only: false,
            role: HelloRole::Router,
        };
        let read = Hello::decode(&hello.encode()).unwrap();
        let got = to_core(read).unwrap();
        assert_eq!((got.version_min, got.version_max), (2, 3));
        assert_eq!(to_wire(got), hello);
    }
}
