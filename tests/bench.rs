//! The contract of `supernet bench`: keys of its JSON, what is refused, and that a result can be compared with itself.

use serde_json::Value;

use crate::cli::{command, folder, json, refused, run, text};

#[test]
fn kernels_are_checked_measured_drawn_and_compared() {
    let out = folder("bench-kernels");
    let (file, picture) = (out.join("kernels.json"), out.join("roofline.svg"));
    let arguments = ["bench", "kernels", "--quick", "--threads", "1", "--filter", "mixture/c8"];
    let listed = json(&[&arguments[..], &["--list"]].concat());
    let names = listed["cases"].as_array().unwrap().len();
    assert!(names > 0);
    let report = json(&[&arguments[..], &["--svg", text(&picture)]].concat());
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), names);
    for case in cases {
        assert!(case["name"].as_str().unwrap().contains("mixture/c8"));
        for key in ["milliseconds", "milliseconds_low", "milliseconds_high"] {
            assert!(case[key].as_f64().is_some_and(|n| n > 0.0), "{key} of {case}");
        }
    }
    assert!(report["ceilings"]["gflops"].as_f64().is_some_and(|n| n > 0.0));
    assert!(report["machine"].is_object());
    let svg = std::fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));

    std::fs::write(&file, report.to_string()).unwrap();
    let again = json(&[&arguments[..], &["--compare", text(&file)]].concat());
    assert_eq!(again["changes"].as_array().unwrap().len(), names);
    // A result that says everything took a quarter of an hour: now everything is faster.
    let mut slow = report.clone();
    for case in slow["cases"].as_array_mut().unwrap() {
        for key in ["milliseconds", "milliseconds_low", "milliseconds_high", "milliseconds_min"] {
            case[key] = 1e6.into();
        }
    }
    std::fs::write(&file, slow.to_string()).unwrap();
    let faster = json(&[&arguments[..], &["--compare", text(&file)]].concat());
    let verdict = |c: &Value| c["verdict"].as_str().map(str::to_owned);
    assert!(faster["changes"].as_array().unwrap().iter().all(|c| verdict(c).as_deref() == Some("faster")));
    // Other threads, other machine: no comparison.
    let other = ["bench", "kernels", "--quick", "--threads", "2", "--filter", "mixture/c8", "--compare", text(&file)];
    refused(&other, 2, &["kernels.json", "WARNING"]);
}

#[test]
fn kernels_that_disagree_are_named_and_not_timed() {
    let arguments = ["bench", "kernels", "--quick", "--threads", "1", "--filter", "mixture/c8", "--tolerance", "0"];
    let output = run(&[&arguments[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed = report["failed"].as_array().unwrap();
    assert!(!failed.is_empty());
    let samples = |name: &Value| {
        report["cases"].as_array().unwrap().iter().find(|c| c["name"] == *name).unwrap()["samples"].clone()
    };
    assert!(failed.iter().all(|name| samples(name) == 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("disagree with the f64 reference"));
}

#[test]
fn steps_are_timed_profiled_and_grown() {
    let tiny = ["--channels", "2", "--layers", "2", "--batch", "4", "--size", "8x8x3", "--threads", "1"];
    let few = ["--warmup", "0", "--steps", "2"];
    let step = |more: &[&str]| json(&[&["bench", "step"], &tiny[..], &few[..], more].concat());
    let keys = ["milliseconds", "milliseconds_min", "peak_bytes", "peak_rss_bytes", "steps", "launches", "gflops"];
    let report = step(&["--profile"]);
    for key in keys {
        assert!(report[key].as_f64().is_some_and(|n| n > 0.0), "{key}: {}", report[key]);
    }
    let shares: f64 = report["profile"].as_array().unwrap().iter().map(|p| p["time_share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-6);
    assert!(step(&["--derived"])["milliseconds"].as_f64().is_some_and(|n| n > 0.0));
    let picture = folder("bench-grow").join("batch.svg");
    let grown = step(&["--grow", "batch", "--values", "4,8", "--svg", text(&picture)]);
    assert_eq!(grown["cases"].as_array().unwrap().len(), 2);
    assert!(picture.exists());
}

#[test]
fn the_loader_is_timed_and_folders_are_decoded_once() {
    let out = folder("bench-loader");
    let (images, sheet, cache) = (out.join("images"), out.join("sheet.png"), out.join("cache"));
    json(&["data", "builtin:mnist", "--contact-sheet", text(&sheet), "--images-per-class", "1"]);
    for class in ["a", "b"] {
        std::fs::create_dir_all(images.join(class)).unwrap();
        for i in 0..3 {
            std::fs::copy(&sheet, images.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
    let spec = format!("folder:{}", images.display());
    let report = json(&["bench", "loader", "--quick", "--data", &spec]);
    let cases = report["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["stage/32x32x3", "augment/32x32x3", "stage+augment/32x32x3"]);
    assert_eq!(names[3..], ["decode/images", "cached/images"]);
    assert!(cases.iter().all(|c| c["images_per_second"].as_f64().is_some_and(|n| n > 0.0)));
    let first = command(&["data", &spec]).env("SUPERNET_CACHE", &cache).output().unwrap();
    assert_eq!(first.status.code(), Some(0));
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1, "the decoded images were kept");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let file = folder("bench-refused").join("earlier.json");
    refused(&["bench", "kernels", "--filter", "no_such_op"], 2, &["no_such_op"]);
    refused(&["bench", "step", "--grow", "depth"], 2, &["depth", "--grow"]);
    for bench in ["kernels", "step"] {
        for precision in ["f16", "tf32", "bf16"] {
            let words = format!("precision {precision} is not to be had on --device cpu: the processor has f32 (");
            refused(&["bench", bench, "--precision", precision], 2, &[&words]);
        }
        refused(&["bench", bench, "--precision", "half"], 2, &["expected f32, f16 (on wgpu), tf32 or bf16"]);
    }
    std::fs::write(&file, "{\"bench\": ").unwrap();
    refused(&["bench", "kernels", "--compare", text(&file)], 2, &["earlier.json", "bench kernels --json"]);
    refused(&["bench", "loader", "--compare", "none.json"], 2, &["none.json"]);
}
