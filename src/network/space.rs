//! The search space as a value: primitives of each edge, nodes, channels, layers, stem. The only place that lists
//! primitives.

use crate::error::{Error, Result};

/// Candidate operations of an edge, with DARTS' names and order (Liu et al. 2019).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Primitive {
    /// No connection.
    None,
    /// Max pooling, window 3.
    #[serde(rename = "max_pool_3x3")]
    MaxPool3,
    /// Average pooling, window 3.
    #[serde(rename = "avg_pool_3x3")]
    AvgPool3,
    /// Identity, or factorized reduce at stride 2.
    SkipConnect,
    /// Two separable convolutions, kernel 3.
    #[serde(rename = "sep_conv_3x3")]
    SepConv3,
    /// Two separable convolutions, kernel 5.
    #[serde(rename = "sep_conv_5x5")]
    SepConv5,
    /// Dilated separable convolution, kernel 3.
    #[serde(rename = "dil_conv_3x3")]
    DilConv3,
    /// Dilated separable convolution, kernel 5.
    #[serde(rename = "dil_conv_5x5")]
    DilConv5,
}

impl Primitive {
    /// All primitives in DARTS' order, which is the order of the alphas.
    pub const DARTS: [Self; 8] = [
        Self::None,
        Self::MaxPool3,
        Self::AvgPool3,
        Self::SkipConnect,
        Self::SepConv3,
        Self::SepConv5,
        Self::DilConv3,
        Self::DilConv5,
    ];

    /// DARTS' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::MaxPool3 => "max_pool_3x3",
            Self::AvgPool3 => "avg_pool_3x3",
            Self::SkipConnect => "skip_connect",
            Self::SepConv3 => "sep_conv_3x3",
            Self::SepConv5 => "sep_conv_5x5",
            Self::DilConv3 => "dil_conv_3x3",
            Self::DilConv5 => "dil_conv_5x5",
        }
    }

    /// Kernel size, dilation and number of stages of a convolution.
    pub fn convolution(self) -> Option<(usize, usize, usize)> {
        match self {
            Self::SepConv3 => Some((3, 1, 2)),
            Self::SepConv5 => Some((5, 1, 2)),
            Self::DilConv3 => Some((3, 2, 1)),
            Self::DilConv5 => Some((5, 2, 1)),
            _ => None,
        }
    }

    /// Whether the primitive has no weights (at stride 1).
    pub fn parameter_free(self) -> bool {
        self.convolution().is_none()
    }
}

impl std::fmt::Display for Primitive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A space of cells.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SearchSpace {
    /// Intermediate nodes of a cell.
    pub nodes: usize,
    /// Candidates of each edge, edges node by node, inputs ascending.
    pub edges: Vec<Vec<Primitive>>,
    /// Channels of the first cell.
    pub channels: usize,
    /// Cells.
    pub layers: usize,
    /// Channels of the stem are this times `channels`.
    pub stem_multiplier: usize,
}

impl SearchSpace {
    /// DARTS: 4 nodes, 14 edges, all 8 primitives on each, stem multiplier 3.
    ///
    /// # Errors
    /// [`Error::Usage`] for no or an odd number of channels, and for no layers.
    pub fn darts(channels: usize, layers: usize) -> Result<Self> {
        if channels == 0 || channels % 2 == 1 || layers == 0 {
            return Err(Error::usage(format!(
                "--channels {channels} --layers {layers}: a supernet needs an even number of channels (factorized \
                 reduce halves them) and at least one layer"
            )));
        }
        let edges = vec![Primitive::DARTS.to_vec(); 14];
        Ok(Self { nodes: 4, edges, channels, layers, stem_multiplier: 3 })
    }

    /// Whether a space that was read from a file makes sense.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> std::result::Result<(), String> {
        let Self { nodes, edges, channels, layers, stem_multiplier } = self;
        let bounded = (1..=64).contains(nodes) && (1..=1024).contains(layers) && (1..=64).contains(stem_multiplier);
        if !bounded || !(2..=65536).contains(channels) || channels % 2 == 1 {
            return Err(format!("{nodes} nodes, {layers} layers, {channels} channels, stem {stem_multiplier}"));
        }
        if edges.len() != Self::first_edge(*nodes) || edges.iter().any(Vec::is_empty) {
            return Err(format!("{} edges, some without primitives, for {nodes} nodes", edges.len()));
        }
        Ok(())
    }

    /// Index of the first edge into a node.
    pub fn first_edge(node: usize) -> usize {
        (0..node).map(|i| i + 2).sum()
    }

    /// Source state and node of every edge.
    pub fn endpoints(&self) -> Vec<(usize, usize)> {
        (0..self.nodes).flat_map(|node| (0..node + 2).map(move |state| (state, node))).collect()
    }

    /// First alpha of each edge, and their total, for one cell type.
    pub fn alpha_offsets(&self) -> (Vec<usize>, usize) {
        let mut at = 0;
        let offsets = self
            .edges
            .iter()
            .map(|list| {
                at += list.len();
                at - list.len()
            })
            .collect();
        (offsets, at)
    }

    /// Alphas of both cell types: normal first, then reduction.
    pub fn alphas_len(&self) -> usize {
        2 * self.alpha_offsets().1
    }
}
