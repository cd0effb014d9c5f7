//! The screen: a heading, a chart of the last minutes, and one table at a time.
//!
//! Invariant: drawing needs nothing but the last view and the keys that were pressed; a
//! small terminal shows less, and is no error.

use kiln::dashboard::View;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState, Tabs},
};

use super::{
    rows::{self, plain},
    tab::{TABS, Tab},
    terminal::Key,
};

/// What is on the screen.
pub(super) struct Screen {
    view: View,
    /// Why the view is an old one.
    stale: Option<String>,
    tab: usize,
    row: usize,
}

impl Screen {
    pub(super) fn new(view: View) -> Self {
        Self { view, stale: None, tab: 0, row: 0 }
    }

    /// Another look was taken; the last view stays where it failed.
    pub(super) fn see(&mut self, looked: Result<View, String>) {
        match looked {
            Ok(view) => (self.view, self.stale) = (view, None),
            Err(why) => self.stale = Some(why),
        }
    }

    pub(super) fn press(&mut self, key: Key) {
        let last = rows::of(TABS[self.tab], &self.view).rows.len().saturating_sub(1);
        match key {
            Key::NextTab => (self.tab, self.row) = ((self.tab + 1) % TABS.len(), 0),
            Key::PreviousTab => {
                (self.tab, self.row) = ((self.tab + TABS.len() - 1) % TABS.len(), 0);
            }
            Key::Up => self.row = self.row.min(last).saturating_sub(1),
            Key::Down => self.row = (self.row + 1).min(last),
            Key::Quit | Key::Redraw => {}
        }
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let parts = [
            Constraint::Length(3),
            Constraint::Length(5),
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
        ];
        let [heading, chart, tabs, table, foot] = Layout::vertical(parts).areas(frame.area());
        self.draw_heading(frame, heading);
        self.draw_chart(frame, chart);
        let names = TABS.map(Tab::name);
        let shown = Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD);
        frame.render_widget(Tabs::new(names).select(self.tab).highlight_style(shown), tabs);
        self.draw_table(frame, table);
        let help = "tab, ← →: part   ↑ ↓: row   q: end";
        frame.render_widget(Paragraph::new(help).style(Style::new().fg(Color::DarkGray)), foot);
    }

    fn draw_heading(&self, frame: &mut Frame<'_>, area: Rect) {
        let heading = rows::heading(&self.view);
        let mut lines: Vec<Line<'_>> =
            heading.lines().map(|line| Line::from(line.to_owned())).collect();
        let bad = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        if let Some(why) = &self.stale {
            let text = format!("NOT LIVE: {}", plain(why));
            lines.push(Line::from(Span::styled(text, bad)));
        } else if let Some(alert) = self.view.alerts.first() {
            let text = format!("{}: {}", plain(&alert.name), plain(&alert.summary));
            lines.push(Line::from(Span::styled(text, bad)));
        }
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn draw_chart(&self, frame: &mut Frame<'_>, area: Rect) {
        let all = self.view.history.iter().map(|point| {
            let of = point.counts;
            let hits = [of.hits_memory, of.hits_disk, of.hits_peer, of.hits_object];
            let others = [of.coalesced, of.compiled, of.failed, of.resp_hits, of.resp_misses];
            hits.into_iter().chain(others).fold(0, u64::saturating_add)
        });
        let all: Vec<u64> = all.collect();
        let from = all.len().saturating_sub(usize::from(area.width.saturating_sub(2)));
        let last = all.last().map_or("-".to_owned(), |last| format!("{:.1}", *last as f64 / 5.0));
        let block = Block::bordered().title(format!(" Requests a second: {last} "));
        let chart = Sparkline::default().block(block).data(&all[from..]);
        frame.render_widget(chart.style(Style::new().fg(Color::Cyan)), area);
    }

    fn draw_table(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = rows::of(TABS[self.tab], &self.view);
        if rows.rows.is_empty() {
            frame.render_widget(Paragraph::new("nothing"), area);
            return;
        }
        let widths = rows.widths().into_iter();
        let widths: Vec<_> = widths
            .map(|width| Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX)))
            .collect();
        let heading = Row::new(rows.heading.iter().copied())
            .style(Style::new().add_modifier(Modifier::BOLD).fg(Color::DarkGray));
        let cell = |text: &String| match text {
            gone if gone.starts_with("GONE") => Cell::new(gone.clone())
                .style(Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)),
            text => Cell::new(text.clone()),
        };
        let body = rows.rows.iter().map(|row| Row::new(row.iter().map(cell)));
        let table = Table::new(body, widths)
            .header(heading)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let row = self.row.min(rows.rows.len() - 1);
        let mut state = TableState::new().with_selected(Some(row));
        frame.render_stateful_widget(table, area, &mut state);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use kiln::dashboard::view::{Figures, NodeState, NodeView, TopArtifact};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    pub(in super::super) fn view() -> View {
        let node = |id, state| NodeView { id, state, silent_ms: Some(4200), ..NodeView::default() };
        let figures = Figures { node: 1, role: "leader".into(), ..Figures::default() };
        let mut view = View { answered_by: 1, ..View::default() };
        view.nodes = vec![node(1, NodeState::Up), node(2, NodeState::Gone)];
        view.nodes[0].figures = Some(figures);
        view.totals = [("hits_disk".to_owned(), 3), ("compiled".into(), 1)].into();
        view.top.artifacts =
            vec![TopArtifact { label: "a model".into(), ..TopArtifact::default() }];
        view
    }

    fn shown(screen: &Screen, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = buffer.content().chunks(usize::from(width));
        let line =
            |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect();
        lines.map(line).collect::<Vec<String>>().join("\n")
    }

    #[test]
    fn a_gone_node_and_the_hit_rate_are_plain_to_see() {
        let text = shown(&Screen::new(view()), (120, 24));
        assert!(text.contains("1 of 2 nodes up") && text.contains("GONE 4 s"), "{text}");
        assert!(text.contains("hits 75.0%") && text.contains("leader"), "{text}");
    }

    #[test]
    fn tabs_go_round_both_ways_and_rows_stay_within_the_table() {
        let mut screen = Screen::new(view());
        screen.press(Key::PreviousTab);
        assert_eq!(TABS[screen.tab], Tab::Alerts);
        screen.press(Key::NextTab);
        for _ in 0..9 {
            screen.press(Key::Down);
        }
        assert_eq!((screen.tab, screen.row), (0, 1));
        screen.view.nodes.pop();
        screen.press(Key::Up);
        assert_eq!(screen.row, 0);
    }

    #[test]
    fn a_failed_look_keeps_the_last_view_and_says_so() {
        let mut screen = Screen::new(view());
        screen.see(Err("no node can serve this".into()));
        let text = shown(&screen, (120, 24));
        assert!(text.contains("NOT LIVE: no node") && text.contains("GONE"), "{text}");
        screen.see(Ok(view()));
        assert!(!shown(&screen, (120, 24)).contains("NOT LIVE"));
    }

    #[test]
    fn a_small_terminal_is_no_error() {
        for size in [(1, 1), (10, 5), (40, 12)] {
            for tab in 0..TABS.len() {
                shown(&Screen { tab, ..Screen::new(view()) }, size);
            }
        }
    }
}
