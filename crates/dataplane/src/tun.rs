//! TUN descriptors: checked when they come, read and written in super-packets.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vl3_core::forward::PortId;

use crate::api::Error;
use crate::limits::MERGED_MAX;
use crate::merge::{Piece, assemble};
use crate::packet;
use crate::port::Tun;
use crate::segment::Segments;
use crate::sys;
use crate::vnet::{Gso, VNET_LEN, VnetHeader};

/// vnet header, and the largest IPv6 packet.
pub(crate) const TUN_BUFFER: usize = VNET_LEN + 40 + 65_535;

const CSUM: libc::c_uint = 0x01;
const TSO4: libc::c_uint = 0x02;
const TSO6: libc::c_uint = 0x04;
const USO4: libc::c_uint = 0x20;
const USO6: libc::c_uint = 0x40;

/// Checks a descriptor and sets it up: non-blocking, our vnet header, every offload that the
/// system has.
pub(crate) fn prepare(port: PortId, descriptor: &OwnedFd) -> Result<(), Error> {
    let wanted = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = sys::tun_flags(descriptor).map_err(|_| Error::NotATun(port))?;
    if flags & wanted != wanted {
        return Err(Error::NotATun(port));
    }
    let system = |action| move |source| Error::System { action, source };
    sys::set_vnet_header_len(descriptor, VNET_LEN)
        .map_err(system("set the vnet header of a TUN"))?;
    // USO needs Linux 6.2; without offloads packets come one by one.
    [CSUM | TSO4 | TSO6 | USO4 | USO6, CSUM | TSO4 | TSO6, 0]
        .into_iter()
        .find_map(|offloads| sys::set_offloads(descriptor, offloads).ok());
    let flags = fcntl(descriptor, FcntlArg::F_GETFL)
        .map_err(io::Error::from)
        .map_err(system("read the flags of a TUN"))?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(descriptor, FcntlArg::F_SETFL(flags))
        .map_err(io::Error::from)
        .map_err(system("make a TUN non-blocking"))?;
    Ok(())
}

/// Writes one packet behind its header.
pub(crate) fn write(
    descriptor: &impl AsFd,
    vnet: VnetHeader,
    arena: &[u8],
    pieces: &[Piece],
) -> io::Result<()> {
    let header = vnet.to_bytes();
    if let [piece] = pieces {
        let slices = [IoSlice::new(&header), IoSlice::new(piece.of(arena))];
        nix::sys::uio::writev(descriptor, &slices)?;
        return Ok(());
    }
    let mut slices = [IoSlice::new(&[]); 1 + MERGED_MAX];
    slices[0] = IoSlice::new(&header);
    let used = 1 + pieces.len().min(MERGED_MAX);
    for (slice, piece) in slices[1..].iter_mut().zip(pieces) {
        *slice = IoSlice::new(piece.of(arena));
    }
    nix::sys::uio::writev(descriptor, &slices[..used])?;
    Ok(())
}

/// Writes a packet; cuts a super-packet that the system refuses.
pub(crate) fn write_or_cut(
    tun: &Tun,
    descriptor: &impl AsFd,
    vnet: VnetHeader,
    arena: &[u8],
    pieces: &[Piece],
    whole: &mut Vec<u8>,
) -> io::Result<()> {
    match write(descriptor, vnet, arena, pieces) {
        Err(error) if vnet.gso != Gso::None && error.raw_os_error() == Some(libc::EINVAL) => {
            tun.merge_failures.fetch_add(1, Relaxed);
            assemble(arena, pieces, whole);
            cut(descriptor, vnet, whole)
        }
        done => done,
    }
}

fn cut(descriptor: &impl AsFd, vnet: VnetHeader, whole: &mut [u8]) -> io::Result<()> {
    let refused = || io::Error::from_raw_os_error(libc::EINVAL);
    let ip = packet::parse(whole).ok_or_else(refused)?;
    let segments = Segments::plan(vnet, &ip, whole).ok_or_else(refused)?;
    let mut segment = vec![0; segments.len(0)];
    for index in 0..segments.count() {
        let len = segments.len(index);
        segments.write(index, &mut segment[..len]);
        write(
            descriptor,
            VnetHeader::PLAIN,
            &segment,
            &[Piece { start: 0, len }],
        )?;
    }
    Ok(())
}
