//! Genotypes: the discrete cells that a search finds, their derivation from alphas, and the published ones.

use std::path::Path;

use super::space::{Primitive, SearchSpace};
use crate::error::{Error, Result};

/// Two chosen (operation, input state) pairs a node, for both cell types. The JSON form is that of the published code:
/// `{"normal": [["sep_conv_3x3", 0], ...], "normal_concat": [2, 3, 4, 5], "reduce": ..., "reduce_concat": ...}`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genotype {
    /// Pairs of the normal cell, node by node.
    pub normal: Vec<(Primitive, usize)>,
    /// States whose maps are concatenated.
    pub normal_concat: Vec<usize>,
    /// Pairs of the reduction cell.
    pub reduce: Vec<(Primitive, usize)>,
    /// States whose maps are concatenated.
    pub reduce_concat: Vec<usize>,
}

/// Softmax of one edge's alphas, in f64.
pub fn softmax(alphas: &[f32]) -> Vec<f64> {
    let top = alphas.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = alphas.iter().map(|&a| f64::from(a - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// The best primitive other than `none` of one edge, and its weight.
fn best(space: &SearchSpace, edge: usize, alphas: &[f32]) -> Option<(Primitive, f64)> {
    let weights = softmax(alphas);
    let mut best: Option<(Primitive, f64)> = None;
    for (&primitive, &weight) in space.edges[edge].iter().zip(&weights) {
        if primitive != Primitive::None && best.is_none_or(|(_, w)| weight > w) {
            best = Some((primitive, weight));
        }
    }
    best
}

fn derive_cell(space: &SearchSpace, alphas: &[f32]) -> Vec<(Primitive, usize)> {
    let (offsets, len) = space.alpha_offsets();
    let mut cell = Vec::with_capacity(2 * space.nodes);
    for node in 0..space.nodes {
        let first = SearchSpace::first_edge(node);
        let mut edges: Vec<(usize, Primitive, f64)> = (0..node + 2)
            .filter_map(|state| {
                let edge = first + state;
                let end = offsets.get(edge + 1).copied().unwrap_or(len);
                best(space, edge, &alphas[offsets[edge]..end]).map(|(p, w)| (state, p, w))
            })
            .collect();
        // A stable sort: equal weights leave the lower input first.
        edges.sort_by(|a, b| b.2.total_cmp(&a.2));
        cell.extend(edges.into_iter().take(2).map(|(state, primitive, _)| (primitive, state)));
    }
    cell
}

impl Genotype {
    /// Keeps, for each node, the two incoming edges with the largest weight of a primitive other than `none`, and on
    /// each that primitive. `alphas` is the flat vector of both cell types. Ties go to the lower index.
    pub fn derive(space: &SearchSpace, alphas: &[f32]) -> Self {
        let (normal, reduce) = alphas.split_at(alphas.len() / 2);
        let concat: Vec<usize> = (2..space.nodes + 2).collect();
        Self {
            normal: derive_cell(space, normal),
            normal_concat: concat.clone(),
            reduce: derive_cell(space, reduce),
            reduce_concat: concat,
        }
    }

    /// A published genotype: `DARTS_V1` or `DARTS_V2` (Liu et al. 2019).
    pub fn named(name: &str) -> Option<Self> {
        use Primitive::{DilConv3, MaxPool3, SepConv3, SkipConnect};
        let concat = vec![2, 3, 4, 5];
        let (normal, reduce) = match name {
            "DARTS_V1" => (
                [
                    (SepConv3, 1),
                    (SepConv3, 0),
                    (SkipConnect, 0),
                    (SepConv3, 1),
                    (SkipConnect, 0),
                    (SepConv3, 1),
                    (SepConv3, 0),
                    (SkipConnect, 2),
                ],
                [
                    (MaxPool3, 0),
                    (MaxPool3, 1),
                    (SkipConnect, 2),
                    (MaxPool3, 0),
                    (MaxPool3, 0),
                    (SkipConnect, 2),
                    (SkipConnect, 2),
                    (Primitive::AvgPool3, 0),
                ],
            ),
            "DARTS_V2" => (
                [
                    (SepConv3, 0),
                    (SepConv3, 1),
                    (SepConv3, 0),
                    (SepConv3, 1),
                    (SepConv3, 1),
                    (SkipConnect, 0),
                    (SkipConnect, 0),
                    (DilConv3, 2),
                ],
                [
                    (MaxPool3, 0),
                    (MaxPool3, 1),
                    (SkipConnect, 2),
                    (MaxPool3, 1),
                    (MaxPool3, 0),
                    (SkipConnect, 2),
                    (SkipConnect, 2),
                    (MaxPool3, 1),
                ],
            ),
            _ => return None,
        };
        let (normal_concat, reduce_concat) = (concat.clone(), concat);
        Some(Self { normal: normal.to_vec(), normal_concat, reduce: reduce.to_vec(), reduce_concat })
    }

    /// A published genotype by name, else a JSON file.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such file, [`Error::Input`] if it does not hold a sound genotype.
    pub fn load(name_or_path: &str) -> Result<Self> {
        if let Some(genotype) = Self::named(name_or_path) {
            return Ok(genotype);
        }
        let path = Path::new(name_or_path);
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read the genotype"))?;
        let genotype: Self = serde_json::from_str(&text).map_err(|e| {
            Error::input(path, format!("is not a genotype ({e}); expected the JSON that search writes"))
        })?;
        genotype.check().map_err(|message| Error::input(path, message))?;
        Ok(genotype)
    }

    /// Whether every node reads two earlier states and the concatenation names existing ones.
    pub fn check(&self) -> std::result::Result<(), String> {
        for (cell, pairs, concat) in
            [("normal", &self.normal, &self.normal_concat), ("reduce", &self.reduce, &self.reduce_concat)]
        {
            if pairs.is_empty() || pairs.len() % 2 == 1 {
                return Err(format!("the {cell} cell lists {} operations; it needs two a node", pairs.len()));
            }
            for (i, &(primitive, state)) in pairs.iter().enumerate() {
                if primitive == Primitive::None || state >= i / 2 + 2 {
                    let node = i / 2;
                    return Err(format!("{cell} node {node} cannot apply {primitive} to state {state}"));
                }
            }
            if concat.is_empty() || concat.iter().any(|&s| s < 2 || s >= pairs.len() / 2 + 2) {
                return Err(format!("{cell}_concat {concat:?} names states that are no nodes of the cell"));
            }
        }
        if self.normal_concat.len() != self.reduce_concat.len() {
            return Err("normal_concat and reduce_concat must name equally many nodes".into());
        }
        Ok(())
    }

    /// Shares of skip connections and of operations without weights among all chosen operations.
    pub fn shares(&self) -> (f64, f64) {
        let all: Vec<Primitive> = self.normal.iter().chain(&self.reduce).map(|p| p.0).collect();
        let share = |f: fn(&Primitive) -> bool| all.iter().filter(|&p| f(p)).count() as f64 / all.len() as f64;
        (share(|p| *p == Primitive::SkipConnect), share(|p| p.parameter_free()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index_and_none_is_never_chosen() {
        let space = SearchSpace::darts(4, 3).unwrap();
        let mut alphas = vec![0.0f32; space.alphas_len()];
        let genotype = Genotype::derive(&space, &alphas);
        assert_eq!(genotype.normal[0], (Primitive::MaxPool3, 0));
        assert_eq!(genotype.normal[7], (Primitive::MaxPool3, 1));
        // A large weight of `none` lowers its edge's rank although `none` itself is never chosen.
        alphas[0] = 5.0;
        alphas[8 * 2] = 5.0;
        let genotype = Genotype::derive(&space, &alphas);
        assert_eq!(genotype.normal[0].1, 1);
        assert_eq!([genotype.normal[2].1, genotype.normal[3].1], [1, 2]);
    }

    #[test]
    fn json_is_that_of_the_published_code() {
        let genotype = Genotype::named("DARTS_V2").unwrap();
        let text = serde_json::to_string(&genotype).unwrap();
        assert!(text.starts_with(r#"{"normal":[["sep_conv_3x3",0],["sep_conv_3x3",1]"#), "{text}");
        assert_eq!(serde_json::from_str::<Genotype>(&text).unwrap(), genotype);
        genotype.check().unwrap();
    }
}
