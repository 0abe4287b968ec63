//! Which of two routers dials the other. A preference only: whoever has waited long enough
//! without a link dials all the same.

use core::cmp::Ordering;

use crate::router::RouterId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    AtOnce,
    /// After the other side had its chance.
    Later,
    /// The other cannot be dialled.
    Never,
}

/// A side that only dials does so at once, and is never dialled; else the lower name does.
pub fn turn(
    own: &RouterId,
    own_dials_only: bool,
    other: &RouterId,
    other_dials_only: bool,
) -> Turn {
    if other_dials_only {
        return Turn::Never;
    }
    if own_dials_only {
        return Turn::AtOnce;
    }
    match own.cmp(other) {
        #[cfg(feature = "plants")]
        _ if own.domain != other.domain && crate::plants::Plant::DialPreference.is_chosen() => {
            Turn::Never
        }
        Ordering::Less => Turn::AtOnce,
        Ordering::Greater => Turn::Later,
        Ordering::Equal => Turn::Never,
    }
}
