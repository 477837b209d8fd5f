//! `supernet plan` and `supernet bench` on GPUs: plans without a device, times on lavapipe and on the fake CUDA driver.

use serde_json::Value;

use crate::cli::{json, refused};

const TINY: [&str; 8] = ["--channels", "2", "--layers", "1", "--batch", "2", "--size", "8x8x3"];

fn plan(more: &[&str]) -> Value {
    json(&[&["plan"], &TINY[..], more].concat())
}

fn keys(value: &Value) -> Vec<&String> {
    value.as_object().unwrap().keys().collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
}

/// Plans open nothing, so they need neither the device nor a build that has it.
#[test]
fn plans_count_what_a_gpu_needs() {
    let large = ["--channels", "4", "--layers", "3", "--batch", "64", "--size", "32x32x3"];
    for network in [&[][..], &["--order", "second"], &["--genotype", "DARTS_V2"]] {
        let [cpu, wgpu, cuda] = ["cpu", "wgpu", "cuda:1"].map(|d| plan(&[network, &["--device", d]].concat()));
        assert_eq!(cpu, plan(network), "the processor is the default");
        assert_eq!((keys(&cpu), keys(&cpu)), (keys(&wgpu), keys(&cuda)));
        assert_eq!([&wgpu["device"], &cuda["device"]], ["wgpu", "cuda:1"]);
        for key in ["parameters", "flops_step", "bytes_step", "macs_per_image"] {
            assert_eq!([&cpu[key], &cpu[key]], [&wgpu[key], &cuda[key]], "{key}");
        }
        for gpu in [&wgpu, &cuda] {
            let [forward, step] = ["launches_forward", "launches_step"].map(|key| number(&gpu[key]));
            assert!(forward > 5.0 && step > 2.0 * forward, "{gpu}");
            let [arena, all] = ["arena_bytes", "peak_bytes"].map(|key| number(&gpu[key]));
            assert!(arena > 0.0 && all > arena && all < 4.0 * number(&cpu["peak_bytes"]), "{gpu}");
        }
    }
    let [f32, tf32, bf16] =
        ["f32", "tf32", "bf16"].map(|p| number(&plan(&["--device", "cuda", "--precision", p])["arena_bytes"]));
    assert!(f32 == tf32 && bf16 < f32, "{f32}, {tf32} and {bf16} bytes");
    refused(&[&["plan"], &TINY[..], &["--device", "wgpu", "--precision", "tf32"]].concat(), 2, &["wgpu has f32, f16"]);
    let memory = |device: &str| {
        let plan = json(&[&["plan"], &large[..], &["--device", device]].concat());
        number(&plan["peak_bytes"]) / f64::from(1 << 20)
    };
    // Memory rests before it is reused on a GPU, so that it takes more: a limit between both.
    let [cpu, wgpu] = ["cpu", "wgpu"].map(memory);
    assert!(cpu + 2.0 < wgpu, "{cpu} and {wgpu} MiB");
    let limit = (wgpu.floor() as u32).to_string();
    let limited =
        |device: &'static str| [&["plan"], &large[..], &["--memory-limit", &limit, "--device", device]].concat();
    json(&limited("cpu"));
    refused(&limited("wgpu"), 1, &["--memory-limit", &format!("limit is {limit}.0 MiB")]);
    // What a WebGPU device need not bind in one piece.
    let wide = ["plan", "--channels", "64", "--layers", "3", "--batch", "512", "--size", "32x32x3"];
    refused(&[&wide[..], &["--device", "wgpu"]].concat(), 1, &["in one piece", "at most 128.0 MiB"]);
    json(&[&wide[..], &["--device", "cuda"]].concat());
}

#[test]
fn the_loader_is_measured_on_the_processor() {
    refused(&["bench", "kernels", "--device", "gpu"], 2, &["--device", "cpu, wgpu, wgpu:N"]);
    #[cfg(feature = "wgpu")]
    refused(&["bench", "loader", "--quick", "--device", "wgpu"], 2, &["--device wgpu", "processor only"]);
}

/// Checks the result of a step on a GPU against that of the processor and against the plan.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn check_step(gpu: &Value, profiled: bool, plan: Option<&Value>) {
    let cpu = json(&[&["bench", "step", "--warmup", "0", "--steps", "1", "--threads", "1"], &TINY[..]].concat());
    for key in keys(&cpu) {
        assert!(gpu.get(key).is_some(), "{key} is missing");
    }
    assert!(gpu["machine"]["device"].is_string() && cpu["machine"].get("device").is_none());
    let [host, all] = [number(&gpu["host_seconds"]), number(&gpu["milliseconds"]) * 1e-3];
    assert!(host > 0.0 && host <= all, "{host} of {all} s");
    assert!(number(&gpu["peak_bytes"]) > 0.0);
    if let Some(plan) = plan {
        assert_eq!(number(&gpu["launches"]), number(&plan["launches_step"]), "as planned");
    }
    if profiled {
        let sum = |list: &str, key: &str| gpu[list].as_array().unwrap().iter().map(|s| number(&s[key])).sum::<f64>();
        assert_eq!(sum("kernels", "launches"), number(&gpu["launches"]));
        assert!((sum("kernels", "time_share") - 1.0).abs() < 1e-6 && (sum("profile", "time_share") - 1.0).abs() < 1e-6);
        assert!(sum("profile", "gflops") > 0.0 && sum("profile", "gigabytes_per_second") > 0.0);
        assert!(gpu["ceilings"].get("gflops").is_none(), "there is no kernel that measures it");
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use super::*;
    use crate::cli::{run, text};
    use crate::gpu::missing;

    fn there() -> bool {
        let listed = json(&["devices"]);
        let there = listed["devices"].as_array().unwrap().iter().any(|d| d["kind"] == "wgpu" && d["available"] == true);
        if !there {
            missing("a Vulkan device", "SUPERNET_REQUIRE_WGPU", &listed.to_string());
        }
        there
    }

    fn step(more: &[&str]) -> Value {
        json(&[&["bench", "step", "--device", "wgpu", "--warmup", "1", "--steps", "2"], &TINY[..], more].concat())
    }

    #[test]
    fn steps_are_timed_and_profiled() {
        if !there() {
            return;
        }
        check_step(&step(&["--profile"]), true, Some(&plan(&["--device", "wgpu"])));
        let second = &["--order", "second"][..];
        check_step(&step(second), false, Some(&plan(&[second, &["--device", "wgpu"]].concat())));
        check_step(&step(&["--derived", "--auxiliary", "0", "--no-capture"]), false, None);
    }

    #[test]
    fn kernels_are_checked_and_timed() {
        if !there() {
            return;
        }
        let out = crate::cli::folder("bench-gpu");
        let (file, picture) = (out.join("kernels.json"), out.join("roofline.svg"));
        let chosen = ["bench", "kernels", "--quick", "--device", "wgpu", "--filter", "mixture/c8,certificate"];
        let report = json(&[&chosen[..], &["--svg", text(&picture)]].concat());
        let cases = report["cases"].as_array().unwrap();
        assert!(cases.len() > 1 && report["failed"].as_array().unwrap().is_empty());
        for case in cases {
            for key in ["milliseconds", "gigabytes_per_second", "launches", "roofline_share"] {
                assert!(number(&case[key]) > 0.0, "{key} of {case}");
            }
        }
        assert!(report.get("skipped").is_none(), "every op has kernels: {report}");
        let halved =
            ["bench", "kernels", "--quick", "--device", "wgpu", "--filter", "mixture/c8/7x7", "--precision", "f16"];
        let halves = json(&halved);
        assert!(halves["failed"].as_array().unwrap().is_empty() && halves["tolerance"] == 1e-3, "{halves}");
        let own = |name: &Value| name.as_str().unwrap().ends_with("/f16");
        assert!(halves["precision"] == "f16" && halves["cases"].as_array().unwrap().iter().all(|c| own(&c["name"])));
        let bf16 = ["bench", "kernels", "--device", "wgpu", "--precision", "bf16"];
        refused(&bf16, 2, &["precision bf16", "wgpu has f32, f16"]);
        assert!(std::fs::read_to_string(&picture).unwrap().contains("GB/s"));
        // Another device, no comparison; and a kernel that is not good enough is not timed.
        std::fs::write(&file, report.to_string()).unwrap();
        refused(&["bench", "kernels", "--quick", "--compare", text(&file)], 2, &["kernels.json", "device"]);
        let strict =
            run(&["bench", "kernels", "--quick", "--device", "wgpu", "--filter", "linear", "--tolerance", "0"]);
        assert_eq!(strict.status.code(), Some(1));
    }

    #[test]
    fn transport_is_timed() {
        if there() {
            let few = ["--grow", "problems", "--values", "1,2", "--quick"];
            let report = json(&[&["bench", "transport", "--device", "wgpu"], &few[..]].concat());
            assert_eq!(report["cases"].as_array().unwrap().len(), 2, "in the log domain: there is no other on a GPU");
            assert!(report["machine"]["device"].is_string());
        }
    }
}

/// What `scripts/gpu_run.sh` does on a machine with a GPU, on the fake one.
#[cfg(all(feature = "cuda", target_arch = "x86_64", target_os = "linux"))]
#[test]
fn stages_of_a_gpu_run_write_json() {
    use super::cuda_host::with_fakes;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    let (bundle, out) = (crate::cli::folder("gpu-bundle"), crate::cli::folder("gpu-out"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::copy(root.join("scripts/gpu_run.sh"), bundle.join("gpu_run.sh")).unwrap();
    std::fs::write(bundle.join("commit"), "0123\n").unwrap();
    symlink(env!("CARGO_BIN_EXE_supernet"), bundle.join("supernet")).unwrap();
    symlink(std::env::current_exe().unwrap(), bundle.join("suite")).unwrap();
    let run = |arguments: &[&str], settings: &[(&str, &str)], status: i32| {
        let mut command = with_fakes(Path::new("bash"), "driver");
        command.arg(bundle.join("gpu_run.sh")).args(arguments).env("OUT", &out).envs(settings.iter().copied());
        let output = command.env("SUPERNET_DATA", root.join("data/builtin")).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {errors}");
        errors
    };
    let result = |name: &str| -> Value {
        let report: Value = serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap();
        assert_eq!((&report["commit"], report["status"].is_number()), (&"0123".into(), true));
        report["result"].clone()
    };
    let tiny = [("CHANNELS", "2"), ("LAYERS", "1"), ("SIZE", "8x8x3"), ("WARMUP", "0"), ("STEPS", "1")];
    run(&["step"], &[&tiny[..], &[("BATCHES", "2")]].concat(), 0);
    check_step(&result("step-b2-first.json"), true, Some(&plan(&["--device", "cuda"])));
    let tf32 = result("step-b2-first-tf32.json");
    check_step(&tf32, true, Some(&plan(&["--device", "cuda"])));
    assert!(
        tf32["products"].as_str().unwrap().starts_with("in tf32") && result("step-b2-second-bf16.json").is_object()
    );
    check_step(&result("step-b2-first-no-overlap.json"), false, Some(&plan(&["--device", "cuda"])));
    assert!(number(&result("step-b2-second.json")["launches"]) > number(&result("step-b2-first.json")["launches"]));
    let few = [("QUICK", "1"), ("FILTER", "dense/c256/1x1,mixture/c8/7x7")];
    run(&["kernels"], &few, 0);
    // In tf32 factors of products have eleven bits, and in bf16 maps have eight.
    for (precision, name, dense) in [
        ("f32", "kernels.json", 0.0..5e-5),
        ("tf32", "kernels-tf32.json", 5e-5..1e-3),
        ("bf16", "kernels-bf16.json", 5e-5..4e-3),
    ] {
        let report = result(name);
        let tf32 = report.get("products").is_some_and(|p| p.as_str().unwrap().starts_with("in tf32"));
        assert!(report["precision"] == precision && tf32 == (precision != "f32"), "{report}");
        let cases = report["cases"].as_array().unwrap();
        assert!(cases.len() > 1 && cases.iter().all(|c| c["passed"] == true), "{report}");
        let of = |op: &str| number(&cases.iter().find(|c| c["op"] == op).unwrap()["parity_error"]);
        assert!(dense.contains(&of("dense")) && dense.end > number(&report["tolerance"]) / 5.0, "{report}");
        assert!(of("mixture") < 1e-4, "the reference rounds what the device rounds: {report}");
    }
    let sinkhorn = [("QUICK", "1"), ("USUAL", ""), ("SHAPES", "1x130x2")];
    run(&["sinkhorn"], &sinkhorn, 0);
    let costs = |report: &Value| -> Vec<String> {
        report["cases"].as_array().unwrap().iter().map(|c| format!("{} {}", c["name"], c["costs"])).collect()
    };
    let names = ["log\" \"stored", "recomputed\" \"recomputed"].map(|way| format!("\"1x130x130/d2/{way}\""));
    assert_eq!(costs(&result("sinkhorn-1x130x2.json")), names);
    // Where a matrix finds no room it is left out, and the rest is measured.
    run(&["sinkhorn"], &[&sinkhorn[..], &[("FAKE_CUDA_MEMORY", "70000")]].concat(), 0);
    let report = result("sinkhorn-1x130x2.json");
    assert_eq!(costs(&report), names[1..]);
    assert!(report["skipped"][0]["name"] == "1x130x130/d2/log", "{report}");
    let small = ["search", "builtin:fashion", "--size", "8x8", "--train-images", "32", "--no-capture"];
    run(&small, &[("EPOCHS", "1"), ("CHANNELS", "2"), ("LAYERS", "1"), ("BATCH", "8")], 0);
    assert!(result("search.json")["genotype"].is_object() && out.join("search-metrics.jsonl").exists());
    // A search of as many epochs as fit, after one that was timed; then kernels in each precision.
    let settings = [("EPOCHS", "2"), ("CHANNELS", "2"), ("LAYERS", "1"), ("BATCH", "8"), ("FILTER", "softmax/n112")];
    run(&[&["second"], &small[1..]].concat(), &[&settings[..], &[("QUICK", "1")]].concat(), 0);
    assert_eq!((&result("search-epoch.json")["epochs"], &result("search.json")["epochs"]), (&1.into(), &2.into()));
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap() };
    assert!(read("search.json")["note"].as_str().unwrap().starts_with("2 of 2 epochs"));
    let summary = read("summary.json");
    assert_eq!([&summary["search"]["status"], &summary["kernels-tf32"]["status"]], [0, 0], "{summary}");
    // Without any time nothing is started, and everything is named.
    run(&["first"], &[("BATCHES", "2"), ("SECONDS_AT_MOST", "1")], 1);
    let summary = read("summary.json");
    for name in ["parity", "step-b2-first", "step-b2-second-bf16", "sinkhorn", "sinkhorn-1x50000x64"] {
        assert_eq!(summary[name]["status"], 124, "{name}: {summary}");
    }
    assert!(read("parity.json")["result"].to_string().contains("no time was left"));
    // A stage that fails says so, and its JSON has the words.
    run(&["search", "builtin:nothing"], &[], 1);
    assert!(result("search.json").to_string().contains("builtin:nothing"));
    assert!(run(&["no-stage"], &[], 2).contains("usage: OUT=FOLDER gpu_run.sh STAGE"));
}

/// `--no-capture` of whatever runs programs starts kernels one by one, `--no-overlap` none before its predecessor has ended.
#[cfg(all(feature = "cuda", target_arch = "x86_64", target_os = "linux"))]
#[test]
fn cuda_programs_are_captured_unless_told_otherwise() {
    use super::cuda_host::with_fakes;
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/builtin");
    let out = crate::cli::folder("no-capture");
    let run = |arguments: &[&str], more: &[&str]| -> (Value, String) {
        let mut command = with_fakes(std::path::Path::new(env!("CARGO_BIN_EXE_supernet")), "driver");
        command.args(arguments).args(["--device", "cuda", "--json"]).args(&TINY[..6]).args(more);
        let output = command.env("SUPERNET_DATA", &data).env("FAKE_CUDA_REPORT", "1").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        (serde_json::from_slice(&output.stdout).unwrap(), errors)
    };
    let step = ["bench", "step", "--size", "8x8x3", "--warmup", "0", "--steps", "1"];
    let folder = out.join("run");
    let common = ["--data", "builtin:fashion", "--size", "8x8", "--train-images", "32", "--epochs", "1"];
    let search = [&["search", "--crop-padding", "1", "--out", crate::cli::text(&folder)], &common[..]].concat();
    for (number, arguments) in [&step[..], &search].into_iter().enumerate() {
        for more in [&[][..], &["--no-capture"], &["--no-overlap"]] {
            let (report, errors) = run(arguments, more);
            let without = ["graph launches 0,", "overlapping launches 0\n"].map(|none| errors.contains(none));
            let expected = ["--no-capture", "--no-overlap"].map(|flag| more.contains(&flag));
            assert_eq!(without, expected, "{arguments:?} {more:?}: {errors}");
            if number == 0 {
                check_step(&report, false, Some(&plan(&["--device", "cuda"])));
            } else {
                let settings = std::fs::read_to_string(folder.join("config.toml")).unwrap();
                assert!(settings.contains("device = \"cuda\"") && !settings.contains("starting"), "{settings}");
                std::fs::remove_dir_all(&folder).unwrap();
            }
        }
    }
}
