//! From images to points. Images are brought to the embedder's geometry a batch at a time and run through a program that
//! is recorded once; a last batch that is not full is padded, and the points of the padding are dropped.

use std::path::Path;

use super::convnet::ConvNet;
use super::{Embedded, Profile, Signature, cache, efficientnet, resnet};
use crate::data::{Dataset, Geometry, Images, Normalisation, stratified_subset};
use crate::device::{Device, DeviceSpec, Executable, Precision};
use crate::error::{Error, Result};
use crate::graph::{Graph, Program, Shape, State, StoreLayout, Tensor};
use crate::network::{Pass, Supernet};
use crate::ops::augment::Augment;
use crate::run::Observer;
use crate::tensors::Tensors;

/// Images of a batch where the network is a supernet; those of a zoo are small.
const TRUNK_BATCH: usize = 64;
/// Images of a batch of a pretrained network: few, so that the maps of the first layers stay below 100 MiB.
const CONVNET_BATCH: usize = 8;

/// Which training images are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// At most so many, stratified.
    pub max: usize,
    /// Seed of the choice.
    pub seed: u64,
}

/// What turns images into points.
pub struct Embedder {
    signature: Signature,
    /// The device, and the threads of the processor.
    on: (DeviceSpec, usize),
    network: Option<Network>,
    runner: Option<Runner>,
}

/// A network whose features are the points.
enum Network {
    Trunk(Box<Trunk>),
    ConvNet { network: ConvNet, normalisation: Normalisation },
}

/// A supernet with its values.
pub struct Trunk {
    /// The network.
    pub network: Supernet,
    /// Flat weights.
    pub weights: Vec<f32>,
    /// Flat running statistics.
    pub running: Vec<f32>,
    /// Flat alphas.
    pub alphas: Vec<f32>,
    /// Normalisation of images, the same for every dataset.
    pub normalisation: Normalisation,
    /// Hash of all of it.
    pub hash: String,
}

/// A device with the recorded program.
struct Runner {
    device: Device,
    exe: Executable,
    pixels: State,
    features: Tensor,
    batch: usize,
    dim: usize,
}

impl Embedder {
    /// Geometry of the points of [`Embedder::pixels`] where none is given. Colour tells datasets apart better than
    /// detail does, and 512 points of 432 elements keep a zoo entry's coreset below half a MiB.
    pub const PIXELS: Geometry = Geometry { height: 12, width: 12, channels: 3 };

    /// The pixels themselves: 0 to 255 in the profile `paper`, scaled to -1..1 (`x / 127.5 - 1`) in `normalised`.
    pub fn pixels(size: Geometry, profile: Profile) -> Self {
        let signature = Signature { embedder: "pixels".into(), weights: String::new(), size, profile };
        Self { signature, on: (DeviceSpec::Cpu, 1), network: None, runner: None }
    }

    /// The trunk of a supernet in evaluation mode: means of its last maps. `on`: the device, and the threads of the
    /// processor.
    ///
    /// # Errors
    /// [`Error::Usage`] for the profile `paper`.
    pub fn trunk(trunk: Trunk, profile: Profile, on: (DeviceSpec, usize)) -> Result<Self> {
        if profile == Profile::Paper {
            return Err(Error::usage(
                "profile paper feeds pixels of 0 to 255, but the running statistics of a zoo entry are those of \
                 normalised images; use profile normalised, or the embedder pixels",
            ));
        }
        let (weights, size) = (trunk.hash.clone(), trunk.network.size);
        let signature = Signature { embedder: "zoo".into(), weights, size, profile };
        Ok(Self { signature, on, network: Some(Network::Trunk(Box::new(trunk))), runner: None })
    }

    /// EfficientNet-Lite0 with the weights of a file: its pooled 1,280 features.
    ///
    /// # Errors
    /// [`Error::Usage`] for the profile `paper`, [`Error::Io`] if the file cannot be read, [`Error::Input`] naming a
    /// tensor that it lacks.
    pub fn efficientnet_lite0(path: &Path, profile: Profile, on: (DeviceSpec, usize)) -> Result<Self> {
        Self::efficientnet("efficientnet-lite0", &efficientnet::LITE0, path, profile, on)
    }

    /// A network of EfficientNet-Lite's blocks under a name of its own.
    ///
    /// # Errors
    /// As [`Embedder::efficientnet_lite0`].
    pub fn efficientnet(
        name: &str,
        config: &efficientnet::Config,
        path: &Path,
        profile: Profile,
        on: (DeviceSpec, usize),
    ) -> Result<Self> {
        if profile == Profile::Paper {
            return Err(Error::usage(format!(
                "profile paper feeds pixels of 0 to 255 without normalisation; {name} saturates on them (ReLU6 cuts at \
                 6); use profile normalised, or the embedder pixels"
            )));
        }
        let tensors = Tensors::read(path)?;
        let network = efficientnet::load(config, &tensors, path)?;
        let network = Network::ConvNet { network, normalisation: efficientnet::normalisation() };
        Ok(Self::convnet(network, (name, &tensors), config.size, profile, on))
    }

    /// ResNet-18 with the weights of a file: its pooled 512 features, of normalised images or, in the profile `paper`, of
    /// pixels of 0 to 255 as in the released scripts.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Input`] naming a tensor that it lacks.
    pub fn resnet18(path: &Path, profile: Profile, on: (DeviceSpec, usize)) -> Result<Self> {
        Self::resnet("resnet18", &resnet::RESNET18, path, profile, on)
    }

    /// A ResNet of basic blocks under a name of its own.
    ///
    /// # Errors
    /// As [`Embedder::resnet18`].
    pub fn resnet(
        name: &str,
        config: &resnet::Config,
        path: &Path,
        profile: Profile,
        on: (DeviceSpec, usize),
    ) -> Result<Self> {
        let tensors = Tensors::read(path)?;
        let network = resnet::load(config, &tensors, path)?;
        let normalisation = match profile {
            Profile::Normalised => resnet::normalisation(),
            Profile::Paper => resnet::unnormalised(),
        };
        let network = Network::ConvNet { network, normalisation };
        Ok(Self::convnet(network, (name, &tensors), config.size, profile, on))
    }

    fn convnet(
        network: Network,
        (name, tensors): (&str, &Tensors),
        side: usize,
        profile: Profile,
        on: (DeviceSpec, usize),
    ) -> Self {
        let size = Geometry { height: side, width: side, channels: 3 };
        let signature = Signature { embedder: name.into(), weights: tensors.checksum(), size, profile };
        Self { signature, on, network: Some(network), runner: None }
    }

    /// What its points have in common.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Embeds training images of a dataset (never test images: distances must not see them). With a cache folder, points
    /// that were computed before are read. Returns the points and whether they came from the cache.
    ///
    /// # Errors
    /// [`Error::Usage`] if the sample is smaller than the number of classes or the images do not fit,
    /// [`Error::Memory`] if the program does not fit, [`Error::NonFinite`] naming an image whose point is not finite,
    /// [`Error::Io`] if the cache cannot be written.
    pub fn embed(
        &mut self,
        dataset: &Dataset,
        sample: Sample,
        folder: Option<&Path>,
        observer: &mut dyn Observer,
    ) -> Result<(Embedded, bool)> {
        let (classes, name) = (dataset.classes.len(), &dataset.name);
        if sample.max < classes {
            return Err(Error::usage(format!(
                "{} samples cannot show the {classes} classes of {name}; use at least {classes}",
                sample.max
            )));
        }
        let chosen = stratified_subset(&dataset.train.labels, classes, sample.max, sample.seed);
        let images = dataset.train.subset(&chosen);
        let key = folder.map(|folder| (folder, cache::key(&images, &self.signature)));
        let kept = key.as_ref().and_then(|(folder, key)| cache::read(folder, key, images.len()));
        let hit = kept.is_some();
        let (dim, points) = match kept {
            Some(kept) => kept,
            None => self.points(name, &images, observer)?,
        };
        let (name, classes) = (name.clone(), dataset.classes.clone());
        let embedded =
            Embedded { name, dim, points, labels: images.labels, classes, signature: self.signature.clone() };
        if let Some((folder, key)) = key.filter(|_| !hit) {
            cache::write(folder, &key, &embedded)?;
        }
        Ok((embedded, hit))
    }

    /// Elements of a point, and the points of all images.
    fn points(&mut self, name: &str, images: &Images, observer: &mut dyn Observer) -> Result<(usize, Vec<f32>)> {
        let size = self.signature.size;
        let Some(network) = &self.network else {
            let images = images.clone().converted(size)?;
            let paper = self.signature.profile == Profile::Paper;
            let value = |&x: &u8| if paper { f32::from(x) } else { f32::from(x) / 127.5 - 1.0 };
            return Ok((size.values(), images.pixels.iter().map(value).collect()));
        };
        if self.runner.is_none() {
            self.runner = Some(Runner::new(network, size, self.on)?);
        }
        let runner = self.runner.as_mut().expect("just made");
        let indices: Vec<usize> = (0..images.len()).collect();
        observer.begin(&format!("embedding {name}"), 1, indices.len().div_ceil(runner.batch), 0);
        let mut points = Vec::with_capacity(images.len() * runner.dim);
        for (step, batch) in indices.chunks(runner.batch).enumerate() {
            let staged = images.subset(batch).converted(size)?;
            points.extend(runner.run(&staged.pixels)?);
            observer.step(0, step + 1);
        }
        if let Some(at) = points.iter().position(|v| !v.is_finite()) {
            let (image, value, embedder) = (at / runner.dim, points[at], &self.signature.embedder);
            return Err(Error::NonFinite(format!(
                "the {embedder} embedding of image {image} of {name} has a value {value}; are its weights sound?"
            )));
        }
        Ok((runner.dim, points))
    }
}

impl Runner {
    fn new(network: &Network, size: Geometry, (device, threads): (DeviceSpec, usize)) -> Result<Self> {
        let (batch, normalisation) = match network {
            Network::Trunk(trunk) => (TRUNK_BATCH, &trunk.normalisation),
            Network::ConvNet { normalisation, .. } => (CONVNET_BATCH, normalisation),
        };
        let (mut layout, mut graph) = (StoreLayout::new(), Graph::new());
        let pixels = layout.add("pixels", Shape::map(batch, size.height, size.width, size.channels));
        let (index, epoch) = (layout.add("index", Shape::vector(batch)), layout.add("epoch", Shape::vector(1)));
        let Normalisation { mean, std } = normalisation.clone();
        let normalise = Augment { pad: 0, flip: false, cutout: 0, mean, std, seed: 0 };
        let inputs = [pixels, index, epoch].map(|state| graph.state(state));
        let images = Augment::record(&mut graph, normalise, inputs);
        let mut values: Vec<(State, &[f32])> = Vec::new();
        let features = match network {
            Network::Trunk(trunk) => {
                let Trunk { network, weights, running, alphas, .. } = &**trunk;
                let mut declare = |name: &str, with: &'_ [f32]| layout.add(name, Shape::vector(with.len()));
                let states =
                    [declare("weights", weights), declare("running statistics", running), declare("alphas", alphas)];
                values.extend(states.into_iter().zip([&weights[..], running, alphas]));
                let [weights, alphas] = [states[0], states[2]].map(|state| graph.state(state));
                let mut pass = Pass::evaluate(&mut graph, &network.layout, weights, states[1]);
                network.features(&mut pass, images, alphas)?
            }
            Network::ConvNet { network, .. } => {
                let weights = layout.add("weights", Shape::vector(network.weights().len()));
                values.push((weights, network.weights()));
                let weights = graph.state(weights);
                network.record(&mut graph, images, weights)?
            }
        };
        let dim = graph.shape(features).c;
        let mut device = Device::open(&device, &layout, threads, Precision::F32)?;
        for (state, values) in values {
            device.write(state, values)?;
        }
        let exe = device.prepare(Program::new("embedding", graph, &[features]))?;
        Ok(Self { device, exe, pixels, features, batch, dim })
    }

    /// Points of at most a batch of images.
    fn run(&mut self, pixels: &[u8]) -> Result<Vec<f32>> {
        let images = pixels.len() / (self.pixels.shape.len() / self.batch);
        self.device.write_with(self.pixels, |staged| {
            staged.iter_mut().zip(pixels).for_each(|(slot, &value)| *slot = f32::from(value));
            Ok(())
        })?;
        // What lies behind the last image is computed too, and dropped.
        self.device.run(&self.exe)?;
        let mut points = self.device.read_tensor(&self.exe, self.features)?;
        points.truncate(images * self.dim);
        Ok(points)
    }
}
