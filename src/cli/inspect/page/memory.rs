//! The memory plan over time, as a picture.
//!
//! Invariant: a box spans exactly the steps between which its buffer lives, and the bytes that
//! it has; what is left out is said.

use super::{
    super::super::output::size,
    markup::{Html, element},
    note,
};

/// Of the picture, in pixels.
const HEIGHT: f64 = 360.0;
const NARROWEST: f64 = 900.0;
const WIDEST: f64 = 16_000.0;
/// Of one step, at least, while the picture is not at its widest.
const STEP: f64 = 14.0;
/// Beside the picture, for what the axes say.
const LEFT: f64 = 90.0;
const MARGIN: f64 = 24.0;
/// Classes of the style sheet.
const COLOURS: usize = 6;
/// Lines of each axis.
const LINES: u64 = 8;

/// What lives in the memory.
#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) label: String,
    /// Neighbours in it have different colours.
    pub(super) index: usize,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// The step that writes it.
    pub(super) from: usize,
    /// The last one that reads it.
    pub(super) to: usize,
}

/// Draws the `most` largest of `lives` over `steps` steps, each a `unit`; `total` bytes are
/// there.
pub(super) fn picture(
    mut lives: Vec<Life>,
    steps: usize,
    total: u64,
    unit: &str,
    most: usize,
) -> Html {
    let all = lives.len();
    lives.retain(|life| life.from < steps);
    let beyond = match all - lives.len() {
        0 => Html::default(),
        others => note(format!("{others} of {all} are not drawn: no {unit} there is writes them.")),
    };
    lives.retain(|life| life.bytes > 0);
    if lives.is_empty() || total == 0 {
        return [note("Nothing lies in the workspace."), beyond].into_iter().collect();
    }
    let count = lives.len();
    lives.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.offset.cmp(&b.offset)));
    lives.truncate(most);
    let inner = (steps as f64 * STEP).clamp(NARROWEST, WIDEST);
    let (width, height) = (LEFT + inner + MARGIN, HEIGHT + 2.0 * MARGIN);
    let x = |step: f64| LEFT + inner * (step / steps as f64);
    // Offsets grow upwards.
    let y = |bytes: f64| MARGIN + HEIGHT * (1.0 - bytes / total as f64);
    let mut drawn = Html::default();
    for line in 0..=LINES {
        let bytes = (u128::from(total) * u128::from(line) / u128::from(LINES)) as u64;
        let at = number(y(bytes as f64));
        let (from, to) = (number(LEFT), number(LEFT + inner));
        let grid = [("class", "grid"), ("x1", &*from), ("x2", &*to), ("y1", &*at), ("y2", &*at)];
        drawn.push(element("line", &grid, Html::default()));
        let place = [("x", "4"), ("y", &*at)];
        drawn.push(element("text", &place, size(bytes)));
    }
    for life in &lives {
        let to = life.to.clamp(life.from, steps - 1);
        let (left, right) = (x(life.from as f64), x(to as f64 + 1.0));
        let (top, bottom) = (y(life.offset as f64 + life.bytes as f64), y(life.offset as f64));
        // The smallest is seen too.
        let tall = number((bottom - top).max(0.5));
        let (left, top, wide) = (number(left), number(top), number(right - left));
        let colour = format!("b{}", life.index % COLOURS);
        let place = [
            ("class", &*colour),
            ("x", &*left),
            ("y", &*top),
            ("width", &*wide),
            ("height", &*tall),
        ];
        let said = format!(
            "{}: {} at {}, {unit} {} to {to}",
            life.label,
            size(life.bytes),
            life.offset,
            life.from
        );
        drawn.push(element("rect", &place, element("title", &[], said)));
    }
    let every = steps.div_ceil(LINES as usize).max(1);
    for step in (0..steps).step_by(every) {
        let (at, under) = (number(x(step as f64)), number(HEIGHT + MARGIN + 16.0));
        drawn.push(element("text", &[("x", &*at), ("y", &*under)], format!("{unit} {step}")));
    }
    let (wide, tall) = (number(width), number(height));
    let view = format!("0 0 {wide} {tall}");
    let label = format!("{} in {} over {steps} steps", count_of(lives.len()), size(total));
    let svg = [
        ("width", &*wide),
        ("height", &*tall),
        ("viewBox", &*view),
        ("role", "img"),
        ("aria-label", &*label),
    ];
    let mut all = element("div", &[("class", "scroll")], element("svg", &svg, drawn));
    if count > lives.len() {
        let others = count - lives.len();
        let said = format!("The {} largest are drawn, {others} are left out.", lives.len());
        all.push(note(said));
    }
    all.push(beyond);
    all
}

fn count_of(buffers: usize) -> String {
    match buffers {
        1 => "1 buffer".to_owned(),
        count => format!("{count} buffers"),
    }
}

/// As an attribute: two digits are a hundredth of a pixel.
fn number(pixels: f64) -> String {
    format!("{pixels:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(offset: u64, bytes: u64, from: usize, to: usize) -> Life {
        Life { label: "b0".to_owned(), index: 0, offset, bytes, from, to }
    }

    #[test]
    fn a_box_is_where_its_buffer_lives() {
        let made = picture(vec![life(256, 256, 1, 2)], 4, 1024, "kernel", 9).into_string();
        // 4 steps over 900 pixels, 1,024 bytes over 360.
        let place = r#"x="315.00" y="204.00" width="450.00" height="90.00""#;
        assert!(made.contains(place), "{made}");
        assert!(made.contains("b0: 256 B at 256, kernel 1 to 2"), "{made}");
    }

    #[test]
    fn of_too_many_the_largest_are_drawn_and_the_others_said() {
        let many = (0..5_000u64).map(|at| life(at * 256, at, at as usize, at as usize + 1));
        let made = picture(many.collect(), 5_000, 5_000 * 256, "kernel", 700).into_string();
        assert_eq!(made.matches("<rect").count(), 700);
        assert!(made.contains("The 700 largest are drawn, 4299 are left out."), "{made:.200}");
        assert!(made.contains("4.9 KiB at 1279744"), "the largest");
    }

    #[test]
    fn what_no_plan_says_draws_nothing_wrong() {
        for lives in [vec![], vec![life(0, 0, 0, 0)], vec![life(0, 8, 9, 9)]] {
            assert!(picture(lives, 3, 1024, "kernel", 9).into_string().contains("Nothing lies"));
        }
        let made = picture(vec![life(0, 8, 0, 0), life(8, 8, 9, 9)], 3, 1024, "kernel", 9);
        assert!(
            made.into_string().contains("1 of 2 are not drawn: no kernel there is writes them")
        );
        // To far beyond the last step, and beyond the memory.
        let made = picture(vec![life(u64::MAX, u64::MAX, 2, usize::MAX)], 3, 1, "call", 9);
        assert!(!made.into_string().contains("NaN"));
    }
}
