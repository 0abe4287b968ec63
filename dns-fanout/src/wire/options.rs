//! Options of clients' OPT records: cookies (RFC 7873), keepalive (RFC 7828), our loop mark.

use vl3_core::names::{HOPS_MAX, Hop, LoopMark};

/// Type number of OPT (RFC 6891).
pub(crate) const OPT: u16 = 41;
pub(super) const COOKIE: u16 = 10;
pub(super) const KEEPALIVE: u16 = 11;
/// Option number of extended errors (RFC 8914).
pub(super) const EXTENDED_ERROR: u16 = 15;
/// R4.2: out of the range for local use (RFC 6891 9).
const LOOP_MARK: u16 = 65_313;

/// Length of a client's cookie, octets (RFC 7873 4).
const CLIENT_COOKIE: usize = 8;
/// Longest server cookie.
const SERVER_COOKIE_MAX: usize = 32;

/// What a client's options say; others are ignored and not echoed (R6.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientOptions {
    pub(crate) cookie: Option<Cookie>,
    pub(crate) keepalive: bool,
    pub(crate) way: Way,
}

/// Which of us a question went through (R4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As a client's question says nothing, its mark is empty.
    Marked(LoopMark),
    TooLong,
}

impl Way {
    /// As the resolver takes it: what cannot be read has come too far.
    pub(crate) fn mark(self) -> LoopMark {
        match self {
            Self::Marked(mark) => mark,
            Self::TooLong => LoopMark::new([Hop::default(); HOPS_MAX + 1]),
        }
    }
}

impl Default for Way {
    fn default() -> Self {
        Self::Marked(LoopMark::default())
    }
}

/// Octets of one hop: instance and upstream.
const HOP: usize = 12;

fn read_way(value: &[u8]) -> Option<LoopMark> {
    let (hops, rest) = value.as_chunks::<HOP>();
    if !rest.is_empty() {
        return None;
    }
    Some(LoopMark::new(hops.iter().map(|hop| {
        let [a, b, c, d, e, f, g, h, upstream @ ..] = *hop;
        Hop {
            instance: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            upstream: u32::from_be_bytes(upstream),
        }
    })))
}

/// Appends the mark of a query that goes on.
pub(super) fn put_way(out: &mut Vec<u8>, mark: &LoopMark) {
    let mut value = Vec::with_capacity(mark.hops().len() * HOP);
    for hop in mark.hops() {
        value.extend(hop.instance.to_be_bytes());
        value.extend(hop.upstream.to_be_bytes());
    }
    put_option(out, LOOP_MARK, &value);
}

/// A client's cookie and the server cookie that it returned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie {
    pub(crate) client: [u8; CLIENT_COOKIE],
    server: [u8; SERVER_COOKIE_MAX],
    server_octets: u8,
}

impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie(..)")
    }
}

impl Cookie {
    /// Empty when the client has none yet.
    pub(crate) fn server(&self) -> &[u8] {
        &self.server[..usize::from(self.server_octets).min(SERVER_COOKIE_MAX)]
    }

    /// 8 octets, or 16 to 40 (RFC 7873 5.2.2).
    pub(crate) fn read(data: &[u8]) -> Option<Self> {
        let (client, server) = data.split_first_chunk::<CLIENT_COOKIE>()?;
        if !(server.is_empty() || (8..=SERVER_COOKIE_MAX).contains(&server.len())) {
            return None;
        }
        let mut cookie = Self {
            client: *client,
            server: [0; SERVER_COOKIE_MAX],
            server_octets: u8::try_from(server.len()).ok()?,
        };
        cookie.server[..server.len()].copy_from_slice(server);
        Some(cookie)
    }
}

/// `None` when options are cut or a cookie has a wrong length.
pub(super) fn read_options(mut data: &[u8]) -> Option<ClientOptions> {
    let mut options = ClientOptions::default();
    while !data.is_empty() {
        let (head, rest) = data.split_first_chunk::<4>()?;
        let code = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (value, rest) = rest.split_at_checked(length)?;
        data = rest;
        match code {
            // The first one counts (RFC 7873 5.2).
            COOKIE if options.cookie.is_none() => options.cookie = Some(Cookie::read(value)?),
            KEEPALIVE => options.keepalive = true,
            LOOP_MARK => {
                // Of a server of another make, or more hops than there may be: a loop all the same.
                options.way = read_way(value).map_or(Way::TooLong, Way::Marked);
            }
            _ => {}
        }
    }
    Some(options)
}

/// Appends one option.
pub(super) fn put_option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let Ok(length) = u16::try_from(value.len()) else {
        return;
    };
    out.extend(code.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(value);
}
