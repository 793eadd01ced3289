//! Numbers and states as people read them.

use std::time::Duration;

use indicatif::{BinaryBytes, HumanCount};

use crate::control::status::{FileCounts, InPlaceCounts, JobPhase, PausedBy, StatusReport};

/// `1.50 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    BinaryBytes(count).to_string()
}

/// `12 345`.
pub(crate) fn count(count: u64) -> String {
    HumanCount(count).to_string().replace(',', " ")
}

/// `1h 14m 3s`, whole seconds.
pub(crate) fn seconds(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// `hydrating`, or `paused by space`.
pub(crate) fn phase(report: &StatusReport) -> String {
    match report.paused_by {
        None if report.phase == JobPhase::Complete && report.files.warnings > 0 => {
            let warnings = report.files.warnings;
            let s = if warnings == 1 { "" } else { "s" };
            format!("complete with {} warning{s}", count(warnings))
        }
        None => report.phase.as_str().to_owned(),
        Some(PausedBy::User) => "paused by the user".to_owned(),
        Some(PausedBy::Space) => "paused: too little room at the destination".to_owned(),
        Some(PausedBy::Source) => "paused: the source is out of reach".to_owned(),
    }
}

/// One line of progress: percent, amount, rate, time left, files.
pub(crate) fn progress(report: &StatusReport) -> String {
    let eta = report.eta_s.map_or_else(String::new, |left| format!("  ETA {}", seconds(left)));
    let failed = match report.files.failed {
        0 => String::new(),
        failed => format!(", {} failed", count(failed)),
    };
    format!(
        "{:5.1} %  {} of {}  {}/s{eta}  {} of {} files{failed}  {}",
        report.percent,
        bytes(report.bytes.local),
        bytes(report.bytes.total),
        bytes(report.rate_bytes_per_s),
        count(report.files.published),
        count(report.files.total),
        phase(report)
    )
}

/// What the scan of a copy in place has found.
pub(crate) fn scan(report: &StatusReport) -> String {
    let is_scanned = report.in_place.is_some_and(|in_place| in_place.is_scanned);
    let how_far = if is_scanned { "all listed" } else { "still listing" };
    format!("{} files, {}, {how_far}", count(report.files.total), bytes(report.bytes.total))
}

/// Whether there is room for a copy in place.
pub(crate) fn space(report: &StatusReport) -> String {
    let InPlaceCounts { needed, free, kept_free, .. } = report.in_place.unwrap_or_default();
    let short = match needed > free.saturating_sub(kept_free) {
        true => ": not enough for all of it",
        false => "",
    };
    format!("needs {}, free {}, {} kept free{short}", bytes(needed), bytes(free), bytes(kept_free))
}

/// How far the copy is, beside a bar.
pub(crate) fn copy(report: &StatusReport) -> String {
    let eta = report.eta_s.map_or_else(String::new, |left| format!("  ETA {}", seconds(left)));
    let failed = match report.files.failed {
        0 => String::new(),
        failed => format!("  {} failed", count(failed)),
    };
    let phase = match report.phase {
        JobPhase::Scanning | JobPhase::Hydrating => String::new(),
        _ => format!("  {}", phase(report)),
    };
    let last = match report.in_place.unwrap_or_default().last_wait_ms {
        0 => String::new(),
        ms => format!(" (last one: {ms} ms)"),
    };
    format!(
        "{:5.1} %  {}/s{eta}{failed}{phase}   your reads go first{last}",
        report.percent,
        bytes(report.rate_bytes_per_s)
    )
}

/// What the source has no more, if there is any.
fn gone(files: &FileCounts) -> String {
    let said = |number: u64, what: &str| match number {
        0 => String::new(),
        number => format!(", {} {what}", count(number)),
    };
    said(files.deleted, "deleted at the source and kept here") + &said(files.vanished, "vanished")
}

/// About ten lines about one daemon.
pub(crate) fn status(report: &StatusReport) -> String {
    let files = &report.files;
    let chunks = &report.chunks;
    let eta = report.eta_s.map_or_else(String::new, |left| format!(", ETA {}", seconds(left)));
    let mut lines = vec![
        format!("{} shows {}", report.mountpoint, report.source),
        match report.cache {
            None => format!("kept in   {}", report.dest),
            Some(_) => format!("cached in {}", report.dest),
        },
        format!("phase     {}, {:.1} %{eta}", phase(report), report.percent),
        format!(
            "files     {} of {} published, {} partial, {} failed, {} changed{}, {} warnings",
            count(files.published),
            count(files.total),
            count(files.partial),
            count(files.failed),
            count(files.changed),
            gone(files),
            count(files.warnings)
        ),
        format!(
            "proof     source checksum {}, transfer {}, adopted unverified {}",
            count(report.proof.source_checksum),
            count(report.proof.transfer),
            count(report.proof.adopted_unverified)
        ),
        format!(
            "bytes     {} of {} local; fetched {}, served {}, wasted {}",
            bytes(report.bytes.local),
            bytes(report.bytes.total),
            bytes(report.bytes.fetched),
            bytes(report.bytes.served),
            bytes(report.bytes.wasted)
        ),
        format!("rate      {}/s", bytes(report.rate_bytes_per_s)),
        format!(
            "chunks    {} active, {} queued, {} done, {} failed, {} retried",
            count(chunks.active),
            count(chunks.queued),
            count(chunks.done),
            count(chunks.failed),
            count(chunks.retried)
        ),
        format!("session   {}, since {}", report.session, report.started_at),
    ];
    if let Some(cache) = &report.cache {
        lines.push(format!(
            "cache     {} of at most {}, {} evicted",
            bytes(cache.used),
            bytes(cache.cap),
            bytes(cache.evicted)
        ));
    }
    if let Some(last) = report.errors.last() {
        lines.push(format!(
            "errors    {} remembered, the last: {}: {} ({})",
            report.errors.len(),
            last.path.path,
            last.message,
            last.at
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn progress_is_one_line_in_human_units() {
        let mut report =
            StatusReport::of(Path::new("/m"), Path::new("/d")).in_phase(JobPhase::Hydrating, None);
        report.percent = 12.42;
        report.bytes.local = 3 << 30;
        report.bytes.total = 24 << 30;
        report.rate_bytes_per_s = 612 << 20;
        report.eta_s = Some(74 * 60);
        report.files.published = 118_204;
        report.files.total = 200_000;
        assert_eq!(
            progress(&report),
            " 12.4 %  3.00 GiB of 24.00 GiB  612.00 MiB/s  ETA 1h 14m  118 204 of 200 000 files  hydrating"
        );
        assert!(status(&report).lines().count() <= 10);
    }

    #[test]
    fn a_clone_shows_scan_space_and_copy() {
        let mut report =
            StatusReport::of(Path::new("/d"), Path::new("/d")).in_phase(JobPhase::Scanning, None);
        report.files.total = 118_204;
        report.bytes.total = 3 << 40;
        let mut in_place = InPlaceCounts {
            needed: 3 << 40,
            free: 5 << 40,
            kept_free: 64 << 30,
            ..InPlaceCounts::default()
        };
        report.in_place = Some(in_place);
        assert_eq!(scan(&report), "118 204 files, 3.00 TiB, still listing");
        assert_eq!(space(&report), "needs 3.00 TiB, free 5.00 TiB, 64.00 GiB kept free");
        in_place.free = 3 << 40;
        report.in_place = Some(in_place);
        assert!(space(&report).ends_with("not enough for all of it"));
        report.percent = 12.42;
        report.rate_bytes_per_s = 612 << 20;
        assert_eq!(copy(&report), " 12.4 %  612.00 MiB/s   your reads go first");
        in_place.last_wait_ms = 23;
        report.in_place = Some(in_place);
        report.eta_s = Some(74 * 60);
        assert_eq!(
            copy(&report),
            " 12.4 %  612.00 MiB/s  ETA 1h 14m   your reads go first (last one: 23 ms)"
        );
        report = report.in_phase(JobPhase::Hydrating, Some(PausedBy::Space));
        assert!(copy(&report).contains("  paused: too little room at the destination"));
    }
}
