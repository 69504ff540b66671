//! How long a model stays loaded, as Ollama's clients write it.
use serde_json::Value;
use std::str::FromStr;
use std::time::Duration;

/// How long a model stays loaded after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Until the server ends.
    Forever,
    /// This long; zero unloads it at once.
    For(Duration),
}

impl KeepAlive {
    /// Seconds as a number, or a text as [`KeepAlive::from_str`] reads it; `None` if it is neither.
    pub fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Number(n) => Some(Self::from_seconds(n.as_f64()?)),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn from_seconds(seconds: f64) -> Self {
        if seconds < 0.0 {
            return Self::Forever;
        }
        // What is too long for the clock is forever as well.
        Duration::try_from_secs_f64(seconds).map_or(Self::Forever, Self::For)
    }
}

/// Seconds, or a time as Go writes it (`1h30m`, `500ms`); negative ones are forever.
impl FromStr for KeepAlive {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seconds = go_duration(text);
        seconds.map(Self::from_seconds).ok_or("expected seconds, or a time such as 5m or -1")
    }
}

fn go_duration(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then_some(seconds);
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let units = [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9)];
        let units = units.into_iter().chain([("h", 3600.0), ("m", 60.0), ("s", 1.0)]);
        let (name, scale) = units.into_iter().find(|(name, _)| unit.starts_with(name))?;
        seconds += number * scale;
        rest = &unit[name.len()..];
    }
    (!text.is_empty()).then_some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_as_go_writes_them() {
        let check = |value: Value, expected: Option<KeepAlive>| {
            assert_eq!(KeepAlive::from_json(&value), expected, "{value}");
        };
        let seconds = |s: f64| Some(KeepAlive::For(Duration::from_secs_f64(s)));
        check(json!(300), seconds(300.0));
        check(json!(0), seconds(0.0));
        check(json!(-1), Some(KeepAlive::Forever));
        check(json!("5m"), seconds(300.0));
        check(json!("1h30m"), seconds(5400.0));
        check(json!("500ms"), seconds(0.5));
        check(json!("-1m"), Some(KeepAlive::Forever));
        check(json!("-1"), Some(KeepAlive::Forever));
        check(json!(1e300), Some(KeepAlive::Forever));
        for wrong in [
            json!("soon"),
            json!("5x"),
            json!("5m3"),
            json!(true),
            json!("NaN"),
            json!("m"),
            json!(""),
        ] {
            check(wrong, None);
        }
    }
}
