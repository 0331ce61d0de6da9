//! Boxes and labels, drawn on the planes of a 4:2:0 picture.
//!
//! The parts are separate so that pictures of another kind can share them: [`palette`] says which colour a
//! class has, [`label`] makes the text of a label as a mask, [`layout`] says where things go, and only the
//! private `planes` knows how pixels are stored.

pub mod label;
pub mod layout;
pub mod palette;
mod planes;

use common::detection::Detection;
use media::picture::Picture;
use media::probe::{Color, Matrix};

use self::label::Labels;
use self::layout::{Frame, Metrics, Rect};
use self::palette::{Rgb, class_color, text_color};
use self::planes::{Canvas, Yuv, luma_weights};

/// How strongly the thin dark contour around a box shows, of 255. It keeps a bright box visible on a bright
/// background.
const CONTOUR: u8 = 110;

/// Draws detections on pictures of one size and colour. Made once, used for every picture, by any number of
/// threads.
pub struct Painter {
    metrics: Metrics,
    matrix: Matrix,
    labels: Option<Labels>,
}

impl Painter {
    /// A painter for pictures of `width` × `height` visible pixels in colours of `color`, detected by a model
    /// whose classes are called `names`. Where the picture is too small for a readable label, boxes have none.
    #[must_use]
    pub fn new(names: &[String], width: u32, height: u32, color: Color) -> Self {
        let metrics = Metrics::new(width, height);
        let labels = metrics.label.map(|size| Labels::new(names, size));
        Self { metrics, matrix: color.matrix, labels }
    }

    /// Draws `detections`, the strongest on top: first every box, then every label, so that no line crosses
    /// a text. Boxes are clipped to the picture; one that lies outside it, or is no box at all (not a
    /// number), is left out.
    pub fn draw(&self, picture: &mut Picture, detections: &[Detection]) {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let mut placed: Vec<(Rect, &Detection)> = detections
            .iter()
            .filter_map(|detection| Some((Rect::of(&detection.bbox, width, height)?, detection)))
            .collect();
        // Of equals the first in the list counts as stronger: reversed, it comes last.
        placed.reverse();
        placed.sort_by(|(_, a), (_, b)| a.score.total_cmp(&b.score));

        let weights = luma_weights(self.matrix);
        let mut canvas = Canvas::new(picture.planes_mut(), width, height);
        for (rect, detection) in &placed {
            let line = self.metrics.frame(*rect, width, height);
            for side in line.contour(width, height) {
                canvas.fill(side, Yuv::new(Rgb::BLACK, weights), CONTOUR);
            }
            for side in line.sides() {
                canvas.fill(side, Yuv::new(class_color(detection.class), weights), 255);
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
                canvas.fill(side, Yuv::new(Rgb::BLACK, weights), CONTOUR);
            }
            let color = class_color(detection.class);
            canvas.fill(plate, Yuv::new(color, weights), 255);
            let ink = Yuv::new(text_color(color), weights);
            for (mask, x, y) in text.placed(plate.x0 + labels.padding(), plate.y0) {
                canvas.blend(mask, x, y, ink);
            }
        }
    }
}

#[cfg(test)]
mod tests;
