//! Times and rates in words, with Ollama's names.
use hurtle_engine::Timings;
use std::fmt::Write as _;

/// The lines that `--verbose` prints after an answer.
pub(crate) fn report(timings: &Timings) -> String {
    let t = timings;
    let total = t.load_ms + t.prompt_ms + t.predicted_ms;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<22}{value}");
    };
    line("total duration:", duration(total));
    line("load duration:", duration(t.load_ms));
    let cached = if t.cache_n > 0 { format!(" (and {} cached)", t.cache_n) } else { String::new() };
    line("prompt eval count:", format!("{} token(s){cached}", t.prompt_n));
    line("prompt eval duration:", duration(t.prompt_ms));
    line("prompt eval rate:", format!("{:.2} tokens/s", t.prompt_tps));
    line("eval count:", format!("{} token(s)", t.predicted_n));
    line("eval duration:", duration(t.predicted_ms));
    line("eval rate:", format!("{:.2} tokens/s", t.predicted_tps));
    out.truncate(out.trim_end().len());
    out
}

/// Milliseconds as `12.3ms`, `1.23s` or `2m03s`.
pub(crate) fn duration(ms: f64) -> String {
    if ms < 1_000.0 {
        format!("{ms:.1}ms")
    } else if ms < 60_000.0 {
        format!("{:.2}s", ms / 1_000.0)
    } else {
        let seconds = (ms / 1_000.0).round() as u64;
        format!("{}m{:02}s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |ms, expected: &str| assert_eq!(duration(ms), expected);
        check(0.04, "0.0ms");
        check(12.34, "12.3ms");
        check(1_234.0, "1.23s");
        check(61_499.0, "1m01s");
    }

    #[test]
    fn the_report_names_every_figure() {
        let timings = Timings {
            load_ms: 100.0,
            prompt_n: 20,
            cache_n: 6,
            prompt_ms: 200.0,
            prompt_tps: 100.0,
            predicted_n: 50,
            predicted_ms: 2_000.0,
            predicted_tps: 25.0,
        };
        let expected = "\
total duration:       2.30s
load duration:        100.0ms
prompt eval count:    20 token(s) (and 6 cached)
prompt eval duration: 200.0ms
prompt eval rate:     100.00 tokens/s
eval count:           50 token(s)
eval duration:        2.00s
eval rate:            25.00 tokens/s";
        assert_eq!(report(&timings), expected);
    }
}
