//! `lazycopy status --watch`: a live view of a daemon in the terminal, with keys for its orders.

mod cells;
mod list;
mod view;

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::cli::exit::Exit;
use crate::cli::orders::the_daemon;
use crate::cli::say;
use crate::control::client::Client;
use crate::control::orders::SwitchOrder;
use crate::control::registry::{self, Found};
use crate::error::{Error, Kind, Result};
use list::List;
use view::Screen;

/// Between two looks at the daemon.
const BEAT: Duration = Duration::from_millis(500);

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Order(SwitchOrder),
    Ask,
    DoNotAsk,
    Quit,
    Nothing,
}

/// Shows the daemon of TARGET, or the one that is chosen out of several, until it ends or the user does.
pub(crate) fn run(target: Option<&Path>) -> Result<Exit> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Error::new(Kind::Invalid, "watch")
            .because("this is not a terminal")
            .hint("`lazycopy status --json` is for programs, `lazycopy events --follow` tells what happens"));
    }
    let daemons = registry::all();
    let several = target.is_none() && daemons.len() > 1;
    let first = if several { None } else { Some(the_daemon(target)?) };
    let mut terminal = ratatui::try_init().map_err(|error| Error::io("use terminal", error))?;
    let ended = show(&mut terminal, first);
    ratatui::restore();
    if let Some(gone) = ended? {
        say(&gone);
    }
    Ok(Exit::Ok)
}

/// Returns what there is to say at the end.
fn show(terminal: &mut DefaultTerminal, first: Option<Found>) -> Result<Option<String>> {
    let daemon = match first {
        Some(daemon) => daemon,
        None => match choose(terminal)? {
            Some(daemon) => daemon,
            None => return Ok(None),
        },
    };
    watch(terminal, &daemon)
}

fn choose(terminal: &mut DefaultTerminal) -> Result<Option<Found>> {
    let mut list = List::new(registry::all());
    loop {
        draw(terminal, |frame| frame.render_widget(&list, frame.area()))?;
        let Some(key) = next_key(BEAT)? else {
            list.renew(registry::all());
            continue;
        };
        match key.code {
            KeyCode::Up | KeyCode::Char('k') => list.up(),
            KeyCode::Down | KeyCode::Char('j') => list.down(),
            KeyCode::Enter => {
                if let Some(daemon) = list.chosen() {
                    return Ok(Some(daemon));
                }
            }
            _ if is_quit(key) => return Ok(None),
            _ => {}
        }
    }
}

fn watch(terminal: &mut DefaultTerminal, daemon: &Found) -> Result<Option<String>> {
    let client = Client::new(&daemon.socket);
    let (mut note, mut asks) = (String::new(), false);
    loop {
        let report = match client.status() {
            Ok(report) => report,
            Err(_) if !daemon.record.is_alive() => {
                return Ok(Some(format!("the daemon of {} has ended", daemon.record.mountpoint)));
            }
            Err(error) => return Err(error),
        };
        let next_look = Instant::now() + BEAT;
        loop {
            let screen = || Screen { report: &report, note: &note, asks };
            draw(terminal, |frame| frame.render_widget(screen(), frame.area()))?;
            let left = next_look.saturating_duration_since(Instant::now());
            let Some(key) = next_key(left)? else { break };
            match wish(key, asks) {
                Wish::Quit => return Ok(None),
                Wish::Ask => asks = true,
                Wish::DoNotAsk => asks = false,
                Wish::Nothing => {}
                Wish::Order(order) => {
                    asks = false;
                    note = match client.switch(order) {
                        Ok(done) => done.message,
                        Err(error) => error.to_string(),
                    };
                    break;
                }
            }
        }
    }
}

fn wish(key: KeyEvent, asks: bool) -> Wish {
    match key.code {
        _ if is_quit(key) => Wish::Quit,
        KeyCode::Char('y') if asks => Wish::Order(SwitchOrder::Stop),
        _ if asks => Wish::DoNotAsk,
        KeyCode::Char('p') => Wish::Order(SwitchOrder::Pause),
        KeyCode::Char('r') => Wish::Order(SwitchOrder::Resume),
        KeyCode::Char('s') => Wish::Ask,
        _ => Wish::Nothing,
    }
}

/// Raw mode takes Ctrl-C's signal away.
fn is_quit(key: KeyEvent) -> bool {
    let is_interrupt =
        key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

fn draw(terminal: &mut DefaultTerminal, show: impl FnOnce(&mut ratatui::Frame<'_>)) -> Result<()> {
    let drawn = terminal.draw(show).map(drop);
    drawn.map_err(|error| Error::io("draw", error))
}

/// The next key that is pressed within `patience`. A change of the window's size ends it, too.
fn next_key(patience: Duration) -> Result<Option<KeyEvent>> {
    let failed = |error| Error::io("read the keyboard", error);
    if !event::poll(patience).map_err(failed)? {
        return Ok(None);
    }
    match event::read().map_err(failed)? {
        Event::Key(key) if key.kind == KeyEventKind::Press => Ok(Some(key)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(c: char) -> KeyEvent {
        KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE)
    }

    #[test]
    fn nothing_is_stopped_without_a_second_key() {
        assert_eq!(wish(key('s'), false), Wish::Ask);
        assert_eq!(wish(key('y'), false), Wish::Nothing);
        assert_eq!(wish(key('y'), true), Wish::Order(SwitchOrder::Stop));
        for other in ['n', 's', 'p', 'x'] {
            assert_eq!(wish(key(other), true), Wish::DoNotAsk, "{other}");
        }
    }

    #[test]
    fn keys_give_their_orders() {
        assert_eq!(wish(key('p'), false), Wish::Order(SwitchOrder::Pause));
        assert_eq!(wish(key('r'), false), Wish::Order(SwitchOrder::Resume));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!((wish(interrupt, true), wish(key('q'), false)), (Wish::Quit, Wish::Quit));
    }
}
