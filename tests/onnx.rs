//! Exported networks against onnxruntime: the same images give the same logits as the reference device.
//!
//! `SUPERNET_PYTHON` names a Python executable that has onnxruntime and numpy. Without one the comparison says loudly
//! that it did not run, or fails if `SUPERNET_REQUIRE_ONNX=1`.

use std::path::{Path, PathBuf};
use std::process::Command;

use supernet::data::Normalisation;
use supernet::device::reference::Reference;
use supernet::export::{to_onnx, write_onnx};
use supernet::graph::StoreLayout;
use supernet::network::parameters::Kind;
use supernet::network::{Derived, DerivedConfig, Genotype, Geometry, Primitive};
use supernet::random::{Stream, uniform};
use supernet::search::step::InputPipeline;
use supernet::train::step::{TrainStates, evaluation};

const CLASSES: usize = 5;

/// Uniform draws of one case.
struct Draws {
    stream: Stream,
    count: u32,
}

impl Draws {
    fn between(&mut self, low: f32, high: f32) -> f32 {
        self.count += 1;
        low + (high - low) * uniform(self.stream.block(0, self.count)[0])
    }

    fn below(&mut self, n: usize) -> usize {
        self.between(0.0, n as f32) as usize
    }
}

/// One network with everything that its export needs.
struct Case {
    network: Derived,
    weights: Vec<f32>,
    running: Vec<f32>,
    normalisation: Normalisation,
    class_names: Vec<String>,
    /// `[n, c, h, w]`.
    images: Vec<f32>,
    n: usize,
}

impl Case {
    fn new(seed: u64, (height, width, channels): (usize, usize, usize), n: usize) -> Self {
        let mut draws = Draws { stream: Stream::new(seed, 900), count: 0 };
        let genotype = Genotype {
            normal: random_cell(&mut draws, false),
            normal_concat: vec![2, 3, 4, 5],
            reduce: random_cell(&mut draws, true),
            reduce_concat: vec![3, 5, 4, 2],
        };
        genotype.check().unwrap();
        let config = DerivedConfig { genotype, channels: 4, layers: 4, auxiliary: true };
        let network = Derived::new(config, Geometry { height, width, channels }, CLASSES);
        let mut weights = network.layout.initial_weights(seed);
        for p in network.layout.parameters() {
            let range = match p.kind {
                Kind::Gamma => (0.5, 1.5),
                Kind::Beta => (-0.5, 0.5),
                _ => continue,
            };
            weights[p.offset..p.offset + p.shape.len()].fill_with(|| draws.between(range.0, range.1));
        }
        let mut running = vec![0.0; network.layout.running_len()];
        for s in network.layout.statistics() {
            let (mean, var) = running[s.offset..s.offset + 2 * s.channels].split_at_mut(s.channels);
            mean.fill_with(|| draws.between(-0.5, 0.5));
            var.fill_with(|| draws.between(0.05, 1.5));
        }
        let normalisation = Normalisation {
            mean: (0..channels).map(|_| draws.between(0.2, 0.7)).collect(),
            std: (0..channels).map(|_| draws.between(0.1, 0.4)).collect(),
        };
        // Names with everything that could upset a list or a JSON text.
        let class_names = (0..CLASSES).map(|i| format!("class \"{i}\", é")).collect();
        let images = (0..n * channels * height * width).map(|_| draws.below(256) as f32).collect();
        Self { network, weights, running, normalisation, class_names, images, n }
    }

    fn export(&self) -> Vec<u8> {
        to_onnx(&self.network, &self.weights, &self.running, &self.normalisation, &self.class_names)
    }

    /// The logits of the engine's own evaluation.
    fn logits(&self) -> Vec<f32> {
        let mut layout = StoreLayout::new();
        let states = TrainStates::declare(&mut layout, &self.network, self.n);
        let normalisation = self.normalisation.clone();
        let input = InputPipeline { pad: 0, flip: false, cutout: 0, normalisation, seed: 0 };
        let step = evaluation(&self.network, &states, &input).unwrap();
        let logits = step.watched.logits.unwrap();
        let program = step.program("evaluate", true);
        let mut device = Reference::<f32>::new(&layout);
        device.state_mut(states.model.weights).copy_from_slice(&self.weights);
        device.state_mut(states.model.running).copy_from_slice(&self.running);
        let Geometry { height, width, channels } = self.network.size;
        let pixels = device.state_mut(states.test.pixels);
        for (i, &value) in self.images.iter().enumerate() {
            let (image, c, pixel) =
                (i / (channels * height * width), i / (height * width) % channels, i % (height * width));
            pixels[(image * height * width + pixel) * channels + c] = value;
        }
        device.run(&program);
        device.read(&program, logits)
    }
}

/// Four nodes that have every primitive among them, in random order on random states; `inputs`: all of them on the two
/// input states, where a reduction cell strides.
fn random_cell(draws: &mut Draws, inputs: bool) -> Vec<(Primitive, usize)> {
    let mut primitives = Primitive::DARTS[1..].to_vec();
    primitives.push(Primitive::DARTS[1 + draws.below(7)]);
    (0..8)
        .map(|i| {
            let primitive = primitives.swap_remove(draws.below(primitives.len()));
            (primitive, draws.below(if inputs { 2 } else { i / 2 + 2 }))
        })
        .collect()
}

/// A version 1 `.npy` file of float32.
fn npy(shape: [usize; 4], values: &[f32]) -> Vec<u8> {
    let [n, c, h, w] = shape;
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {c}, {h}, {w})}}");
    let header = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

/// A folder of this process, gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("onnx-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A Python with onnxruntime, or the reason why there is none.
fn python() -> Result<PathBuf, String> {
    let python = std::env::var_os("SUPERNET_PYTHON").ok_or("SUPERNET_PYTHON is not set")?;
    let found = Command::new(&python).args(["-c", "import onnxruntime, numpy"]).output();
    match found {
        Ok(output) if output.status.success() => Ok(python.into()),
        Ok(output) => Err(format!("{python:?}: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("{python:?}: {error}")),
    }
}

fn compare(python: &Path, folder: &Folder, name: &str, case: &Case) {
    let (model, images) = (folder.0.join(format!("{name}.onnx")), folder.0.join(format!("{name}.npy")));
    write_onnx(&model, &case.export()).unwrap();
    let Geometry { height, width, channels } = case.network.size;
    std::fs::write(&images, npy([case.n, channels, height, width], &case.images)).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/onnx_logits.py");
    let output = Command::new(python).arg(script).args([&model, &images]).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();

    let theirs: Vec<Vec<f32>> = serde_json::from_value(answer["logits"].clone()).unwrap();
    let (own, theirs) = (case.logits(), theirs.concat());
    assert_eq!(own.len(), theirs.len());
    let spread = own.iter().fold(0.0f32, |a, b| a.max((b - own[0]).abs()));
    assert!(spread > 1e-2, "{name}: logits {own:?} that tell nothing");
    let worst = own.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{name}: logits differ by {worst:.2e}: {own:?}, onnxruntime {theirs:?}");

    assert_eq!(answer["input"], serde_json::json!(["batch", channels, height, width]));
    assert_eq!(answer["output"], serde_json::json!(["batch", CLASSES]));
    assert_eq!(answer["producer"], "supernet");
    assert!(answer["description"].as_str().unwrap().contains("0..255"));
    let metadata = |key: &str| answer["metadata"][key].as_str().unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Vec<String>>(&metadata("class_names")).unwrap(), case.class_names);
    let genotype: Genotype = serde_json::from_str(&metadata("genotype")).unwrap();
    assert_eq!(genotype, case.network.config.genotype);
    assert_eq!(metadata("producer"), concat!("supernet ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn onnxruntime_gives_the_logits_of_the_engine() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) if std::env::var("SUPERNET_REQUIRE_ONNX").as_deref() == Ok("1") => {
            panic!("no Python with onnxruntime and numpy: {reason}")
        }
        Err(reason) => {
            eprintln!("NOT COMPARED WITH ONNXRUNTIME: no Python with onnxruntime and numpy ({reason})");
            return;
        }
    };
    let folder = Folder::new("logits");
    let sizes = [(17, 15, 1), (17, 15, 3), (32, 32, 1), (32, 32, 3), (5, 2, 2), (16, 13, 3)];
    for (seed, size) in sizes.into_iter().enumerate() {
        let case = Case::new(seed as u64, size, 1 + seed % 3);
        compare(&python, &folder, &format!("{}x{}x{}", size.0, size.1, size.2), &case);
    }
}

#[test]
fn exports_repeat_and_leave_the_auxiliary_head_out() {
    let case = Case::new(40, (9, 8, 3), 1);
    let bytes = case.export();
    assert_eq!(bytes, case.export());
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("classifier.weight") && holds("cells.3.preprocess0.conv_1"));
    assert!(!holds("auxiliary_head"));
}

#[test]
fn a_model_that_cannot_be_written_names_its_file() {
    let folder = Folder::new("unwritable");
    let error = write_onnx(&folder.0.join("absent/model.onnx"), &[1]).unwrap_err();
    assert!(error.to_string().contains("model.onnx"), "{error}");
    write_onnx(&folder.0.join("model.onnx"), &[1, 2]).unwrap();
    assert_eq!(std::fs::read(folder.0.join("model.onnx")).unwrap(), [1, 2]);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "no partial file stays");
}
