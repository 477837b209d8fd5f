//! `supernet ot`: what it prints of points, weights and costs in files of NumPy's, and what it refuses.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::cli::{folder, json, refused, text};

/// A version 1 `.npy` file of float64.
fn save(path: PathBuf, shape: &str, values: &[f64]) -> PathBuf {
    let header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({shape}), }}");
    // Padded with spaces to a line of 128 bytes, the ten in front of it included.
    let header = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    path
}

fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {report}"))
}

fn ot(files: [&Path; 2], more: &[&str]) -> Value {
    json(&[&["ot", text(files[0]), text(files[1])], more].concat())
}

/// Three points on a line, moved by 2, 2 and 2 at most if each goes to its own: the cost is 4 / 2.
#[test]
fn files_of_points_are_transported() {
    let out = folder("ot");
    let x = save(out.join("x.npy"), "3, 2", &[0.0, 1.0, 1.0, 1.0, 5.0, 1.0]);
    let y = save(out.join("y.npy"), "3, 2", &[2.0, 1.0, 3.0, 1.0, 7.0, 1.0]);
    let report = ot([&x, &y], &["--epsilon-relative", "0.002"]);
    assert!((number(&report, "cost") - 2.0).abs() < 1e-3, "{report}");
    assert!(number(&report, "lower") <= 2.0 && number(&report, "upper") >= 2.0, "{report}");
    assert!(number(&report, "marginal_error") <= 1e-4 && number(&report, "iterations") >= 1.0, "{report}");
    assert_eq!((&report["converged"], &report["points"]), (&true.into(), &vec![3, 3].into()));
    let few = ot([&x, &y], &["--epsilon", "0.001", "--iterations", "2"]);
    assert_eq!(few["converged"], false);
    assert!(number(&few, "lower") <= 2.0 && number(&few, "upper") >= 2.0, "{few}");

    // All the mass of the left at its last point, that of the right at its first: 9 / 2.
    let [first, last] = [("a", [1.0, 0.0, 0.0]), ("b", [0.0, 0.0, 3.0])]
        .map(|(name, weights)| save(out.join(format!("{name}.npy")), "3,", &weights));
    let report = ot([&x, &y], &["--weights", text(&last), text(&first)]);
    assert!((number(&report, "cost") - 4.5).abs() < 1e-4, "{report}");

    let costs = save(out.join("c.npy"), "2, 3", &[1.0, 2.0, 9.0, 9.0, 2.0, 1.0]);
    let report = json(&["ot", "--cost", text(&costs), "--epsilon", "0.01"]);
    assert!((number(&report, "cost") - 4.0 / 3.0).abs() < 1e-3, "{report}");
}

/// Directions only: lengths do not count.
#[test]
fn angles_are_costs_too() {
    let out = folder("ot-cosine");
    let x = save(out.join("x.npy"), "2, 2", &[3.0, 0.0, 0.0, 1e-3]);
    let y = save(out.join("y.npy"), "2, 2", &[1e200, 1e200, 0.0, 7.0]);
    let report = ot([&x, &y], &["--metric", "cosine", "--epsilon", "0.001"]);
    let expected = (1.0 - 0.5f64.sqrt()) / 2.0;
    assert!((number(&report, "cost") - expected).abs() < 1e-5, "{report}");
    let origin = save(out.join("origin.npy"), "2, 2", &[1.0, 1.0, 0.0, 0.0]);
    let arguments = ["ot", text(&x), text(&origin), "--metric", "cosine"];
    refused(&arguments, 2, &["origin.npy", "row 1", "no direction"]);
}

#[test]
fn files_that_make_no_problem_are_refused() {
    let out = folder("ot-refused");
    let x = save(out.join("x.npy"), "2, 2", &[0.0, 1.0, 2.0, 3.0]);
    let line = save(out.join("line.npy"), "4, 1", &[0.0, 1.0, 2.0, 3.0]);
    let nan = save(out.join("nan.npy"), "2, 2", &[0.0, 1.0, f64::NAN, 3.0]);
    let negative = save(out.join("negative.npy"), "2,", &[1.5, -0.5]);
    let nothing = save(out.join("nothing.npy"), "2,", &[0.0, 0.0]);
    let costs = save(out.join("costs.npy"), "2, 3", &[0.0; 6]);
    let cut = out.join("cut.npy");
    std::fs::write(&cut, &std::fs::read(&x).unwrap()[..140]).unwrap();
    let [x, line, nan, cut] = [&x, &line, &nan, &cut].map(|path| text(path));
    refused(&["ot", x, x, "--epsilon", "0"], 2, &["epsilon is 0"]);
    refused(&["ot", x, line], 2, &["line.npy", "dimensions"]);
    refused(&["ot", x, nan], 2, &["nan.npy", "NaN in row 1, column 0"]);
    refused(&["ot", x, cut], 2, &["cut.npy"]);
    refused(&["ot", x, text(&out.join("none.npy"))], 2, &["none.npy"]);
    refused(&["ot", x, x, "--cost", text(&costs)], 2, &["costs.npy", "2 x 3 costs for 2 and 2 points"]);
    refused(
        &["ot", x, x, "--weights", text(&negative), text(&negative)],
        2,
        &["negative.npy", "weight -0.5 in place 1"],
    );
    refused(&["ot", x, x, "--weights", text(&nothing), text(&nothing)], 2, &["nothing.npy", "sum 0"]);
    refused(&["ot", x, x, "--weights", text(&costs), text(&costs)], 2, &["costs.npy", "6 weights for 2 points"]);
}
