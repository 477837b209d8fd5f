//! Whole runs through the library: the same seed gives the same bits with one and with two threads, and a run stopped
//! anywhere and resumed ends in the same bits, checkpoint and metrics alike, as one that was never stopped.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use supernet::Error;
use supernet::checkpoint::Checkpoint;
use supernet::config::{SearchConfig, TrainConfig};
use supernet::device::DeviceSpec;
use supernet::run::{Control, Observer, Silent};
use supernet::search::search;
use supernet::search::step::Order;
use supernet::train::run::{evaluate, train};

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("supernet-runs-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn tiny_search() -> SearchConfig {
    SearchConfig {
        data: "builtin:fashion".into(),
        size: Some((8, 8)),
        channels: 2,
        layers: 3,
        epochs: 2,
        batch: 8,
        train_images: Some(48),
        threads: 1,
        crop_padding: 1,
        ..SearchConfig::default()
    }
}

fn tiny_train() -> TrainConfig {
    TrainConfig {
        data: "builtin:fashion".into(),
        size: Some((10, 10)),
        channels: 2,
        layers: 3,
        epochs: 2,
        batch: 8,
        train_images: Some(32),
        threads: 1,
        cutout: 2,
        ..TrainConfig::default()
    }
}

/// Raises the stop flag after a number of steps.
struct StopAfter<'a> {
    steps: usize,
    stop: &'a AtomicBool,
}

impl Observer for StopAfter<'_> {
    fn begin(&mut self, _: &str, _: usize, _: usize, _: usize) {}

    fn step(&mut self, _: usize, _: usize) {
        self.steps -= 1;
        if self.steps == 0 {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn epoch(&mut self, _: &serde_json::Value) {}

    fn note(&mut self, _: &str) {}
}

pub type Run<'a> = dyn Fn(&Path, bool, &mut Control<'_>) -> supernet::Result<()> + 'a;

fn whole(run: &Run<'_>, out: &Path) {
    let stop = AtomicBool::new(false);
    run(out, false, &mut Control { observer: &mut Silent, stop: &stop }).unwrap();
}

/// Runs with a stop after every `every` steps until the run is through.
fn in_pieces(run: &Run<'_>, out: &Path, every: usize) -> usize {
    for piece in 0.. {
        let stop = AtomicBool::new(false);
        let mut observer = StopAfter { steps: every, stop: &stop };
        match run(out, piece > 0, &mut Control { observer: &mut observer, stop: &stop }) {
            Ok(()) => return piece,
            Err(Error::Interrupted { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!()
}

/// Everything of a run folder that must not depend on interruptions.
fn outcome(out: &Path) -> (String, Vec<serde_json::Value>) {
    let checkpoint = Checkpoint::load(&out.join("checkpoint.safetensors")).unwrap();
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let records = metrics
        .lines()
        .map(|line| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            for timing in ["seconds", "images_per_second"] {
                record.as_object_mut().unwrap().remove(timing);
            }
            record
        })
        .collect();
    (checkpoint.checksum(), records)
}

/// A run and the same run in pieces agree, with a record for each of its epochs.
pub fn check_pieces(name: &str, epochs: usize, run: &Run<'_>) {
    let (once, pieces) = (folder(&format!("{name}-once")), folder(&format!("{name}-pieces")));
    whole(run, &once);
    assert!(in_pieces(run, &pieces, 2) >= 2, "the run was interrupted more than once");
    assert_eq!(outcome(&once), outcome(&pieces));
    assert_eq!(outcome(&once).1.len(), epochs, "one record an epoch");
}

fn check_threads(name: &str, run: &dyn Fn(usize, &Path)) {
    let folders = [1, 2, 3].map(|threads| {
        let out = folder(&format!("{name}-threads-{threads}"));
        run(threads, &out);
        out
    });
    for out in &folders[1..] {
        assert_eq!(outcome(&folders[0]), outcome(out));
    }
}

#[test]
fn a_search_resumes_to_the_same_bits() {
    for order in [Order::First, Order::Second] {
        let config = SearchConfig { order, ..tiny_search() };
        check_pieces(&format!("search-{order:?}"), 2, &|out, resume, control| {
            search(&config, out, resume, control).map(|_| ())
        });
    }
}

#[test]
fn a_search_has_the_same_bits_with_any_number_of_threads() {
    check_threads("search", &|threads, out| {
        let config = SearchConfig { threads, ..tiny_search() };
        whole(&|out, resume, control| search(&config, out, resume, control).map(|_| ()), out);
    });
}

#[test]
fn a_training_resumes_to_the_same_bits_and_evaluates_as_it_said() {
    let config = tiny_train();
    check_pieces("train", 2, &|out, resume, control| train(&config, out, resume, control).map(|_| ()));
    let out = folder("train-evaluate");
    let stop = AtomicBool::new(false);
    let report = train(&config, &out, false, &mut Control { observer: &mut Silent, stop: &stop }).unwrap();
    let again = evaluate(&out.join("checkpoint.safetensors"), "builtin:fashion", (DeviceSpec::Cpu, 1)).unwrap();
    assert_eq!(again.images, 2000);
    assert!((again.accuracy - report.test_accuracy).abs() < 1e-9, "{} {}", again.accuracy, report.test_accuracy);
}

#[test]
fn a_training_has_the_same_bits_with_any_number_of_threads() {
    check_threads("train", &|threads, out| {
        let config = TrainConfig { threads, ..tiny_train() };
        whole(&|out, resume, control| train(&config, out, resume, control).map(|_| ()), out);
    });
}

#[test]
fn a_diverging_search_stops_with_the_tensor_and_keeps_its_checkpoint() {
    let config = SearchConfig { learning_rate: 1e30, learning_rate_min: 1e30, epochs: 3, ..tiny_search() };
    let out = folder("diverging");
    let stop = AtomicBool::new(false);
    let error = search(&config, &out, false, &mut Control { observer: &mut Silent, stop: &stop }).unwrap_err();
    assert!(matches!(error, Error::NonFinite(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("epoch 0, step") && text.contains("wrote"), "{text}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let out = folder("foreign");
    let run = |config: &SearchConfig, resume| {
        let stop = AtomicBool::new(false);
        search(config, &out, resume, &mut Control { observer: &mut Silent, stop: &stop })
    };
    run(&tiny_search(), false).unwrap();
    let path = out.join("checkpoint.safetensors");
    for (other, what) in [
        (SearchConfig { channels: 4, ..tiny_search() }, "a network"),
        (SearchConfig { size: Some((9, 9)), ..tiny_search() }, "images of"),
        (SearchConfig { data: "builtin:mnist".into(), ..tiny_search() }, "dataset"),
        (SearchConfig { epochs: 3, ..tiny_search() }, "settings"),
    ] {
        let text = run(&other, true).unwrap_err().to_string();
        assert!(text.contains("checkpoint.safetensors") && text.contains(what), "{text}");
    }
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(run(&tiny_search(), true).unwrap_err().to_string().contains("checksum does not match"));
    std::fs::write(&path, &bytes[..1000]).unwrap();
    assert!(run(&tiny_search(), true).unwrap_err().to_string().contains("is damaged or no checkpoint"));
}
