//! The cases of `supernet bench kernels` under criterion: `cargo bench --bench kernels -- separable/c16`. A case that
//! disagrees with the reference ends the bench: what computes something else is not worth timing.

use criterion::{Criterion, criterion_group, criterion_main};
use supernet::bench::kernels::Prepared;
use supernet::bench::{cases, parity};
use supernet::device::{DeviceSpec, Precision};
use supernet::run::threads;

fn kernels(criterion: &mut Criterion) {
    for case in cases::all() {
        let (op, rest) = case.name.split_once('/').unwrap_or((&case.name, ""));
        let mut group = criterion.benchmark_group(op);
        group.bench_function(rest, |bencher| {
            // In here, so that only chosen cases are checked and prepared.
            let found = parity::check(&case, (DeviceSpec::Cpu, threads(0)), Precision::F32).expect("the case is sound");
            assert!(found.error <= parity::TOLERANCE, "{} is off by {:e}", case.name, found.error);
            let mut prepared = Prepared::new(&case, threads(0)).expect("the case fits into memory");
            bencher.iter(|| prepared.run(1));
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(1));
    targets = kernels
}
criterion_main!(benches);
