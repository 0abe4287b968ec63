//! What each of three servers may do, and the orders in which it may happen.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Positive,
    NoData,
    NxDomain,
    Refused,
    ServFail,
    Timeout,
}

pub(super) const OUTCOMES: [Outcome; 6] = [
    Outcome::Positive,
    Outcome::NoData,
    Outcome::NxDomain,
    Outcome::Refused,
    Outcome::ServFail,
    Outcome::Timeout,
];

pub(super) const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];
