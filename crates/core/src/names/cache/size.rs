//! What a stored answer takes in memory.

use core::mem::size_of;

use crate::names::{Answer, Data, Name, Record};

/// Octets that the allocator hands out for a request: its header, rounded up (glibc, 64 bit).
pub(super) fn allocated(octets: usize) -> usize {
    if octets == 0 {
        0
    } else {
        (octets + 8).next_multiple_of(16).max(32)
    }
}

/// Reference counts of an `Arc`.
const COUNTS: usize = 2 * size_of::<usize>();

pub(super) fn name(name: &Name) -> usize {
    allocated(COUNTS + name.octets().len())
}

/// All that an answer holds, names that neighbours share counted once.
pub(super) fn answer(answer: &Answer) -> usize {
    let text = answer
        .extended
        .as_ref()
        .map_or(0, |extended| allocated(extended.text.capacity()));
    allocated(COUNTS + size_of::<Answer>())
        + text
        + records(&answer.answers)
        + records(&answer.authority)
        + records(&answer.additional)
}

fn records(records: &Vec<Record>) -> usize {
    let mut octets = allocated(records.capacity() * size_of::<Record>());
    let mut before: Option<&Name> = None;
    for record in records {
        if before.is_none_or(|before| !record.owner.shares(before)) {
            octets += name(&record.owner);
        }
        octets += data(&record.data);
        before = Some(&record.owner);
    }
    octets
}

fn data(data: &Data) -> usize {
    match data {
        Data::A(_) | Data::Aaaa(_) => 0,
        Data::Cname(target) | Data::Ptr(target) | Data::Srv { target, .. } => name(target),
        Data::Soa(soa) => name(&soa.mname) + name(&soa.rname),
        Data::Opaque { data, .. } => allocated(data.capacity()),
    }
}
