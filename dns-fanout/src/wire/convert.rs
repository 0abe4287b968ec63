//! From hickory's types to the core's.

use hickory_proto::rr as hickory;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use vl3_core::names::{CLASS_IN, Data, Name, Record, RecordType, Soa};

/// `None` for names beyond the protocol's bounds (the decoder refuses them before).
pub(super) fn name_in(name: &hickory::Name) -> Option<Name> {
    Name::from_labels(name.iter()).ok()
}

/// `None` for records of another class and for data that cannot be taken.
pub(super) fn record_in(record: &hickory::Record) -> Option<Record> {
    if u16::from(record.dns_class) != CLASS_IN {
        return None;
    }
    let data = match &record.data {
        hickory::RData::A(A(address)) => Data::A(*address),
        hickory::RData::AAAA(AAAA(address)) => Data::Aaaa(*address),
        hickory::RData::CNAME(CNAME(target)) => Data::Cname(name_in(target)?),
        hickory::RData::PTR(PTR(target)) => Data::Ptr(name_in(target)?),
        hickory::RData::SRV(srv) => Data::Srv {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: name_in(&srv.target)?,
        },
        hickory::RData::SOA(soa) => Data::Soa(soa_in(soa)?),
        other => Data::Opaque {
            rtype: RecordType(record.record_type().into()),
            data: opaque(other)?,
        },
    };
    Some(Record {
        owner: name_in(&record.name)?,
        ttl: record.ttl,
        data,
    })
}

fn soa_in(soa: &SOA) -> Option<Soa> {
    Some(Soa {
        mname: name_in(&soa.mname)?,
        rname: name_in(&soa.rname)?,
        serial: soa.serial,
        refresh: soa.refresh.unsigned_abs(),
        retry: soa.retry.unsigned_abs(),
        expire: soa.expire.unsigned_abs(),
        minimum: soa.minimum,
    })
}

/// The data of a type that we do not look into, as octets.
fn opaque(data: &hickory::RData) -> Option<Vec<u8>> {
    if let hickory::RData::Unknown { rdata, .. } = data {
        return Some(rdata.anything.clone());
    }
    let mut octets = Vec::new();
    data.emit(&mut BinEncoder::new(&mut octets)).ok()?;
    Some(octets)
}
