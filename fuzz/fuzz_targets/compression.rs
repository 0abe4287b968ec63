#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| dns_fanout::fuzz::compression(octets));
