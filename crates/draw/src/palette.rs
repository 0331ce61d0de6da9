//! Which colour a class has, and which text is readable on it.

/// A colour as screens take it: gamma-coded sRGB, 8 bits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rgb {
    /// Red.
    pub r: u8,
    /// Green.
    pub g: u8,
    /// Blue.
    pub b: u8,
}

impl Rgb {
    /// Text on light plates, and the contour of boxes.
    pub const BLACK: Self = Self { r: 16, g: 16, b: 18 };
    /// Text on dark plates.
    pub const WHITE: Self = Self { r: 255, g: 255, b: 255 };

    /// Relative luminance, 0 to 1, as WCAG 2.2 defines it.
    #[must_use]
    pub fn luminance(self) -> f32 {
        let linear = |value: u8| {
            let value = f32::from(value) / 255.0;
            if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(self.r) + 0.7152 * linear(self.g) + 0.0722 * linear(self.b)
    }
}

/// Hue of class 0, in degrees: a strong orange-red is kept for people.
const FIRST_HUE: f32 = 32.0;
/// The golden angle: however many classes there are, neighbours in the list lie far apart on the wheel.
const GOLDEN_ANGLE: f32 = 137.507_76;
/// Lightness by turns, so that hues that come close on later rounds still differ.
const LIGHTNESS: [f32; 5] = [0.70, 0.80, 0.73, 0.84, 0.66];
const CHROMA: f32 = 0.19;

/// The colour of class `class` (0-based output of the model): the same in every picture, video and run.
///
/// Hues step by the golden angle in Oklch (Björn Ottosson, "A perceptual color space for image processing",
/// 2020), where equal lightness looks equally light; chroma gives way where sRGB has no such colour.
#[must_use]
pub fn class_color(class: u16) -> Rgb {
    let hue = (FIRST_HUE + GOLDEN_ANGLE * f32::from(class)) % 360.0;
    let lightness = LIGHTNESS[usize::from(class) % LIGHTNESS.len()];
    let mut chroma = CHROMA;
    loop {
        let linear = oklch(lightness, chroma, hue);
        // Grey is within sRGB at any lightness, so this ends.
        if chroma <= 0.0 || linear.iter().all(|value| (-0.000_1..=1.000_1).contains(value)) {
            let [r, g, b] = linear.map(gamma_coded);
            return Rgb { r, g, b };
        }
        chroma -= 0.005;
    }
}

/// Black or white, whichever contrasts more with `background` (contrast ratio of WCAG 2.2).
#[must_use]
pub fn text_color(background: Rgb) -> Rgb {
    let contrast = |text: Rgb| {
        let (a, b) = (text.luminance(), background.luminance());
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    };
    if contrast(Rgb::WHITE) > contrast(Rgb::BLACK) { Rgb::WHITE } else { Rgb::BLACK }
}

/// Linear sRGB of an Oklch colour; outside 0 to 1 where sRGB cannot show it.
fn oklch(lightness: f32, chroma: f32, hue: f32) -> [f32; 3] {
    let (sin, cos) = hue.to_radians().sin_cos();
    let (a, b) = (chroma * cos, chroma * sin);
    let l = (lightness + 0.396_337_78 * a + 0.215_803_76 * b).powi(3);
    let m = (lightness - 0.105_561_346 * a - 0.063_854_17 * b).powi(3);
    let s = (lightness - 0.089_484_18 * a - 1.291_485_5 * b).powi(3);
    [
        4.076_741_7 * l - 3.307_711_6 * m + 0.230_969_94 * s,
        -1.268_438 * l + 2.609_757_4 * m - 0.341_319_38 * s,
        -0.004_196_086_3 * l - 0.703_418_6 * m + 1.707_614_7 * s,
    ]
}

fn gamma_coded(linear: f32) -> u8 {
    let linear = linear.clamp(0.0, 1.0);
    let coded = if linear <= 0.003_130_8 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 };
    (coded * 255.0).round().clamp(0.0, 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn distance(a: Rgb, b: Rgb) -> i32 {
        let d = |a: u8, b: u8| (i32::from(a) - i32::from(b)).pow(2);
        d(a.r, b.r) + d(a.g, b.g) + d(a.b, b.b)
    }

    #[test]
    fn a_class_keeps_its_colour_and_shares_it_with_no_other_of_the_eighty() {
        let colors: HashSet<Rgb> = (0..80).map(class_color).collect();
        assert_eq!(colors.len(), 80);
        assert_eq!((0..80).map(class_color).collect::<HashSet<_>>(), colors);
    }

    #[test]
    fn the_common_classes_are_easily_told_apart() {
        for a in 0..8 {
            for b in 0..a {
                let (x, y) = (class_color(a), class_color(b));
                assert!(distance(x, y) > 60 * 60, "classes {a} {x:?} and {b} {y:?}");
            }
        }
    }

    #[test]
    fn text_is_readable_on_every_plate() {
        for class in 0..200 {
            let color = class_color(class);
            let (a, b) = (color.luminance(), text_color(color).luminance());
            let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
            assert!(contrast >= 4.5, "class {class}: {contrast}");
        }
        assert_eq!(text_color(Rgb::BLACK), Rgb::WHITE);
        assert_eq!(text_color(Rgb::WHITE), Rgb::BLACK);
    }

    #[test]
    fn colours_are_those_of_the_published_formula() {
        // White, and the sRGB red primary, in Oklch as published.
        assert_eq!(oklch(1.0, 0.0, 0.0).map(gamma_coded), [255, 255, 255]);
        assert_eq!(oklch(0.627_955, 0.257_683, 29.234).map(gamma_coded), [255, 0, 0]);
    }
}
