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
        version_min: core::VERSION,
        version_max: core::VERSION,
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
        uid: hello.uid,
        domain: hello.domain,
        name: hello.name,
        instance: hello.instance,
        generation: hello.generation,
        dials_only: hello.dials_only,
        role,
    }
}
