//! The parts of the screen.
//!
//! Invariant: every part is in [`TABS`], and so on the screen and in what is printed.

/// The parts, in order.
pub(super) const TABS: [Tab; 6] =
    [Tab::Nodes, Tab::Requests, Tab::Flights, Tab::Top, Tab::Misses, Tab::Alerts];

/// One part of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    Nodes,
    Requests,
    Flights,
    Top,
    Misses,
    Alerts,
}

impl Tab {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nodes => "Nodes",
            Self::Requests => "Requests",
            Self::Flights => "Under way",
            Self::Top => "Top artifacts",
            Self::Misses => "Misses",
            Self::Alerts => "Alerts",
        }
    }
}
