//! `hurtle list`: the models on this machine.
use super::table;
use crate::args::GlobalArgs;
use crate::models::hub;
use crate::terminal::{bytes, harmless, say};
use anyhow::Result;
use clap::Args;
use hurtle_hub::LocalModel;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Lists the models on this machine: hurtle's own, those in the Hugging Face cache and Ollama's.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  hurtle list\n  hurtle list --json | jq -r '.[].name'")]
pub(crate) struct ListArgs {
    /// Print a JSON array of {name, path, source, bytes, modified}, the time in seconds since 1970
    #[arg(long)]
    json: bool,
}

pub(crate) fn execute(args: &ListArgs, globals: &GlobalArgs) -> Result<()> {
    let models = hub(globals)?.list()?;
    if args.json {
        return super::print_json(&models.iter().map(as_json).collect::<Vec<_>>());
    }
    if models.is_empty() {
        say("no models yet\nhint: 'hurtle pull smollm2' fetches a small one");
        return Ok(());
    }
    let now = SystemTime::now();
    let row = |m: &LocalModel| {
        let age = now.duration_since(m.modified).unwrap_or_default();
        [harmless(&m.name), bytes(m.bytes), ago(age), harmless(&m.source)]
    };
    let rows: Vec<_> = models.iter().map(row).collect();
    super::print(&table(["NAME", "SIZE", "MODIFIED", "SOURCE"], &rows))
}

fn as_json(model: &LocalModel) -> serde_json::Value {
    let modified = model.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "name": model.name,
        "path": model.path,
        "source": model.source,
        "bytes": model.bytes,
        "modified": modified.as_secs(),
    })
}

/// `3 days ago`.
fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    let units = [("year", 31_557_600), ("month", 2_629_800), ("week", 604_800), ("day", 86_400)];
    let units = units.into_iter().chain([("hour", 3_600), ("minute", 60)]);
    match units.map(|(unit, length)| (unit, seconds / length)).find(|&(_, n)| n > 0) {
        Some((unit, 1)) => format!("1 {unit} ago"),
        Some((unit, n)) => format!("{n} {unit}s ago"),
        None => "just now".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let check =
            |seconds, expected: &str| assert_eq!(ago(Duration::from_secs(seconds)), expected);
        check(0, "just now");
        check(59, "just now");
        check(60, "1 minute ago");
        check(3 * 86_400 + 5, "3 days ago");
        check(800 * 86_400, "2 years ago");
    }
}
