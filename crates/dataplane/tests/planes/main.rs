//! Data planes over real sockets and real TUNs, in namespaces of their own. Needs root.

mod paths;
mod world;
