//! The three priorities of requests to the source.

/// A lower one never delays a higher one. Ordered: `Demand < Readahead < Hydration`, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// Somebody waits in read(2).
    Demand = 0,
    /// Ahead of a sequential reader.
    Readahead = 1,
    /// In the background.
    Hydration = 2,
}

impl Priority {
    /// All, most urgent first.
    pub const ALL: [Priority; 3] = [Priority::Demand, Priority::Readahead, Priority::Hydration];

    /// The word in status and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Demand => "demand",
            Priority::Readahead => "readahead",
            Priority::Hydration => "hydration",
        }
    }

    /// Whether nobody waits for it.
    pub fn is_background(self) -> bool {
        self == Priority::Hydration
    }

    pub(crate) fn from_u8(value: u8) -> Self {
        match value {
            0 => Priority::Demand,
            1 => Priority::Readahead,
            _ => Priority::Hydration,
        }
    }
}
