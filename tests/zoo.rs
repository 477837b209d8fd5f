//! Pretraining on several datasets, the zoo, and searches that start from it: nothing leaks between heads, an interrupted
//! pretraining ends in the same bits, every tensor's fate is the one told, and unfit entries are refused.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use supernet::checkpoint::Checkpoint;
use supernet::config::{AlphaTransfer, Mixing, SearchConfig, Specs, TrainConfig, WeightTransfer};
use supernet::data::{Geometry, Normalisation};
use supernet::device::cpu::Cpu;
use supernet::graph::{Program, StoreLayout};
use supernet::network::{Derived, DerivedConfig, Genotype, SearchSpace, Supernet};
use supernet::ops::optimiser::Adam;
use supernet::run::{Control, Silent};
use supernet::search::search;
use supernet::search::step::{self, InputPipeline, Order, SearchRecipe, SearchStates, WeightOptimiser};
use supernet::search::transfer::{Fate, TransferReport, transfer};
use supernet::train::inherit::inherit;
use supernet::train::run::train;
use supernet::zoo::{Entry, Zoo};

use crate::runs::check_pieces;

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("supernet-zoo-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn tiny(data: Specs) -> SearchConfig {
    SearchConfig {
        data,
        size: Some((8, 8)),
        channels: 2,
        layers: 3,
        epochs: 2,
        batch: 8,
        train_images: Some(64),
        threads: 1,
        crop_padding: 1,
        ..SearchConfig::default()
    }
}

fn two() -> Specs {
    Specs::Many(vec!["builtin:mnist".into(), "builtin:emoji".into()])
}

fn run(config: &SearchConfig, out: &Path) -> supernet::Result<supernet::search::run::SearchReport> {
    let stop = AtomicBool::new(false);
    search(config, out, false, &mut Control { observer: &mut Silent, stop: &stop })
}

/// A zoo with the entry `digits`, pretrained on mnist.
fn zoo_of_digits(name: &str) -> (Zoo, Entry) {
    let out = folder(name);
    run(&tiny("builtin:mnist".into()), &out.join("run")).unwrap();
    let file = out.join("run/checkpoint.safetensors");
    let entry = Entry::from_checkpoint(&Checkpoint::load(&file).unwrap(), &file, "digits", "MIT").unwrap();
    let zoo = Zoo::new(out.join("zoo"));
    zoo.add(&entry, false).unwrap();
    (zoo, entry)
}

#[test]
fn an_interrupted_pretraining_ends_in_the_same_bits() {
    for (name, mixing, epochs) in [("joint", Mixing::Joint, 2), ("sequential", Mixing::Sequential, 4)] {
        let config = SearchConfig { mixing, ..tiny(two()) };
        check_pieces(name, epochs, &|out, resume, control| search(&config, out, resume, control).map(|_| ()));
    }
}

#[test]
fn every_dataset_has_its_turns_head_and_statistics() {
    let out = folder("turns");
    for (mixing, epochs) in [(Mixing::Joint, 2), (Mixing::Sequential, 4)] {
        let out = out.join(format!("{epochs}"));
        let report = run(&SearchConfig { mixing, ..tiny(two()) }, &out).unwrap();
        assert_eq!(report.epochs, epochs);
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let records: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let datasets = |r: &serde_json::Value| -> Vec<String> {
            let list = r["datasets"].as_array().unwrap();
            list.iter().map(|d| d["dataset"].as_str().unwrap().to_owned()).collect()
        };
        match mixing {
            Mixing::Joint => assert!(records.iter().all(|r| datasets(r) == ["mnist", "emoji"])),
            Mixing::Sequential => {
                let turns: Vec<_> = records.iter().map(&datasets).collect();
                assert_eq!(turns, [["mnist"], ["mnist"], ["emoji"], ["emoji"]]);
            }
        }
        let checkpoint = Checkpoint::load(&out.join("checkpoint.safetensors")).unwrap();
        assert_eq!(checkpoint.meta.size, Geometry { height: 8, width: 8, channels: 3 });
        let shape = |name: &str| checkpoint.find(name).unwrap().0.to_vec();
        assert_eq!(shape("classifiers.0.bias"), [10]);
        assert_eq!(shape("classifiers.1.bias"), [9]);
        let mean = |prefix: &str| checkpoint.find(&format!("{prefix}stem.1.running_mean")).unwrap().1.to_vec();
        assert_ne!(mean(""), mean("head1/"));
    }
    let twice = Specs::Many(vec!["builtin:mnist".into(), "builtin:mnist".into()]);
    assert!(run(&tiny(twice), &out.join("twice")).unwrap_err().to_string().contains("given twice"));
    let sizes = SearchConfig { size: None, ..tiny(two()) };
    assert!(run(&sizes, &out.join("sizes")).unwrap_err().to_string().contains("--size HxW"));
}

/// Weights before and after one step of a network with two heads.
fn one_step(record: fn(&Supernet, &SearchStates, &SearchRecipe) -> supernet::Result<step::Step>) -> [Vec<f32>; 2] {
    let size = Geometry { height: 8, width: 8, channels: 3 };
    let network = Supernet::with_heads(SearchSpace::darts(2, 2).unwrap(), size, &[3, 4]);
    let mut layout = StoreLayout::new();
    let states = SearchStates::declare(&mut layout, &network, 4).for_head(&mut layout, 1);
    let recipe = SearchRecipe {
        order: Order::First,
        optimiser: WeightOptimiser { momentum: 0.9, decay: 3e-4, clip: 5.0 },
        adam: Adam { beta1: 0.5, beta2: 0.999, eps: 1e-8, decay: 1e-3 },
        input: InputPipeline {
            pad: 0,
            flip: false,
            cutout: 0,
            normalisation: Normalisation { mean: vec![0.5; 3], std: vec![0.25; 3] },
            seed: 0,
        },
    };
    let program: Program = record(&network, &states, &recipe).unwrap().program("step", false);
    let mut cpu = Cpu::new(&layout, 1).unwrap();
    let before = network.layout.initial_weights(3);
    cpu.state_mut(states.model.weights).copy_from_slice(&before);
    // A velocity would move a head that ought to rest.
    cpu.state_mut(states.model.velocity).fill(0.01);
    cpu.state_mut(states.model.running).copy_from_slice(&network.layout.initial_running());
    cpu.state_mut(states.alphas).copy_from_slice(&network.initial_alphas(3));
    cpu.state_mut(states.model.rate)[0] = 0.1;
    for batch in [states.model.train, states.valid] {
        cpu.state_mut(batch.pixels).iter_mut().enumerate().for_each(|(i, p)| *p = (i * 37 % 256) as f32);
        cpu.state_mut(batch.labels).copy_from_slice(&[0.0, 1.0, 2.0, 3.0]);
    }
    let exe = cpu.prepare(program).unwrap();
    cpu.poison();
    cpu.run(&exe);
    assert_eq!(cpu.state(states.model.flag)[0], 0.0);
    [before, cpu.state(states.model.weights).to_vec()]
}

#[test]
fn the_heads_of_other_datasets_rest() {
    let size = Geometry { height: 8, width: 8, channels: 3 };
    let network = Supernet::with_heads(SearchSpace::darts(2, 2).unwrap(), size, &[3, 4]);
    let all_moved = |[before, after]: &[Vec<f32>; 2], range: std::ops::Range<usize>| {
        before[range.clone()].iter().zip(&after[range]).all(|(b, a)| b != a && a.is_finite())
    };
    let weights = one_step(step::weight_step);
    assert!(all_moved(&weights, network.trunk()));
    assert!(all_moved(&weights, network.head(1)));
    assert_eq!(weights[0][network.head(0)], weights[1][network.head(0)]);
    let warm_up = one_step(step::head_step);
    assert!(all_moved(&warm_up, network.head(1)));
    assert_eq!(warm_up[0][network.trunk()], warm_up[1][network.trunk()]);
    assert_eq!(warm_up[0][network.head(0)], warm_up[1][network.head(0)]);
}

#[test]
fn a_transfer_takes_what_it_says() {
    let (zoo, _) = zoo_of_digits("takes");
    let entry = zoo.load("digits").unwrap();
    let path = zoo.file("digits");
    let size = |channels: usize| Geometry { height: 9, width: 7, channels };
    let space = SearchSpace::darts(2, 3).unwrap();
    let config = SearchConfig { warm_start: "digits".into(), seed: 4, ..tiny("builtin:fashion".into()) };
    let network = Supernet::new(space.clone(), size(1), 5);
    let fresh = network.layout.initial_weights(4);
    let start = transfer(&entry, &path, &network, &config).unwrap();
    let stored = entry.tensors.get_weights(&path, "", &Supernet::new(space.clone(), size(1), 10).layout).unwrap();
    let head = network.head(0);
    assert_eq!(start.weights[..head.start], stored[..head.start]);
    assert_eq!(start.weights[head.clone()], fresh[head]);
    assert_eq!(start.alphas, entry.tensors.find("alphas").unwrap().1);
    let fate = |start: &supernet::search::transfer::Start, name: &str| {
        start.report.tensors.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("no {name}")).1
    };
    assert_eq!(fate(&start, "stem.0.weight"), Fate::Copied);
    assert_eq!(fate(&start, "classifier.weight"), Fate::New);
    assert_eq!(fate(&start, "alphas"), Fate::Copied);
    assert_eq!(start.report.counts.iter().sum::<usize>(), start.report.tensors.len());

    let colour = transfer(&entry, &path, &Supernet::new(space.clone(), size(3), 5), &config).unwrap();
    assert_eq!(fate(&colour, "stem.0.weight"), Fate::Adapted);
    let four = transfer(&entry, &path, &Supernet::new(space.clone(), size(4), 5), &config).unwrap();
    assert_eq!(fate(&four, "stem.0.weight"), Fate::New);

    let tempered = SearchConfig { transfer_alphas: AlphaTransfer::Temper, temper: 0.25, ..config.clone() };
    let half = transfer(&entry, &path, &network, &tempered).unwrap();
    assert!(half.alphas.iter().zip(&start.alphas).all(|(h, a)| *h == 0.25 * a));
    let alphas_only = SearchConfig { transfer_weights: WeightTransfer::Reset, ..config.clone() };
    let alphas_only = transfer(&entry, &path, &network, &alphas_only).unwrap();
    assert_eq!((alphas_only.weights, alphas_only.running), (fresh, network.layout.initial_running()));
    let weights_only = SearchConfig { transfer_alphas: AlphaTransfer::Reset, ..config.clone() };
    assert_eq!(transfer(&entry, &path, &network, &weights_only).unwrap().alphas, network.initial_alphas(4));

    let wider = Supernet::new(SearchSpace::darts(4, 3).unwrap(), size(1), 5);
    let message = transfer(&entry, &path, &wider, &config).unwrap_err().to_string();
    assert!(message.contains("--channels 2 --layers 3") && message.contains("digits.safetensors"), "{message}");
}

#[test]
fn a_warm_started_search_resumes_in_the_same_bits_without_its_zoo() {
    let (zoo, _) = zoo_of_digits("warm");
    let config = SearchConfig {
        warm_start: "digits".into(),
        zoo: zoo.path().display().to_string(),
        head_warm_up: 1,
        epochs: 3,
        ..tiny("builtin:fashion".into())
    };
    check_pieces("warm", 3, &|out, resume, control| {
        let hidden = zoo.path().with_extension("away");
        if resume {
            std::fs::rename(zoo.path(), &hidden).unwrap();
        }
        let result = search(&config, out, resume, control).map(|_| ());
        if resume {
            std::fs::rename(&hidden, zoo.path()).unwrap();
        }
        result
    });
}

#[test]
fn entries_that_cannot_be_used_are_refused() {
    let (zoo, entry) = zoo_of_digits("refused");
    let refused = |what: supernet::Result<()>, parts: &[&str]| {
        let message = what.expect_err("must be refused").to_string();
        parts.iter().for_each(|part| assert!(message.contains(part), "no `{part}` in: {message}"));
    };
    refused(zoo.load("letters").map(|_| ()), &["no entry `letters`", "it has digits"]);
    refused(zoo.load("../digits").map(|_| ()), &["cannot name a zoo entry"]);
    refused(zoo.add(&entry, false).map(|_| ()), &["exists", "--replace"]);
    refused(Zoo::new(zoo.path().join("none")).files().map(|_| ()), &["list the zoo"]);
    let path = zoo.file("digits");
    let bytes = std::fs::read(&path).unwrap();
    let mut flipped = bytes.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 0x10;
    std::fs::write(&path, &flipped).unwrap();
    refused(zoo.load("digits").map(|_| ()), &["digits.safetensors", "checksum"]);
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(zoo.load("digits").map(|_| ()), &["digits.safetensors", "damaged or no zoo entry"]);
    let checkpoint = zoo.path().parent().unwrap().join("run/checkpoint.safetensors");
    std::fs::copy(&checkpoint, &path).unwrap();
    refused(zoo.load("digits").map(|_| ()), &["no zoo entry", "supernet_zoo"]);
    zoo.remove("digits").unwrap();
    assert!(zoo.files().unwrap().is_empty());
}

/// What the report of a transfer says of a tensor.
fn fate(report: &TransferReport, name: &str) -> Fate {
    report.tensors.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("no word of {name}")).1
}

#[test]
fn a_training_inherits_the_operations_of_its_supernet() {
    let out = folder("inherit");
    run(&tiny("builtin:mnist".into()), &out).unwrap();
    let file = out.join("checkpoint.safetensors");
    let parent = Checkpoint::load(&file).unwrap();
    let genotype = Genotype::load(out.join("genotype.json").to_str().unwrap()).unwrap();
    let config = DerivedConfig { genotype: genotype.clone(), channels: 2, layers: 3, auxiliary: false };
    let size = Geometry { height: 8, width: 8, channels: 3 };
    let child = Derived::new(config, size, 7);
    let start = inherit(&file, &child, 5).unwrap();
    let fresh = child.layout.initial_weights(5);
    let space = SearchSpace::darts(2, 3).unwrap();
    let mut operations = 0;
    for p in child.layout.parameters() {
        let own = &start.weights[p.offset..p.offset + p.shape.len()];
        let parts: Vec<&str> = p.name.split('.').collect();
        let known = match parts[..] {
            ["cells", layer, "_ops", op, ..] => {
                // Cells 1 and 2 of 3 reduce.
                let pairs = if layer == "0" { &genotype.normal } else { &genotype.reduce };
                let op: usize = op.parse().unwrap();
                let (primitive, state) = pairs[op];
                let edge = (0..op / 2).map(|node| node + 2).sum::<usize>() + state;
                let place = space.edges[edge].iter().position(|&q| q == primitive).unwrap();
                format!("cells.{layer}._ops.{edge}._ops.{place}.{}", parts[4..].join("."))
            }
            _ => p.name.clone(),
        };
        match parent.find(&known) {
            Some((_, values)) if fate(&start.report, &p.name) == Fate::Copied => {
                operations += usize::from(known != p.name);
                assert!(own.iter().enumerate().all(|(i, &v)| v == values[p.torch_index(i)]), "{}", p.name);
            }
            _ if p.name == "stem.0.weight" => assert_eq!(fate(&start.report, &p.name), Fate::Adapted),
            _ => {
                assert_eq!(fate(&start.report, &p.name), Fate::New, "{}", p.name);
                assert_eq!(own, &fresh[p.offset..p.offset + p.shape.len()], "{}", p.name);
            }
        }
    }
    assert!(operations > 0, "no operation was copied: {genotype:?}");
    assert_eq!(fate(&start.report, "classifier.weight"), Fate::New);
    assert_eq!(fate(&start.report, "stem.1 (statistics)"), Fate::Copied);
}

#[test]
fn a_training_that_inherits_goes_on_from_its_parent() {
    let out = folder("finetune");
    let config = TrainConfig {
        data: "builtin:mnist".into(),
        size: Some((8, 8)),
        channels: 2,
        layers: 3,
        epochs: 2,
        batch: 8,
        train_images: Some(64),
        threads: 1,
        auxiliary: 0.0,
        cutout: 0,
        ..TrainConfig::default()
    };
    let stop = AtomicBool::new(false);
    let go = |config: &TrainConfig, name: &str| {
        train(config, &out.join(name), false, &mut Control { observer: &mut Silent, stop: &stop })
    };
    go(&config, "parent").unwrap();
    let file = out.join("parent/checkpoint.safetensors");
    let inherit = file.display().to_string();
    // Without a learning rate the child is its parent but for the head and what batch norms measure.
    let child = TrainConfig { data: "builtin:emoji".into(), inherit, learning_rate: 0.0, epochs: 1, ..config };
    go(&child, "child").unwrap();
    let at = |name: &str| Checkpoint::load(&out.join(name).join("checkpoint.safetensors")).unwrap();
    let (parent, own) = (at("parent"), at("child"));
    let name = "cells.1.preprocess0.op.1.weight";
    let values = |c: &Checkpoint| c.find(name).map(|(_, values)| values.to_vec());
    assert!(values(&own).is_some() && values(&own) == values(&parent));
    let refused = |config: TrainConfig| go(&config, "refused").unwrap_err().to_string();
    let other = TrainConfig { channels: 4, ..child.clone() };
    assert!(refused(other).contains("give --channels 2 --layers 3"));
    let other = TrainConfig { genotype: "DARTS_V1".into(), ..child.clone() };
    assert!(refused(other).contains("was trained with other cells"));
    assert!(refused(TrainConfig { inherit: "nowhere.safetensors".into(), ..child }).contains("nowhere.safetensors"));
}
