//! Compiles the wire contract with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "nsm/connectioncontext.proto",
        "nsm/connection.proto",
        "nsm/networkservice.proto",
        "nsm/registry.proto",
        "nsm/ipam.proto",
        "vl3/network/v1/network.proto",
        "vl3/ipam/v1/ipam.proto",
        "vl3/registry/v1/registry.proto",
        "vl3/router/v1/router.proto",
    ];
    let descriptors = protox::compile(files, ["nsm", "."])?;
    tonic_prost_build::configure()
        // Stable bytes: documents are signed, states are compared.
        .btree_map(".")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=nsm");
    println!("cargo:rerun-if-changed=vl3");
    Ok(())
}
