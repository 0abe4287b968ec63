//! Cookies (R6.5): a client that returns ours has shown that its address is its own
//! (RFC 7873, RFC 9018).

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher24;
use vl3_core::Wall;

use crate::wire::Cookie;

/// Client cookie and server cookie.
const FULL: usize = 24;
/// How old a cookie may be, and how far ahead another replica's clock, seconds (RFC 9018 4.3).
const AGE_MAX: u32 = 3_600;
const AHEAD_MAX: u32 = 300;

/// Keys of this server and its replicas; the first makes cookies, all are believed.
#[derive(Clone)]
pub(crate) struct CookieKeys(Vec<[u8; 16]>);

impl std::fmt::Debug for CookieKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CookieKeys({})", self.0.len())
    }
}

/// What a client's cookie is worth, and what goes back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Verdict {
    pub(super) proven: bool,
    pub(super) answer: Option<[u8; FULL]>,
}

impl CookieKeys {
    /// A key that ends with the process.
    pub(crate) fn random() -> Self {
        Self(vec![rand::random()])
    }

    /// One key of 32 hexadecimal digits per line, the current one first.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let keys: Option<Vec<[u8; 16]>> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(key)
            .collect();
        keys.filter(|keys| !keys.is_empty()).map(Self)
    }

    pub(super) fn judge(&self, cookie: Option<&Cookie>, client: IpAddr, now: Wall) -> Verdict {
        let (Some(cookie), Some(current)) = (cookie, self.0.first()) else {
            return Verdict::default();
        };
        // Serial arithmetic: 32 bits of seconds (RFC 9018 4.3).
        let now = u32::try_from(now.unix_secs() & u64::from(u32::MAX)).unwrap_or(0);
        let server = cookie.server();
        let time = server
            .get(4..8)
            .and_then(|time| time.try_into().ok())
            .map(u32::from_be_bytes);
        let in_time = time.is_some_and(|time| {
            now.wrapping_sub(time) <= AGE_MAX || time.wrapping_sub(now) <= AHEAD_MAX
        });
        let ours = |key: &[u8; 16]| {
            let made = time.map(|time| make(key, &cookie.client, client, time));
            made.is_some_and(|made| is_equal(&made[8..], server))
        };
        Verdict {
            proven: in_time && self.0.iter().any(ours),
            answer: Some(make(current, &cookie.client, client, now)),
        }
    }
}

fn key(line: &str) -> Option<[u8; 16]> {
    let mut key = [0; 16];
    if line.len() != 32 || !line.is_ascii() {
        return None;
    }
    for (at, octet) in key.iter_mut().enumerate() {
        *octet = u8::from_str_radix(line.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(key)
}

fn make(key: &[u8; 16], client_cookie: &[u8; 8], client: IpAddr, time: u32) -> [u8; FULL] {
    let mut full = [0; FULL];
    full[..8].copy_from_slice(client_cookie);
    full[8] = 1;
    full[12..16].copy_from_slice(&time.to_be_bytes());
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write(&full[..16]);
    match client.to_canonical() {
        IpAddr::V4(client) => hasher.write(&client.octets()),
        IpAddr::V6(client) => hasher.write(&client.octets()),
    }
    full[16..].copy_from_slice(&hasher.finish().to_le_bytes());
    full
}

/// Without an early end: the time it takes says nothing.
fn is_equal(made: &[u8], given: &[u8]) -> bool {
    made.len() == given.len() && made.iter().zip(given).fold(0, |or, (a, b)| or | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn wall(seconds: u64) -> Wall {
        Wall(seconds * 1_000_000_000)
    }

    /// RFC 9018, appendix A.1.
    #[test]
    fn r6_5_cookies_are_those_of_every_replica_of_any_make() {
        let keys = CookieKeys::read("e5e973e5a6b2a43f48e7dc849e37bfcf\n").unwrap();
        let client: IpAddr = "198.51.100.100".parse().unwrap();
        let cookie = Cookie::read(&hex("2464c4abcf10c957")).unwrap();
        let verdict = keys.judge(Some(&cookie), client, wall(1_559_731_985));
        let expected = "2464c4abcf10c957010000005cf79f111f8130c3eee29480";
        assert_eq!(verdict.answer.unwrap().to_vec(), hex(expected));
        assert!(!verdict.proven, "it brought none");
    }

    #[test]
    fn r6_5_a_cookie_proves_its_client_for_an_hour_and_while_its_key_is_known() {
        let old = CookieKeys::random();
        let both = CookieKeys([CookieKeys::random().0, old.0.clone()].concat());
        let client: IpAddr = "2001:db8::1".parse().unwrap();
        let bare = Cookie::read(&[7; 8]).unwrap();
        let made = old.judge(Some(&bare), client, wall(1_000_000)).answer;
        let cookie = Cookie::read(&made.unwrap()).unwrap();
        let proven =
            |keys: &CookieKeys, client, at| keys.judge(Some(&cookie), client, wall(at)).proven;
        assert!(proven(&old, client, 1_000_000) && proven(&both, client, 1_003_600));
        assert!(!proven(&old, client, 1_003_601), "too old");
        assert!(
            proven(&old, client, 999_700) && !proven(&old, client, 999_699),
            "ahead"
        );
        assert!(
            !proven(&CookieKeys::random(), client, 1_000_000),
            "another key"
        );
        let other = "2001:db8::2".parse().unwrap();
        assert!(!proven(&old, other, 1_000_000), "another address");
    }

    #[test]
    fn keys_are_lines_of_32_digits_and_are_not_printed() {
        let text =
            "# current\n00112233445566778899aabbccddeeff\n\nffeeddccbbaa99887766554433221100\n";
        let keys = CookieKeys::read(text).unwrap();
        assert_eq!(format!("{keys:?}"), "CookieKeys(2)");
        for bad in ["", "00", "zz112233445566778899aabbccddeeff"] {
            assert!(CookieKeys::read(bad).is_none(), "{bad}");
        }
    }
}
