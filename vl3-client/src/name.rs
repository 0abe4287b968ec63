//! The interface's name.

use vl3_net::tun::NAME_LEN_MAX;

/// `vl3-<network>`, cut to what Linux takes; a cut or taken name gets its position instead of
/// its end, so that two networks of one client never share one.
pub(crate) fn interface_name(network: &str, position: usize, taken: &[String]) -> String {
    let mut name = format!("vl3-{network}");
    if name.len() > NAME_LEN_MAX || taken.contains(&name) {
        let end = format!("~{position}");
        name.truncate(NAME_LEN_MAX - end.len());
        name.push_str(&end);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_equal_names_stay_short_and_apart() {
        assert_eq!(interface_name("red", 0, &[]), "vl3-red");
        let long = interface_name("a-very-long-network", 1, &[]);
        assert_eq!((long.as_str(), long.len()), ("vl3-a-very-lo~1", 15));
        assert_eq!(
            interface_name("red", 2, &["vl3-red".to_owned()]),
            "vl3-red~2"
        );
    }
}
