//! resolv.conf with the networks' resolvers in it, as pure text editing.
//!
//! The networks' servers come first: a stub resolver takes NXDOMAIN from the first server that
//! answers, while a network's server refuses what is not its own and the next one is asked.
//! The search list keeps the host's own suffixes in front. Both edits stand between marks, so
//! that they can be taken out again whatever happened in between.

use std::fmt::Write as _;
use std::net::IpAddr;

const SERVERS_BEGIN: &str = "# vl3 servers begin";
const SERVERS_END: &str = "# vl3 servers end";
const SEARCH_BEGIN: &str = "# vl3 search begin";
const SEARCH_END: &str = "# vl3 search end";

/// Servers that a stub resolver reads (resolv.conf(5), MAXNS); more would push the host's out.
pub(crate) const SERVERS_MAX: usize = 3;
/// Suffixes that old stub resolvers read (resolv.conf(5)).
pub(crate) const SEARCH_MAX: usize = 6;

/// `current` with these servers and suffixes in place of any put in before.
pub(crate) fn edited(current: &str, servers: &[IpAddr], suffixes: &[String]) -> String {
    let host = restored(current);
    if servers.is_empty() && suffixes.is_empty() {
        return host;
    }
    let mut text = String::new();
    if !servers.is_empty() {
        text.push_str(SERVERS_BEGIN);
        text.push('\n');
        for server in servers.iter().take(SERVERS_MAX) {
            // Writing to a String does not fail.
            let _ = writeln!(text, "nameserver {server}");
        }
        text.push_str(SERVERS_END);
        text.push('\n');
    }
    text.push_str(&host);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let search = search_list(&host, suffixes);
    if !suffixes.is_empty() {
        // Of several search lines the last counts.
        let _ = writeln!(
            text,
            "{SEARCH_BEGIN}\nsearch {}\n{SEARCH_END}",
            search.join(" ")
        );
    }
    text
}

/// `current` without what [`edited`] put in.
pub(crate) fn restored(current: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for line in current.split_inclusive('\n') {
        match line.trim_end() {
            SERVERS_BEGIN | SEARCH_BEGIN => inside = true,
            SERVERS_END | SEARCH_END => inside = false,
            _ if inside => {}
            _ => text.push_str(line),
        }
    }
    text
}

/// The host's last `search` or `domain` line, then ours, each once.
fn search_list(host: &str, suffixes: &[String]) -> Vec<String> {
    let mut list: Vec<String> = host
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            matches!(words.next(), Some("search" | "domain"))
                .then(|| words.map(str::to_owned).collect())
        })
        .next_back()
        .unwrap_or_default();
    for suffix in suffixes {
        if !list.contains(suffix) {
            list.push(suffix.clone());
        }
    }
    list.truncate(SEARCH_MAX);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# by hand\nnameserver 192.0.2.53\nsearch corp.example\noptions ndots:2\n";

    fn red() -> (Vec<IpAddr>, Vec<String>) {
        (
            vec!["10.60.0.1".parse().unwrap()],
            vec!["east.red.test".to_owned(), "red.test".to_owned()],
        )
    }

    #[test]
    fn servers_come_first_and_suffixes_after_the_hosts_own() {
        let (servers, suffixes) = red();
        let text = edited(HOST, &servers, &suffixes);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("nameserver"))
            .collect();
        assert_eq!(lines, ["nameserver 10.60.0.1", "nameserver 192.0.2.53"]);
        let search = text
            .lines()
            .rfind(|line| line.starts_with("search"))
            .unwrap();
        assert_eq!(search, "search corp.example east.red.test red.test");
        assert!(text.contains("options ndots:2"));
    }

    #[test]
    fn the_hosts_text_comes_back_byte_for_byte() {
        let (servers, suffixes) = red();
        for host in [HOST, "", "nameserver 192.0.2.53\n"] {
            assert_eq!(restored(&edited(host, &servers, &suffixes)), host);
        }
    }

    #[test]
    fn editing_twice_equals_editing_once() {
        let (servers, suffixes) = red();
        let once = edited(HOST, &servers, &suffixes);
        assert_eq!(edited(&once, &servers, &suffixes), once);
        assert_eq!(edited(&once, &[], &[]), HOST);
    }

    #[test]
    fn a_block_cut_short_by_a_crash_is_taken_out() {
        let (servers, suffixes) = red();
        let text = edited(HOST, &servers, &suffixes);
        let cut = &text[..text.len() - SEARCH_END.len() - 1];
        assert_eq!(restored(cut), HOST);
    }
}
