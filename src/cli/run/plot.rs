//! Curves of metrics in the characters of a terminal.

use std::fmt::Write as _;

/// Dots of a braille character, by row and column, as bits above U+2800 (Unicode, Braille Patterns).
const DOTS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Lines of a chart without the x axis.
const HEIGHT: usize = 16;
/// Fewer columns show nothing.
const NARROWEST: usize = 16;

/// Values as bars in at most so many columns, each the mean of those that fall into it; empty where there is none.
/// What is not finite leaves a gap.
pub(super) fn sparkline(values: &[f64], columns: usize) -> String {
    let columns = columns.min(values.len());
    let Some((low, high)) = range(values.iter().copied()) else { return String::new() };
    let column = |index: usize| {
        let part = &values[index * values.len() / columns..(index + 1) * values.len() / columns];
        let (mut sum, mut count) = (0.0, 0_u32);
        for value in part.iter().filter(|value| value.is_finite()) {
            (sum, count) = (sum + share(*value, low, high), count + 1);
        }
        match count {
            0 => ' ',
            count => BARS[place(sum / f64::from(count), BARS.len())],
        }
    };
    (0..columns).map(column).collect()
}

/// A chart of points that are joined by lines, in their order, `width` columns wide with its labels. Nothing for points of
/// which none is finite. Below the curve stand the first and the last `x`.
pub(super) fn chart(points: &[(f64, f64)], width: usize) -> Option<String> {
    let finite: Vec<(f64, f64)> =
        points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let (low, high) = range(finite.iter().map(|(_, y)| *y))?;
    let (left, right) = range(finite.iter().map(|(x, _)| *x))?;
    let labels = [high, f64::midpoint(low, high), low].map(super::short);
    let margin = labels.iter().map(String::len).max().unwrap_or(0) + 1;
    let columns = width.saturating_sub(margin + 1).max(NARROWEST);

    let (across, down) = (columns * 2, HEIGHT * 4);
    let mut dots = vec![0_u8; columns * HEIGHT];
    let mut dot = |x: usize, y: usize| dots[y / 4 * columns + x / 2] |= DOTS[y % 4][x % 2];
    let at = |(x, y): (f64, f64)| {
        (place(share(x, left, right), across), down - 1 - place(share(y, low, high), down))
    };
    let mut before = None;
    for point in finite {
        let here = at(point);
        line(before.unwrap_or(here), here, &mut dot);
        before = Some(here);
    }

    let mut text = String::new();
    for (index, row) in dots.chunks(columns).enumerate() {
        let name = match index {
            0 => &labels[0],
            i if i == HEIGHT / 2 => &labels[1],
            i if i == HEIGHT - 1 => &labels[2],
            _ => "",
        };
        let cells: String = row
            .iter()
            .map(|dots| char::from_u32(0x2800 + u32::from(*dots)).unwrap_or(' '))
            .collect();
        // What is blank at a line's end is blank anyway.
        let cells = cells.trim_end_matches('\u{2800}');
        let _ = writeln!(text, "{name:>margin$}│{cells}");
    }
    let (first, last) = (left.to_string(), right.to_string());
    let gap = columns.saturating_sub(first.len() + last.len());
    let _ = writeln!(text, "{:>margin$}└{}", "", "─".repeat(columns));
    let _ = writeln!(text, "{:>margin$} {first}{:gap$}{last}", "", "");
    Some(text)
}

/// The least and the largest of what is finite.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// Where a value lies between two, from 0 to 1; in the middle if they are the same. Halves first: their difference may be
/// beyond what a double holds.
fn share(value: f64, low: f64, high: f64) -> f64 {
    let span = high / 2.0 - low / 2.0;
    if span > 0.0 { (value / 2.0 - low / 2.0) / span } else { 0.5 }
}

/// The cell of `count` that a share falls into.
fn place(share: f64, count: usize) -> usize {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share times a few hundred cells"
    )]
    let cell = (share.clamp(0.0, 1.0) * count as f64) as usize;
    cell.min(count - 1)
}

/// Bresenham's line, both ends included.
fn line((x0, y0): (usize, usize), (x1, y1): (usize, usize), dot: &mut impl FnMut(usize, usize)) {
    let (across, down) = (x0.abs_diff(x1), y0.abs_diff(y1));
    let steps = across.max(down);
    for step in 0..=steps {
        let part = |from: usize, to: usize| match steps {
            0 => from,
            _ if to >= from => from + ((to - from) * step + steps / 2) / steps,
            _ => from - ((from - to) * step + steps / 2) / steps,
        };
        dot(part(x0, x1), part(y0, y1));
    }
}

#[cfg(test)]
mod tests {
    use super::{chart, sparkline};

    #[test]
    fn a_sparkline_rises_with_its_values_and_has_gaps() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[0.0, f64::NAN, 1.0], 8), "▁ █");
        assert_eq!(sparkline(&[5.0, 5.0], 8), "▅▅", "a constant is neither low nor high");
        assert_eq!(sparkline(&[f64::NAN], 8), "");
        assert_eq!(sparkline(&[], 8), "");
        // More values than columns: means of parts.
        assert_eq!(sparkline(&[0.0, 0.0, 8.0, 8.0], 2), "▁█");
        assert_eq!(sparkline(&[f64::MIN, f64::MAX], 2), "▁█");
    }

    #[test]
    fn a_chart_has_its_ends_at_the_edges() {
        let points: Vec<(f64, f64)> = (0..100).map(|x| (f64::from(x), f64::from(x * 2))).collect();
        let text = chart(&points, 60).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 18);
        assert!(lines[0].starts_with(" 198│"), "{text}");
        assert!(lines[8].starts_with("  99│"), "{text}");
        assert!(lines[15].starts_with("   0│"), "{text}");
        assert!(lines[0].ends_with(['⠁', '⠈', '⠉', '⡠', '⠊', '⠔', '⡔', '⠜', '⡰', '⠎']), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 60), "{text}");
        assert!(lines[17].trim_start().starts_with("0 ") && lines[17].ends_with("99"), "{text}");
    }

    #[test]
    fn what_cannot_be_drawn_is_not() {
        assert_eq!(chart(&[], 60), None);
        assert_eq!(chart(&[(0.0, f64::NAN), (1.0, f64::INFINITY)], 60), None);
        // One point, the extremes, a terminal of no width.
        assert!(chart(&[(3.0, 1.0)], 60).is_some());
        assert!(chart(&[(0.0, f64::MIN), (1.0, f64::MAX)], 60).is_some());
        assert!(chart(&[(0.0, 1.0), (1.0, 2.0)], 0).is_some());
    }
}
