//! What is drawn while a step runs: crops, flips and holes of images, masks of drop path.

use supernet::graph::Shape;
use supernet::ops::augment::{Augment, DropMask};

use super::{Bench, close, padded};

#[test]
fn augmentation_is_crop_flip_normalise_cutout() {
    let (s, pad, cutout) = (Shape::map(40, 5, 6, 2), 2, 3);
    let (mean, std) = (vec![0.5f32, 0.25], vec![0.25f32, 0.5]);
    let op = Augment { pad, flip: true, cutout, mean: mean.clone(), std: std.clone(), seed: 77 };
    let pixels: Vec<f64> = (0..s.len()).map(|i| ((i * 37) % 256) as f64).collect();
    let index: Vec<f64> = (0..s.n).map(|i| (1000 + 3 * i) as f64).collect();
    let mut b = Bench::new();
    let inputs = [b.input(s, &pixels), b.vector(&index), b.vector(&[4.0])];
    let out = Augment::record(&mut b.setup.graph, op.clone(), inputs);
    let found = b.value(out);
    let big = padded(&pixels, s, [pad, pad], 0.0);
    let (mut shifts, mut flips, mut expected) = (std::collections::HashSet::new(), 0, Vec::new());
    for (n, image) in big.iter().enumerate() {
        let draw = op.draw(s, index[n] as u32, 4);
        shifts.insert((draw.dy, draw.dx));
        flips += usize::from(draw.flip);
        assert!(
            draw.dy.unsigned_abs() <= pad && draw.dx.unsigned_abs() <= pad && draw.hole_y < s.h && draw.hole_x < s.w
        );
        let mut crops: Vec<Vec<Vec<f64>>> = Vec::new();
        for plane in image {
            let top = (pad as isize + draw.dy) as usize;
            let left = (pad as isize + draw.dx) as usize;
            let mut crop: Vec<Vec<f64>> = plane[top..top + s.h].iter().map(|r| r[left..left + s.w].to_vec()).collect();
            if draw.flip {
                crop.iter_mut().for_each(|row| row.reverse());
            }
            crops.push(crop);
        }
        for (y, x) in (0..s.h).flat_map(|y| (0..s.w).map(move |x| (y, x))) {
            // The published cutout: from centre minus half on, clipped at the borders.
            let hole = |at: usize, centre: usize| at + cutout / 2 >= centre && at + cutout / 2 < centre + cutout;
            for c in 0..s.c {
                let value = (crops[c][y][x] / 255.0 - f64::from(mean[c])) / f64::from(std[c]);
                expected.push(if hole(y, draw.hole_y) && hole(x, draw.hole_x) { 0.0 } else { value });
            }
        }
    }
    close(&found, &expected);
    assert!(shifts.len() > 12 && (10..=30).contains(&flips), "{} shifts, {flips} flips", shifts.len());
}

#[test]
fn drop_masks_keep_the_expectation_and_depend_on_step_path_and_row_alone() {
    let masks = |p: f64, step: f64, paths: usize, n: usize| {
        let mut b = Bench::new();
        let inputs = [b.vector(&[p]), b.vector(&[step])];
        let mask = DropMask::record(&mut b.setup.graph, DropMask { seed: 5 }, paths, n, inputs);
        b.value(mask)
    };
    let mask = masks(0.25, 3.0, 50, 40);
    let kept = f64::from(1.0f32 / 0.75);
    assert!(mask.iter().all(|&m| m == 0.0 || m == kept));
    let mean = mask.iter().sum::<f64>() / mask.len() as f64;
    assert!((mean - 1.0).abs() < 0.06, "mean {mean}");
    assert!(masks(0.0, 3.0, 5, 4).iter().all(|&m| m == 1.0));
    assert_ne!(mask, masks(0.25, 4.0, 50, 40));
    // A smaller batch sees the same draws.
    let small = masks(0.25, 3.0, 2, 7);
    assert_eq!((small[..7].to_vec(), small[7..].to_vec()), (mask[..7].to_vec(), mask[40..47].to_vec()));
}
