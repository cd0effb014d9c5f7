//! The terminal, taken and given back.
//!
//! Invariant: whoever drops it, panics or returns, finds the terminal as it was before.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::sync::mpsc;

/// How soon the reader of keys sees that nobody wants them.
const LOOK: Duration = Duration::from_millis(100);
/// Keys that wait.
const PENDING: usize = 16;

/// What was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    NextTab,
    PreviousTab,
    Up,
    Down,
    /// The terminal has another size, or something was pressed that means nothing.
    Redraw,
}

/// The terminal while it is this command's.
pub(super) struct Terminal {
    terminal: DefaultTerminal,
    keys: mpsc::Receiver<Key>,
    over: Arc<AtomicBool>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Terminal {
    /// Takes the terminal: another screen, and keys as they are pressed.
    pub(super) fn take() -> io::Result<Self> {
        // It restores the terminal if this process panics, and if it fails half-way.
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        let (sender, keys) = mpsc::channel(PENDING);
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let reader = std::thread::spawn(move || read(&sender, &ended));
        Ok(Self { terminal, keys, over, reader: Some(reader) })
    }

    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// The next key; `None`: the terminal is gone.
    pub(super) async fn key(&mut self) -> Option<Key> {
        self.keys.recv().await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // It takes no key that the shell is to get.
            drop(reader.join());
        }
        ratatui::restore();
    }
}

/// Reads keys until nobody wants them, or the terminal is gone.
fn read(keys: &mpsc::Sender<Key>, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let key = match event::poll(LOOK) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            Err(e) => Err(e),
        };
        let Ok(event) = key else { return };
        // Full: whoever presses faster than the screen is drawn loses a key.
        match keys.try_send(meaning(&event)) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

fn meaning(event: &Event) -> Key {
    let Event::Key(key) = event else { return Key::Redraw };
    if key.kind == KeyEventKind::Release {
        return Key::Redraw;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => Key::NextTab,
        KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => Key::PreviousTab,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        _ => Key::Redraw,
    }
}
