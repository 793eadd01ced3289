//! What `status --watch` shows: a report becomes a screen, whatever its size. No terminal, no clock.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget};

use crate::cli::text::{bytes, count, phase, seconds};
use crate::cli::watch::cells::{blocks, plain, shortened};
use crate::control::status::{ActiveChunk, FileError, JobPhase, RateCounts, StatusReport};

/// Below this height errors and chunks share what is left of the screen with nobody: the head alone is shown.
const HEAD_ROWS: u16 = 9;
/// Widest bar of one chunk.
const CHUNK_BAR: usize = 10;

/// One daemon's screen.
#[derive(Debug)]
pub(crate) struct Screen<'a> {
    /// What the daemon says.
    pub(crate) report: &'a StatusReport,
    /// What an order changed, or what went wrong with it.
    pub(crate) note: &'a str,
    /// Asks whether it shall really be stopped.
    pub(crate) asks: bool,
}

impl Widget for Screen<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let rows = usize::from(area.height.saturating_sub(HEAD_ROWS + 1));
        let errors = match (rows, self.report.errors.len()) {
            (_, 0) | (0..=2, _) => 0,
            (rows, errors) => (errors + 1).min((rows / 3).max(2)),
        };
        let [head, active, below, foot] = Layout::vertical([
            Constraint::Length(HEAD_ROWS),
            Constraint::Fill(1),
            Constraint::Length(u16::try_from(errors).unwrap_or(0)),
            Constraint::Length(1),
        ])
        .areas(area);
        let width = usize::from(area.width);
        Paragraph::new(self.head(width)).render(head, buffer);
        Paragraph::new(self.active(width, usize::from(active.height))).render(active, buffer);
        Paragraph::new(self.errors(width, errors)).render(below, buffer);
        Paragraph::new(self.foot(width)).render(foot, buffer);
    }
}

impl Screen<'_> {
    fn head(&self, width: usize) -> Vec<Line<'static>> {
        let report = self.report;
        let state = phase(report);
        let place = shortened(&report.mountpoint, width.saturating_sub(state.chars().count() + 2));
        let gap = width.saturating_sub(place.chars().count() + state.chars().count());
        let mut first = Line::from(vec![Span::from(place).bold(), " ".repeat(gap).into()]);
        first.push_span(Span::styled(state, phase_style(report)));
        let files = &report.files;
        let proof = &report.proof;
        let chunks = &report.chunks;
        let rates = &report.rates;
        let said = |number: u64, what: &str| (number, format!("{} {what}", count(number)));
        let mut lines = vec![
            first,
            named("from", shortened(&report.source, width.saturating_sub(8))),
            named("into", shortened(&report.dest, width.saturating_sub(8))),
            bar(report, width),
            amount(report, width),
            row(
                "files",
                width,
                &[
                    (1, format!("{} of {} published", count(files.published), count(files.total))),
                    said(files.partial, "partial"),
                    said(files.failed, "failed"),
                    said(files.changed, "changed"),
                    said(files.deleted, "deleted"),
                    said(files.vanished, "vanished"),
                    said(files.warnings, "warnings"),
                ],
            ),
            row(
                "proof",
                width,
                &[
                    (1, format!("{} by source checksum", count(proof.source_checksum))),
                    (1, format!("{} by transfer", count(proof.transfer))),
                    said(proof.adopted_unverified, "adopted unverified"),
                ],
            ),
            row(
                "chunks",
                width,
                &[
                    (1, format!("{} active", count(chunks.active))),
                    (1, format!("{} queued", count(chunks.queued))),
                    (1, format!("{} done", count(chunks.done))),
                    said(chunks.failed, "failed"),
                    said(chunks.retried, "retried"),
                ],
            ),
            rates_row(rates, width),
        ];
        lines.truncate(usize::from(HEAD_ROWS));
        lines
    }

    fn active(&self, width: usize, height: usize) -> Vec<Line<'static>> {
        let active = &self.report.active;
        if height < 2 {
            return Vec::new();
        }
        let room = height - 1;
        let shown = if active.len() > room { room - 1 } else { active.len() };
        let mut lines = vec![rule("active chunks", width)];
        lines.extend(active.iter().take(shown).map(|chunk| chunk_line(chunk, width)));
        if active.is_empty() {
            lines.push(Line::from("  none").dim());
        }
        if shown < active.len() {
            lines.push(Line::from(format!("  and {} more", active.len() - shown)).dim());
        }
        lines
    }

    /// The newest first.
    fn errors(&self, width: usize, height: usize) -> Vec<Line<'static>> {
        if height == 0 {
            return Vec::new();
        }
        let errors = &self.report.errors;
        let title = format!("last errors, {} in all", errors.len());
        let mut lines = vec![rule(&title, width)];
        lines.extend(errors.iter().rev().take(height - 1).map(|error| error_line(error, width)));
        lines
    }

    fn foot(&self, width: usize) -> Line<'static> {
        if self.asks {
            let question = "Stop hydration now? What landed is kept.  y stop  n go on";
            return Line::from(shortened(question, width)).bold().reversed();
        }
        let keys = "p pause  r resume  s stop  q quit";
        let room = width.saturating_sub(keys.chars().count() + 2);
        match self.note.is_empty() || room < 8 {
            true => Line::from(shortened(keys, width)).dim(),
            false => Line::from(vec![
                Span::from(keys).dim(),
                Span::from("  "),
                Span::from(shortened(self.note, room)).bold(),
            ]),
        }
    }
}

fn phase_style(report: &StatusReport) -> Style {
    let color = match report.phase {
        JobPhase::Complete => Color::Green,
        JobPhase::Paused | JobPhase::Draining | JobPhase::Stopped => Color::Yellow,
        JobPhase::Failed => Color::Red,
        JobPhase::Idle | JobPhase::Scanning | JobPhase::Hydrating => Color::Cyan,
    };
    Style::new().fg(color).add_modifier(Modifier::BOLD)
}

fn named(name: &'static str, text: String) -> Line<'static> {
    Line::from(vec![Span::from(format!("{name:<7} ")).dim(), text.into()])
}

/// Parts with a number of 0 are left out. If there is no room for the last ones, that is shown.
fn row(name: &'static str, width: usize, parts: &[(u64, String)]) -> Line<'static> {
    let parts = parts.iter().filter(|(number, _)| *number > 0);
    let text = parts.map(|(_, part)| part.as_str()).collect::<Vec<_>>().join(", ");
    named(name, cut(&text, width.saturating_sub(8)))
}

/// The beginning of a text that is too long.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    // Not in the middle of a part: half a number is a wrong one.
    let whole = kept.rfind(", ").map_or("", |end| &kept[..=end]);
    if width == 0 { String::new() } else { format!("{whole}…") }
}

/// In one letter each where there is little room.
fn rates_row(rates: &RateCounts, width: usize) -> Line<'static> {
    let [demand, readahead, hydration] =
        [rates.demand, rates.readahead, rates.hydration].map(bytes);
    let long = format!("demand {demand}/s, readahead {readahead}/s, hydration {hydration}/s");
    if 8 + long.chars().count() <= width {
        return named("rates", long);
    }
    let short = format!("d {demand}, r {readahead}, h {hydration}");
    named("rates/s", cut(&short, width.saturating_sub(8)))
}

fn rule(title: &str, width: usize) -> Line<'static> {
    let rest = width.saturating_sub(title.chars().count() + 4);
    Line::from(format!("── {title} {}", "─".repeat(rest))).dim()
}

fn bar(report: &StatusReport, width: usize) -> Line<'static> {
    let percent = format!(" {:5.1} %", report.percent);
    let filled = blocks(report.percent / 100.0, width.saturating_sub(percent.len()));
    let bar = Span::styled(filled, phase_style(report)).bg(Color::DarkGray);
    Line::from(vec![bar, Span::from(percent).bold()])
}

/// How much, how fast, how long still.
fn amount(report: &StatusReport, width: usize) -> Line<'static> {
    let left = match report.eta_s {
        Some(left) => format!("ETA {}", seconds(left)),
        None if report.phase == JobPhase::Hydrating => "ETA not known yet".to_owned(),
        None => String::new(),
    };
    let is_known = if report.phase == JobPhase::Scanning { " and counting" } else { "" };
    let local = format!("{} of {}{is_known}", bytes(report.bytes.local), bytes(report.bytes.total));
    let rate = format!("{}/s", bytes(report.rate_bytes_per_s));
    let joined = |parts: &[&str]| {
        let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        parts.join("   ")
    };
    let all = joined(&[&local, &rate, &left]);
    if all.chars().count() <= width {
        return Line::from(all);
    }
    // The rates have a line of their own.
    Line::from(cut(&joined(&[&local, &left]).replace("   ", ", "), width))
}

fn chunk_line(chunk: &ActiveChunk, width: usize) -> Line<'static> {
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let share = chunk.landed as f64 / chunk.len.max(1) as f64;
    let head = format!("  {:<9} ", chunk.priority);
    let size = format!(" {:>10} at {:>10}  ", bytes(chunk.len), bytes(chunk.offset));
    let color = match chunk.priority.as_str() {
        "demand" => Color::Green,
        "readahead" => Color::Cyan,
        _ => Color::Blue,
    };
    let bar = Span::from(blocks(share, CHUNK_BAR)).fg(color).bg(Color::DarkGray);
    let taken = head.chars().count() + CHUNK_BAR + size.chars().count();
    let path = shortened(&plain(&chunk.path.path), width.saturating_sub(taken));
    Line::from(vec![head.into(), bar, Span::from(size).dim(), path.into()])
}

fn error_line(error: &FileError, width: usize) -> Line<'static> {
    let kind = format!("  {:<12} ", error.kind);
    let room = width.saturating_sub(kind.chars().count());
    let path = plain(&error.path.path);
    // The message is cut before the path is.
    let text = format!("{}  {}", shortened(&path, room / 2), plain(&error.message));
    let cut: String = text.chars().take(room).collect();
    Line::from(vec![Span::from(kind).red(), cut.into()])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::control::status::{JsonPath, PausedBy};

    fn report() -> StatusReport {
        let path = Path::new("/mnt/tree");
        let mut report =
            StatusReport::of(path, Path::new("/data/tree")).in_phase(JobPhase::Hydrating, None);
        report.source = "https://host/tree/".to_owned();
        report.percent = 42.5;
        report.bytes.local = 3 << 30;
        report.bytes.total = 7 << 30;
        report.rate_bytes_per_s = 120 << 20;
        report.eta_s = Some(63);
        report.files.total = 3000;
        report.files.published = 1204;
        report.files.failed = 7;
        report.proof.transfer = 1204;
        report.rates.demand = 1 << 20;
        report.rates.hydration = 119 << 20;
        report.chunks.active = 40;
        report.active = (0..40)
            .map(|n| ActiveChunk {
                chunk: n,
                path: JsonPath::new(format!("directory/{n}/film.mov")),
                offset: n << 20,
                len: 1 << 20,
                landed: n << 14,
                priority: if n == 0 { "demand" } else { "hydration" }.to_owned(),
            })
            .collect();
        report.errors = (0..20)
            .map(|n| FileError {
                path: JsonPath::new(format!("bad/{n}\n")),
                kind: "unreachable".to_owned(),
                message: "read from source: connection refused".to_owned(),
                at: String::new(),
            })
            .collect();
        report
    }

    fn shown(report: &StatusReport, note: &str, asks: bool, size: (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
        terminal
            .draw(|frame| frame.render_widget(Screen { report, note, asks }, frame.area()))
            .unwrap();
        let buffer = terminal.backend().buffer().clone();
        let cells = usize::from(size.0);
        buffer
            .content()
            .chunks(cells.max(1))
            .map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect())
            .collect()
    }

    fn has(lines: &[String], text: &str) -> bool {
        lines.iter().any(|line| line.contains(text))
    }

    #[test]
    fn everything_that_matters_is_on_the_screen_at_80_by_24() {
        let lines = shown(&report(), "", false, (80, 24));
        for text in [
            "/mnt/tree",
            "hydrating",
            "https://host/tree/",
            "/data/tree",
            "42.5 %",
            "3.00 GiB of 7.00 GiB",
            "120.00 MiB/s",
            "ETA 1m 3s",
            "1 204 of 3 000 published",
            "7 failed",
            "1 204 by transfer",
            "demand 1.00 MiB/s",
            "hydration 119.00 MiB/s",
            "directory/0/film.mov",
            "more",
            "unreachable",
            "bad/19?",
            "p pause",
        ] {
            assert!(has(&lines, text), "{text} is missing:\n{}", lines.join("\n"));
        }
    }

    #[test]
    fn a_large_screen_shows_every_chunk() {
        let lines = shown(&report(), "", false, (200, 80));
        assert!(has(&lines, "directory/39/film.mov") && !has(&lines, "more"));
        assert!(has(&lines, "connection refused"));
    }

    #[test]
    fn a_small_screen_keeps_the_bar_and_the_keys() {
        let lines = shown(&report(), "", false, (40, 10));
        assert!(has(&lines, "42.5 %") && has(&lines, "3.00 GiB of 7.00 GiB"));
        assert!(lines[9].contains("q quit"), "{lines:?}");
    }

    #[test]
    fn a_narrow_screen_says_what_it_leaves_out() {
        let lines = shown(&report(), "", false, (40, 24));
        assert!(has(&lines, "3.00 GiB of 7.00 GiB, ETA 1m 3s"), "{lines:?}");
        assert!(has(&lines, "d 1.00 MiB, r 0 B, h 119.00 MiB"), "{lines:?}");
        assert!(has(&lines, "1 204 of 3 000 published, 7 failed") || has(&lines, "published,…"));
        for width in 9..80 {
            let lines = shown(&report(), "", false, (width, 24));
            let rates = lines.iter().find(|line| line.starts_with("rates")).unwrap();
            assert!(rates.contains("119.00 MiB") || rates.contains('…'), "{width}: {rates}");
        }
    }

    #[test]
    fn no_size_makes_it_panic() {
        for width in 0..90 {
            for height in 0..30 {
                shown(&report(), "a note", width % 2 == 0, (width, height));
            }
        }
    }

    #[test]
    fn what_pauses_and_what_an_order_did_is_said() {
        let paused = report().in_phase(JobPhase::Hydrating, Some(PausedBy::Space));
        let lines = shown(&paused, "paused: 3 chunks finish", false, (80, 24));
        assert!(has(&lines, "paused: too little room at the destination"));
        assert!(lines[23].contains("paused: 3 chunks finish"));
        assert!(shown(&paused, "", true, (80, 24))[23].contains("y stop"));
    }
}
