//! What a search starts from: the shipped zoo knows the nearest source of a dataset, and a race ends in what its winner
//! alone would have found.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use supernet::checkpoint::Checkpoint;
use supernet::config::SearchConfig;
use supernet::device::DeviceSpec;
use supernet::embedding::{Embedder, Profile};
use supernet::network::SearchSpace;
use supernet::run::{Control, Silent, load_dataset};
use supernet::search::choose::{AUTO, Choice, MULTI, choose};
use supernet::search::{race, search};
use supernet::zoo::embed::{CoresetOptions, add_coresets, sources};
use supernet::zoo::{Entry, Zoo};

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("supernet-choose-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn chosen(warm_start: &str, target: &str) -> Choice {
    let (channels, layers) = Zoo::SHIPPED_SPACE;
    let space = SearchSpace::darts(channels, layers).unwrap();
    let target = load_dataset(target, Some((28, 28)), None, None, 0).unwrap();
    let stop = AtomicBool::new(false);
    let control = &mut Control { observer: &mut Silent, stop: &stop };
    choose(warm_start, &Zoo::shipped().unwrap(), &space, &target, (DeviceSpec::Cpu, 2), &[], control).unwrap()
}

#[test]
fn the_shipped_zoo_ranks_its_sources() {
    let found = chosen(AUTO, "builtin:fashion");
    let mut names: Vec<&str> = found.ranking.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(found.source, names[0]);
    assert!(found.ranking.windows(2).all(|pair| pair[0].distance <= pair[1].distance));
    let shares: f64 = found.ranking.iter().map(|r| r.nearest.unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9 && found.skipped.is_empty() && found.reason.contains("nearest"));
    names.sort_unstable();
    assert_eq!(names, ["animal", "emoji", "mnist", "scripts", "textures"]);
    assert_eq!(chosen(MULTI, "builtin:fashion").source, "all");
}

#[test]
fn a_known_dataset_is_nearest_to_itself() {
    let found = chosen(AUTO, "builtin:animal");
    let (first, second) = (&found.ranking[0], &found.ranking[1]);
    assert_eq!((found.source.as_str(), first.nearest), ("animal", Some(1.0)));
    assert!(first.distance < 0.5 * second.distance, "{found:?}");
}

#[test]
fn a_race_ends_in_what_its_winner_alone_would_have_found() {
    let out = folder("race");
    let stop = AtomicBool::new(false);
    let base = SearchConfig {
        data: "builtin:mnist".into(),
        size: Some((8, 8)),
        channels: 2,
        layers: 3,
        epochs: 3,
        batch: 8,
        train_images: Some(64),
        threads: 1,
        crop_padding: 1,
        zoo: out.join("zoo").display().to_string(),
        ..SearchConfig::default()
    };
    let run = |config: &SearchConfig, name: &str| {
        search(config, &out.join(name), false, &mut Control { observer: &mut Silent, stop: &stop })
    };
    run(&SearchConfig { epochs: 1, ..base.clone() }, "source").unwrap();
    let file = out.join("source/checkpoint.safetensors");
    let mut entry = Entry::from_checkpoint(&Checkpoint::load(&file).unwrap(), &file, "digits", "MIT").unwrap();
    let zoo = Zoo::new(out.join("zoo"));
    zoo.add(&entry, false).unwrap();
    let target = SearchConfig { data: "builtin:fashion".into(), ..base };
    let refused = run(&SearchConfig { warm_start: AUTO.into(), ..target.clone() }, "auto").unwrap_err().to_string();
    assert!(refused.contains("zoo embed") && refused.contains("digits"), "{refused}");
    let refused = run(&SearchConfig { warm_start: MULTI.into(), ..target.clone() }, "multi").unwrap_err().to_string();
    assert!(refused.contains("several datasets") && refused.contains("channels 2"), "{refused}");

    let datasets = sources(&entry, &file).unwrap();
    let mut pixels = Embedder::pixels(Embedder::PIXELS, Profile::Normalised);
    add_coresets(&mut entry, &datasets, &mut pixels, CoresetOptions::default(), (None, &mut Silent)).unwrap();
    zoo.add(&entry, true).unwrap();
    let config = SearchConfig { race: 1, race_epochs: 1, ..target.clone() };
    let report = race(&config, &out.join("raced"), &mut Control { observer: &mut Silent, stop: &stop }).unwrap();
    let outcome = report.race.unwrap();
    let mut first: Vec<&str> = outcome.rounds[0].losses.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((outcome.rounds[0].kept, outcome.winner.as_str()), (1, first[0]));
    first.sort_unstable();
    assert_eq!(first, ["digits", "none"]);
    assert_eq!(report.ranking[0].name, "digits");

    run(&SearchConfig { warm_start: outcome.winner, ..target }, "alone").unwrap();
    let tensors = |name: &str| Checkpoint::load(&out.join(name).join("checkpoint.safetensors")).unwrap();
    let (raced, alone) = (tensors("raced"), tensors("alone"));
    assert_eq!(raced.meta.epoch, 3);
    for name in ["alphas", "adam/first_moment"] {
        let values = |c: &Checkpoint| c.get(&file, name, 224).unwrap().to_vec();
        assert_eq!(values(&raced), values(&alone), "{name}");
    }
}
