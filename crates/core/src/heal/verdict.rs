//! The heal table.

/// What to do about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heal {
    Nothing,
    /// Traffic runs: ask again at the same router, touch nothing else.
    Refresh,
    /// Close here, ask elsewhere.
    Reselect,
    /// Nobody to close with: ask again with back-off, first here, then elsewhere.
    ReselectWithBackoff,
}

/// From the two facts, each up (`true`) or down.
pub const fn verdict(control: bool, data: bool) -> Heal {
    match (control, data) {
        (true, true) => Heal::Nothing,
        (false, true) => Heal::Refresh,
        (true, false) => Heal::Reselect,
        (false, false) => Heal::ReselectWithBackoff,
    }
}
