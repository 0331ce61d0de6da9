//! Boxes and labels, drawn on the planes of a 4:2:0 picture.

mod planes;

use common::detection::Detection;
use media::picture::Picture;
use media::probe::Color;

use self::planes::Planes;

/// Draws detections on pictures of one size and colour. Made once, used for every picture, by any number of
/// threads.
pub struct Painter {
    painter: draw::Painter,
    color: Color,
}

impl Painter {
    /// A painter for pictures of `width` × `height` visible pixels in colours of `color`, detected by a model
    /// whose classes are called `names`.
    #[must_use]
    pub fn new(names: &[String], width: u32, height: u32, color: Color) -> Self {
        Self { painter: draw::Painter::new(names, width, height), color }
    }

    /// Draws `detections`; see [`draw::Painter::draw`].
    pub fn draw(&self, picture: &mut Picture, detections: &[Detection]) {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let mut planes = Planes::new(picture.planes_mut(), width, height, self.color.matrix);
        self.painter.draw(&mut planes, detections);
    }
}

#[cfg(test)]
mod tests;
