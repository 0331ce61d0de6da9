//! The only place that reads a wall clock. Everything else is handed a [`Clock`], so that tests move time.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment: microseconds since 1970-01-01 00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(pub i64);

impl Stamp {
    /// The stamp `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// As programs exchange it: `2022-08-30T08:17:13.663000Z` (RFC 3339).
    #[must_use]
    pub fn rfc3339(self) -> String {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
            // Centuries that no four digits can write; nothing of ours is stamped then.
            Err(_) => "9999-12-31T23:59:59.999999Z".to_owned(),
        }
    }

    /// As HTTP writes dates: `Tue, 30 Aug 2022 08:17:13 GMT` (RFC 9110).
    #[must_use]
    pub fn http_date(self) -> String {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
            Err(_) => "Fri, 31 Dec 9999 23:59:59 GMT".to_owned(),
        }
    }

    /// Time from `earlier` to this stamp; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Formats as the pages show it: `2022-08-30 08:17:13.663000`, in UTC.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{}", time.strftime("%Y-%m-%d %H:%M:%S.%6f")),
            Err(_) => write!(f, "{} µs", self.0),
        }
    }
}

/// A source of the present moment.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Stamp;
}

/// The machine's own clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Stamp {
        #[expect(clippy::disallowed_methods, reason = "this is the place")]
        let now = SystemTime::now();
        match now.duration_since(UNIX_EPOCH) {
            Ok(since) => Stamp(0).after(since),
            Err(before) => Stamp(-Stamp(0).after(before.duration()).0),
        }
    }
}

/// A clock that stands still until it is moved; for tests.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock standing at `start`.
    #[must_use]
    pub fn new(start: Stamp) -> Self {
        Self(AtomicI64::new(start.0))
    }

    /// Moves the clock on.
    pub fn advance(&self, duration: Duration) {
        self.0.fetch_add(Stamp(0).after(duration).0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Stamp {
        Stamp(self.0.load(Ordering::SeqCst))
    }
}
