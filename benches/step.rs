//! Whole steps under criterion, with the very programs that a run uses: `cargo bench --bench step -- search/c8`. The sizes
//! are those of `benches/peers`; `supernet bench step` times any other.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use supernet::bench::step::{Recipe, Subject};
use supernet::config::{SearchConfig, TrainConfig};
use supernet::data::Geometry;
use supernet::search::step::Order;

fn subjects() -> Vec<Subject> {
    let search = |channels, layers, batch, order| {
        Recipe::Search(SearchConfig { channels, layers, batch, order, ..SearchConfig::default() })
    };
    let training = TrainConfig { genotype: "DARTS_V2".into(), drop_path: 0.0, ..TrainConfig::default() };
    let recipes = [
        search(8, 5, 32, Order::First),
        search(16, 8, 16, Order::First),
        search(16, 8, 64, Order::First),
        search(8, 5, 32, Order::Second),
        Recipe::Training(training),
    ];
    let size = Geometry { height: 32, width: 32, channels: 3 };
    let subject = |recipe| Subject { recipe, classes: 10, size, warmup: 0, steps: 1, profile: false };
    recipes.into_iter().map(subject).collect()
}

fn steps(criterion: &mut Criterion) {
    for subject in subjects() {
        criterion.bench_function(&subject.name(), |bencher| {
            let mut work = subject.prepare().expect("the step fits into memory");
            bencher.iter(|| work.step().expect("the processor does not fail"));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(1));
    targets = steps
}
criterion_main!(benches);
