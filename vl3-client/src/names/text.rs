//! resolv.conf with the networks' resolvers in it, as pure text editing.
//!
//! Every line that is put in stands below a mark that quotes it, and a line is taken out only when
//! it still is what its mark says: the host's own text is never ours, whoever wrote what in between.
//! A further mark per client names the process and what it wants, so that several clients share one
//! file and the lines of a killed one are found.
//!
//! The networks' servers come first: a stub resolver takes NXDOMAIN from the first server that
//! answers, while a network's server refuses what is not its own and the next one is asked. The
//! search list keeps the host's own suffixes in front (R1.11).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::process::Process;

/// Servers that a stub resolver reads (resolv.conf(5), MAXNS).
const SERVERS_READ: usize = 3;
/// What a stub resolver asks where no server is named (resolv.conf(5)).
const SERVER_IMPLIED: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const OWNER: &str = "# vl3 client ";
const MADE: &str = "# vl3 made this file and removes it again";
const OURS: &str = "# vl3 takes the next line out again: ";
/// The same where the host's text had no final line end.
const OURS_AND_END: &str =
    "# vl3 takes the next line, and the line end above this one, out again: ";

/// A client that wants lines in the file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    /// Of the client; without white space (it names directories, too).
    pub(crate) name: String,
    pub(crate) process: Process,
}

/// What one client wants in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) suffixes: Vec<String>,
}

impl Entries {
    pub(crate) const fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.suffixes.is_empty()
    }
}

/// The host's text, and what clients want in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvText {
    host: String,
    /// There was no file before.
    pub(crate) made: bool,
    pub(crate) owners: BTreeMap<Owner, Entries>,
}

/// A text to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) text: String,
    /// Servers for which there is no room: of three places one is the host's.
    pub(crate) left_out: Vec<IpAddr>,
}

impl ResolvText {
    pub(crate) fn parse(current: &str) -> Self {
        let mut parsed = Self::default();
        let mut quoted: Option<&str> = None;
        let mut end_added_at = None;
        for line in current.split_inclusive('\n') {
            let body = line.strip_suffix('\n').unwrap_or(line);
            if quoted.take() == Some(body) {
                continue;
            }
            if body == MADE {
                parsed.made = true;
            } else if let Some((owner, entries)) = parse_owner(body) {
                parsed.owners.insert(owner, entries);
            } else if let Some(ours) = body.strip_prefix(OURS) {
                quoted = Some(ours);
            } else if let Some(ours) = body.strip_prefix(OURS_AND_END) {
                quoted = Some(ours);
                end_added_at = Some(parsed.host.len());
            } else {
                parsed.host.push_str(line);
            }
        }
        // Not where somebody has added a line since.
        if end_added_at == Some(parsed.host.len()) && parsed.host.ends_with('\n') {
            parsed.host.pop();
        }
        parsed
    }

    /// Whether nothing is left of a file that was made here.
    pub(crate) fn is_to_be_removed(&self) -> bool {
        self.made && self.owners.is_empty() && self.host.is_empty()
    }

    /// The whole file. `domain` is that of the host's name, which stub resolvers search where the
    /// file says nothing else (resolv.conf(5), `search`).
    pub(crate) fn written(&self, domain: Option<&str>) -> Written {
        let own = self.own_servers();
        let room = SERVERS_READ - own.len().clamp(1, SERVERS_READ - 1);
        let mut servers: Vec<IpAddr> = Vec::new();
        for server in self.owners.values().flat_map(|entries| &entries.servers) {
            if !servers.contains(server) {
                servers.push(*server);
            }
        }
        let left_out = servers.split_off(servers.len().min(room));
        if !servers.is_empty() && own.is_empty() {
            servers.push(SERVER_IMPLIED);
        }

        let mut text = String::new();
        // Writing to a String does not fail.
        if self.made && !self.owners.is_empty() {
            let _ = writeln!(text, "{MADE}");
        }
        for (owner, entries) in &self.owners {
            let _ = writeln!(text, "{}", owner_line(owner, entries));
        }
        for server in servers {
            let _ = writeln!(text, "{OURS}nameserver {server}\nnameserver {server}");
        }
        text.push_str(&self.host);
        if let Some(search) = self.search_line(domain) {
            let mark = if self.host.is_empty() || self.host.ends_with('\n') {
                OURS
            } else {
                text.push('\n');
                OURS_AND_END
            };
            // Of several search lines the last counts.
            let _ = writeln!(text, "{mark}{search}\n{search}");
        }
        Written { text, left_out }
    }

    fn own_servers(&self) -> Vec<&str> {
        let words = self.host.lines().map(str::split_whitespace);
        words
            .filter_map(|mut words| (words.next()? == "nameserver").then(|| words.next())?)
            .collect()
    }

    /// The host's last `search` or `domain` line, else its domain; then ours, each once. None
    /// where ours are searched anyway.
    fn search_line(&self, domain: Option<&str>) -> Option<String> {
        let mut own = self.host.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            matches!(words.next(), Some("search" | "domain")).then(|| words.collect::<Vec<_>>())
        });
        let mut list = own
            .next_back()
            .unwrap_or_else(|| domain.into_iter().collect());
        let own = list.len();
        for suffix in self.owners.values().flat_map(|entries| &entries.suffixes) {
            let known = |listed: &&str| listed.trim_end_matches('.').eq_ignore_ascii_case(suffix);
            if !list.iter().any(known) {
                list.push(suffix);
            }
        }
        (list.len() > own).then(|| format!("search {}", list.join(" ")))
    }
}

fn owner_line(owner: &Owner, entries: &Entries) -> String {
    let servers: Vec<String> = entries.servers.iter().map(ToString::to_string).collect();
    format!(
        "{OWNER}{} {} servers={} search={}",
        owner.name,
        owner.process,
        servers.join(","),
        entries.suffixes.join(",")
    )
}

/// None: the line is somebody else's.
fn parse_owner(line: &str) -> Option<(Owner, Entries)> {
    let rest = line.strip_prefix(OWNER)?;
    let (name, rest) = rest.split_once(' ')?;
    let (process, rest) = rest.split_once(" servers=")?;
    let (servers, search) = rest.split_once(" search=")?;
    let servers = words(servers).map(str::parse).collect::<Result<_, _>>();
    let entries = Entries {
        servers: servers.ok()?,
        suffixes: words(search).map(str::to_owned).collect(),
    };
    let owner = Owner {
        name: name.to_owned(),
        process: Process::parse(process)?,
    };
    Some((owner, entries))
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# by hand\nnameserver 192.0.2.53\nsearch corp.example\noptions ndots:2\n";

    fn owner(name: &str, pid: u32) -> Owner {
        let process = format!("boot=b pids=1 pid={pid} since=9");
        Owner {
            name: name.to_owned(),
            process: Process::parse(&process).unwrap(),
        }
    }

    fn entries(servers: &[&str], suffixes: &[&str]) -> Entries {
        Entries {
            servers: servers.iter().map(|text| text.parse().unwrap()).collect(),
            suffixes: suffixes.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn red() -> (Owner, Entries) {
        (owner("web", 7), entries(&["10.60.0.1"], &["red.test"]))
    }

    fn blue() -> (Owner, Entries) {
        (owner("shop", 8), entries(&["10.61.0.1"], &["blue.test"]))
    }

    /// `current` after these clients have come.
    fn with(current: &str, clients: &[(Owner, Entries)]) -> String {
        let mut text = ResolvText::parse(current);
        text.owners.extend(clients.iter().cloned());
        text.written(None).text
    }

    /// `current` after all clients have left.
    fn without(current: &str) -> String {
        let mut text = ResolvText::parse(current);
        text.owners.clear();
        text.written(None).text
    }

    /// What a stub resolver reads.
    fn read(text: &str) -> (Vec<&str>, Vec<&str>) {
        let of = |key: &'static str| text.lines().filter_map(move |line| line.strip_prefix(key));
        let servers = of("nameserver ").take(SERVERS_READ).collect();
        let search = of("search ").next_back().unwrap_or_default();
        (servers, search.split_whitespace().collect())
    }

    #[test]
    fn r1_11_servers_come_first_and_one_suffix_after_the_hosts_own() {
        let text = with(HOST, &[red()]);
        let (servers, search) = read(&text);
        assert_eq!(servers, ["10.60.0.1", "192.0.2.53"]);
        assert_eq!(search, ["corp.example", "red.test"]);
        assert!(text.contains("options ndots:2"));
    }

    #[test]
    fn the_hosts_text_comes_back_byte_for_byte() {
        for host in [
            HOST,
            "",
            "\n",
            "nameserver 192.0.2.53\n",
            "nameserver 192.0.2.53",
            "nameserver 192.0.2.53\nsearch corp.example",
            "# vl3 client of another kind\nnameserver 192.0.2.53\n\n\n",
            "search red.test corp.example\n",
        ] {
            assert_eq!(without(&with(host, &[red()])), host);
            assert_eq!(without(&with(host, &[red(), blue()])), host);
            assert_eq!(without(host), host);
        }
    }

    #[test]
    fn editing_twice_equals_editing_once() {
        let once = with("nameserver 192.0.2.53", &[red()]);
        assert_eq!(with(&once, &[red()]), once);
        assert_eq!(ResolvText::parse(&once).written(None).text, once);
    }

    #[test]
    fn two_clients_share_a_file_and_leave_in_any_order() {
        let both = with(&with(HOST, &[red()]), &[blue()]);
        assert_eq!(both, with(&with(HOST, &[blue()]), &[red()]));
        let (servers, search) = read(&both);
        assert_eq!(servers, ["10.61.0.1", "10.60.0.1", "192.0.2.53"]);
        assert_eq!(search, ["corp.example", "blue.test", "red.test"]);
        let mut text = ResolvText::parse(&both);
        text.owners.remove(&red().0);
        assert_eq!(text.written(None).text, with(HOST, &[blue()]));
    }

    #[test]
    fn one_of_three_places_stays_the_hosts() {
        let many = entries(&["10.60.0.1", "10.61.0.1", "10.62.0.1"], &[]);
        let mut text = ResolvText::parse("nameserver 192.0.2.53\nnameserver 192.0.2.54\n");
        text.owners.insert(owner("web", 7), many.clone());
        let written = text.written(None);
        assert_eq!(
            read(&written.text).0,
            ["10.60.0.1", "192.0.2.53", "192.0.2.54"]
        );
        assert_eq!(written.left_out, many.servers[1..]);
    }

    #[test]
    fn a_resolver_that_was_implied_is_asked_still() {
        let text = with("search corp.example\n", &[red()]);
        assert_eq!(read(&text).0, ["10.60.0.1", "127.0.0.1"]);
        assert_eq!(without(&text), "search corp.example\n");
    }

    #[test]
    fn a_suffix_that_was_implied_is_searched_still() {
        let mut text = ResolvText::parse("nameserver 192.0.2.53\n");
        text.owners.extend([red()]);
        let written = text.written(Some("corp.example")).text;
        assert_eq!(read(&written).1, ["corp.example", "red.test"]);
    }

    #[test]
    fn the_hosts_own_suffixes_are_never_cut() {
        let host = "search a b c d e f g h\n";
        let text = with(host, &[red()]);
        assert_eq!(
            read(&text).1,
            ["a", "b", "c", "d", "e", "f", "g", "h", "red.test"]
        );
    }

    #[test]
    fn what_somebody_wrote_in_between_stays() {
        let text = with(HOST, &[red()]);
        // Where a line of ours stood, and at both ends.
        let changed = text.replace("\nnameserver 10.60.0.1\n", "\nnameserver 198.51.100.1\n");
        assert_ne!(changed, text);
        let kept = without(&format!("# top\n{changed}# end\n"));
        for line in [
            "# top",
            "nameserver 198.51.100.1",
            "# end",
            "search corp.example",
        ] {
            assert!(
                kept.lines().any(|kept| kept == line),
                "{line} is lost: {kept}"
            );
        }
    }

    #[test]
    fn a_line_added_below_ours_is_not_joined_to_the_one_above() {
        let text = with("nameserver 192.0.2.53", &[red()]);
        assert_eq!(
            without(&format!("{text}options edns0\n")),
            "nameserver 192.0.2.53\noptions edns0\n"
        );
    }

    #[test]
    fn a_file_that_somebody_wrote_anew_gets_the_lines_again() {
        let anew = "# Generated by dhclient\nnameserver 198.51.100.53\nsearch lan\n";
        let text = with(anew, &[red()]);
        assert_eq!(read(&text).1, ["lan", "red.test"]);
        assert_eq!(without(&text), anew);
    }

    #[test]
    fn a_file_made_here_is_removed_unless_somebody_wrote_into_it() {
        let mut text = ResolvText {
            made: true,
            ..ResolvText::default()
        };
        text.owners.extend([red()]);
        let written = text.written(None).text;
        let mut again = ResolvText::parse(&written);
        again.owners.clear();
        assert!(again.is_to_be_removed());
        let mut kept = ResolvText::parse(&format!("{written}nameserver 192.0.2.53\n"));
        kept.owners.clear();
        assert!(!kept.is_to_be_removed());
        assert_eq!(kept.written(None).text, "nameserver 192.0.2.53\n");
    }
}
