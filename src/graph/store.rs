//! The store: what outlives a step (weights, buffers, alphas, optimiser state, counters, staged batches, and every
//! value that changes between replays). Several programs share one store.

use super::Shape;

/// Handle of a lasting tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Index in the layout.
    pub id: u32,
    /// Extent.
    pub shape: Shape,
}

/// Names and shapes of all lasting tensors, in order of declaration.
#[derive(Clone, Debug, Default)]
pub struct StoreLayout {
    names: Vec<String>,
    states: Vec<State>,
}

impl StoreLayout {
    /// An empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a state.
    pub fn add(&mut self, name: impl Into<String>, shape: Shape) -> State {
        let state = State { id: self.states.len() as u32, shape };
        self.names.push(name.into());
        self.states.push(state);
        state
    }

    /// All states with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, State)> {
        self.names.iter().map(String::as_str).zip(self.states.iter().copied())
    }

    /// Name of a state.
    pub fn name(&self, state: State) -> &str {
        &self.names[state.id as usize]
    }

    /// Number of states.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether nothing is declared.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Bytes of all states in f32.
    pub fn bytes(&self) -> usize {
        self.states.iter().map(|s| s.shape.len() * 4).sum()
    }
}
