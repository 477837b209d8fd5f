//! Whole solves of optimal transport under criterion: `cargo bench --bench transport`.

use criterion::{Criterion, criterion_group, criterion_main};
use supernet::bench::solves::{Shape, Subject, Way};
use supernet::device::DeviceSpec;
use supernet::run::threads;

fn transport(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("transport");
    group.sample_size(10);
    for (name, shape) in [("190x256x256", Shape::BATCH), ("1x2000x2000", Shape::SINGLE)] {
        for way in [Way::Log, Way::Kernel] {
            let subject = Subject::new(shape, way, (DeviceSpec::Cpu, threads(0))).expect("the points are finite");
            group.bench_function(format!("{name}/{}", way.name()), |bencher| bencher.iter(|| subject.solve()));
        }
    }
    group.finish();
}

criterion_group!(benches, transport);
criterion_main!(benches);
