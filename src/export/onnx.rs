//! A derived network as an ONNX model (opset 17, IR version 8) that any runtime can load.
//!
//! Input `images`, float32 `[batch, channels, height, width]` with pixel values 0..255: normalisation is part of the
//! graph. Output `logits`, float32 `[batch, classes]`. The graph is the evaluation forward: no drop path, no auxiliary
//! head, and every batch norm folded in f64 into the convolution before it, so that only standard convolutions, pools,
//! ReLUs and sums remain. Values bear PyTorch's names of the modules that compute them.
//!
//! The walk over the cells finds weights by those names, as transfers and fixtures do, and knows nothing of the
//! recorded programs.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::protobuf::Message;
use crate::data::Normalisation;
use crate::error::Result;
use crate::files::write_atomically;
use crate::network::parameters::{EPS, Kind};
use crate::network::{Derived, Parameter, Primitive, Statistic, is_reduction};

/// Version of the file format.
const IR_VERSION: i64 = 8;
/// Version of the operators.
const OPSET: i64 = 17;
/// Name of the input.
const IMAGES: &str = "images";
/// Name of the output.
const LOGITS: &str = "logits";

/// Field numbers of `onnx.proto`, message by message.
mod field {
    pub(super) mod model {
        pub const IR_VERSION: u32 = 1;
        pub const PRODUCER_NAME: u32 = 2;
        pub const PRODUCER_VERSION: u32 = 3;
        pub const DOC_STRING: u32 = 6;
        pub const GRAPH: u32 = 7;
        pub const OPSET_IMPORT: u32 = 8;
        pub const METADATA_PROPS: u32 = 14;
    }
    pub(super) mod graph {
        pub const NODE: u32 = 1;
        pub const NAME: u32 = 2;
        pub const INITIALIZER: u32 = 5;
        pub const INPUT: u32 = 11;
        pub const OUTPUT: u32 = 12;
    }
    pub(super) mod node {
        pub const INPUT: u32 = 1;
        pub const OUTPUT: u32 = 2;
        pub const NAME: u32 = 3;
        pub const OP_TYPE: u32 = 4;
        pub const ATTRIBUTE: u32 = 5;
    }
    pub(super) mod attribute {
        pub const NAME: u32 = 1;
        pub const I: u32 = 3;
        pub const INTS: u32 = 8;
        pub const TYPE: u32 = 20;
    }
    pub(super) mod tensor {
        pub const DIMS: u32 = 1;
        pub const DATA_TYPE: u32 = 2;
        pub const NAME: u32 = 8;
        pub const RAW_DATA: u32 = 9;
    }
    pub(super) mod value_info {
        pub const NAME: u32 = 1;
        pub const TYPE: u32 = 2;
        pub const DOC_STRING: u32 = 3;
    }
    pub(super) mod tensor_type {
        /// Of the choice between tensors, sequences and maps around it.
        pub const TENSOR_TYPE: u32 = 1;
        pub const ELEM_TYPE: u32 = 1;
        pub const SHAPE: u32 = 2;
        pub const DIM: u32 = 1;
        pub const DIM_VALUE: u32 = 1;
        pub const DIM_PARAM: u32 = 2;
    }
    pub(super) mod opset {
        pub const DOMAIN: u32 = 1;
        pub const VERSION: u32 = 2;
    }
    pub(super) mod entry {
        pub const KEY: u32 = 1;
        pub const VALUE: u32 = 2;
    }
}

/// Values of the enum of element types.
const FLOAT: i64 = 1;
const INT64: i64 = 7;
/// Values of the enum of attribute types.
const ATTRIBUTE_INT: i64 = 2;
const ATTRIBUTE_INTS: i64 = 7;

/// The bytes of an ONNX model of a network in evaluation mode. `weights` and `running` are the flat vectors of
/// [`Derived::layout`], `normalisation` is that of the training. Equal inputs give equal bytes.
///
/// # Panics
/// If a vector, the normalisation or the class names do not have the network's lengths, or its genotype does not pass
/// [`crate::network::Genotype::check`].
pub fn to_onnx(
    network: &Derived,
    weights: &[f32],
    running: &[f32],
    normalisation: &Normalisation,
    class_names: &[String],
) -> Vec<u8> {
    assert_eq!(weights.len(), network.layout.weights_len(), "weights of another network");
    assert_eq!(running.len(), network.layout.running_len(), "running statistics of another network");
    assert_eq!(class_names.len(), network.classes, "one name a class");
    let channels = [normalisation.mean.len(), normalisation.std.len()];
    assert_eq!(channels, [network.size.channels; 2], "normalisation of other images");
    if let Err(message) = network.config.genotype.check() {
        panic!("a network of an unsound genotype: {message}");
    }
    let mut exporter = Exporter::new(network, weights, running);
    exporter.network(normalisation);
    exporter.model(class_names)
}

/// Writes a model; the file is whole or not there.
///
/// # Errors
/// [`crate::Error::Io`] naming the file.
pub fn write_onnx(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, bytes)
}

/// A value of the graph that is a map: its name and extent.
#[derive(Clone, Debug)]
struct Map {
    name: String,
    height: usize,
    width: usize,
}

/// Dilation and stride of a convolution.
#[derive(Clone, Copy, Debug)]
struct Taps {
    dilation: usize,
    stride: usize,
}

const DENSE_TAPS: Taps = Taps { dilation: 1, stride: 1 };

/// The graph under construction.
struct Exporter<'a> {
    network: &'a Derived,
    weights: &'a [f32],
    running: &'a [f32],
    parameters: HashMap<&'a str, &'a Parameter>,
    statistics: HashMap<&'a str, &'a Statistic>,
    nodes: Vec<Message>,
    initializers: Vec<Message>,
    /// Names of values that exist.
    defined: HashSet<String>,
}

impl<'a> Exporter<'a> {
    fn new(network: &'a Derived, weights: &'a [f32], running: &'a [f32]) -> Self {
        let parameters = network.layout.parameters().iter().map(|p| (p.name.as_str(), p)).collect();
        let statistics = network
            .layout
            .statistics()
            .iter()
            .flat_map(|s| s.names.iter().map(move |name| (name.as_str(), s)))
            .collect();
        Self {
            network,
            weights,
            running,
            parameters,
            statistics,
            nodes: Vec::new(),
            initializers: Vec::new(),
            defined: HashSet::new(),
        }
    }

    fn parameter(&self, name: &str) -> &'a Parameter {
        self.parameters.get(name).unwrap_or_else(|| panic!("the network declares {name}"))
    }

    /// Elements of a vector among the parameters.
    fn vector(&self, name: &str) -> &'a [f32] {
        let p = self.parameter(name);
        &self.weights[p.offset..p.offset + p.shape.len()]
    }

    /// Adds a node and returns the value it computes. Values are named after what they are, so one that exists already
    /// (the ReLU or the pool of a state that several edges read) is not computed again.
    fn node(&mut self, op: &str, inputs: &[&str], output: String, attributes: &[Message]) -> String {
        if self.defined.insert(output.clone()) {
            let node = Message::new()
                .texts(field::node::INPUT, inputs)
                .text(field::node::OUTPUT, &output)
                .text(field::node::NAME, &output)
                .text(field::node::OP_TYPE, op)
                .messages(field::node::ATTRIBUTE, attributes);
            self.nodes.push(node);
        }
        output
    }

    /// Adds a constant of the graph, unless it exists already.
    fn constant(&mut self, name: String, dims: &[usize], kind: i64, raw: &[u8]) -> String {
        if self.defined.insert(name.clone()) {
            let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
            let tensor = Message::new()
                .ints(field::tensor::DIMS, &dims)
                .int(field::tensor::DATA_TYPE, kind)
                .text(field::tensor::NAME, &name)
                .bytes(field::tensor::RAW_DATA, raw);
            self.initializers.push(tensor);
        }
        name
    }

    fn floats(&mut self, name: String, dims: &[usize], values: &[f32]) -> String {
        debug_assert_eq!(dims.iter().product::<usize>(), values.len());
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, dims, FLOAT, &raw)
    }

    fn integers(&mut self, name: String, values: &[i64]) -> String {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, &[values.len()], INT64, &raw)
    }

    /// The whole forward, from the images to the logits.
    fn network(&mut self, normalisation: &Normalisation) {
        let genotype = &self.network.config.genotype;
        let images = self.normalised(normalisation);
        let stem = self.convolution(&images, "stem.0", Some(("stem.1", 0)), DENSE_TAPS);
        let (mut s0, mut s1) = (stem.clone(), stem);
        let layers = self.network.config.layers;
        for layer in 0..layers {
            let cell = if is_reduction(layer, layers) {
                self.cell(layer, 2, [&s0, &s1], &genotype.reduce, &genotype.reduce_concat)
            } else {
                self.cell(layer, 1, [&s0, &s1], &genotype.normal, &genotype.normal_concat)
            };
            (s0, s1) = (s1, cell);
        }
        let pooled = self.node("GlobalAveragePool", &[&s1.name], "global_pooling".into(), &[]);
        let row = self.node("Flatten", &[&pooled], "features".into(), &[int("axis", 1)]);
        let linear = self.parameter("classifier.weight");
        let weight = self.weight(linear, "classifier.weight", &vec![1.0; linear.shape.c]);
        let bias = self.vector("classifier.bias");
        let bias = self.floats("classifier.bias".into(), &[bias.len()], bias);
        self.node("Gemm", &[&row, &weight, &bias], LOGITS.into(), &[int("transB", 1)]);
    }

    /// `(images / 255 - mean) / std`. It cannot be folded into the stem, whose padding is zero after normalisation.
    fn normalised(&mut self, normalisation: &Normalisation) -> Map {
        let c = normalisation.mean.len();
        let scaled = |values: &[f32]| values.iter().map(|&v| (255.0 * f64::from(v)) as f32).collect::<Vec<_>>();
        let mean = self.floats("normalisation.mean".into(), &[1, c, 1, 1], &scaled(&normalisation.mean));
        let std = self.floats("normalisation.std".into(), &[1, c, 1, 1], &scaled(&normalisation.std));
        let centred = self.node("Sub", &[IMAGES, &mean], "normalisation.centred".into(), &[]);
        let name = self.node("Div", &[&centred, &std], "normalisation".into(), &[]);
        Map { name, height: self.network.size.height, width: self.network.size.width }
    }

    fn cell(
        &mut self,
        layer: usize,
        stride: usize,
        inputs: [&Map; 2],
        pairs: &[(Primitive, usize)],
        concat: &[usize],
    ) -> Map {
        let name = format!("cells.{layer}");
        let mut states: Vec<Map> = Vec::with_capacity(2 + pairs.len() / 2);
        for (i, input) in inputs.into_iter().enumerate() {
            let name = format!("{name}.preprocess{i}");
            // Behind a reduction cell the older input still has twice the side.
            let state = if self.parameters.contains_key(format!("{name}.conv_1.weight").as_str()) {
                self.factorized_reduce(input, &name)
            } else {
                let active = self.relu(input);
                self.convolution(&active, &format!("{name}.op.1"), Some((&format!("{name}.op.2"), 0)), DENSE_TAPS)
            };
            states.push(state);
        }
        for (node, both) in pairs.chunks(2).enumerate() {
            let mut summands = Vec::with_capacity(2);
            for (i, &(primitive, state)) in both.iter().enumerate() {
                let stride = if state < 2 { stride } else { 1 };
                let name = format!("{name}._ops.{}", 2 * node + i);
                summands.push(self.edge(&name, primitive, &states[state], stride));
            }
            let sum = format!("{name}.states.{}", node + 2);
            let sum = self.node("Add", &[&summands[0].name, &summands[1].name], sum, &[]);
            states.push(Map { name: sum, ..summands.swap_remove(0) });
        }
        let parts: Vec<&str> = concat.iter().map(|&state| states[state].name.as_str()).collect();
        let name = self.node("Concat", &parts, name, &[int("axis", 1)]);
        Map { name, ..states[concat[0]] }
    }

    /// One primitive applied to a state.
    fn edge(&mut self, name: &str, primitive: Primitive, x: &Map, stride: usize) -> Map {
        match primitive {
            Primitive::None => unreachable!("sound genotypes choose no `none`"),
            Primitive::MaxPool3 => self.pool("MaxPool", primitive, x, stride),
            Primitive::AvgPool3 => self.pool("AveragePool", primitive, x, stride),
            Primitive::SkipConnect if stride == 1 => x.clone(),
            Primitive::SkipConnect => self.factorized_reduce(x, name),
            Primitive::SepConv3 | Primitive::SepConv5 | Primitive::DilConv3 | Primitive::DilConv5 => {
                let (_, dilation, stages) = primitive.convolution().expect("these are convolutions");
                let mut map = x.clone();
                for stage in 0..stages {
                    let module = |i: usize| format!("{name}.op.{}", 4 * stage + i);
                    let stride = if stage == 0 { stride } else { 1 };
                    let active = self.relu(&map);
                    let deep = self.convolution(&active, &module(1), None, Taps { dilation, stride });
                    map = self.convolution(&deep, &module(2), Some((&module(3), 0)), DENSE_TAPS);
                }
                map
            }
        }
    }

    fn relu(&mut self, x: &Map) -> Map {
        let name = self.node("Relu", &[&x.name], format!("{}.relu", x.name), &[]);
        Map { name, ..*x }
    }

    /// A pool of window 3; averages leave padding out (`count_include_pad` is 0 unless given).
    fn pool(&mut self, op: &str, primitive: Primitive, x: &Map, stride: usize) -> Map {
        let attributes = [ints("kernel_shape", &[3; 2]), ints("pads", &[1; 4]), ints("strides", &[stride as i64; 2])];
        let name = self.node(op, &[&x.name], format!("{}.{primitive}", x.name), &attributes);
        Map { name, height: x.height.div_ceil(stride), width: x.width.div_ceil(stride) }
    }

    /// ReLU, then two 1x1 convolutions of stride 2, the second on the map shifted by one pixel, side by side.
    fn factorized_reduce(&mut self, x: &Map, name: &str) -> Map {
        let active = self.relu(x);
        let shifted = self.shifted(&active);
        let norm = format!("{name}.bn");
        let taps = Taps { dilation: 1, stride: 2 };
        let first = self.parameter(&format!("{name}.conv_1.weight")).shape.c;
        let even = self.convolution(&active, &format!("{name}.conv_1"), Some((&norm, 0)), taps);
        let odd = self.convolution(&shifted, &format!("{name}.conv_2"), Some((&norm, first)), taps);
        let name = self.node("Concat", &[&even.name, &odd.name], name.to_owned(), &[int("axis", 1)]);
        Map { name, ..even }
    }

    /// The map without its first row and column. An odd side first gets a zero behind its end, so that every second
    /// pixel of the result is as many as of the map.
    fn shifted(&mut self, x: &Map) -> Map {
        let (below, right) = (x.height % 2, x.width % 2);
        let mut padded = x.name.clone();
        if below + right > 0 {
            let end = [0, 0, 0, 0, 0, 0, below as i64, right as i64];
            let pads = self.integers(format!("padding.{below}{right}"), &end);
            padded = self.node("Pad", &[&x.name, &pads], format!("{}.padded", x.name), &[]);
        }
        let starts = self.integers("shift.starts".into(), &[1; 2]);
        let ends = self.integers("shift.ends".into(), &[i64::MAX; 2]);
        let axes = self.integers("shift.axes".into(), &[2, 3]);
        let name = self.node("Slice", &[&padded, &starts, &ends, &axes], format!("{}.shifted", x.name), &[]);
        Map { name, height: x.height + below - 1, width: x.width + right - 1 }
    }

    /// A convolution with the padding that gives `ceil(side / stride)` pixels a side. `norm` is the batch norm behind
    /// it, with its channel that is the convolution's first: `gamma (w x - mean) / sqrt(var + eps) + beta` is a
    /// convolution with scaled weights and a bias.
    fn convolution(&mut self, x: &Map, name: &str, norm: Option<(&str, usize)>, taps: Taps) -> Map {
        let p = self.parameter(&format!("{name}.weight"));
        let (kernel, group) = match p.kind {
            Kind::Depthwise { kernel } => (kernel, p.shape.c),
            Kind::Dense { kernel } => (kernel, 1),
            _ => unreachable!("{name} is a convolution"),
        };
        let c = p.shape.c;
        let mut scale = vec![1.0; c];
        let mut bias = None;
        if let Some((norm, first)) = norm {
            let channels = first..first + c;
            let s = self.statistics.get(norm).unwrap_or_else(|| panic!("the network declares {norm}"));
            let mean = &self.running[s.offset..][channels.clone()];
            let var = &self.running[s.offset + s.channels..][channels.clone()];
            let gamma = &self.vector(&format!("{norm}.weight"))[channels.clone()];
            let beta = &self.vector(&format!("{norm}.bias"))[channels];
            for (i, scale) in scale.iter_mut().enumerate() {
                *scale = f64::from(gamma[i]) / (f64::from(var[i]) + EPS).sqrt();
            }
            let shift = |i: usize| (f64::from(beta[i]) - f64::from(mean[i]) * scale[i]) as f32;
            let values: Vec<f32> = (0..c).map(shift).collect();
            bias = Some(self.floats(format!("{name}.bias"), &[c], &values));
        }
        let weight = self.weight(p, &format!("{name}.weight"), &scale);
        let pad = (taps.dilation * (kernel - 1) / 2) as i64;
        let attributes = [
            ints("dilations", &[taps.dilation as i64; 2]),
            int("group", group as i64),
            ints("kernel_shape", &[kernel as i64; 2]),
            ints("pads", &[pad; 4]),
            ints("strides", &[taps.stride as i64; 2]),
        ];
        let inputs: Vec<&str> = [x.name.as_str(), weight.as_str()].into_iter().chain(bias.as_deref()).collect();
        let name = self.node("Conv", &inputs, name.to_owned(), &attributes);
        Map { name, height: x.height.div_ceil(taps.stride), width: x.width.div_ceil(taps.stride) }
    }

    /// A parameter in PyTorch's layout, each output channel scaled.
    fn weight(&mut self, p: &Parameter, name: &str, scale: &[f64]) -> String {
        let mut values = vec![0.0; p.shape.len()];
        for (i, &w) in self.weights[p.offset..p.offset + p.shape.len()].iter().enumerate() {
            values[p.torch_index(i)] = (f64::from(w) * scale[i % p.shape.c]) as f32;
        }
        self.floats(name.to_owned(), &p.torch_shape(), &values)
    }

    /// The model around the graph.
    fn model(self, class_names: &[String]) -> Vec<u8> {
        let size = self.network.size;
        let images = value(
            IMAGES,
            &[size.channels, size.height, size.width],
            "Pixel values 0..255, not normalised: the graph normalises them.",
        );
        let logits = value(LOGITS, &[self.network.classes], "Logits; their softmax is the probability of each class.");
        let graph = Message::new()
            .messages(field::graph::NODE, &self.nodes)
            .text(field::graph::NAME, "derived network")
            .messages(field::graph::INITIALIZER, &self.initializers)
            .message(field::graph::INPUT, &images)
            .message(field::graph::OUTPUT, &logits);
        let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let doc = format!(
            "Image classifier derived by {name}. Input `{IMAGES}`: float32 [batch, {}, {}, {}], pixel values 0..255; \
             normalisation is part of the graph. Output `{LOGITS}`: float32 [batch, {}]. Batch norms are folded into \
             the convolutions before them.",
            size.channels, size.height, size.width, self.network.classes
        );
        let json = "strings and numbers always serialise";
        let properties = [
            entry("class_names", &serde_json::to_string(class_names).expect(json)),
            entry("genotype", &serde_json::to_string(&self.network.config.genotype).expect(json)),
            entry("producer", &format!("{name} {version}")),
        ];
        let opset = Message::new().text(field::opset::DOMAIN, "").int(field::opset::VERSION, OPSET);
        Message::new()
            .int(field::model::IR_VERSION, IR_VERSION)
            .text(field::model::PRODUCER_NAME, name)
            .text(field::model::PRODUCER_VERSION, version)
            .text(field::model::DOC_STRING, &doc)
            .message(field::model::GRAPH, &graph)
            .message(field::model::OPSET_IMPORT, &opset)
            .messages(field::model::METADATA_PROPS, &properties)
            .finish()
    }
}

fn int(name: &str, value: i64) -> Message {
    let attribute = Message::new().text(field::attribute::NAME, name).int(field::attribute::I, value);
    attribute.int(field::attribute::TYPE, ATTRIBUTE_INT)
}

fn ints(name: &str, values: &[i64]) -> Message {
    let attribute = Message::new().text(field::attribute::NAME, name).ints(field::attribute::INTS, values);
    attribute.int(field::attribute::TYPE, ATTRIBUTE_INTS)
}

fn entry(key: &str, value: &str) -> Message {
    Message::new().text(field::entry::KEY, key).text(field::entry::VALUE, value)
}

/// An input or output of floats, its batch dimension open.
fn value(name: &str, dims: &[usize], doc: &str) -> Message {
    use field::{tensor_type, value_info};
    let batch = Message::new().text(tensor_type::DIM_PARAM, "batch");
    let fixed = dims.iter().map(|&d| Message::new().int(tensor_type::DIM_VALUE, d as i64));
    let dims: Vec<Message> = std::iter::once(batch).chain(fixed).collect();
    let shape = Message::new().messages(tensor_type::DIM, &dims);
    let tensor = Message::new().int(tensor_type::ELEM_TYPE, FLOAT).message(tensor_type::SHAPE, &shape);
    Message::new()
        .text(value_info::NAME, name)
        .message(value_info::TYPE, &Message::new().message(tensor_type::TENSOR_TYPE, &tensor))
        .text(value_info::DOC_STRING, doc)
}
