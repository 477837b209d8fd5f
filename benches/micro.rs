//! Arithmetic rate of the micro-kernels at the map sizes of the search spaces, beside the rate of a loop of
//! multiply-adds in registers. Memory-bound kernels are given in GB/s of all operands. Arguments that are no options
//! choose kernels by a part of their name.

use std::hint::black_box;
use std::ptr::null;
use std::time::Instant;

use supernet::cpu::ceiling::burst;
use supernet::cpu::micro::*;

/// (channels, height and width).
const SHAPES: [(usize, usize); 5] = [(16, 32), (32, 16), (64, 8), (8, 28), (36, 32)];
/// Maps that the mixed operation combines.
const SOURCES: usize = 8;

/// Seconds of the fastest of several batches of `run`.
fn fastest(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    run();
    let repeats = (1e-3 / start.elapsed().as_secs_f64().max(1e-8)).ceil() as usize;
    let batch = |_| {
        let start = Instant::now();
        (0..repeats).for_each(|_| run());
        start.elapsed().as_secs_f64() / repeats as f64
    };
    (0..12).map(batch).fold(f64::INFINITY, f64::min)
}

/// Floats aligned to a cache line, small and of both signs.
fn floats(n: usize) -> &'static mut [f32] {
    let buffer = vec![0.0f32; n + 16].leak();
    let skip = buffer.as_ptr().align_offset(64);
    let aligned = &mut buffer[skip..skip + n];
    aligned.iter_mut().enumerate().for_each(|(i, x)| *x = ((i * 7 + 3) % 11) as f32 * 1e-3 - 5e-3);
    aligned
}

/// Peak rate of a level in GFLOP/s.
fn peak(level: Level) -> f64 {
    let mut operations = 0.0;
    let seconds = fastest(|| operations = burst(level));
    operations / seconds * 1e-9
}

/// Time of each kernel at one shape: name, billions of operations or bytes, whether they are bytes, seconds.
fn kernels(t: &Micro, c: usize, size: usize, wanted: &dyn Fn(&str) -> bool) -> Vec<(String, f64, bool, f64)> {
    let rows = size * size;
    let width = size + 8;
    let (x, y, z, image) =
        (floats(rows * c), floats(rows * c), floats(rows * c).as_mut_ptr(), floats(width * width * c).as_mut_ptr());
    let (w, v) = (floats(25 * c.max(4) * c), floats(c));
    let (s1, s2, v) = (floats(c).as_mut_ptr(), floats(c).as_mut_ptr(), v.as_ptr());
    let (x, y, w) = (x.as_ptr(), y.as_ptr(), w.as_mut_ptr());
    let mut rates = Vec::new();
    let mut time = |name: String, amount: usize, bytes: bool, run: &mut dyn FnMut()| {
        if wanted(&name) {
            rates.push((name, amount as f64 * 1e-9, bytes, fastest(run)));
        }
    };
    let map = 4 * rows * c;
    for (k, stride, dilation) in [(3, 1, 1), (5, 1, 1), (5, 1, 2), (3, 2, 1), (5, 2, 1)] {
        let width = size + dilation * (k - 1);
        let (oh, ow) = (size / stride, size / stride);
        let flops = 2 * k * k * oh * ow * c;
        let name = |kind| format!("{kind} {k}x{k} s{stride} d{dilation}");
        let forward = Depthwise { inp: image, width, oh, ow, c, k, dilation, stride, weights: w, out: z, ldo: c };
        // SAFETY: here and below the buffers have the sizes that the arguments name.
        time(name("depthwise"), flops, false, &mut || unsafe { (t.depthwise)(black_box(&forward)) });
        let weight = DepthwiseWeight { inp: image, width, oh, ow, c, k, dilation, stride, dd: y, ldd: c, dw: w };
        // SAFETY: see above.
        time(name("weight"), flops, false, &mut || unsafe { (t.depthwise_weight)(black_box(&weight)) });
        if stride == 2 {
            let scatter =
                DepthwiseScatter { dd: y, ldd: c, oh, ow, c, k, dilation, stride, weights: w, dx: image, width };
            // SAFETY: see above.
            time(name("scatter"), flops, false, &mut || unsafe { (t.depthwise_scatter)(black_box(&scatter)) });
        }
    }
    let product = Matmul { a: x, lda: c, b: w, ldb: c, out: z, ldo: c, rows, k: c, n: c, accumulate: false };
    // SAFETY: see above.
    time("matmul".into(), 2 * rows * c * c, false, &mut || unsafe { (t.matmul)(black_box(&product)) });
    let outer = Matmul { b: y, out: w, ..product };
    // SAFETY: see above.
    time("outer".into(), 2 * rows * c * c, false, &mut || unsafe { (t.outer)(black_box(&outer)) });
    let prologue = PadPrologue { x, ldx: c, h: size, w: size, c, pad: 2, scale: v, shift: v, relu: true, out: image };
    // SAFETY: see above.
    time("prologue".into(), 2 * map, true, &mut || unsafe { (t.pad_prologue)(black_box(&prologue)) });
    let moments = Moments { y, ldy: c, rows, c, mean: s1, m2: s2 };
    // SAFETY: see above.
    time("moments".into(), 2 * map, true, &mut || unsafe { (t.moments)(black_box(&moments)) });
    let affine = Affine {
        g: x,
        ldg: c,
        y,
        ldy: c,
        rows,
        c,
        a: v,
        b: v,
        d: v,
        s: 0.5,
        out: z,
        ldo: c,
        accumulate: false,
        far: false,
    };
    // SAFETY: see above.
    time("affine".into(), 3 * map, true, &mut || unsafe { (t.affine)(black_box(&affine)) });
    let sums = Sums { g: x, ldg: c, y, ldy: c, rows, c, mean: v, s1, s2 };
    // SAFETY: see above.
    time("sums".into(), 2 * map, true, &mut || unsafe { (t.sums)(black_box(&sums)) });
    let mask = MaskAccumulate {
        d: image,
        d_row_stride: width * c,
        x,
        ldx: c,
        h: size,
        w: size,
        c,
        scale: v,
        shift: v,
        relu: true,
        out: z,
        ldo: c,
        accumulate: true,
    };
    // SAFETY: see above.
    time("mask_accumulate".into(), 4 * map, true, &mut || unsafe { (t.mask_accumulate)(black_box(&mask)) });
    let mask_sums = MaskSums { mask, mean: v, s1, s2 };
    // SAFETY: see above.
    time("mask_sums".into(), 3 * map, true, &mut || unsafe { (t.mask_sums)(black_box(&mask_sums)) });
    let maps: Vec<*const f32> = (0..SOURCES).map(|_| floats(rows * c).as_ptr()).collect();
    let sources: Vec<Source> = maps.iter().map(|&y| Source { y, ld: c, scale: v }).collect();
    let sum = WeightedSum { sources: &sources, bias: null(), rows, c, out: z, ldo: c, accumulate: false, far: false };
    let bytes = (SOURCES + 1) * map;
    // SAFETY: see above.
    time("weighted_sum".into(), bytes, true, &mut || unsafe { (t.weighted_sum)(black_box(&sum)) });
    let sources: Vec<SourceSum> = maps.iter().map(|&y| SourceSum { y, ld: c, mean: v, s2 }).collect();
    let reductions = WeightedSums { sources: &sources, g: x, ldg: c, rows, c, s1, far: false };
    // SAFETY: see above.
    time("weighted_sums".into(), bytes, true, &mut || unsafe { (t.weighted_sums)(black_box(&reductions)) });
    let (h, k, avg) = (size, 3, image);
    let forward =
        PoolForward { x, ldx: c, h, w: h, c, k, stride: 1, pad: 1, oh: h, ow: h, max: z, ldmax: c, avg, ldavg: c };
    // SAFETY: see above.
    time("pool_forward".into(), 3 * map, true, &mut || unsafe { (t.pool_forward)(black_box(&forward)) });
    let backward = PoolBackward {
        x,
        ldx: c,
        h,
        w: h,
        c,
        k,
        stride: 1,
        pad: 1,
        oh: h,
        ow: h,
        dmax: y,
        ldmax: c,
        davg: y,
        ldavg: c,
        dx: z,
        lddx: c,
    };
    // SAFETY: see above.
    time("pool_backward".into(), 5 * map, true, &mut || unsafe { (t.pool_backward)(black_box(&backward)) });
    let sgd = Sgd { w: z, g: x, v: image, n: rows * c, lr: 1e-3, momentum: 0.5, decay: 1e-3, clip_scale: 1.0 };
    // SAFETY: see above.
    time("sgd".into(), 5 * map, true, &mut || unsafe { (t.sgd)(black_box(&sgd)) });
    rates
}

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part.as_str()));
    for level in Level::available() {
        let Some(table) = Micro::new(level) else { continue };
        let peak = peak(level);
        println!("\n{level:?}: {peak:.1} GFLOP/s in registers");
        let columns: Vec<_> = SHAPES.iter().map(|&(c, size)| kernels(&table, c, size, &wanted)).collect();
        print!("{:24}", "");
        SHAPES.iter().for_each(|(c, size)| print!("{:>15}", format!("{c}@{size}x{size}")));
        println!();
        for i in 0..columns[0].len() {
            print!("{:24}", columns[0][i].0);
            for (_, amount, bytes, seconds) in columns.iter().map(|column| &column[i]) {
                let rate = amount / seconds;
                if *bytes {
                    print!("{rate:10.1} GB/s");
                } else {
                    print!("{rate:10.1} {:3.0}%", 100.0 * rate / peak);
                }
            }
            println!();
        }
    }
}
