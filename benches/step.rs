//! Time of a whole first-order search step (architecture and weights) on the CPU, the memory it takes, and where the
//! time goes. Arguments that are no options, in order: channels, layers, batch, size, threads.

use std::time::Instant;

use supernet::Result;
use supernet::data::{Geometry, Normalisation};
use supernet::device::cpu::{Cpu, Executable};
use supernet::graph::StoreLayout;
use supernet::network::{SearchSpace, Supernet};
use supernet::ops::optimiser::Adam;
use supernet::search::step::{
    InputPipeline, Order, SearchRecipe, SearchStates, WeightOptimiser, architecture_step, weight_step,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    let mut next = |default: usize| arguments.next().map_or(default, |a| a.parse().expect("a number"));
    let (channels, layers, batch, side, threads) = (next(16), next(8), next(64), next(32), next(2));
    let size = Geometry { height: side, width: side, channels: 3 };
    let network = Supernet::new(SearchSpace::darts(channels, layers)?, size, 10);
    let mut layout = StoreLayout::new();
    let states = SearchStates::declare(&mut layout, &network, batch);
    let recipe = SearchRecipe {
        order: Order::First,
        optimiser: WeightOptimiser { momentum: 0.9, decay: 3e-4, clip: 5.0 },
        adam: Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 },
        input: InputPipeline {
            pad: 4,
            flip: true,
            cutout: 0,
            normalisation: Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] },
            seed: 1,
        },
    };
    let mut cpu = Cpu::new(&layout, threads)?;
    let architecture =
        cpu.prepare(architecture_step(&network, &states, &recipe)?.program("architecture step", false))?;
    let weight = cpu.prepare(weight_step(&network, &states, &recipe)?.program("weight step", false))?;
    cpu.state_mut(states.model.weights).copy_from_slice(&network.layout.initial_weights(1));
    cpu.state_mut(states.model.running).copy_from_slice(&network.layout.initial_running());
    cpu.state_mut(states.alphas).copy_from_slice(&network.initial_alphas(1));
    cpu.state_mut(states.model.rate)[0] = 0.025;
    cpu.state_mut(states.alpha_rate)[0] = 3e-4;
    for (part, offset) in [(states.model.train, 0), (states.valid, 1)] {
        let pixel = |i: usize| ((i * 2_654_435_761 + offset) >> 7 & 255) as f32;
        cpu.state_mut(part.pixels).iter_mut().enumerate().for_each(|(i, p)| *p = pixel(i));
        cpu.state_mut(part.labels).iter_mut().enumerate().for_each(|(i, l)| *l = (i % 10) as f32);
        cpu.state_mut(part.index).iter_mut().enumerate().for_each(|(i, l)| *l = i as f32);
    }
    println!("C={channels} L={layers} batch {batch} {side}x{side}, {threads} threads, {:?}", cpu.level());
    for exe in [&architecture, &weight] {
        // The first replay touches the memory.
        cpu.run(exe);
        report(&mut cpu, exe);
    }
    let time = |cpu: &mut Cpu| {
        let start = Instant::now();
        cpu.run(&architecture);
        cpu.run(&weight);
        start.elapsed().as_secs_f64()
    };
    let mut times: Vec<f64> = (0..5).map(|_| time(&mut cpu)).collect();
    times.sort_by(f64::total_cmp);
    println!("step: {:.3} s (median of 5, fastest {:.3} s)", times[2], times[0]);
    println!("device memory: {:.2} GiB", cpu.peak_bytes() as f64 / f64::from(1 << 30));
    println!("loss sums: {:?} {:?}", cpu.state(states.model.train_sums), cpu.state(states.valid_sums));
    Ok(())
}

/// Prints the time of each kind of op beside its arithmetic and its least traffic.
fn report(cpu: &mut Cpu, exe: &Executable) {
    let program = exe.program();
    println!(
        "{}: {} ops, arena {:.2} GiB",
        program.name,
        program.nodes().len(),
        program.arena_bytes() as f64 / f64::from(1 << 30)
    );
    for (op, seconds, count) in cpu.profile(exe, 2) {
        let cost = program.nodes().iter().filter(|n| n.op.name() == op).map(|n| n.cost(program.graph()));
        let (flops, bytes) = cost.fold((0.0, 0.0), |sum, c| (sum.0 + c.flops, sum.1 + c.bytes));
        println!(
            "  {op:22} {count:4} ops {:8.1} ms {:7.1} GFLOP/s {:6.1} GB/s",
            seconds * 1e3,
            flops / seconds * 1e-9,
            bytes / seconds * 1e-9
        );
    }
}
