//! A whole experiment of a few steps: what is left out is left out, parts of it can be run apart, what has finished is kept.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use supernet::Error;
use supernet::config::AlphaTransfer;
use supernet::device::DeviceSpec;
use supernet::experiment::protocol::{Arm, Experiment, Protocol, Shard};
use supernet::experiment::report::Policy;
use supernet::run::{Control, Silent};
use supernet::zoo::{Entry, Zoo};

/// A data set of three classes of noisy stripes, as class folders of PNG files.
fn stripes(folder: &Path, turn: usize) -> String {
    for part in ["train", "test"] {
        for class in 0..3usize {
            let path = folder.join(part).join(format!("class{class}"));
            std::fs::create_dir_all(&path).unwrap();
            for number in 0..16usize {
                let pixel = |x: u32, y: u32| {
                    let phase = (x as usize * (class + 1) + y as usize * turn + number) % 8;
                    image::Luma([(phase * 31) as u8])
                };
                image::GrayImage::from_fn(8, 8, pixel).save(path.join(format!("{number}.png"))).unwrap();
            }
        }
    }
    format!("folder:{}", folder.display())
}

fn tiny(out: &Path) -> Protocol {
    let data = [("one", 1), ("two", 2), ("three", 3)];
    Protocol {
        data: data.iter().map(|(name, turn)| stripes(&out.join("data").join(name), *turn)).collect(),
        size: (8, 8),
        space: (2, 3),
        batch: 8,
        seeds: 1,
        epochs: 2,
        pretraining_epochs: 1,
        joint_epochs: 1,
        training_epochs: 1,
        training_channels: 2,
        inherit: true,
        alpha_learning_rate: 3e-3,
        transfer_alphas: AlphaTransfer::Keep,
        head_warm_up: 0,
        crop_padding: 0,
        flip: false,
    }
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("supernet-experiment-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

const WHOLE: Shard = Shard { index: 0, count: 1 };

#[test]
fn a_small_experiment() {
    let base = folder("small");
    let (protocol, out) = (tiny(&base), base.join("run"));
    let stop = AtomicBool::new(false);
    let mut silent = Silent;
    let control = &mut Control { observer: &mut silent, stop: &stop };
    let open = || Experiment::open(protocol.clone(), &out, (DeviceSpec::Cpu, 1)).unwrap();
    let experiment = open();
    let early = experiment.run(WHOLE, control).unwrap_err().to_string();
    assert!(early.contains("run the pretraining first"), "{early}");
    for index in 0..2 {
        experiment.pretrain(Shard { index, count: 2 }, control).unwrap();
    }
    experiment.rank(control).unwrap();

    // Nothing in the zoo of a target has seen it: neither its entries nor the joint one, whose trunk is the embedder.
    for target in experiment.names() {
        let zoo = Zoo::new(out.join("zoos").join(format!("without-{target}")));
        let entries: Vec<Entry> = zoo.files().unwrap().iter().map(|f| Entry::load(f).unwrap()).collect();
        assert_eq!(entries.len(), 3);
        assert!(entries.iter().all(|e| e.meta.sources.iter().all(|s| &s.dataset != target)), "{target}");
        let choice = experiment.choice(target).unwrap();
        let joint = entries.iter().find(|e| e.meta.multi()).unwrap();
        assert_eq!(choice.signature.unwrap().weights, joint.tensors.checksum());
        assert_eq!(choice.ranking.len(), 2);
    }

    experiment.run(Shard { index: 0, count: 2 }, control).unwrap();
    let half = experiment.report().unwrap();
    let [finished, all] = half.finished;
    assert!(all == 21 && finished == 11 && half.rows.is_empty() && half.seeds.is_empty(), "{finished} of {all}");
    experiment.run(Shard { index: 1, count: 2 }, control).unwrap();
    let report = experiment.report().unwrap();
    assert_eq!((report.finished, report.rows.len()), ([21, 21], Policy::ALL.len()));
    assert_eq!(report.pretraining.len(), 6);
    assert!(report.runs.iter().all(|r| r.accuracies.len() == if r.arm == Arm::Finetune { 0 } else { 2 }));
    let nearest = &report.rows[1];
    for (on, relation) in nearest.targets.iter().zip(&report.relations) {
        assert_eq!(relation.sources.len(), 2);
        assert!((on.gain.mean - relation.gains[0]).abs() < 1e-12, "the nearest comes first");
    }

    // What is kept is not run again: the same command ends at once, with the same table.
    let kept = out.join("targets/one/seed-0/scratch/search");
    std::fs::remove_file(kept.join("checkpoint.safetensors")).unwrap();
    let again = open();
    again.run(WHOLE, control).unwrap();
    assert!(!kept.join("checkpoint.safetensors").exists());
    assert_eq!(serde_json::to_value(again.report().unwrap()).unwrap(), serde_json::to_value(&report).unwrap());

    let other = Protocol { epochs: 3, ..protocol.clone() };
    let Err(Error::Usage(message)) = Experiment::open(other, &out, (DeviceSpec::Cpu, 1)) else {
        panic!("other settings were accepted")
    };
    assert!(message.contains("other settings") && message.contains("--out"), "{message}");
}

#[test]
fn settings_that_make_no_experiment_are_refused() {
    let base = folder("refused");
    let good = tiny(&base);
    let refused = |protocol: Protocol, wanted: &str| {
        let Err(Error::Usage(message)) = Experiment::open(protocol, &base.join("run"), (DeviceSpec::Cpu, 1)) else {
            panic!("{wanted}")
        };
        assert!(message.contains(wanted), "{message}");
    };
    refused(Protocol { data: good.data[..2].to_vec(), ..good.clone() }, "at least three");
    let twice = vec![good.data[0].clone(), good.data[1].clone(), "npz:else/one.npz".into()];
    refused(Protocol { data: twice, ..good.clone() }, "`one`");
    refused(Protocol { seeds: 0, ..good.clone() }, "--seeds is 0");
    refused(Protocol { head_warm_up: 2, ..good.clone() }, "--head-warm-up 2");
    refused(Protocol { training_channels: 4, ..good }, "--inherit");
    assert!(!base.join("run").exists(), "a refused experiment leaves no folder");
}
