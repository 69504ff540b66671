//! `/set parameter` and `/show parameters`: Ollama's names and llama.cpp's.
use hurtle_engine::GenerationParams;
use std::fmt::Write as _;

/// Where a parameter is kept.
enum Field<'a> {
    F32(&'a mut f32),
    I32(&'a mut i32),
    U8(&'a mut u8),
    /// -1: another one each time.
    Seed(&'a mut Option<u64>),
    /// -1: no limit.
    Limit(&'a mut Option<usize>),
    /// Each value is added; `none` removes all.
    Texts(&'a mut Vec<String>),
}

/// Every parameter: Ollama's name, llama.cpp's if it is another one, and its place.
fn fields(params: &mut GenerationParams) -> [(&'static str, &'static str, Field<'_>); 24] {
    let s = &mut params.sampler;
    [
        ("temperature", "temp", Field::F32(&mut s.temp)),
        ("top_k", "", Field::I32(&mut s.top_k)),
        ("top_p", "", Field::F32(&mut s.top_p)),
        ("min_p", "", Field::F32(&mut s.min_p)),
        ("typical_p", "typical", Field::F32(&mut s.typical_p)),
        ("top_n_sigma", "top_nsigma", Field::F32(&mut s.top_n_sigma)),
        ("xtc_probability", "", Field::F32(&mut s.xtc_probability)),
        ("xtc_threshold", "", Field::F32(&mut s.xtc_threshold)),
        ("dynatemp_range", "", Field::F32(&mut s.dynatemp_range)),
        ("dynatemp_exponent", "dynatemp_exp", Field::F32(&mut s.dynatemp_exponent)),
        ("repeat_last_n", "", Field::I32(&mut s.repeat_last_n)),
        ("repeat_penalty", "", Field::F32(&mut s.repeat_penalty)),
        ("presence_penalty", "", Field::F32(&mut s.presence_penalty)),
        ("frequency_penalty", "", Field::F32(&mut s.frequency_penalty)),
        ("dry_multiplier", "", Field::F32(&mut s.dry_multiplier)),
        ("dry_base", "", Field::F32(&mut s.dry_base)),
        ("dry_allowed_length", "", Field::I32(&mut s.dry_allowed_length)),
        ("dry_penalty_last_n", "", Field::I32(&mut s.dry_penalty_last_n)),
        ("mirostat", "", Field::U8(&mut s.mirostat)),
        ("mirostat_tau", "mirostat_ent", Field::F32(&mut s.mirostat_tau)),
        ("mirostat_eta", "mirostat_lr", Field::F32(&mut s.mirostat_eta)),
        ("seed", "", Field::Seed(&mut s.seed)),
        ("num_predict", "predict", Field::Limit(&mut params.n_predict)),
        ("stop", "reverse_prompt", Field::Texts(&mut params.stop)),
    ]
}

/// Sets the parameter `name`, if that makes sense; else nothing is changed and the error says why.
pub(super) fn set(params: &mut GenerationParams, name: &str, value: &str) -> Result<(), String> {
    let plain = name.trim_start_matches('-').replace('-', "_");
    if matches!(plain.as_str(), "num_ctx" | "ctx_size") {
        return Err(
            "the context is made when the model is loaded: leave, and start with --ctx-size N"
                .into(),
        );
    }
    let mut changed = params.clone();
    let field = fields(&mut changed)
        .into_iter()
        .find(|(ollama, llama, _)| plain == *ollama || (!llama.is_empty() && plain == *llama));
    let Some((_, _, field)) = field else {
        return Err(format!("no parameter is called '{name}'; /show parameters lists them"));
    };
    let wrong = |expected: &str| format!("{name}: expected {expected}, found '{value}'");
    match field {
        Field::F32(place) => *place = value.parse().map_err(|_| wrong("a number"))?,
        Field::I32(place) => *place = value.parse().map_err(|_| wrong("a whole number"))?,
        Field::U8(place) => *place = value.parse().map_err(|_| wrong("a small whole number"))?,
        Field::Seed(place) => {
            let number: i64 = value.parse().map_err(|_| wrong("a whole number"))?;
            *place = u64::try_from(number).ok();
        }
        Field::Limit(place) => {
            let number: i64 = value.parse().map_err(|_| wrong("a whole number"))?;
            *place = usize::try_from(number).ok();
        }
        Field::Texts(place) if value == "none" => place.clear(),
        Field::Texts(place) => {
            let text = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            if text.is_empty() {
                return Err(wrong("a text"));
            }
            place.push(text.to_owned());
        }
    }
    changed.sampler.validate().map_err(|e| e.to_string())?;
    *params = changed;
    Ok(())
}

/// One line for each parameter.
pub(super) fn show(params: &GenerationParams) -> String {
    let mut params = params.clone();
    let mut out = String::new();
    for (name, _, field) in fields(&mut params) {
        let value = match field {
            Field::F32(x) => x.to_string(),
            Field::I32(x) => x.to_string(),
            Field::U8(x) => x.to_string(),
            Field::Seed(x) => x.map_or("-1".into(), |n| n.to_string()),
            Field::Limit(x) => x.map_or("-1".into(), |n| n.to_string()),
            Field::Texts(x) if x.is_empty() => "none".into(),
            Field::Texts(x) => x.iter().map(|t| format!("{t:?}")).collect::<Vec<_>>().join(" "),
        };
        let _ = writeln!(out, "{name:<20} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hurtle_engine::sampler::SamplerParams;

    fn defaults() -> GenerationParams {
        let sampler = SamplerParams::default();
        GenerationParams { sampler, ..GenerationParams::default() }
    }

    #[test]
    fn parameters_are_set_by_either_name() {
        let mut params = defaults();
        for (name, value) in [
            ("temperature", "0.5"),
            ("--top-k", "7"),
            ("mirostat", "2"),
            ("seed", "42"),
            ("num_predict", "10"),
            ("stop", "\"a b\""),
            ("stop", "c"),
        ] {
            assert_eq!(set(&mut params, name, value), Ok(()), "{name}");
        }
        let s = &params.sampler;
        assert_eq!((s.temp, s.top_k, s.mirostat, s.seed), (0.5, 7, 2, Some(42)));
        assert_eq!((params.n_predict, &*params.stop), (Some(10), &["a b".into(), "c".into()][..]));
        let shown = show(&params);
        assert!(shown.contains("temperature          0.5\n"), "{shown}");
        assert!(shown.contains("stop                 \"a b\" \"c\"\n"), "{shown}");

        assert_eq!(set(&mut params, "predict", "-1"), Ok(()));
        assert_eq!(set(&mut params, "seed", "-1"), Ok(()));
        assert_eq!(set(&mut params, "stop", "none"), Ok(()));
        assert_eq!((params.n_predict, params.sampler.seed, params.stop.len()), (None, None, 0));
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let mut params = defaults();
        for (name, value, expected) in [
            ("warmth", "1", "no parameter is called 'warmth'"),
            ("temp", "hot", "expected a number, found 'hot'"),
            ("temp", "nan", "found NaN"),
            ("top_p", "1.5", "found 1.5"),
            ("mirostat", "3", "found 3"),
            ("top_k", "1.5", "a whole number"),
            ("stop", "\"\"", "a text"),
            ("num_ctx", "4096", "--ctx-size"),
        ] {
            let message = set(&mut params, name, value).expect_err(name);
            assert!(message.contains(expected), "{name}: {message}");
        }
        assert_eq!(show(&params), show(&defaults()));
    }
}
