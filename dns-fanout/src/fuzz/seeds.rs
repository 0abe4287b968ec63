//! The targets by name, and what each begins with: small messages made by hand, as text.

/// One target: its name, its body, its seeds.
pub struct Target {
    pub name: &'static str,
    pub body: fn(&[u8]),
    seeds: &'static [&'static str],
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Target").field(&self.name).finish()
    }
}

impl Target {
    pub fn seeds(&self) -> impl Iterator<Item = Vec<u8>> {
        self.seeds.iter().map(|text| octets(text))
    }
}

pub const TARGETS: [Target; 5] = [
    Target {
        name: "message",
        body: super::message,
        seeds: &[
            // www.red.test A, plain; with an OPT; with a cookie, keepalive and an unknown option.
            "1234 0100 0001 0000 0000 0000 'www 'red 'test 00 0001 0001",
            "1234 0120 0001 0000 0000 0001 'www 'red 'test 00 001c 0001 00 0029 04d0 00008000 0000",
            "1234 0110 0001 0000 0000 0001 'wWw 'Red 'tesT 00 0010 0001 00 0029 1000 00000000 0018 \
             000a 0008 0102030405060708 000b 0000 fde9 0004 01020304",
            // Our own mark: one hop; five of them.
            "1234 0100 0001 0000 0000 0001 'a 00 0001 0001 00 0029 04d0 00000000 0010 \
             ff21 000c 0102030405060708 00000001",
            // EDNS of a later version; two OPTs; an option that is cut.
            "1234 0100 0001 0000 0000 0001 'a 00 0001 0001 00 0029 04d0 00010000 0000",
            "1234 0100 0001 0000 0000 0002 'a 00 0001 0001 00 0029 04d0 00000000 0000 \
             00 0029 04d0 00000000 0000",
            "1234 0100 0001 0000 0000 0001 'a 00 0001 0001 00 0029 04d0 00000000 0003 000a 08",
            // A reply; NOTIFY; CHAOS; ANY; AXFR; no question; two; one that points to itself.
            "1234 8180 0001 0000 0000 0000 'a 00 0001 0001",
            "1234 2100 0001 0000 0000 0000 'a 00 0006 0001",
            "1234 0100 0001 0000 0000 0000 'version 'bind 00 0010 0003",
            "1234 0100 0001 0000 0000 0000 'a 00 00ff 0001",
            "1234 0100 0001 0000 0000 0000 'a 00 00fc 0001",
            "1234 0100 0000 0000 0000 0000",
            "1234 0100 0002 0000 0000 0000 'a 00 0001 0001 'b 00 0001 0001",
            "1234 0100 0001 0000 0000 0000 c00c 0001 0001",
            // Special names: answered here.
            "1234 0100 0001 0000 0000 0000 'localhost 00 001c 0001",
            "1234 0100 0001 0000 0000 0000 '1 '1 '168 '192 'in-addr 'arpa 00 000c 0001",
            "1234 0100 0001 ffff ffff ffff 00 0001 0001",
            "1234",
        ],
    },
    Target {
        name: "upstream_reply",
        body: super::upstream_reply,
        // Mixed case, name, type, flags, counts; then the records.
        seeds: &[
            "01 03 02 04 05 00 04 00 01 00 00 c00c 0001 0001 0000003c 0004 c0000201",
            "01 03 02 04 05 02 04 00 02 00 00 c00c 0005 0001 0000003c 0006 'mail c010 \
             'mail c010 0001 0001 0000003c 0004 c0000201",
            // NS with glue; MX; SRV; NXDOMAIN with a SOA.
            "01 02 04 05 00 00 00 00 01 01 c00c 0002 0001 0000003c 0005 'ns1 c00c \
             'ns1 c00c 0001 0001 0000003c 0004 c0000201",
            "00 02 04 05 00 04 00 01 00 00 c00c 000f 0001 0000003c 0009 0005 'mail c00c",
            "00 02 04 05 04 04 00 01 00 00 c00c 0021 0001 0000003c 000f 0001 0002 0035 'a 'red 00 00",
            "00 02 04 05 00 04 03 00 01 00 c00c 0006 0001 00000e10 0018 c00c c00c 00000001 00000e10 \
             00000384 00015180 0000003c",
            // Pointers: to itself, forward, into the header; a label that runs out; data that do.
            "00 01 04 00 04 00 01 00 00 c013 0001 0001 0000003c 0004 c0000201",
            "00 01 04 00 04 00 01 00 00 c0ff 0001 0001 0000003c 0004 c0000201",
            "00 01 04 00 04 00 01 00 00 c003 0001 0001 0000003c 0004 c0000201",
            "00 01 04 00 04 00 01 00 00 3f61",
            "00 01 04 00 04 00 01 00 00 c00c 0001 0001 0000003c ffff 01",
            // Cut; SVCB; RRSIG; an OPT with an extended code, alone and among the answers.
            "00 01 04 00 06 00 01 00 00 c00c 0001",
            "00 01 04 06 04 00 01 00 00 c00c 0041 0001 0000003c 0007 0001 00 0001 0000",
            "00 01 04 06 04 00 01 00 00 c00c 002e 0001 0000003c 0013 0001 0d 02 0000003c 00000002 \
             00000001 0001 00",
            "00 01 04 00 04 00 00 00 01 00 0029 04d0 01000000 0000",
            "00 01 04 00 04 00 01 00 00 00 0029 04d0 00000000 0000",
        ],
    },
    Target {
        name: "votes",
        body: super::votes,
        // Policy, name, type, DO, a random number; then votes.
        seeds: &[
            "00 02 02 05 00 00 07 00 01 00 02 3c c0000201 3c c0000202 00 00 b0 01 00 00 00",
            "01 02 02 05 00 00 07 01 01 00 01 3c c0000201 3c c0000202 00 00 02 05 00 01 1e c0000201 \
             1e c0000203 00 00",
            "03 02 02 05 01 01 07 02 00 00 01 05 00000000000000000000000000000001 00 00 02 07",
            "04 01 05 00 00 00 b0 01 00 00 00 80 01 00 00 00",
            "02 01 05 00 00 00 c0 01 d0 01 f3 01 a0 01 01 02 00 3c 01 02 00 00",
            "01 ff 04 01 09 00 01 03 00 27 01 02 03 04 05 06 07 08",
        ],
    },
    Target {
        name: "patch",
        body: super::patch,
        // A name; other records; a set; where it turns; authority; additional; the client.
        seeds: &[
            "03 02 04 05 00 00 03 3c c0000201 3c c0000202 3c c0000203 01 28 00 00 01 01 01 01 01 01 \
             12 34 01 00 00 01 01 02 03",
            "03 02 04 05 01 02 01 02 3c 02 04 05 00 27 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d",
            "ff 03 00 ff 01 02 03 04 00 01 02 ff 01 ff",
            "00 00 01 05 3c c0000201 01 00 00 00",
        ],
    },
    Target {
        name: "compression",
        body: super::compression,
        seeds: &[
            "03 02 04 05 03 02 03 03 04 05 3c 02 04 05 05 01 05 3c 04 00 01 02 04 05 03 04 05 01 3c",
            "ff 03 02 ff 3c ff 03 ff 3c ff 05 ff 3c ff ff 01 02",
            "05 07 07 07 07 07 03 02 04 07 07 07 07 3c 03 07 07 07 03 04 06 06 06 06 3c 02 06 06",
            "00 03 02 00 00 00 03 00 00 00",
        ],
    },
];

/// Octets in pairs of hexadecimal digits; `'word` is a label with its length.
fn octets(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    for word in text.split_whitespace() {
        if let Some(label) = word.strip_prefix('\'') {
            octets.push(u8::try_from(label.len()).expect("a label"));
            octets.extend(label.as_bytes());
            continue;
        }
        let digits: Vec<u8> = word
            .chars()
            .map(|digit| digit.to_digit(16).expect("a hexadecimal digit"))
            .map(|digit| digit.to_le_bytes()[0])
            .collect();
        let (pairs, rest) = digits.as_chunks::<2>();
        assert!(rest.is_empty(), "{word}: half an octet");
        octets.extend(pairs.iter().map(|[high, low]| high << 4 | low));
    }
    octets
}
