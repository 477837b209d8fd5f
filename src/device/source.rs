//! Sources of the GPU kernels, as devices compile them. See `ops::launch` for the contract that they share.

use crate::ops::launch::{BLOCK, Launch, PAGES};

/// What a source is compiled for, beside the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant {
    /// See [`Launch::wide`].
    pub wide: bool,
    /// See [`Launch::halves`].
    pub halves: bool,
    /// Products on tensor cores, by factors in tf32: CUDA only, and only for [`PRODUCTS`].
    pub tensor: bool,
}

impl Variant {
    /// Those that every source has.
    pub const ALL: [Self; 4] =
        [Self::new(false, false), Self::new(true, false), Self::new(false, true), Self::new(true, true)];

    /// One of them.
    pub const fn new(wide: bool, halves: bool) -> Self {
        Self { wide, halves, tensor: false }
    }

    /// That of a launch.
    pub fn of(launch: &Launch) -> Self {
        Self::new(launch.wide, launch.halves)
    }

    /// That of a launch on a device that multiplies on tensor cores or does not.
    pub fn on(launch: &Launch, tensor: bool) -> Self {
        Self { tensor: tensor && PRODUCTS.contains(&launch.source), ..Self::of(launch) }
    }
}

/// Stems of the sources that multiply matrices, which tensor cores can do.
pub const PRODUCTS: &[&str] = &["dense", "separable", "separable_backward"];

/// The files of one stem.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Stem of `kernels/<stem>.cu` and `shaders/<stem>.wgsl`.
    pub stem: &'static str,
    /// CUDA; includes [`HEADERS`] by their names.
    pub cuda: &'static str,
    /// WGSL, without the texts that come before it; see [`Source::wgsl`].
    pub shader: &'static str,
}

macro_rules! sources {
    ($($stem:literal),* $(,)?) => {
        /// All sources.
        pub const SOURCES: &[Source] = &[$(Source {
            stem: $stem,
            cuda: include_str!(concat!("../../kernels/", $stem, ".cu")),
            shader: include_str!(concat!("../../shaders/", $stem, ".wgsl")),
        }),*];
    };
}

sources! { "augment", "certificate", "dense", "elementary", "elementwise", "fold", "folded", "global_pool", "loss", "mixture", "optimiser", "pool", "second_order", "separable", "separable_backward", "softmax", "statistics", "transport" }

/// Headers that CUDA sources include, by name: what all of them share, what transport and its certificates do, and what
/// separable convolutions do.
pub const HEADERS: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../../kernels/common.cuh")),
    ("costs.cuh", include_str!("../../kernels/costs.cuh")),
    ("separable.cuh", include_str!("../../kernels/separable.cuh")),
];

const PRELUDE: &str = include_str!("../../shaders/prelude.wgsl");
const ACCESS_WIDE: &str = include_str!("../../shaders/access_wide.wgsl");
const ACCESS_NARROW: &str = include_str!("../../shaders/access_narrow.wgsl");
const ACCESS_HALVES_WIDE: &str = include_str!("../../shaders/access_halves_wide.wgsl");
const ACCESS_HALVES_NARROW: &str = include_str!("../../shaders/access_halves_narrow.wgsl");
/// Texts that shaders of several stems share: WGSL includes nothing.
const SHARED: &[(&[&str], &str)] = &[
    (
        &["dense", "mixture", "pool", "separable", "separable_backward", "statistics"],
        include_str!("../../shaders/jobs.wgsl"),
    ),
    (&["certificate", "transport"], include_str!("../../shaders/costs.wgsl")),
    (&["separable", "separable_backward"], include_str!("../../shaders/separable_common.wgsl")),
];
const REDUCE_TREE: &str = include_str!("../../shaders/reduce_tree.wgsl");
const REDUCE_SUBGROUPS: &str = include_str!("../../shaders/reduce_subgroups.wgsl");

/// The source of a stem.
///
/// # Panics
/// If there is none: launches name existing sources.
pub fn source(stem: &str) -> Source {
    *SOURCES.iter().find(|s| s.stem == stem).unwrap_or_else(|| panic!("no kernel source `{stem}`"))
}

/// Macro definitions with which CUDA sources are compiled.
pub fn cuda_options(variant: Variant) -> [String; 4] {
    let Variant { wide, halves, tensor } = variant;
    let flag = |name: &str, on: bool| format!("-D{name}={}", u32::from(on));
    [format!("-DBLOCK={BLOCK}"), flag("WIDE", wide), flag("HALVES", halves), flag("TENSOR", tensor)]
}

impl Source {
    /// What it is compiled for somewhere.
    pub fn variants(&self) -> Vec<Variant> {
        let tensor = if PRODUCTS.contains(&self.stem) { &[false, true][..] } else { &[false] };
        tensor.iter().flat_map(|&tensor| Variant::ALL.map(|variant| Variant { tensor, ..variant })).collect()
    }

    /// Entry points, in order.
    pub fn entry_points(&self) -> Vec<&'static str> {
        self.kernels().into_iter().map(|(name, _)| name).collect()
    }

    /// Entry points, in order, with the blocks of each that are to fit on a multiprocessor.
    pub fn kernels(&self) -> Vec<(&'static str, usize)> {
        let after_bounds = self.cuda.split("__launch_bounds__(BLOCK, ").skip(1);
        let kernel = |rest: &'static str| {
            let (blocks, rest) = rest.split_once(')')?;
            Some((rest.split('(').next()?.trim(), blocks.parse().ok()?))
        };
        after_bounds.filter_map(kernel).collect()
    }

    /// Entry points of the shader, in order.
    pub fn shader_entry_points(&self) -> Vec<&'static str> {
        let after_size = self.shader.split("@workgroup_size(BLOCK)").skip(1);
        after_size.filter_map(|rest| rest.trim().strip_prefix("fn ")?.split('(').next()).collect()
    }

    /// The whole shader for launches that bind `pages` pages. Pages are arrays of vectors if all accesses are wide, of
    /// scalars otherwise: WGSL cannot see one buffer both ways. A switch over the pages picks one; with a single page
    /// there is none. Sums over a block use subgroups where the device has them.
    pub fn wgsl(&self, variant: Variant, pages: usize, subgroups: bool) -> String {
        assert!((1..=PAGES).contains(&pages), "a launch binds 1 to {PAGES} pages, not {pages}");
        let (element, access) = match variant {
            Variant { wide: true, halves: false, .. } => ("vec4<f32>", ACCESS_WIDE),
            Variant { wide: false, halves: false, .. } => ("f32", ACCESS_NARROW),
            Variant { wide: true, halves: true, .. } => ("vec2<u32>", ACCESS_HALVES_WIDE),
            Variant { wide: false, halves: true, .. } => ("u32", ACCESS_HALVES_NARROW),
        };
        let mut text = format!("const BLOCK: u32 = {BLOCK}u;\nalias Element = {element};\n");
        for i in 0..pages {
            text += &format!("@group(0) @binding({}) var<storage, read_write> page_{i}: array<Element>;\n", i + 2);
        }
        let pick = |statement: &dyn Fn(usize) -> String| {
            let cases: String = (1..pages).map(|i| format!("case {i}u: {{ {} }} ", statement(i))).collect();
            if pages == 1 { statement(0) } else { format!("switch page {{ {cases}default: {{ {} }} }}", statement(0)) }
        };
        let read = pick(&|i| format!("return page_{i}[index];"));
        let write = pick(&|i| format!("page_{i}[index] = value;"));
        text += &format!("fn read_element(page: u32, index: u32) -> Element {{ {read} }}\n");
        text += &format!("fn write_element(page: u32, index: u32, value: Element) {{ {write} }}\n");
        let reduce = if subgroups { REDUCE_SUBGROUPS } else { REDUCE_TREE };
        let shared: String =
            SHARED.iter().filter(|(stems, _)| stems.contains(&self.stem)).map(|(_, shared)| *shared).collect();
        text + PRELUDE + access + reduce + &shared + self.shader
    }
}
