//! Orders and their answers: names and units are a contract with scripts, and `docs/control.md` shows each of them.

use serde::{Deserialize, Serialize};

use crate::control::ErrorBody;
use crate::control::status::{JsonPath, SCHEMA};
use crate::core::path::RelPath;
use crate::engine::history::Life;
use crate::error::{Error, Kind, Result};

/// Every route: its method and its path.
pub const ROUTES: [(&str, &str); 16] = [
    ("GET", "/v1/status"),
    ("GET", "/v1/stuck"),
    ("GET", "/v1/events"),
    ("GET", "/v1/history"),
    ("POST", "/v1/unmount"),
    ("POST", "/v1/verify"),
    ("POST", "/v1/pause"),
    ("POST", "/v1/resume"),
    ("POST", "/v1/drain"),
    ("POST", "/v1/stop"),
    ("POST", "/v1/limit"),
    ("POST", "/v1/hydrate"),
    ("POST", "/v1/evict"),
    ("POST", "/v1/pin"),
    ("POST", "/v1/unpin"),
    ("POST", "/v1/refresh"),
];

/// What hydration shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchOrder {
    /// Begin nothing new.
    Pause,
    /// Go on.
    Resume,
    /// Finish what runs, then stop.
    Drain,
    /// End what runs.
    Stop,
}

impl SwitchOrder {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pause, Self::Resume, Self::Drain, Self::Stop];

    /// Its name on the command line and in routes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
            Self::Stop => "stop",
        }
    }
}

/// What shall become of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathOrder {
    /// Fetch all of it in the background.
    Hydrate,
    /// Forget its local bytes.
    Evict,
    /// Keep it from eviction.
    Pin,
    /// Let it be evicted again.
    Unpin,
    /// Ask the source for it now.
    Refresh,
}

impl PathOrder {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Hydrate, Self::Evict, Self::Pin, Self::Unpin, Self::Refresh];

    /// Its name on the command line, in routes and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hydrate => "hydrate",
            Self::Evict => "evict",
            Self::Pin => "pin",
            Self::Unpin => "unpin",
            Self::Refresh => "refresh",
        }
    }
}

/// Body of `POST /v1/limit`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitRequest {
    /// At least 1024; `null` = no limit.
    pub bytes_per_s: Option<u64>,
}

/// Body of the orders for paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PathsRequest {
    /// Below the root of the tree; the root itself is empty.
    pub paths: Vec<JsonPath>,
}

/// Answer to an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What it changed, one line for people.
    pub message: String,
}

/// Answer to an order for paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathsDone {
    /// One for each path, in the order of the request.
    pub results: Vec<PathDone>,
}

/// What became of one path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathDone {
    /// As in the request.
    #[serde(flatten)]
    pub path: JsonPath,
    /// Kind of the error; `null` if it was done.
    pub kind: Option<String>,
    /// What was changed, or why nothing was; one line for people.
    pub message: String,
}

impl PathDone {
    /// Tells how it went.
    pub fn new(path: &JsonPath, done: Result<String>) -> Self {
        let (kind, message) = match done {
            Ok(message) => (None, message),
            Err(error) => {
                let ErrorBody { kind, message } = ErrorBody::of(&error);
                (Some(kind), message)
            }
        };
        Self { path: path.clone(), kind, message }
    }

    /// What was changed.
    ///
    /// # Errors
    /// Why nothing was.
    pub fn result(&self) -> Result<&str> {
        let Some(kind) = &self.kind else { return Ok(&self.message) };
        let body = ErrorBody { kind: kind.clone(), message: self.message.clone() };
        Err(Error::new(body.parsed_kind(), "carry out order").because(body.message))
    }
}

/// The path in the tree that a request means.
///
/// # Errors
/// `Invalid` if it is none.
pub fn tree_path(path: &JsonPath) -> Result<RelPath> {
    let wrong = || Error::new(Kind::Invalid, "find in the tree").at(&path.path);
    let path = path.to_path_buf().ok_or_else(wrong)?;
    path.iter().try_fold(RelPath::root(), |parent, name| parent.child(name))
}

/// What is asked of `GET /v1/events`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventsRequest {
    /// The first number; 0 = from the oldest that is kept.
    pub from: u64,
    /// Go on with what comes.
    pub follow: bool,
}

impl EventsRequest {
    /// Reads the query of an address.
    ///
    /// # Errors
    /// `Invalid` for anything unknown.
    pub fn parse(query: &str) -> Result<Self> {
        let mut request = Self::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let is_known = match &*name {
                "from" => value.parse().map(|from| request.from = from).is_ok(),
                "follow" => value.parse().map(|follow| request.follow = follow).is_ok(),
                _ => false,
            };
            if !is_known {
                return Err(Error::new(Kind::Invalid, "read request")
                    .because(format!("{name}={value} is not understood"))
                    .hint("from=NUMBER and follow=true are"));
            }
        }
        Ok(request)
    }

    /// The query of an address.
    pub fn query(&self) -> String {
        format!("from={}&follow={}", self.from, self.follow)
    }
}

/// Answer of `GET /v1/history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The daemons' lives, the oldest first; at most 1000.
    pub lives: Vec<Life>,
}

impl HistoryReport {
    /// Tells of `lives`.
    pub fn new(lives: Vec<Life>) -> Self {
        Self { schema: SCHEMA, lives }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_is_not_understood_is_refused() {
        let request = EventsRequest { from: 7, follow: true };
        assert_eq!(EventsRequest::parse(&request.query()).unwrap(), request);
        assert_eq!(EventsRequest::parse("").unwrap(), EventsRequest::default());
        for query in ["from=x", "follow=1", "since=3"] {
            assert_eq!(EventsRequest::parse(query).unwrap_err().kind(), Kind::Invalid, "{query}");
        }
    }

    #[test]
    fn a_path_that_leads_out_of_the_tree_is_refused() {
        assert_eq!(tree_path(&JsonPath::new("a/b")).unwrap().as_bytes(), b"a/b");
        assert!(tree_path(&JsonPath::new("")).unwrap().is_root());
        for path in ["../a", "/a", "a/../b"] {
            assert!(tree_path(&JsonPath::new(path)).is_err(), "{path}");
        }
    }
}
