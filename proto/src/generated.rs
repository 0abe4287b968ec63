//! What the proto compiler wrote. The module tree mirrors the package names, which the
//! generated code refers to by `super::`.
#![expect(clippy::all, reason = "generated code")]

pub mod connectioncontext {
    tonic::include_proto!("connectioncontext");
}
pub mod connection {
    tonic::include_proto!("connection");
}
pub mod networkservice {
    tonic::include_proto!("networkservice");
}
pub mod registry {
    tonic::include_proto!("registry");
}
pub mod ipam {
    tonic::include_proto!("ipam");
}
pub mod vl3 {
    pub mod network {
        pub mod v1 {
            tonic::include_proto!("vl3.network.v1");
        }
    }
    pub mod ipam {
        pub mod v1 {
            tonic::include_proto!("vl3.ipam.v1");
        }
    }
    pub mod registry {
        pub mod v1 {
            tonic::include_proto!("vl3.registry.v1");
        }
    }
    pub mod router {
        pub mod v1 {
            tonic::include_proto!("vl3.router.v1");
        }
    }
}
