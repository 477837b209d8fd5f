//! Staging and augmentation of decoded images under criterion: `cargo bench --bench loader`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use supernet::bench::loader::Feed;

fn loader(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("loader");
    group.sample_size(20).throughput(Throughput::Elements(Feed::IMAGES as u64));
    let mut feed = Feed::new().expect("a thread can be started");
    group.bench_function("stage", |bencher| bencher.iter(|| feed.stage()));
    group.bench_function("augment", |bencher| bencher.iter(|| feed.augment()));
    group.bench_function("stage+augment", |bencher| bencher.iter(|| feed.stage_and_augment()));
    group.finish();
}

criterion_group!(benches, loader);
criterion_main!(benches);
