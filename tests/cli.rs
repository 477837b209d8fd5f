//! The program itself: shapes of its JSON, exit statuses and messages, interruption by Ctrl-C, kill and full disks.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

const TINY: [&str; 16] = [
    "--data",
    "builtin:fashion",
    "--size",
    "8x8",
    "--channels",
    "2",
    "--layers",
    "3",
    "--batch",
    "8",
    "--train-images",
    "64",
    "--threads",
    "1",
    "--crop-padding",
    "1",
];

pub fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("supernet-cli-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_supernet"));
    command.args(arguments).env("SUPERNET_DATA", concat!(env!("CARGO_MANIFEST_DIR"), "/data/builtin"));
    command.env("SUPERNET_CACHE", "");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The one JSON object of a command that must succeed.
pub fn json(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(object.is_object());
    object
}

/// A command that must fail: its status, nothing on standard output, and a message with all the parts.
pub fn refused(arguments: &[&str], status: i32, parts: &[&str]) {
    for form in [&[][..], &["--json"]] {
        check_refusal(&run(&[arguments, form].concat()), arguments, status, parts);
    }
}

fn check_refusal(output: &Output, what: &[&str], status: i32, parts: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{what:?}: {errors}");
    assert!(output.stdout.is_empty(), "{what:?}");
    assert!(errors.lines().any(|line| line.starts_with("error: ")), "{what:?}: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{what:?}: no `{part}` in: {errors}");
    }
}

fn search<'a>(out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["search", "--out", text(out)], &TINY[..], more].concat()
}

fn train<'a>(out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let own = ["train", "--out", text(out), "--genotype", "DARTS_V1", "--drop-path", "0.2", "--auxiliary", "0.4"];
    [&own, &TINY[..], more].concat()
}

fn has_numbers(object: &Value, keys: &[&str]) {
    for key in keys {
        assert!(object[key].as_f64().is_some_and(|n| n >= 0.0), "{key}: {}", object[key]);
    }
}

#[test]
fn plan_keeps_its_contract() {
    let keys = ["parameters", "macs_per_image", "peak_bytes", "launches_forward", "launches_step"];
    let plan = ["plan", "--classes", "10", "--size", "32x32x3", "--batch", "64"];
    let supernet = json(&[&plan[..], &["--channels", "16", "--layers", "8"]].concat());
    has_numbers(&supernet, &keys);
    assert_eq!(supernet["parameters"], 1_930_618);
    for (genotype, parameters) in [("DARTS_V1", 3_169_414), ("DARTS_V2", 3_349_342)] {
        let derived = ["--genotype", genotype, "--channels", "36", "--layers", "20"];
        let derived = json(&[&plan[..], &derived].concat());
        has_numbers(&derived, &keys);
        assert_eq!(derived["parameters"], parameters);
    }
    let second = json(&[&plan[..], &["--order", "second"]].concat());
    assert!(second["launches_step"].as_u64() > supernet["launches_step"].as_u64());
    refused(&[&plan[..], &["--memory-limit", "100"]].concat(), 1, &["MiB", "--memory-limit"]);
}

#[test]
fn step_keeps_its_contract() {
    let step = ["step", "--channels", "2", "--layers", "3", "--batch", "4", "--size", "8x8x1", "--threads", "1"];
    for order in ["first", "second"] {
        let timed = json(&[&step[..], &["--order", order, "--warmup", "1", "--steps", "2"]].concat());
        has_numbers(&timed, &["milliseconds", "milliseconds_min", "peak_bytes", "steps"]);
        assert_eq!(timed["steps"], 2);
        if cfg!(target_os = "linux") {
            has_numbers(&timed, &["peak_rss_bytes"]);
        }
    }
}

#[test]
fn devices_and_data_keep_their_contract() {
    let devices = json(&["devices"]);
    let kinds: Vec<&Value> = devices["devices"].as_array().unwrap().iter().map(|d| &d["kind"]).collect();
    assert_eq!(kinds, ["cpu", "cuda", "wgpu"], "on a machine with one NVIDIA GPU at most");
    let cpu = &devices["devices"][0];
    assert!(cpu["levels"].as_array().unwrap().contains(&cpu["level"]));
    #[cfg(not(feature = "cuda"))]
    assert_eq!(devices["devices"][1]["reason"], "not built in: build with --features cuda");

    let sheet = folder("sheet").join("sheet.png");
    let data = json(&["data", "builtin:fashion", "--size", "14x16", "--contact-sheet", text(&sheet)]);
    has_numbers(&data, &["train_images", "test_images"]);
    assert_eq!([&data["height"], &data["width"], &data["channels"]], [14, 16, 1]);
    let classes = data["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 10);
    assert_eq!(classes[0]["train"], 200);
    assert!(std::fs::read(sheet).unwrap().starts_with(b"\x89PNG"));
    assert!(String::from_utf8(run(&["data", "builtin:fashion"]).stdout).unwrap().contains("Ankle boot"));
}

#[test]
fn every_command_explains_itself_with_examples() {
    for name in ["search", "pretrain", "zoo", "train", "evaluate", "export", "devices", "data", "embed", "plan", "step"]
    {
        let output = run(&[name, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        let help = String::from_utf8(output.stdout).unwrap();
        let examples = help.split_once("Examples:").map_or(0, |(_, e)| e.matches(&format!("supernet {name}")).count());
        assert!((2..=4).contains(&examples), "{name}: {help}");
    }
}

#[test]
fn from_search_to_training_evaluation_and_export() {
    let (found, trained) = (folder("main-search"), folder("main-train"));
    let report = json(&search(&found, &["--epochs", "2"]));
    let numbers = ["validation_accuracy", "epochs", "seconds", "seconds_per_step", "peak_bytes"];
    has_numbers(&report, &numbers);
    assert_eq!(report["genotype"]["normal"].as_array().unwrap().len(), 8);
    for file in ["genotype.json", "metrics.jsonl", "config.toml", "checkpoint.safetensors"] {
        assert!(found.join(file).is_file(), "{file}");
    }
    let settings: toml::Table = std::fs::read_to_string(found.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(settings["epochs"].as_integer(), Some(2));
    assert_eq!(settings["momentum"].as_float(), Some(0.9), "the effective settings, defaults too");

    let genotype = found.join("genotype.json");
    let own = ["train", "--genotype", text(&genotype), "--out", text(&trained), "--epochs", "2"];
    let report = json(&[&own, &TINY[..]].concat());
    has_numbers(&report, &["test_accuracy", "parameters", "macs_per_image", "seconds"]);
    let checkpoint = trained.join("checkpoint.safetensors");
    let evaluated = json(&["evaluate", "--checkpoint", text(&checkpoint), "--data", "builtin:fashion"]);
    assert_eq!(evaluated["images"], 2000);
    assert_eq!(evaluated["accuracy"], report["test_accuracy"]);
    let model = trained.join("model.onnx");
    let exported = json(&["export", "--checkpoint", text(&checkpoint), "--out", text(&model)]);
    assert_eq!(exported["bytes"].as_u64(), Some(std::fs::metadata(&model).unwrap().len()));

    // A finished run is neither overwritten nor, when resumed, changed.
    refused(&search(&found, &["--epochs", "2"]), 2, &["already holds a checkpoint", "--resume"]);
    let before = outcome(&found);
    json(&["search", "--out", text(&found), "--resume"]);
    assert_eq!(outcome(&found), before);
    // A run goes on with its own settings only.
    refused(&search(&found, &["--resume", "--epochs", "3"]), 2, &["--epochs 3 contradicts", "epochs is 2"]);
    refused(&["search", "--out", text(&found), "--resume", "--seed", "9"], 2, &["--seed 9", "seed is 0"]);
    json(&["search", "--out", text(&found), "--resume", "--threads", "2", "--device", "cpu", "--epochs", "2"]);
    refused(&["train", "--out", text(&found), "--resume"], 2, &["config.toml", "supernet train"]);

    // Checkpoints that are no trained network.
    let evaluate = |path: &Path, parts: &[&str]| {
        refused(&["evaluate", "--checkpoint", text(path), "--data", "builtin:fashion"], 2, parts);
        refused(&["export", "--checkpoint", text(path), "--out", text(&model)], 2, parts);
    };
    evaluate(&found.join("checkpoint.safetensors"), &["holds a supernet"]);
    evaluate(&found.join("none.safetensors"), &["none.safetensors"]);
    evaluate(&genotype, &["genotype.json", "damaged or no checkpoint"]);
    let sound = std::fs::read(&checkpoint).unwrap();
    let damaged = trained.join("damaged.safetensors");
    let mut foreign = 2u64.to_le_bytes().to_vec();
    foreign.extend(b"{}");
    std::fs::write(&damaged, foreign).unwrap();
    evaluate(&damaged, &["no checkpoint", "no key `supernet`"]);
    std::fs::write(&damaged, &sound[..sound.len() - 5]).unwrap();
    evaluate(&damaged, &["damaged or no checkpoint"]);
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 4;
    std::fs::write(&damaged, &flipped).unwrap();
    evaluate(&damaged, &["checksum"]);
    std::fs::write(&checkpoint, &flipped).unwrap();
    refused(&["train", "--out", text(&trained), "--resume"], 2, &["checkpoint.safetensors", "checksum"]);
    refused(&["evaluate", "--checkpoint", text(&model), "--data", "builtin:mnist"], 2, &["model.onnx"]);
}

/// Coresets of the entry `both`, and entries of its checkpoint.
fn coresets(checkpoint: &Path, zoo: &Path, embedders: &dyn Fn(&Value) -> Vec<String>) {
    let embed = run(&["zoo", "embed", "--embedder", "zoo", "--trunk", "both", "--zoo", text(zoo), "--json"]);
    let made: Value = serde_json::from_slice(&embed.stdout).unwrap();
    assert_eq!((&made[0]["name"], &made[0]["coresets"][1]["points"]), (&"both".into(), &48.into()), "{made}");
    let shown = json(&["zoo", "show", "both", "--zoo", text(zoo)]);
    assert_eq!(embedders(&shown), ["pixels", "pixels", "zoo", "zoo"]);
    let text_of = String::from_utf8(run(&["zoo", "show", "both", "--zoo", text(zoo)]).stdout).unwrap();
    assert!(text_of.contains("48 points of emoji by zoo, images 8x8x3, profile normalised, weights "), "{text_of}");
    // The trunk's weights are the same whatever coresets the entry has.
    let point = ["embed", "builtin:emoji", "--embedder", "zoo", "--trunk", "both", "--zoo", text(zoo)];
    let report = json(&[&point[..], &["--max-samples", "20", "--size", "8x8"]].concat());
    assert_eq!(report["weights"], shown["coresets"][3]["signature"]["weights"]);
    assert_eq!((&report["n"], &report["dim"], &report["classes"]), (&20.into(), &32.into(), &9.into()));

    let add = |name: &'static str| ["zoo", "add", text(checkpoint), "--zoo", text(zoo), "--name", name];
    json(&add("again"));
    assert_eq!(embedders(&json(&["zoo", "show", "again", "--zoo", text(zoo)])), ["pixels", "pixels"]);
    json(&[&add("plain")[..], &["--no-coreset"]].concat());
    assert!(embedders(&json(&["zoo", "show", "plain", "--zoo", text(zoo)])).is_empty());
    let trunk = ["--embedder", "zoo"];
    let elsewhere = ["--zoo", "nowhere"];
    let third = ["zoo", "add", text(checkpoint), "--name", "third"];
    refused(&[&third[..], &elsewhere, &trunk].concat(), 2, &["--trunk"]);
    refused(&[&add("third")[..], &["--trunk", "both"]].concat(), 2, &["--trunk", "--embedder zoo"]);
    json(&["zoo", "remove", "again", "--zoo", text(zoo)]);
    json(&["zoo", "remove", "plain", "--zoo", text(zoo)]);
}

#[test]
fn points_of_a_dataset_are_computed_once() {
    let out = folder("embed");
    let cache = out.join("cache");
    let embed = |arguments: &[&str]| {
        let mut command = command(&[&["embed", "builtin:fashion", "--json"], arguments].concat());
        let output = command.env("SUPERNET_CACHE", &cache).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap(), output.stdout)
    };
    let points = out.join("points.npy");
    let own = ["--max-samples", "50", "--embedder-size", "4x4x1", "--profile", "paper", "--out", text(&points)];
    for cached in [false, true] {
        let (status, errors, report) = embed(&own);
        assert_eq!(status, Some(0), "{errors}");
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!((&report["n"], &report["dim"], &report["classes"]), (&50.into(), &16.into(), &10.into()));
        assert_eq!((&report["cached"], &report["profile"]), (&cached.into(), &"paper".into()));
        assert_eq!(report["files"].as_array().unwrap().len(), 2);
    }
    let solved = json(&["ot", text(&points), text(&points)]);
    assert_eq!((&solved["points"], &solved["costs"]), (&serde_json::json!([50, 50]), &"stored".into()));
    assert_eq!(std::fs::metadata(points).unwrap().len(), 128 + 50 * 16 * 4);
    let fails = |arguments: &[&str], parts: &[&str]| {
        let (status, errors, _) = embed(arguments);
        assert_eq!(status, Some(2), "{errors}");
        parts.iter().for_each(|part| assert!(errors.contains(part), "no `{part}` in: {errors}"));
    };
    fails(&["--embedder", "resnet"], &["--embedder", "expected pixels, zoo"]);
    fails(&["--embedder", "zoo", "--zoo", "nowhere"], &["--trunk"]);
    fails(&["--embedder", "efficientnet-lite0"], &["efficientnet-lite0.safetensors", "convert_efficientnet.py"]);
    fails(&["--embedder", "resnet18", "--profile", "paper"], &["resnet18.safetensors", "state_dict"]);
    fails(&["--embedder-weights", "x"], &["--embedder-weights", "--embedder efficientnet-lite0 or resnet18"]);
    fails(&["--profile", "pretty"], &["--profile", "normalised or paper"]);
    fails(&["--out", "points.csv"], &["points.csv", ".safetensors or .npy"]);
    fails(&["--max-samples", "5"], &["5 samples", "10 classes"]);
}

#[test]
fn from_pretraining_to_the_zoo_and_a_warm_start() {
    let out = folder("zoo");
    let (run_folder, zoo) = (out.join("pretrain"), out.join("zoo"));
    let tiny = ["--size", "8x8", "--channels", "2", "--layers", "3", "--epochs", "1", "--batch", "8"];
    let tiny = [&tiny[..], &["--train-images", "48", "--threads", "1"]].concat();
    let own = ["pretrain", "--out", text(&run_folder), "--zoo", text(&zoo), "--name", "both", "--licence", "various"];
    let report = json(&[&own[..], &["--data", "builtin:mnist", "--data", "builtin:emoji"], &tiny[..]].concat());
    assert_eq!(report["name"], "both");
    has_numbers(&report, &["validation_accuracy", "epochs", "seconds"]);
    let listed = run(&["zoo", "list", "--zoo", text(&zoo), "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["dataset"]), (&"both".into(), &"mnist+emoji".into()));
    assert_eq!(listed[0]["path"], report["path"]);
    let shown = json(&["zoo", "show", "both", "--zoo", text(&zoo)]);
    assert_eq!(shown["licence"], "various");
    assert_eq!(shown["sources"].as_array().unwrap().len(), 2);
    let embedders = |shown: &Value| -> Vec<String> {
        let list = shown["coresets"].as_array().into_iter().flatten();
        list.map(|coreset| coreset["signature"]["embedder"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(embedders(&shown), ["pixels", "pixels"]);
    coresets(&run_folder.join("checkpoint.safetensors"), &zoo, &embedders);

    let warm = out.join("warm");
    let own = ["search", "--out", text(&warm), "--data", "builtin:fashion", "--zoo", text(&zoo)];
    let found = json(&[&own[..], &["--warm-start", "both"], &tiny[..]].concat());
    assert_eq!(found["source"], "both");
    assert!(found["transfer"][0].as_u64().is_some_and(|copied| copied > 100));
    assert!(warm.join("transfer.json").exists());
    let other = out.join("other");
    let own = ["search", "--out", text(&other), "--data", "builtin:fashion", "--zoo", text(&zoo)];
    refused(&[&own[..], &["--warm-start", "neither"], &tiny[..]].concat(), 2, &["no entry `neither`", "both"]);
    assert!(!other.exists());
    let genotype = warm.join("genotype.json");
    refused(&["zoo", "add", text(&genotype), "--name", "x", "--zoo", text(&zoo)], 2, &["genotype.json"]);
    refused(&["zoo", "remove", "neither", "--zoo", text(&zoo)], 2, &["no entry `neither`"]);
    assert_eq!(run(&["zoo", "verify", "--zoo", text(&zoo)]).status.code(), Some(0));
    json(&["zoo", "remove", "both", "--zoo", text(&zoo)]);
}

#[test]
fn bad_settings_are_refused_with_their_names() {
    let out = folder("settings");
    let run = out.join("run");
    refused(&search(&run, &["--learning-rate", "nan"]), 2, &["--learning-rate is NaN", "finite"]);
    refused(&search(&run, &["--alpha-learning-rate", "-1"]), 2, &["--alpha-learning-rate is -1"]);
    refused(&search(&run, &["--epochs", "0"]), 2, &["--epochs is 0"]);
    refused(&["search", "--out", text(&run), "--channels", "3"], 2, &["--channels is 3", "even"]);
    refused(&["search", "--out", text(&run), "--channels", "4294967294"], 2, &["--channels is 4294967294", "65536"]);
    refused(&["plan", "--batch", "4294967295"], 2, &["batch is 4294967295", "65536"]);
    refused(&["plan", "--batch", "65536", "--size", "4096x4096x3"], 2, &["batch 65536", "4096x4096x3", "elements"]);
    for size in ["32", "0x8", "8x8x3", "axb"] {
        refused(&["search", "--out", text(&run), "--size", size], 2, &[size, "--size", "such as 32x32"]);
    }
    refused(&["plan", "--size", "32x32"], 2, &["--size", "32x32x3"]);
    refused(&["search", "--out", text(&run), "--data", "builtin:imagenet"], 2, &["--data", "no such built-in"]);
    refused(&["data", "fashion"], 2, &["did you mean builtin:fashion?"]);
    refused(&["search", "--out", text(&run), "--order", "third"], 2, &["--order", "first or second"]);
    refused(&search(&run, &["--device", "gpu"]), 2, &["--device", "cpu, wgpu, wgpu:N", "this build has cpu"]);
    refused(&["search"], 2, &["--out"]);
    refused(&["train", "--out", text(&run), "--genotype", "none.json"], 2, &["none.json"]);
    refused(&["search", "--out", text(&run), "--resume"], 2, &["holds no run"]);

    let file = out.join("settings.toml");
    let with = |contents: &str, parts: &[&str]| {
        std::fs::write(&file, contents).unwrap();
        refused(&["search", "--out", text(&run), "--config", text(&file)], 2, parts);
    };
    with("epoch = 3\n", &["settings.toml", "unknown field `epoch`"]);
    with("device = \"gpu\"\n", &["settings.toml", "device `gpu`", "expected cpu"]);
    with("learning_rate = nan\n", &["settings.toml: learning_rate is NaN"]);
    with("epochs = \"many\"\n", &["settings.toml", "epochs"]);
    with("[search]\nepochs = 3\n", &["settings.toml", "search"]);
    with("epochs = \n", &["settings.toml"]);
    refused(&["search", "--out", text(&run), "--config", "none.toml"], 2, &["none.toml"]);
    assert!(!run.exists(), "nothing is made before the settings are sound");
}

#[test]
fn flags_go_before_the_file_and_the_file_before_the_defaults() {
    let out = folder("precedence");
    let file = out.join("settings.toml");
    std::fs::write(&file, "epochs = 3\nseed = 5\nclip = 4\nsize = [6, 6]\n").unwrap();
    let run = out.join("run");
    json(&search(&run, &["--config", text(&file), "--epochs", "1"]));
    let settings: toml::Table = std::fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(settings["epochs"].as_integer(), Some(1));
    assert_eq!(settings["seed"].as_integer(), Some(5));
    assert_eq!(settings["clip"].as_float(), Some(4.0));
    assert_eq!(settings["size"].as_array().unwrap()[0].as_integer(), Some(8), "a flag of the tiny run");
    assert_eq!(settings["momentum"].as_float(), Some(0.9));
    std::fs::write(&file, "clip = 4\n").unwrap();
    let resumed = ["search", "--out", text(&run), "--resume", "--config", text(&file)];
    json(&resumed);
    std::fs::write(&file, "clip = 3\n").unwrap();
    refused(&resumed, 2, &["settings.toml: clip 3.0 contradicts", "clip is 4.0"]);
}

#[test]
fn bad_data_is_refused() {
    let out = folder("data");
    let run = out.join("run");
    refused(&["data", "folder:/no/such/place"], 2, &["/no/such/place"]);
    let missing = ["search", "--out", text(&run), "--data", "idx:/no/such/place", "--epochs", "1"];
    refused(&missing, 2, &["/no/such/place"]);
    let few = ["search", "--out", text(&run), "--data", "builtin:fashion", "--train-images", "5"];
    refused(&few, 2, &["--train-images 5", "10 classes"]);

    let images = out.join("images");
    let sheet = out.join("image.png");
    json(&["data", "builtin:fashion", "--contact-sheet", text(&sheet), "--images-per-class", "1"]);
    let add = |class: &str, name: &str| {
        std::fs::create_dir_all(images.join(class)).unwrap();
        std::fs::copy(&sheet, images.join(class).join(name)).unwrap();
    };
    let spec = format!("folder:{}", images.display());
    add("cats", "1.png");
    add("cats", "2.png");
    refused(&["data", &spec], 2, &["only one class (`cats`)"]);
    let one = ["search", "--out", text(&run), "--data", &spec, "--size", "8x8"];
    refused(&one, 2, &["only one class (`cats`)"]);
    std::fs::create_dir_all(images.join("dogs")).unwrap();
    refused(&["data", &spec], 2, &["dogs", "empty"]);
    std::fs::remove_dir_all(&images).unwrap();
    ["a", "b", "c"].iter().for_each(|class| add(class, "1.png"));
    refused(&one, 2, &["images"]);
    add("a", "2.png");
    add("b", "2.png");
    std::fs::write(images.join("a").join("3.png"), &std::fs::read(&sheet).unwrap()[..100]).unwrap();
    refused(&["data", &spec], 2, &["3.png"]);
    assert!(!run.exists(), "a run that cannot start leaves nothing behind");
}

#[test]
fn folders_and_streams_that_cannot_be_written_are_failures() {
    let out = folder("unwritable");
    let file = out.join("file");
    std::fs::write(&file, "x").unwrap();
    let below = file.join("run");
    refused(&search(&below, &["--epochs", "1"]), 1, &["create the run folder", text(&below)]);
    let sheet = below.join("sheet.png");
    refused(&["data", "builtin:fashion", "--contact-sheet", text(&sheet)], 1, &["sheet.png"]);
    refused(&["data", "builtin:fashion", "--contact-sheet", text(&out)], 2, &["is a folder"]);
    if let Ok(full) = std::fs::File::options().write(true).open("/dev/full") {
        let output = command(&["devices", "--json"]).stdout(full).output().unwrap();
        check_refusal(&output, &["devices > /dev/full"], 1, &["standard output: cannot write to"]);
    }
}

/// Runs under a limit of the size of files, which fails writes as a full disk does.
#[test]
fn a_full_disk_ends_a_run_with_the_last_checkpoint_intact() {
    let (once, out) = (folder("full-once"), folder("full"));
    let more = ["--epochs", "2", "--checkpoint-steps", "1"];
    json(&train(&once, &more));
    let limited = |arguments: &[&str], blocks: &str| {
        let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$@\"");
        let program = command(arguments);
        let mut shell = Command::new("bash");
        shell.args(["-c", &script, "bash"]).arg(program.get_program()).args(arguments);
        shell.envs(program.get_envs().filter_map(|(k, v)| Some((k, v?)))).output().unwrap()
    };
    let output = limited(&train(&out, &more), "4");
    check_refusal(&output, &["full disk"], 1, &["checkpoint.safetensors: cannot write"]);
    let partial = |entry: &str| entry.contains("partial") || entry.starts_with("checkpoint");
    assert!(!names(&out).iter().any(|name| partial(name)), "{:?}", names(&out));

    // With a checkpoint in place, a failing write leaves it as it was.
    let resumed = ["train", "--out", text(&out), "--resume", "--json"];
    let checkpoint = out.join("checkpoint.safetensors");
    let mut delay = Duration::from_millis(20);
    while !checkpoint.exists() {
        killed_after(command(&resumed), delay);
        delay *= 2;
    }
    let saved = std::fs::read(&checkpoint).unwrap();
    limited(&resumed, "4");
    assert_eq!(std::fs::read(&checkpoint).unwrap(), saved);
    json(&resumed[..4]);
    assert_eq!(outcome(&out), outcome(&once));
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Everything of a run folder that must not depend on interruptions: the bytes of all tensors, metrics, genotype.
fn outcome(out: &Path) -> (Vec<u8>, Vec<Value>, Option<String>) {
    let bytes = std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let record = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        for timing in ["seconds", "images_per_second"] {
            record.as_object_mut().unwrap().remove(timing);
        }
        record
    };
    let genotype = std::fs::read_to_string(out.join("genotype.json")).ok();
    (bytes[8 + header..].to_vec(), metrics.lines().map(record).collect(), genotype)
}

/// Kills (SIGKILL on Unix) after a while; whether the process was still running.
fn killed_after(mut command: Command, delay: Duration) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    let running = child.try_wait().unwrap().is_none();
    let _ = child.kill();
    let status = child.wait().unwrap();
    assert!(running || status.success(), "{status}");
    running
}

fn check_kills(name: &str, arguments: &dyn Fn(&Path) -> Vec<String>) {
    let (once, out) = (folder(&format!("{name}-once")), folder(&format!("{name}-killed")));
    let of = |out: &Path, resume: bool| {
        let mut list = arguments(out);
        list.extend(resume.then(|| "--resume".to_string()));
        list
    };
    let whole = of(&once, false);
    json(&whole.iter().map(String::as_str).collect::<Vec<_>>());
    let mut random = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut kills = 0;
    for attempt in 0..200u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Ever longer lives, so that a slow machine gets through as well.
        let delay = Duration::from_millis(10 + (random >> 33) % (40 + 20 * attempt));
        let list = of(&out, out.join("config.toml").exists());
        if !killed_after(command(&list.iter().map(String::as_str).collect::<Vec<_>>()), delay) {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 2, "the run was killed {kills} times");
    assert_eq!(outcome(&out), outcome(&once), "after {kills} kills");
    assert!(!names(&out).iter().any(|name| name.contains("partial")), "{:?}", names(&out));
}

#[test]
fn a_search_killed_at_random_moments_ends_in_the_same_bits() {
    check_kills("search", &|out| {
        let more = ["--epochs", "2", "--checkpoint-steps", "1", "--order", "second"];
        search(out, &more).into_iter().map(String::from).collect()
    });
}

#[test]
fn a_training_killed_at_random_moments_ends_in_the_same_bits() {
    check_kills("train", &|out| {
        train(out, &["--epochs", "2", "--checkpoint-steps", "2"]).into_iter().map(String::from).collect()
    });
}

fn interrupt(child: &Child) {
    let status = Command::new("bash").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
}

/// Reads progress until a line starts with the text.
fn wait_for(errors: &mut impl BufRead, start: &str) {
    let mut line = String::new();
    while !line.starts_with(start) {
        line.clear();
        assert!(errors.read_line(&mut line).unwrap() > 0, "no line starts with {start}");
    }
}

#[test]
fn ctrl_c_saves_and_the_resumed_run_ends_in_the_same_bits() {
    let (once, out) = (folder("int-once"), folder("int"));
    json(&search(&once, &["--epochs", "40"]));
    let mut child = command(&search(&out, &["--epochs", "40", "--json"])).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut errors, "epoch 2/40");
    interrupt(&child);
    let mut rest = String::new();
    errors.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{rest}");
    assert!(output.stdout.is_empty());
    assert!(rest.contains("error: interrupted; the state is saved in") && rest.contains("--resume"), "{rest}");
    assert!(outcome(&out).1.len() < 40);
    let report = json(&["search", "--out", text(&out), "--resume"]);
    assert_eq!(report["epochs"], 40);
    assert_eq!(outcome(&out), outcome(&once));
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let out = folder("int-twice");
    // Steps of more than a second: the second interrupt comes within the first step.
    let long = ["--channels", "8", "--layers", "6", "--batch", "128", "--order", "second", "--threads", "1"];
    let mut child = command(&[&["search", "--out", text(&out)], &long[..]].concat()).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    wait_for(&mut errors, "search: ");
    interrupt(&child);
    wait_for(&mut errors, "stopping after this step");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
