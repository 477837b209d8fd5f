//! Results on standard output: one JSON object, or lines for people.

use serde::Serialize;
use serde_json::Value;

/// Prints a result as JSON, or as `name: value` lines.
pub fn print(result: &impl Serialize, json: bool) {
    let value = serde_json::to_value(result).unwrap_or_default();
    if json {
        println!("{value}");
        return;
    }
    let Value::Object(fields) = &value else { return };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in fields {
        println!("{:width$}  {}", name.replace('_', " "), plain(name, value));
    }
}

fn plain(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if name.ends_with("_bytes") => {
            format!("{:.1} MiB", n.as_f64().unwrap_or_default() / (1024.0 * 1024.0))
        }
        Value::Number(n) if n.is_f64() => {
            let x = n.as_f64().unwrap_or_default();
            if x.abs() >= 1e6 { format!("{x:.4e}") } else { format!("{x:.4}") }
        }
        Value::Array(items) => {
            items.iter().map(|item| format!("\n    {}", plain("", item))).collect::<Vec<_>>().concat()
        }
        Value::Object(fields) => {
            fields.iter().map(|(k, v)| format!("{k} {}", plain(k, v))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}
