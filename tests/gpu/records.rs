//! Records and flags are declared three times, in Rust, CUDA and WGSL, so that each file can be read on its own. This
//! compares the declarations, and the entry points of kernels and shaders.

use supernet::device::source::{HEADERS, PRODUCTS, SOURCES, Source, Variant, source};
use supernet::ops::augment::purpose;
use supernet::ops::launch::augment::{AugmentParams, AugmentQuad, DropMaskParams};
use supernet::ops::launch::certificate::{CertificateParams, CertificateProblem};
use supernet::ops::launch::dense::{self, DenseInput, DenseJob, DenseWeight};
use supernet::ops::launch::elementary::ElementaryParams;
use supernet::ops::launch::elementwise::{AffineTerm, ElementwiseParams, LinearSource};
use supernet::ops::launch::fold::FoldSums;
use supernet::ops::launch::folded::FoldedParams;
use supernet::ops::launch::global_pool::GlobalPoolParams;
use supernet::ops::launch::loss::{AccumulateParams, LossParams};
use supernet::ops::launch::mixture::{FLAGS, MixtureSource};
use supernet::ops::launch::norm::StatisticsJob;
use supernet::ops::launch::optimiser::{AdamParams, NormParams, RunningParams, RunningStretch, SgdParams};
use supernet::ops::launch::pool::{self, PoolJob, PoolTerm};
use supernet::ops::launch::second_order::{HessianParams, PerturbParams, UnrollParams};
use supernet::ops::launch::separable::{self, SeparableJob};
use supernet::ops::launch::separable_records::{self, SeparableGradient};
use supernet::ops::launch::softmax::SoftmaxParams;
use supernet::ops::launch::transport::{TransportParams, TransportProblem};
use supernet::ops::launch::{
    HALF, PAGES, Record, augment, elementwise, folded, global_pool, mixture, norm, optimiser, transport,
};
use supernet::ops::optimiser::NORM_BLOCK;

/// Fields of `struct <name> { ... }`, as type and name; `split` takes one field apart.
fn fields(text: &str, name: &str, end: char, split: impl Fn(&str) -> (&str, &str)) -> Vec<(String, String)> {
    let start = text.find(&format!("struct {name} {{")).unwrap_or_else(|| panic!("struct {name} is not declared"));
    let body = &text[start..];
    let body = &body[body.find('{').expect("just found") + 1..body.find('}').expect("structs end")];
    let declarations = body.split(end).map(str::trim).filter(|d| !d.is_empty());
    declarations.map(split).map(|(kind, name)| (kind.trim().to_owned(), name.trim().to_owned())).collect()
}

fn compare<R: Record>(source: Source) {
    let expected = |names: fn(&str) -> &str| {
        R::FIELDS.iter().map(|&(name, kind)| (names(kind).to_owned(), name.to_owned())).collect::<Vec<_>>()
    };
    let cuda = fields(source.cuda, R::NAME, ';', |d| d.split_once(' ').expect("a type and a name"));
    let c_type = |kind: &str| match kind {
        "u32" => "unsigned",
        "f32" => "float",
        _ => "Spot",
    };
    assert_eq!(cuda, expected(c_type), "{} in {}.cu", R::NAME, source.stem);
    let wgsl = fields(source.shader, R::NAME, ',', |d| {
        let (name, kind) = d.split_once(':').expect("a name and a type");
        (kind, name)
    });
    assert_eq!(wgsl, expected(|kind| kind), "{} in {}.wgsl", R::NAME, source.stem);

    // Pairs must lie at multiples of 8 bytes, or WGSL and CUDA would insert padding.
    let mut offset = 0;
    for (name, kind) in R::FIELDS {
        let size = if *kind == "Spot" { 8 } else { 4 };
        assert_eq!(offset % size, 0, "{}.{name} lies at byte {offset}", R::NAME);
        offset += size;
    }
    assert_eq!(offset, size_of::<R>());
}

/// Asserts that kernels, or a header, and shaders of a stem declare a constant.
fn declares(stem: &str, name: &str, value: usize) {
    let (cuda, wgsl) = (format!("unsigned {name} = {value};"), format!("const {name}: u32 = {value};"));
    let own = source(stem).cuda.contains(&cuda);
    let included = HEADERS
        .iter()
        .any(|(file, text)| source(stem).cuda.contains(&format!("#include \"{file}\"")) && text.contains(&cuda));
    let shader = source(stem).wgsl(Variant::default(), 1, false);
    assert!((own || included) && shader.contains(&wgsl), "{stem}: {name}");
}

/// What a kernel does before it has waited for the launches before it may come too early, and a thread that ends without
/// having waited lets the next kernel begin too early.
#[test]
fn every_kernel_begins_by_waiting_for_those_before_it() {
    for source in SOURCES {
        for kernel in source.cuda.split("__launch_bounds__(BLOCK, ").skip(1) {
            let (head, body) = kernel.split_once(") {\n").expect("a kernel has a body");
            assert!(body.starts_with("    after_others();\n"), "{}.cu:{head}", source.stem);
        }
    }
}

#[test]
fn records_have_the_same_fields_in_all_three_languages() {
    compare::<DenseJob>(source("dense"));
    compare::<DenseInput>(source("dense"));
    compare::<DenseWeight>(source("dense"));
    compare::<PoolJob>(source("pool"));
    compare::<PoolTerm>(source("pool"));
    for (stem, flags) in [("dense", dense::FLAGS), ("pool", pool::FLAGS)] {
        for (name, value) in flags {
            let (cuda, wgsl) = (format!("unsigned {name} = {value};"), format!("const {name}: u32 = {value};"));
            assert!(source(stem).cuda.contains(&cuda) && source(stem).shader.contains(&wgsl), "{stem}: {name}");
        }
    }
    compare::<StatisticsJob>(source("statistics"));
    compare::<FoldSums>(source("fold"));
    compare::<AugmentParams>(source("augment"));
    compare::<AugmentQuad>(source("augment"));
    compare::<DropMaskParams>(source("augment"));
    compare::<FoldedParams>(source("folded"));
    compare::<ElementaryParams>(source("elementary"));
    compare::<MixtureSource>(source("mixture"));
    compare::<CertificateParams>(source("certificate"));
    compare::<CertificateProblem>(source("certificate"));
    compare::<TransportParams>(source("transport"));
    compare::<TransportProblem>(source("transport"));
    compare::<SeparableJob>(source("separable"));
    compare::<SeparableGradient>(source("separable_backward"));
    for (stem, flags) in [("separable", separable::FLAGS), ("separable_backward", separable_records::FLAGS)] {
        for (name, value) in flags {
            declares(stem, name, *value as usize);
        }
    }
    compare::<NormParams>(source("optimiser"));
    compare::<SgdParams>(source("optimiser"));
    compare::<AdamParams>(source("optimiser"));
    compare::<RunningParams>(source("optimiser"));
    compare::<RunningStretch>(source("optimiser"));
    compare::<UnrollParams>(source("second_order"));
    compare::<PerturbParams>(source("second_order"));
    compare::<HessianParams>(source("second_order"));
    compare::<SoftmaxParams>(source("softmax"));
    compare::<LossParams>(source("loss"));
    compare::<AccumulateParams>(source("loss"));
    compare::<ElementwiseParams>(source("elementwise"));
    compare::<LinearSource>(source("elementwise"));
    compare::<AffineTerm>(source("elementwise"));
    compare::<GlobalPoolParams>(source("global_pool"));
    for (name, value) in FLAGS {
        let (cuda, wgsl) = (format!("unsigned {name} = {value};"), format!("const {name}: u32 = {value};"));
        assert!(source("mixture").cuda.contains(&cuda) && source("mixture").shader.contains(&wgsl), "{name}");
    }
    // Constants that decide which rows a block covers.
    for (stem, name, value) in [
        ("statistics", "TILE", norm::TILE),
        ("mixture", "ROWS", mixture::ROWS),
        ("transport", "TILE", transport::TILE),
        ("transport", "SIDE", transport::SIDE),
        ("certificate", "TILE", transport::TILE),
        ("separable", "PIXELS", separable::PIXELS),
        ("separable", "ROWS", separable::ROWS),
        ("separable", "STEP", separable::STEP),
        ("separable", "COLUMNS", separable::COLUMNS),
        ("optimiser", "NORM_BLOCK", NORM_BLOCK),
        ("optimiser", "PARTIAL", optimiser::PARTIAL),
        ("elementwise", "TILE", elementwise::TILE),
        ("elementwise", "ROWS", elementwise::ROWS),
        ("elementwise", "MASK", elementwise::MASK as usize),
        ("elementwise", "COEF", elementwise::COEF as usize),
        ("global_pool", "ROWS", global_pool::ROWS),
        ("separable_backward", "ROWS", separable::ROWS),
        ("separable_backward", "PIXELS", separable::PIXELS),
    ] {
        declares(stem, name, value);
    }
    let reach = format!("unsigned REACH = {};", separable::REACH);
    assert!(HEADERS.iter().any(|(name, text)| *name == "separable.cuh" && text.contains(&reach)));
    for (name, value) in
        [("ROWS", augment::ROWS as u32), ("AUGMENT", purpose::AUGMENT), ("DROP_PATH", purpose::DROP_PATH)]
    {
        let (cuda, wgsl) = (format!("unsigned {name} = {value};"), format!("const {name}: u32 = {value};"));
        assert!(source("augment").cuda.contains(&cuda) && source("augment").shader.contains(&wgsl), "{name}");
    }
    for (name, value) in [
        ("RELU", folded::RELU),
        ("SIX", folded::SIX),
        ("RESIDUAL", folded::RESIDUAL),
        ("ACCUMULATE", folded::ACCUMULATE),
        ("RUN", folded::RUN as u32),
        ("TILE", folded::TILE as u32),
    ] {
        let (cuda, wgsl) = (format!("unsigned {name} = {value};"), format!("const {name}: u32 = {value};"));
        assert!(source("folded").cuda.contains(&cuda) && source("folded").shader.contains(&wgsl), "{name}");
    }
    assert!(source("augment").shader.contains(&format!("const TABLE: u32 = {};", augment::TABLE)));
    assert!(source("mixture").shader.contains(&format!("const TABLE: u32 = {};", mixture::TABLE)));
    for stem in ["transport", "certificate"] {
        assert!(source(stem).shader.contains(&format!("const TABLE: u32 = {};", transport::TABLE)));
    }
    assert!(source("optimiser").shader.contains(&format!("const TABLE: u32 = {};", optimiser::TABLE)));
    assert!(source("elementwise").shader.contains(&format!("const TABLE: u32 = {};", elementwise::TABLE)));
    let (_, common) = HEADERS[0];
    assert!(common.contains(&format!("float* page[{PAGES}];")));
    let prelude = source("fold").wgsl(Variant::default(), 1, false);
    assert!(common.contains(&format!("unsigned HALF = {HALF:#x}u;")));
    assert!(prelude.contains(&format!("const HALF: u32 = {HALF:#x}u;")));
}

/// Whatever multiplies on tensor cores is compiled for them, and nothing else.
#[test]
fn sources_that_know_tensor_cores_are_listed() {
    // What all include knows them, but multiplies nothing by itself.
    let includes = |source: &Source, (file, text): &(&str, &str)| {
        *file != "common.cuh" && source.cuda.contains(&format!("#include \"{file}\"")) && text.contains("#if TENSOR")
    };
    let knows =
        |source: &&Source| source.cuda.contains("#if TENSOR") || HEADERS.iter().any(|header| includes(source, header));
    assert_eq!(SOURCES.iter().filter(knows).map(|source| source.stem).collect::<Vec<_>>(), PRODUCTS);
}

#[test]
fn kernels_and_shaders_have_the_same_entry_points() {
    for source in SOURCES {
        assert!(!source.entry_points().is_empty(), "{}", source.stem);
        assert_eq!(source.entry_points(), source.shader_entry_points(), "{}", source.stem);
    }
}
