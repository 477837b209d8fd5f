//! The one rule by which images change size and channels.
//!
//! Size: separable bilinear interpolation with half-pixel centres to exactly height x width, the aspect ratio not
//! kept. Where an axis shrinks, the triangle filter is stretched by the ratio, so that every input pixel counts
//! (antialiasing); weights are normalised at the borders. Sums are in `f32`, rounded once at the end.
//!
//! Channels: 2 (grey, alpha) and 4 (red, green, blue, alpha) are composited on white when fewer are asked for; 3
//! to 1 is the Rec. 601 luma (0.299, 0.587, 0.114); 1 to 3 is replication. Nothing else is possible.

use rayon::prelude::*;

use super::{Geometry, Images};

/// Whether images of `from` channels can become images of `to` channels.
pub(super) fn channels_convertible(from: usize, to: usize) -> bool {
    from == to || (matches!(to, 1 | 3) && (1..=4).contains(&from))
}

/// Converts every image to `to`. The caller has checked [`channels_convertible`].
pub(super) fn convert(images: Images, to: Geometry) -> Images {
    if images.geometry == to {
        return images;
    }
    let fit = Fit::new(images.geometry, to);
    let mut pixels = vec![0; images.len() * to.values()];
    pixels
        .par_chunks_mut(to.values())
        .zip(images.pixels.par_chunks(images.geometry.values()))
        .for_each(|(out, image)| fit.apply(image, out));
    Images { geometry: to, pixels, labels: images.labels }
}

/// A conversion from one geometry to another, with its filter weights.
pub(super) struct Fit {
    from: Geometry,
    to: Geometry,
    rows: Filter,
    columns: Filter,
}

impl Fit {
    /// Prepares the weights. No dimension may be zero.
    pub(super) fn new(from: Geometry, to: Geometry) -> Self {
        debug_assert!(channels_convertible(from.channels, to.channels), "{from} to {to}");
        Self { from, to, rows: Filter::new(from.height, to.height), columns: Filter::new(from.width, to.width) }
    }

    /// Converts one image; both slices are as long as their geometry says.
    pub(super) fn apply(&self, image: &[u8], out: &mut [u8]) {
        let (from, to) = (self.from, self.to);
        // Compositing comes before interpolation, which would mix the colours of transparent pixels in, and
        // replication after it, so that three equal planes are not interpolated.
        let shrunk;
        let channels = if from.channels <= 2 && to.channels == 3 { 1 } else { to.channels };
        let source = if from.channels == channels {
            image
        } else {
            shrunk = fewer_channels(image, from.channels, channels);
            &shrunk[..]
        };
        let resized;
        let source = if (from.height, from.width) == (to.height, to.width) {
            source
        } else {
            resized = self.resize(source, channels);
            &resized[..]
        };
        if channels == to.channels {
            out.copy_from_slice(source);
        } else {
            source.iter().zip(out.chunks_exact_mut(3)).for_each(|(&grey, out)| out.fill(grey));
        }
    }

    fn resize(&self, image: &[u8], channels: usize) -> Vec<u8> {
        let (from, to) = (self.from, self.to);
        let source: Vec<f32> = image.iter().map(|&value| f32::from(value)).collect();
        // The smaller intermediate image first: it bounds the memory by the larger of input and output even for a
        // 1 x 64,000,000 image.
        let rows_first = to.height * from.width <= from.height * to.width;
        let result = if rows_first {
            let middle = self.rows.apply(&source, 1, from.width * channels);
            self.columns.apply(&middle, to.height, channels)
        } else {
            let middle = self.columns.apply(&source, from.height, channels);
            self.rows.apply(&middle, 1, to.width * channels)
        };
        result.iter().map(|value| value.round() as u8).collect()
    }
}

/// Weights of the input positions of one axis, for each output position.
struct Filter {
    input: usize,
    /// First input position and weights of each output position.
    taps: Vec<(usize, Vec<f32>)>,
}

impl Filter {
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let radius = scale.max(1.0);
        let taps = (0..output)
            .map(|i| {
                let centre = (i as f64 + 0.5) * scale;
                let first = (centre - radius).floor().max(0.0) as usize;
                let last = ((centre + radius).ceil() as usize).min(input);
                let weight = |j: usize| (1.0 - ((j as f64 + 0.5 - centre) / radius).abs()).max(0.0);
                let sum: f64 = (first..last).map(weight).sum();
                (first, (first..last).map(|j| (weight(j) / sum) as f32).collect())
            })
            .collect();
        Self { input, taps }
    }

    /// Filters the middle axis of an `outer x input x inner` array.
    fn apply(&self, source: &[f32], outer: usize, inner: usize) -> Vec<f32> {
        let mut out = vec![0.0; outer * self.taps.len() * inner];
        let planes = source.chunks_exact(self.input * inner);
        for (plane, out) in planes.zip(out.chunks_exact_mut(self.taps.len() * inner)) {
            for ((first, weights), out) in self.taps.iter().zip(out.chunks_exact_mut(inner)) {
                for (line, &weight) in plane[first * inner..].chunks_exact(inner).zip(weights) {
                    out.iter_mut().zip(line).for_each(|(out, &value)| *out += weight * value);
                }
            }
        }
        out
    }
}

/// To one or three channels from more.
fn fewer_channels(image: &[u8], from: usize, to: usize) -> Vec<u8> {
    let pixels = image.chunks_exact(from);
    match (from, to) {
        (2, 1) => pixels.map(|p| on_white(p[0], p[1])).collect(),
        (4, 3) => pixels.flat_map(|p| [0, 1, 2].map(|c| on_white(p[c], p[3]))).collect(),
        (4, 1) => pixels.map(|p| luma([0, 1, 2].map(|c| on_white(p[c], p[3])))).collect(),
        _ => pixels.map(|p| luma([p[0], p[1], p[2]])).collect(),
    }
}

fn on_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

/// Rec. 601, in thousandths.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue) + 500) / 1000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(height: usize, width: usize, channels: usize) -> Geometry {
        Geometry { height, width, channels }
    }

    fn fit(image: &[u8], from: Geometry, to: Geometry) -> Vec<u8> {
        let mut out = vec![0; to.values()];
        Fit::new(from, to).apply(image, &mut out);
        out
    }

    #[test]
    fn growing_is_bilinear_with_half_pixel_centres() {
        assert_eq!(fit(&[0, 100], geometry(1, 2, 1), geometry(1, 4, 1)), [0, 25, 75, 100]);
        assert_eq!(fit(&[0, 100], geometry(2, 1, 1), geometry(4, 1, 1)), [0, 25, 75, 100]);
    }

    #[test]
    fn shrinking_is_a_stretched_triangle() {
        // Radius 2: weights 1/8, 3/8, 3/8, 1/8 inside, of which the border cuts one and normalises the rest.
        assert_eq!(fit(&[0, 70, 140, 210, 210, 0], geometry(1, 6, 1), geometry(1, 3, 1)), [50, 166, 120]);
    }

    #[test]
    fn constants_stay_constant_at_any_size() {
        for (h, w) in [(1, 1), (3, 7), (28, 28), (50, 2)] {
            let from = geometry(13, 9, 3);
            let to = geometry(h, w, 3);
            assert!(fit(&vec![173; from.values()], from, to).iter().all(|&value| value == 173), "{h}x{w}");
        }
    }

    #[test]
    fn axes_and_channels_do_not_mix() {
        let from = geometry(2, 2, 3);
        let image = [10, 0, 200, 10, 50, 200, 10, 0, 200, 10, 50, 200];
        let out = fit(&image, from, geometry(4, 2, 3));
        assert_eq!(out, [10, 0, 200, 10, 50, 200].repeat(4));
    }

    #[test]
    fn extreme_aspect_ratios_work() {
        let from = geometry(1_000_000, 1, 1);
        let image: Vec<u8> = (0..1_000_000).map(|i| if i < 500_000 { 0 } else { 255 }).collect();
        let out = fit(&image, from, geometry(4, 64, 1));
        assert_eq!((out[0], out[255]), (0, 255));
    }

    #[test]
    fn channel_rules() {
        let one = |image: &[u8], to| fit(image, geometry(1, 1, image.len()), geometry(1, 1, to));
        assert_eq!(one(&[9], 3), [9, 9, 9]);
        assert_eq!(one(&[255, 0, 0], 1), [76]);
        assert_eq!(one(&[0, 255, 0], 1), [150]);
        assert_eq!(one(&[255, 255, 255], 1), [255]);
        assert_eq!(one(&[0, 0], 1), [255]);
        assert_eq!(one(&[0, 255], 3), [0, 0, 0]);
        assert_eq!(one(&[10, 20, 30, 0], 3), [255, 255, 255]);
        assert_eq!(one(&[10, 20, 30, 255], 3), [10, 20, 30]);
        assert_eq!(one(&[0, 0, 0, 128], 1), [127]);
        assert!(!channels_convertible(3, 4) && !channels_convertible(1, 2) && channels_convertible(2, 2));
    }

    #[test]
    fn transparent_pixels_do_not_bleed() {
        // A transparent red pixel beside an opaque white one is white everywhere.
        let image = [255, 0, 0, 0, 255, 255, 255, 255];
        assert_eq!(fit(&image, geometry(1, 2, 4), geometry(1, 4, 3)), [255; 12]);
    }

    #[test]
    fn whole_sets_convert() {
        let images = Images { geometry: geometry(1, 2, 1), pixels: vec![0, 100, 200, 200], labels: vec![1, 0] };
        let out = convert(images, geometry(1, 1, 3));
        assert_eq!(out.pixels, [50, 50, 50, 200, 200, 200]);
        assert_eq!(out.labels, [1, 0]);
    }
}
