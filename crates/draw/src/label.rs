//! The text of labels ("person 0.87") as masks of coverage, for any kind of picture.
//!
//! A class's name is rasterised once, when it is first drawn; the digits of scores once for all. Digits are
//! equally wide, so that a label does not tremble while its score changes.

use std::sync::OnceLock;

use ab_glyph::{Font, FontRef, PxScale, PxScaleFont, ScaleFont, point};

use crate::layout::{Frame, LabelSize, Rect};

/// How much of a colour each pixel of a rectangle takes, 0 to 255.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    width: usize,
    height: usize,
    coverage: Vec<u8>,
}

impl Mask {
    /// A mask from its `width` × `height` coverages, rows top to bottom; missing ones are 0.
    #[must_use]
    pub fn new(width: usize, height: usize, mut coverage: Vec<u8>) -> Self {
        coverage.resize(width * height, 0);
        Self { width, height, coverage }
    }

    /// Columns.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// The coverages of row `y`, which must be below [`Mask::height`].
    #[must_use]
    pub fn row(&self, y: usize) -> &[u8] {
        &self.coverage[y * self.width..(y + 1) * self.width]
    }
}

/// One label's text: masks in a row.
pub struct Text<'a> {
    parts: [(&'a Mask, usize); 5],
    width: usize,
}

impl<'a> Text<'a> {
    /// Pixels from its first to its last column.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The masks and the columns and rows of their upper left corners, for a text that begins at `x`, `y`.
    pub fn placed(&self, x: usize, y: usize) -> impl Iterator<Item = (&'a Mask, usize, usize)> {
        self.parts.iter().map(move |(mask, offset)| (*mask, x + offset, y))
    }
}

/// The labels of one model's classes at one size.
pub struct Labels {
    font: PxScaleFont<FontRef<'static>>,
    bold: f32,
    height: usize,
    baseline: f32,
    padding: usize,
    gap: usize,
    name_width: usize,
    names: Vec<(String, OnceLock<Mask>)>,
    nameless: Mask,
    digits: [Mask; 10],
    point: Mask,
}

impl Labels {
    /// Labels for classes called `names`. A name with no room beside its score is cut and ends with "…".
    #[must_use]
    pub fn new(names: &[String], size: LabelSize) -> Self {
        #[expect(clippy::expect_used, reason = "the font is a part of the program")]
        let font = FontRef::try_from_slice(epaint_default_fonts::UBUNTU_LIGHT).expect("a valid font");
        let em = size.em as f32;
        // ab_glyph scales by the font's line height; sizes here are in em.
        let line = font.height_unscaled() / font.units_per_em().unwrap_or(1000.0);
        let font = font.into_scaled(PxScale::from(em * line));
        let capital = font
            .outline_glyph(font.scaled_glyph('H'))
            .map_or(0.7 * em, |glyph| -glyph.px_bounds().min.y)
            .round();
        let margin = (0.34 * em).round();
        let empty = || Mask::new(0, 0, Vec::new());
        let mut labels = Self {
            font,
            // The font is a light one, made for paper-white screens: on a plate it needs more ink.
            bold: 0.06 * em,
            height: (capital + 2.0 * margin) as usize,
            baseline: margin + capital,
            padding: (0.36 * em).round() as usize,
            gap: (0.30 * em).round() as usize,
            name_width: 0,
            names: names.iter().map(|name| (name.clone(), OnceLock::new())).collect(),
            nameless: empty(),
            digits: std::array::from_fn(|_| empty()),
            point: empty(),
        };
        labels.nameless = Mask::new(0, labels.height, Vec::new());
        labels.digits =
            ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"].map(|digit| labels.rasterise(digit));
        let widest = labels.digits.iter().map(Mask::width).max().unwrap_or(0);
        labels.digits = labels.digits.map(|digit| centred(&digit, widest));
        labels.point = labels.rasterise(".");
        let score = 3 * widest + labels.point.width();
        labels.name_width = size.max_width.saturating_sub(2 * labels.padding + labels.gap + score);
        labels
    }

    /// Height of a label's plate, and of every mask, in pixels.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// Pixels between the plate's left or right edge and its text.
    #[must_use]
    pub fn padding(&self) -> usize {
        self.padding
    }

    /// The text for an object of class `class` found with probability `score`: name and two decimals; a class
    /// without a name has the number alone.
    #[must_use]
    pub fn text(&self, class: u16, score: f32) -> Text<'_> {
        let name = match self.names.get(usize::from(class)) {
            Some((name, mask)) => mask.get_or_init(|| self.name(name)),
            None => &self.nameless,
        };
        let hundredths = (score * 100.0).round().clamp(0.0, 100.0) as usize;
        let digit = |value: usize| &self.digits[value % 10];
        let score = [digit(hundredths / 100), &self.point, digit(hundredths / 10), digit(hundredths)];
        let mut x = name.width + if name.width == 0 { 0 } else { self.gap };
        let mut parts = [(name, 0); 5];
        for (part, mask) in parts[1..].iter_mut().zip(score) {
            *part = (mask, x);
            x += mask.width;
        }
        Text { parts, width: x }
    }

    /// Where the plate of `text` goes beside a box's lines: above it, left edges flush; inside where there is
    /// no room above; moved left where it would leave the picture. None when the picture is too small for it.
    #[must_use]
    pub fn plate(&self, text: &Text<'_>, frame: Frame, width: usize, height: usize) -> Option<Rect> {
        let plate_width = text.width + 2 * self.padding;
        let x0 = frame.outer.x0.min(width.checked_sub(plate_width)?);
        let y0 = match frame.outer.y0.checked_sub(self.height) {
            Some(above) => above,
            None => frame.outer.y0.min(height.checked_sub(self.height)?),
        };
        Some(Rect { x0, y0, x1: x0 + plate_width, y1: y0 + self.height })
    }

    /// The mask of a class's name, cut where it has no room.
    fn name(&self, name: &str) -> Mask {
        let whole = self.rasterise(name);
        if whole.width <= self.name_width {
            return whole;
        }
        let mut characters: Vec<char> = name.chars().collect();
        while characters.pop().is_some() {
            let shortened: String = characters.iter().chain(&['…']).collect();
            if self.advance(&shortened) <= self.name_width {
                return self.rasterise(&shortened);
            }
        }
        self.nameless.clone()
    }

    /// Columns of a text's mask.
    fn advance(&self, text: &str) -> usize {
        let mut end: f32 = 0.0;
        self.each_glyph(text, |_, x, advance| end = x + advance + self.bold);
        end.ceil().max(0.0) as usize
    }

    fn each_glyph(&self, text: &str, mut each: impl FnMut(ab_glyph::GlyphId, f32, f32)) {
        let mut x = 0.0;
        let mut last = None;
        for character in text.chars().filter(|character| !character.is_control()) {
            let id = self.font.glyph_id(character);
            if let Some(last) = last {
                x += self.font.kern(last, id);
            }
            let advance = self.font.h_advance(id);
            each(id, x, advance);
            x += advance;
            last = Some(id);
        }
    }

    /// The mask of one line of text, [`Labels::height`] rows high.
    fn rasterise(&self, text: &str) -> Mask {
        let mut mask = Mask::new(self.advance(text), self.height, Vec::new());
        self.each_glyph(text, |id, x, _| {
            // Twice, a hair apart, each pixel taking the stronger: a bolder cut of the same letter.
            for shift in [0.0, self.bold] {
                let glyph = id.with_scale_and_position(self.font.scale(), point(x + shift, self.baseline));
                let Some(outline) = self.font.outline_glyph(glyph) else { continue };
                let corner = outline.px_bounds().min;
                outline.draw(|dx, dy, coverage| {
                    let (x, y) = (corner.x + dx as f32, corner.y + dy as f32);
                    if x < 0.0 || y < 0.0 || x >= mask.width as f32 || y >= mask.height as f32 {
                        return;
                    }
                    let pixel = &mut mask.coverage[y as usize * mask.width + x as usize];
                    *pixel = (*pixel).max((coverage * 255.0).round().clamp(0.0, 255.0) as u8);
                });
            }
        });
        mask
    }
}

/// `mask` in the middle of one `width` columns wide.
fn centred(mask: &Mask, width: usize) -> Mask {
    let left = (width - mask.width) / 2;
    let mut wide = Mask::new(width, mask.height, Vec::new());
    for y in 0..mask.height {
        wide.coverage[y * width + left..][..mask.width].copy_from_slice(mask.row(y));
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(max_width: usize) -> Labels {
        let names = ["person", "car", "a very long name that no picture has room for", "", "人"];
        Labels::new(&names.map(str::to_owned), LabelSize { em: 20, max_width })
    }

    fn pixels(text: &Text<'_>) -> Vec<(usize, Vec<u8>)> {
        text.placed(0, 0).map(|(mask, x, _)| (x, mask.coverage.clone())).collect()
    }

    #[test]
    fn a_label_shows_name_and_score() {
        let labels = labels(1000);
        let text = labels.text(0, 0.87);
        let inked = text.placed(0, 0).filter(|(mask, ..)| mask.coverage.iter().any(|&c| c > 200)).count();
        assert_eq!(inked, 5, "the name, three digits and the point");
        assert_ne!(pixels(&text), pixels(&labels.text(0, 0.88)));
        assert_ne!(pixels(&text), pixels(&labels.text(1, 0.87)));
        assert_eq!(pixels(&labels.text(0, 0.874)), pixels(&text), "rounded to hundredths");
    }

    #[test]
    fn a_label_keeps_its_width_while_the_score_changes() {
        let labels = labels(1000);
        let widths: Vec<_> = (0..=100).map(|n| labels.text(0, f32::from(n as u8) / 100.0).width()).collect();
        assert!(widths.iter().all(|&width| width == widths[0]));
    }

    #[test]
    fn scores_that_are_no_probabilities_do_no_harm() {
        let labels = labels(1000);
        for (score, shown) in [(7.0, 1.0), (-1.0, 0.0), (f32::NAN, 0.0), (f32::INFINITY, 1.0)] {
            assert_eq!(pixels(&labels.text(0, score)), pixels(&labels.text(0, shown)));
        }
    }

    #[test]
    fn names_are_cut_to_the_picture_and_may_be_missing() {
        let whole = labels(10_000).text(2, 0.5).width();
        let labels = labels(200);
        let cut = labels.text(2, 0.5).width();
        assert!(cut + 2 * labels.padding() <= 200 && cut > 150 && whole > 300, "{cut} of {whole}");
        assert!(labels.text(3, 0.5).width() < labels.text(0, 0.5).width(), "an empty name");
        assert_eq!(labels.text(3, 0.5).width(), labels.text(99, 0.5).width(), "a class without a name");
        assert!(labels.text(4, 0.5).width() > labels.text(3, 0.5).width(), "letters the font lacks");
    }

    #[test]
    fn letters_fit_their_plate() {
        let labels = Labels::new(&["pqgjy|ÅÊ".to_owned()], LabelSize { em: 40, max_width: 1000 });
        let text = labels.text(0, 0.5);
        let (mask, ..) = text.placed(0, 0).next().unwrap();
        assert!(mask.row(mask.height() - 1).iter().all(|&c| c == 0), "descenders end before the plate does");
    }

    #[test]
    fn plates_stay_inside_the_picture() {
        let labels = labels(400);
        let text = labels.text(0, 0.5);
        let at = |x0, y0| {
            let outer = Rect { x0, y0, x1: x0 + 9, y1: y0 + 9 };
            labels.plate(&text, Frame { outer, thickness: 2 }, 400, 300)
        };
        let above = at(50, 100).unwrap();
        assert_eq!((above.x0, above.y1), (50, 100), "on the box, flush with its left side");
        assert_eq!(at(50, 3).unwrap().y0, 3, "inside where there is no room above");
        assert_eq!(at(395, 100).unwrap().x1, 400, "moved left");
        let tiny = Frame { outer: Rect { x0: 0, y0: 0, x1: 5, y1: 5 }, thickness: 2 };
        assert_eq!(labels.plate(&text, tiny, 30, 300), None);
        assert_eq!(labels.plate(&text, tiny, 400, 10), None);
    }
}
