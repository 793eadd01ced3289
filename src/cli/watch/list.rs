//! The daemons to choose from.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Widget};

use crate::cli::watch::cells::shortened;
use crate::control::registry::Found;

/// The daemons, one of them marked.
#[derive(Debug)]
pub(super) struct List {
    daemons: Vec<Found>,
    marked: usize,
}

impl List {
    /// The first is marked.
    pub(super) fn new(daemons: Vec<Found>) -> Self {
        Self { daemons, marked: 0 }
    }

    /// The mark stays at its daemon, if that is still there.
    pub(super) fn renew(&mut self, daemons: Vec<Found>) {
        let marked = self.chosen().map(|daemon| daemon.record.session);
        let place =
            daemons.iter().position(|daemon| Some(&daemon.record.session) == marked.as_ref());
        self.marked = place.unwrap_or(0);
        self.daemons = daemons;
    }

    pub(super) fn up(&mut self) {
        self.marked = self.marked.saturating_sub(1);
    }

    pub(super) fn down(&mut self) {
        self.marked = (self.marked + 1).min(self.daemons.len().saturating_sub(1));
    }

    pub(super) fn chosen(&self) -> Option<Found> {
        self.daemons.get(self.marked).cloned()
    }
}

impl Widget for &List {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let width = usize::from(area.width);
        let room = usize::from(area.height.saturating_sub(3)).max(1);
        // The marked one is always in sight.
        let first = (self.marked + 1).saturating_sub(room);
        let mut lines = vec![Line::from("Which copy?").bold(), Line::from("")];
        if self.daemons.is_empty() {
            lines.push(Line::from("no lazycopy daemon of this user runs").dim());
        }
        for (index, daemon) in self.daemons.iter().enumerate().skip(first).take(room) {
            let record = &daemon.record;
            let text = format!(" {}  from {}", record.mountpoint, record.source);
            let line = Line::from(shortened(&text, width));
            lines.push(if index == self.marked { line.reversed() } else { line });
        }
        Paragraph::new(lines).render(area, buffer);
        let foot = Rect { y: area.bottom().saturating_sub(1), height: area.height.min(1), ..area };
        Line::from(shortened("↑ ↓ choose  Enter watch  q quit", width)).dim().render(foot, buffer);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::control::registry::SessionRecord;

    fn found(session: &str) -> Found {
        let (mountpoint, dest) = (Path::new("/m").join(session), Path::new("/d"));
        let record = SessionRecord::of_this_process(session, "/s", &mountpoint, dest).unwrap();
        Found { record, socket: PathBuf::new() }
    }

    #[test]
    fn the_mark_stays_within_the_list_and_at_its_daemon() {
        let mut list = List::new(vec![found("a"), found("b")]);
        list.down();
        list.down();
        assert_eq!(list.chosen().unwrap().record.session, "b");
        list.renew(vec![found("b"), found("c")]);
        assert_eq!(list.chosen().unwrap().record.session, "b");
        list.up();
        list.renew(Vec::new());
        assert!(list.chosen().is_none());
        list.down();
        assert!(list.chosen().is_none());
    }

    #[test]
    fn the_marked_one_is_in_sight_on_any_screen() {
        let mut list = List::new((0..50).map(|n| found(&format!("{n:02}"))).collect());
        for _ in 0..30 {
            list.down();
        }
        for height in 4..60 {
            let area = Rect::new(0, 0, 40, height);
            let mut buffer = Buffer::empty(area);
            list.render(area, &mut buffer);
            let text: String = buffer.content().iter().map(ratatui::buffer::Cell::symbol).collect();
            assert!(text.contains("/m/30"), "{height}");
        }
        for (width, height) in [(0, 0), (1, 1), (3, 2), (80, 0)] {
            let area = Rect::new(0, 0, width, height);
            list.render(area, &mut Buffer::empty(area));
        }
    }
}
