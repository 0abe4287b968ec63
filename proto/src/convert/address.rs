//! CIDR strings. NSM emits prefixes with host bits set (`10.0.5.0/16`): they are masked, not
//! refused (nsm-wire 3.10).

use std::net::IpAddr;

use ipnet::IpNet;

use super::FieldError;

const PREFIX: &str = "an IPv4 or IPv6 prefix such as 10.0.0.0/24 or fd00::/64";
const SINGLE: &str = "one address such as 10.0.0.1/32 or fd00::1/128";

/// One prefix, host bits masked. A bare address is its /32 or /128.
pub fn prefix(field: &str, value: &str) -> Result<IpNet, FieldError> {
    value
        .parse::<IpNet>()
        .map(|net| net.trunc())
        .or_else(|_| value.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| FieldError::new(field, value, PREFIX))
}

/// All prefixes of a repeated field, in order, without duplicates; the error names the index.
pub fn prefixes<S: AsRef<str>>(field: &str, values: &[S]) -> Result<Vec<IpNet>, FieldError> {
    let mut all = Vec::with_capacity(values.len().min(1024));
    for (index, value) in values.iter().enumerate() {
        let net = prefix(&format!("{field}[{index}]"), value.as_ref())?;
        if !all.contains(&net) {
            all.push(net);
        }
    }
    Ok(all)
}

/// A field that must hold one host's address.
pub fn single_address(field: &str, value: &str) -> Result<IpAddr, FieldError> {
    let bad = || FieldError::new(field, value, SINGLE);
    match value.parse::<IpNet>() {
        Ok(net) if net.prefix_len() == net.max_prefix_len() => Ok(net.addr()),
        Ok(_) => Err(bad()),
        Err(_) => value.parse().map_err(|_| bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_masked_and_duplicates_dropped() {
        let got = prefixes("r", &["10.0.5.0/16", "10.0.0.0/16", "fd00::1"]).unwrap();
        assert_eq!(
            got,
            vec![
                "10.0.0.0/16".parse().unwrap(),
                "fd00::1/128".parse().unwrap()
            ]
        );
    }

    #[test]
    fn a_bad_prefix_names_its_index_and_value() {
        let error = prefixes("src_routes", &["10.0.0.0/8", "10.0.0.0/33"]).unwrap_err();
        assert_eq!(
            (error.field.as_str(), error.value.as_str()),
            ("src_routes[1]", "10.0.0.0/33")
        );
    }

    #[test]
    fn a_network_is_no_single_address() {
        assert!(single_address("a", "10.0.0.0/24").is_err());
        assert_eq!(
            single_address("a", "10.0.0.1/32").unwrap(),
            IpAddr::from([10, 0, 0, 1])
        );
    }
}
