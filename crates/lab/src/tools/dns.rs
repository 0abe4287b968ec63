//! One DNS question over UDP (RFC 1035, EDNS of RFC 6891, extended errors of RFC 8914), with a
//! reader of its own, so that a server is not checked by its own library.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::UdpSocket;

use crate::host::Host;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryType {
    A,
    Aaaa,
    /// The name is the address's reverse name; see [`Answer::names`].
    Ptr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    NoError,
    ServFail,
    NxDomain,
    Refused,
    Other(u16),
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub rcode: Rcode,
    pub authoritative: bool,
    /// Sorted; of A and AAAA records.
    pub addresses: Vec<IpAddr>,
    /// Of PTR records, lower case, without the trailing dot.
    pub names: Vec<String>,
    /// Info code of the first extended error.
    pub extended_error: Option<u16>,
}

/// Payload that the question announces.
const PAYLOAD_MAX: u16 = 1232;

/// Sends again after this long, as resolvers do.
const RESEND: Duration = Duration::from_millis(700);

/// Asks `server` from inside `host` (from `source` where given) and waits at most `timeout`.
pub async fn ask(
    host: &Host,
    source: Option<IpAddr>,
    server: SocketAddr,
    name: &str,
    kind: QueryType,
    timeout: Duration,
) -> anyhow::Result<Answer> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = host
        .run(|| {
            let socket = std::net::UdpSocket::bind((source.unwrap_or(any), 0))?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        })
        .with_context(|| format!("open a socket towards {server}"))?;
    let socket = UdpSocket::from_std(socket)?;
    let id: u16 = rand::random();
    let question = question(id, name, kind)?;
    let exchange = async {
        let mut buffer = vec![0_u8; 4096];
        loop {
            // A refused port shows as an error of a later call; it may still be starting.
            let _ = socket.send(&question).await;
            match tokio::time::timeout(RESEND, socket.recv(&mut buffer)).await {
                Ok(Ok(len)) if buffer[..len].starts_with(&id.to_be_bytes()) => {
                    return read(&buffer[..len]);
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(_) => {}
            }
        }
    };
    tokio::time::timeout(timeout, exchange)
        .await
        .with_context(|| format!("no answer of {server} to {name} in {timeout:?}"))?
}

impl QueryType {
    fn number(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Ptr => 12,
            Self::Aaaa => 28,
        }
    }
}

/// The name under which an address is looked up backwards.
pub fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let mut name = String::new();
            for byte in address.octets().iter().rev() {
                name.push_str(&format!("{:x}.{:x}.", byte & 0x0f, byte >> 4));
            }
            name.push_str("ip6.arpa");
            name
        }
    }
}

fn question(id: u16, name: &str, kind: QueryType) -> anyhow::Result<Vec<u8>> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired; one question, one additional record.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len())
            .ok()
            .filter(|len| (1..=63).contains(len));
        message.push(len.with_context(|| format!("a label of {name:?} is empty or too long"))?);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.number().to_be_bytes());
    message.extend([0, 1]);
    message.extend([0, 0, 41]);
    message.extend(PAYLOAD_MAX.to_be_bytes());
    message.extend([0; 6]);
    Ok(message)
}

fn read(message: &[u8]) -> anyhow::Result<Answer> {
    let mut reader = Reader { message, at: 0 };
    reader.u16()?;
    let flags = reader.u16()?;
    if flags & 0x8000 == 0 {
        bail!("a question instead of an answer");
    }
    let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    for _ in 0..counts[0] {
        reader.name()?;
        reader.take(4)?;
    }
    let mut answer = Answer {
        rcode: Rcode::NoError,
        authoritative: flags & 0x0400 != 0,
        addresses: Vec::new(),
        names: Vec::new(),
        extended_error: None,
    };
    let mut rcode = flags & 0x0f;
    let records = u32::from(counts[1]) + u32::from(counts[2]) + u32::from(counts[3]);
    for number in 0..records {
        reader.name()?;
        let kind = reader.u16()?;
        reader.u16()?;
        let ttl = reader.take(4)?;
        let high = u16::from(ttl[0]);
        let len = usize::from(reader.u16()?);
        let data_at = reader.at;
        let data = reader.take(len)?;
        match kind {
            41 => {
                rcode |= high << 4;
                answer.extended_error = answer.extended_error.or(extended_error(data));
            }
            _ if number >= u32::from(counts[1]) => {}
            1 => answer
                .addresses
                .extend(data.first_chunk::<4>().map(|octets| IpAddr::from(*octets))),
            28 => answer
                .addresses
                .extend(data.first_chunk::<16>().map(|octets| IpAddr::from(*octets))),
            12 => answer.names.push(
                Reader {
                    message,
                    at: data_at,
                }
                .name()?,
            ),
            _ => {}
        }
    }
    answer.addresses.sort();
    answer.rcode = match rcode {
        0 => Rcode::NoError,
        2 => Rcode::ServFail,
        3 => Rcode::NxDomain,
        5 => Rcode::Refused,
        other => Rcode::Other(other),
    };
    Ok(answer)
}

/// Info code of the first option 15.
fn extended_error(options: &[u8]) -> Option<u16> {
    let mut reader = Reader {
        message: options,
        at: 0,
    };
    loop {
        let code = reader.u16().ok()?;
        let len = usize::from(reader.u16().ok()?);
        let data = reader.take(len).ok()?;
        if code == 15 {
            return data
                .first_chunk::<2>()
                .map(|bytes| u16::from_be_bytes(*bytes));
        }
    }
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> anyhow::Result<&'a [u8]> {
        let bytes = self
            .message
            .get(self.at..self.at + len)
            .context("the message ends too early")?;
        self.at += len;
        Ok(bytes)
    }

    fn u16(&mut self) -> anyhow::Result<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A possibly compressed name. Pointers only go back, so it ends.
    fn name(&mut self) -> anyhow::Result<String> {
        let mut labels: Vec<String> = Vec::new();
        let mut at = self.at;
        let mut after = None;
        loop {
            let len = usize::from(*self.message.get(at).context("a name ends too early")?);
            match len {
                0 => {
                    self.at = after.unwrap_or(at + 1);
                    return Ok(labels.join("."));
                }
                1..=63 => {
                    let label = self
                        .message
                        .get(at + 1..at + 1 + len)
                        .context("a label ends too early")?;
                    labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
                    at += 1 + len;
                }
                0xc0.. => {
                    let low = *self
                        .message
                        .get(at + 1)
                        .context("a pointer ends too early")?;
                    let to = (len & 0x3f) << 8 | usize::from(low);
                    after = after.or(Some(at + 2));
                    if to >= at {
                        bail!("a name points forward");
                    }
                    at = to;
                }
                _ => bail!("a label of an unknown kind"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_a_pointer_and_an_extended_error_is_read() {
        let mut message = question(7, "a.red.vl3", QueryType::A).unwrap();
        message.truncate(message.len() - 11);
        message[2] = 0x85;
        message[3] = 0x02;
        message[7] = 1;
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 9, 0, 1]);
        message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 6, 0, 15, 0, 2, 0, 22]);
        let answer = read(&message).unwrap();
        assert_eq!(answer.rcode, Rcode::ServFail);
        assert_eq!(answer.addresses, ["10.9.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(answer.extended_error, Some(22));
        assert!(answer.authoritative);
    }

    #[test]
    fn a_name_that_points_at_itself_is_an_error() {
        let mut message = vec![0, 7, 0x85, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 0]);
        assert!(read(&message).is_err());
    }

    #[test]
    fn an_address_reads_backwards() {
        assert_eq!(
            reverse_name("10.9.0.1".parse().unwrap()),
            "1.0.9.10.in-addr.arpa"
        );
        assert!(reverse_name("fd00::1".parse().unwrap()).starts_with("1.0.0.0."));
    }
}
