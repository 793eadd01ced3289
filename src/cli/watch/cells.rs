//! Texts and bars that fit into so many cells.

/// So many eighths of `width` cells are filled.
pub(super) fn blocks(share: f64, width: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "cells of a bar"
    )]
    let filled = ((share.clamp(0.0, 1.0) * (width * 8) as f64) as usize).min(width * 8);
    let mut text = "█".repeat(filled / 8);
    if filled / 8 < width {
        text.push(EIGHTHS[filled % 8]);
    }
    let missing = width - text.chars().count();
    text + &" ".repeat(missing)
}

/// Without what would move the cursor.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The end of a text that is too long: of a path that is the telling part.
pub(super) fn shortened(text: &str, width: usize) -> String {
    let text = plain(text);
    let length = text.chars().count();
    if length <= width {
        return text;
    }
    let tail: String = text.chars().skip(length - width.saturating_sub(1)).collect();
    if width == 0 { String::new() } else { format!("…{tail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_never_longer_than_its_place() {
        for width in 0..20 {
            for percent in -1..=101 {
                let bar = blocks(f64::from(percent) / 100.0, width);
                assert_eq!(bar.chars().count(), width);
            }
        }
        assert_eq!((blocks(1.0, 3), blocks(0.5, 3)), ("███".to_owned(), "█▌ ".to_owned()));
    }
}
