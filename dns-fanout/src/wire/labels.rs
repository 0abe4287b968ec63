//! Names in a message: labels and pointers (RFC 1035 4.1.4), bounded.

use super::HEADER_OCTETS;

/// Pointers followed within one name; no real name needs more than one per label.
const HOPS_MAX: u8 = 127;

/// The labels of a name that begins at some place of a message. Ends early, with
/// [`Labels::is_whole`] false, where the message is cut or points forward.
#[derive(Debug)]
pub(super) struct Labels<'a> {
    message: &'a [u8],
    at: usize,
    hops: u8,
    /// Behind the name in the stream of octets, known with the first pointer or the end.
    after: Option<usize>,
    whole: bool,
}

impl<'a> Labels<'a> {
    pub(super) const fn at(message: &'a [u8], at: usize) -> Self {
        Self {
            message,
            at,
            hops: 0,
            after: None,
            whole: false,
        }
    }

    /// A name at the start of octets.
    pub(super) const fn of(octets: &'a [u8]) -> Self {
        Self::at(octets, 0)
    }

    /// Whether the final root was reached.
    pub(super) const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Where what follows the name begins.
    pub(super) const fn after(&self) -> Option<usize> {
        self.after
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.whole {
            return None;
        }
        loop {
            let length = *self.message.get(self.at)?;
            match length {
                0 => {
                    self.whole = true;
                    self.after.get_or_insert(self.at + 1);
                    return None;
                }
                1..=63 => {
                    let start = self.at + 1;
                    let label = self.message.get(start..start + usize::from(length))?;
                    self.at = start + usize::from(length);
                    return Some(label);
                }
                0xc0.. => {
                    let low = *self.message.get(self.at + 1)?;
                    let target = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                    // Backwards only, so nothing loops; and never into the header.
                    if target >= self.at || target < HEADER_OCTETS || self.hops >= HOPS_MAX {
                        return None;
                    }
                    self.hops += 1;
                    self.after.get_or_insert(self.at + 2);
                    self.at = target;
                }
                _ => return None,
            }
        }
    }
}

/// Where what follows a name begins, without looking where it points.
pub(super) fn skip_name(octets: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *octets.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += usize::from(length) + 1,
            0xc0.. => return octets.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}
