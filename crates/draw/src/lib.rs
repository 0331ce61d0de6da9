//! Boxes and labels, on any kind of picture: `post` draws on a video's planes, `infer` on still pictures.
//!
//! [`palette`] says which colour a class has, [`label`] makes the text of a label as a mask, [`layout`] says where
//! things go, and [`Painter`] puts them on a [`Canvas`], which alone knows how pixels are stored.
//!
//! Never in here: a codec, a tensor, a kind of picture.

pub mod label;
pub mod layout;
pub mod palette;

use common::detection::Detection;

use label::{Labels, Mask};
use layout::{Frame, Metrics, Rect};
use palette::{Rgb, class_color, text_color};

/// How strongly the thin dark contour around a box shows, of 255. It keeps a bright box visible on a bright
/// background.
const CONTOUR: u8 = 110;

/// What is drawn on.
pub trait Canvas {
    /// Visible columns.
    fn width(&self) -> usize;

    /// Visible rows.
    fn height(&self) -> usize;

    /// Lays `color` over `rect`, which lies within the picture, `opacity` of 255 strong.
    fn fill(&mut self, rect: Rect, color: Rgb, opacity: u8);

    /// Lays `color` over the picture through `mask`, whose upper left corner is at column `x`, row `y`; what
    /// reaches beyond the picture is cut off.
    fn blend(&mut self, mask: &Mask, x: usize, y: usize, color: Rgb);
}

/// Draws detections on pictures of one size. Made once, used for every picture, by any number of threads.
pub struct Painter {
    metrics: Metrics,
    labels: Option<Labels>,
}

impl Painter {
    /// A painter for pictures of `width` × `height` visible pixels, detected by a model whose classes are called
    /// `names`. Where the picture is too small for a readable label, boxes have none.
    #[must_use]
    pub fn new(names: &[String], width: u32, height: u32) -> Self {
        let metrics = Metrics::new(width, height);
        let labels = metrics.label.map(|size| Labels::new(names, size));
        Self { metrics, labels }
    }

    /// Draws `detections`, the strongest on top: first every box, then every label, so that no line crosses
    /// a text. Boxes are clipped to the picture; one that lies outside it, or is no box at all (not a
    /// number), is left out.
    pub fn draw(&self, canvas: &mut impl Canvas, detections: &[Detection]) {
        let (width, height) = (canvas.width(), canvas.height());
        let mut placed: Vec<(Rect, &Detection)> = detections
            .iter()
            .filter_map(|detection| Some((Rect::of(&detection.bbox, width, height)?, detection)))
            .collect();
        // Of equals the first in the list counts as stronger: reversed, it comes last.
        placed.reverse();
        placed.sort_by(|(_, a), (_, b)| a.score.total_cmp(&b.score));

        for (rect, detection) in &placed {
            let line = self.metrics.frame(*rect, width, height);
            for side in line.contour(width, height) {
                canvas.fill(side, Rgb::BLACK, CONTOUR);
            }
            for side in line.sides() {
                canvas.fill(side, class_color(detection.class), 255);
            }
        }
        let Some(labels) = &self.labels else { return };
        for (rect, detection) in &placed {
            let line = self.metrics.frame(*rect, width, height);
            let text = labels.text(detection.class, detection.score);
            let Some(plate) = labels.plate(&text, line, width, height) else { continue };
            // Not below the plate: there it joins the box.
            let [top, _, left, right] = Frame { outer: plate, ..line }.contour(width, height);
            for side in [top, left, right] {
                canvas.fill(side, Rgb::BLACK, CONTOUR);
            }
            let color = class_color(detection.class);
            canvas.fill(plate, color, 255);
            let ink = text_color(color);
            for (mask, x, y) in text.placed(plate.x0 + labels.padding(), plate.y0) {
                canvas.blend(mask, x, y, ink);
            }
        }
    }
}
