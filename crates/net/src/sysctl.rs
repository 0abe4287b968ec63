//! Kernel settings of the calling thread's network namespace; see [`crate::Namespace::run`].

use crate::error::Error;

/// Writes `/proc/sys/<key>`, for example `net/ipv4/ip_forward`.
pub fn write(key: &str, value: &str) -> Result<(), Error> {
    std::fs::write(format!("/proc/sys/{key}"), value)
        .map_err(|source| Error::kernel(format!("set {key} to {value}"), source))
}

/// Reads `/proc/sys/<key>` without the line end.
pub fn read(key: &str) -> Result<String, Error> {
    std::fs::read_to_string(format!("/proc/sys/{key}"))
        .map(|text| text.trim_end().to_owned())
        .map_err(|source| Error::kernel(format!("read {key}"), source))
}

/// Lets the namespace forward packets of both families.
pub fn enable_forwarding() -> Result<(), Error> {
    write("net/ipv4/ip_forward", "1")?;
    write_if_present("net/ipv6/conf/all/forwarding", "1")
}

/// Turns off duplicate address detection for interfaces made from then on and for `interface`:
/// an address is usable at once. (Addresses set through [`crate::Netlink`] carry `nodad` anyway;
/// this is for the link-local ones that the kernel adds.)
pub fn disable_dad(interface: Option<&str>) -> Result<(), Error> {
    let place = interface.unwrap_or("default");
    write_if_present(&format!("net/ipv6/conf/{place}/accept_dad"), "0")
}

/// Keeps the kernel from giving `interface` a link-local IPv6 address and from router discovery.
pub fn quiet_ipv6(interface: &str) -> Result<(), Error> {
    write_if_present(&format!("net/ipv6/conf/{interface}/addr_gen_mode"), "1")?;
    write_if_present(&format!("net/ipv6/conf/{interface}/accept_ra"), "0")
}

/// A kernel without IPv6 has no such key, and nothing to set.
fn write_if_present(key: &str, value: &str) -> Result<(), Error> {
    if std::path::Path::new(&format!("/proc/sys/{key}")).exists() {
        write(key, value)
    } else {
        Ok(())
    }
}
