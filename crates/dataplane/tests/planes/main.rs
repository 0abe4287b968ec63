//! Data planes over real sockets and real TUNs, in namespaces of their own. Needs root.

mod bare;
mod faults;
mod interop;
mod paths;
mod world;
