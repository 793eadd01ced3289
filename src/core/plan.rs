//! What to fetch ahead of a reader. Pure: fed with reads, answers ranges.
//!
//! Demand fetches its own blocks and nothing else; this decides what follows. Heads, tails and scattered reads start nothing: a
//! stream is believed after `CONFIRM_BYTES` read in sequence by at least two requests.

use std::time::Duration;

use crate::core::range::{BLOCK_SIZE, ByteRange};
use crate::sync::Mutex;

/// Streams told apart per open handle.
const MAX_STREAMS: usize = 4;
/// A request this far from where a stream stands still belongs to it: the kernel's own readahead reorders.
const REORDER_BYTES: u64 = 1 << 20;
/// Read in sequence before anything is fetched ahead.
const CONFIRM_BYTES: u64 = 256 << 10;
/// First window ahead of a stream; doubles with each step.
const FIRST_WINDOW: u64 = 512 << 10;

/// How far ahead to fetch at most, and in what pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Largest window, in bytes.
    pub window: u64,
    /// Size of one chunk, in bytes; whole blocks.
    pub chunk: u64,
}

impl Reach {
    /// Cut so that several streams find room below `cap` bytes side by side.
    #[must_use]
    pub fn within(self, cap: u64) -> Self {
        let blocks = |bytes: u64| (bytes / BLOCK_SIZE).max(1) * BLOCK_SIZE;
        Self { window: self.window.min(blocks(cap / 4)), chunk: self.chunk.min(blocks(cap / 16)) }
    }
}

/// Round trip and rate of one connection to the source, measured on its own requests, smoothed.
#[derive(Debug)]
pub struct Pace {
    connections: u64,
    state: Mutex<Measured>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    round_trip_s: f64,
    bytes_per_s: f64,
}

impl Pace {
    /// Nothing is measured yet; background requests run on up to `connections` connections.
    pub fn new(connections: usize) -> Self {
        Self {
            connections: u64::try_from(connections).unwrap_or(1).max(1),
            state: Mutex::new(Measured::default()),
        }
    }

    /// Takes in one finished request: time to its first byte, then `bytes` within `body`.
    pub fn observe(&self, first_byte: Duration, body: Duration, bytes: u64) {
        let mut state = self.state.lock();
        blend(&mut state.round_trip_s, first_byte.as_secs_f64());
        if bytes >= BLOCK_SIZE && body > Duration::from_micros(50) {
            #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
            blend(&mut state.bytes_per_s, bytes as f64 / body.as_secs_f64());
        }
    }

    /// Chunks long enough that the round trip costs about a fifth of their time, and a window that keeps every connection busy.
    pub fn reach(&self) -> Reach {
        let wanted = self.trip_bytes().saturating_mul(4);
        let chunk = wanted.clamp(1 << 20, 16 << 20).next_power_of_two().min(16 << 20);
        let window = (chunk * self.connections).clamp(16 << 20, 128 << 20);
        Reach { window, chunk }
    }

    /// Bytes that one connection brings in the time of a round trip; zero before the first measurement.
    pub fn trip_bytes(&self) -> u64 {
        let Measured { round_trip_s, bytes_per_s } = *self.state.lock();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative; a float cast saturates"
        )]
        let bytes = (round_trip_s * bytes_per_s) as u64;
        bytes
    }

    /// The measured round trip; zero before the first measurement.
    pub fn round_trip(&self) -> Duration {
        Duration::from_secs_f64(self.state.lock().round_trip_s.max(0.0))
    }
}

fn blend(average: &mut f64, sample: f64) {
    *average = if *average == 0.0 { sample } else { 0.8 * *average + 0.2 * sample };
}

/// The streams of one open handle.
///
/// # Concurrency
/// Any thread may report a read; each call holds one lock for a moment.
#[derive(Debug, Default)]
pub struct ReadPlanner {
    streams: Mutex<Vec<Stream>>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// Where it began.
    start: u64,
    /// One past the furthest byte read.
    front: u64,
    /// One past the furthest byte planned; at least `front`.
    planned: u64,
    window: u64,
    read_bytes: u64,
    requests: u32,
}

impl ReadPlanner {
    /// What its streams are about to read, and read a moment ago.
    pub fn ahead(&self) -> Vec<ByteRange> {
        let streams = self.streams.lock();
        let near = |stream: &Stream| {
            ByteRange::new(stream.front.saturating_sub(REORDER_BYTES), stream.planned)
        };
        streams.iter().map(near).collect()
    }

    /// Takes in a read and answers what to fetch ahead now, if anything: a range past the stream's front within the file.
    pub fn on_read(&self, read: ByteRange, size: u64, reach: Reach) -> Option<ByteRange> {
        if read.is_empty() {
            return None;
        }
        let mut streams = self.streams.lock();
        let near = |stream: &Stream| read.start.abs_diff(stream.front) <= REORDER_BYTES;
        let Some(index) = streams.iter().position(near) else {
            if streams.len() == MAX_STREAMS {
                streams.remove(0);
            }
            streams.push(Stream {
                start: read.start,
                front: read.end,
                planned: read.end,
                window: FIRST_WINDOW,
                read_bytes: read.len(),
                requests: 1,
            });
            return None;
        };
        // The stream that moved last is the last one: the one to forget is the one that rests longest.
        let mut stream = streams.remove(index);
        let plan = stream.step(read, size, reach);
        streams.push(stream);
        plan
    }
}

impl Stream {
    fn step(&mut self, read: ByteRange, size: u64, reach: Reach) -> Option<ByteRange> {
        let advanced = read.end > self.front;
        self.start = self.start.min(read.start);
        self.front = self.front.max(read.end);
        self.planned = self.planned.max(self.front);
        self.read_bytes = self.read_bytes.saturating_add(read.len());
        self.requests = self.requests.saturating_add(1);
        let span = self.front - self.start;
        let in_sequence = span >= CONFIRM_BYTES && self.read_bytes >= span / 2;
        if !advanced || self.requests < 2 || !in_sequence {
            return None;
        }
        let ahead = self.planned - self.front;
        if ahead > self.window / 2 || self.planned >= size {
            return None;
        }
        let target = self.front.saturating_add(self.window).min(size);
        self.window = (self.window * 2).min(reach.window);
        let plan = ByteRange::new(self.planned, target);
        self.planned = self.planned.max(target);
        (!plan.is_empty()).then_some(plan)
    }
}

#[cfg(all(test, not(lazycopy_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REACH: Reach = Reach { window: 64 << 20, chunk: 4 << 20 };
    const SIZE: u64 = 1 << 30;

    #[test]
    fn heads_tails_and_scattered_reads_fetch_nothing_ahead() {
        let planner = ReadPlanner::default();
        assert_eq!(planner.on_read(ByteRange::at(0, 128 << 10), SIZE, REACH), None);
        assert_eq!(planner.on_read(ByteRange::at(SIZE - 4096, 4096), SIZE, REACH), None);
        for n in 1..200u64 {
            let offset = n * 7_919_077 * 4096 % SIZE;
            assert_eq!(planner.on_read(ByteRange::at(offset, 4096), SIZE, REACH), None, "{offset}");
        }
    }

    #[test]
    fn scattered_reads_close_to_each_other_are_no_stream() {
        let planner = ReadPlanner::default();
        for n in 0..2000u64 {
            let offset = n * 2_654_435_761 % (4 << 20) / 4096 * 4096;
            assert_eq!(planner.on_read(ByteRange::at(offset, 4096), SIZE, REACH), None, "{n}");
            if n % 64 == 63 {
                planner.streams.lock().clear();
            }
        }
    }

    #[test]
    fn a_stream_is_covered_ahead_without_gap_and_its_window_doubles_up_to_the_reach() {
        let planner = ReadPlanner::default();
        let (mut planned, mut largest) = (0, 0);
        for offset in (0..SIZE).step_by(256 << 10) {
            let read = ByteRange::at(offset, 256 << 10);
            if let Some(plan) = planner.on_read(read, SIZE, REACH) {
                assert!(planned == 0 || plan.start <= planned.max(read.end), "gap before {plan}");
                assert!(plan.start >= read.end && plan.end <= read.end + REACH.window);
                planned = plan.end;
                largest = largest.max(plan.end - read.end);
            }
        }
        assert_eq!(planned, SIZE);
        assert_eq!(largest, REACH.window);
    }

    #[test]
    fn interleaved_streams_of_one_handle_are_told_apart() {
        let planner = ReadPlanner::default();
        let mut planned = [0u64; 3];
        for step in 0..40u64 {
            for (n, end) in planned.iter_mut().enumerate() {
                let read = ByteRange::at(n as u64 * (300 << 20) + step * (128 << 10), 128 << 10);
                if let Some(plan) = planner.on_read(read, SIZE, REACH) {
                    *end = plan.end;
                }
            }
        }
        for (n, end) in planned.iter().enumerate() {
            assert!(*end > n as u64 * (300 << 20) + (5 << 20), "stream {n} reached {end}");
        }
    }

    #[test]
    fn requests_that_the_kernel_reorders_are_one_stream() {
        let planner = ReadPlanner::default();
        let mut plans = 0;
        for pair in 0..20u64 {
            for n in [1, 0] {
                let read = ByteRange::at((pair * 2 + n) * (128 << 10), 128 << 10);
                plans += u32::from(planner.on_read(read, SIZE, REACH).is_some());
            }
        }
        assert!(plans > 2);
        assert_eq!(planner.streams.lock().len(), 1);
    }

    #[test]
    fn chunks_grow_with_round_trip_and_rate() {
        let pace = Pace::new(16);
        assert_eq!(pace.reach().chunk, 1 << 20);
        let second = Duration::from_secs(1);
        pace.observe(Duration::from_millis(20), second, 60_000_000);
        assert_eq!(pace.reach(), Reach { window: 128 << 20, chunk: 8 << 20 });
        for _ in 0..50 {
            pace.observe(Duration::from_micros(200), second, 60_000_000);
        }
        assert_eq!(pace.reach().chunk, 1 << 20);
    }

    proptest! {
        #[test]
        fn a_plan_never_leaves_the_file_nor_the_window(
            reads in prop::collection::vec((0u64..1 << 26, 1u64..1 << 21), 1..80), size in 1u64..1 << 26
        ) {
            let planner = ReadPlanner::default();
            for (offset, len) in reads {
                let read = ByteRange::at(offset, len).clip(size);
                if let Some(plan) = planner.on_read(read, size, REACH) {
                    prop_assert!(plan.end <= size && plan.len() <= REACH.window && !plan.is_empty());
                }
            }
        }
    }
}
