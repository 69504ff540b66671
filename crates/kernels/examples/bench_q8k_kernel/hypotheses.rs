//! What was blamed for the slowness of the first engine, and whether it costs time here.

use crate::kernels::{Form, Kernel};
use crate::spread::{Answer, Spread};
use crate::work::{Dispatch, Order, Pages, Work};
use hurtle_kernels::Isa;
use serde::Serialize;
use std::fmt;

/// A suspicion, as a path from the slow way to the fast one.
#[derive(Debug)]
pub(crate) struct Hypothesis {
    pub(crate) name: &'static str,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) work: Work,
}

/// A kernel in rows, on the spin pool.
fn plain(kernel: Kernel, pages: Pages) -> Work {
    Work::Plain { kernel, order: Order::Rows, dispatch: Dispatch::SpinPool, pages }
}

/// The instruction sets that there are kernels for on the file's layout, here, slowest first.
fn plain_isas() -> Vec<Isa> {
    let exists = |isa: &Isa| Kernel { form: Form::Q8K, isa: *isa, prefetch: false }.exists();
    Isa::available().into_iter().filter(exists).collect()
}

/// All that is timed.
pub(crate) fn all_work() -> Vec<Work> {
    let mut all = vec![Work::Read(Pages::Small), Work::Read(Pages::Huge)];
    for form in Form::ALL {
        let kernels = Isa::available().into_iter().map(|isa| Kernel { form, isa, prefetch: false });
        all.extend(kernels.filter(|k| k.exists()).map(|kernel| plain(kernel, Pages::Small)));
    }
    for step in hypotheses().into_iter().flat_map(|hypothesis| hypothesis.steps) {
        if !matches!(step.work, Work::Packed(_)) && !all.contains(&step.work) {
            all.push(step.work);
        }
    }
    all.extend(Isa::available().into_iter().map(Work::Packed));
    all
}

/// What can be tried on this machine.
pub(crate) fn hypotheses() -> Vec<Hypothesis> {
    let isas = plain_isas();
    let best = isas.last().copied().unwrap_or(Isa::scalar());
    let fastest = Kernel { form: Form::Q8K, isa: best, prefetch: false };
    let ahead = Kernel { prefetch: true, ..fastest };
    let rows = plain(fastest, Pages::Small);
    let variant =
        |order, dispatch| Work::Plain { kernel: fastest, order, dispatch, pages: Pages::Small };
    let tiles = variant(Order::Tiles, Dispatch::SpinPool);
    let stealing = variant(Order::Rows, Dispatch::WorkStealing);
    let step = |name: &str, work: Work| Step { name: name.to_owned(), work };

    // The widest instruction set that all forms have been written for.
    let every = |isa: &Isa| {
        Form::ALL.iter().all(|&form| Kernel { form, isa: *isa, prefetch: false }.exists())
    };
    let common = isas.iter().copied().rfind(every).unwrap_or(Isa::scalar());
    let forms = Form::ALL.map(|form| Step {
        name: format!("{form} {common}"),
        work: plain(Kernel { form, isa: common, prefetch: false }, Pages::Small),
    });
    let sets = |isas: &[Isa]| -> Vec<Step> {
        let kernel = |&isa| plain(Kernel { isa, ..fastest }, Pages::Small);
        isas.iter().map(|isa| step(isa.name(), kernel(isa))).collect()
    };

    let mut all = vec![
        Hypothesis { name: "activation format", steps: forms.into() },
        Hypothesis {
            name: "dispatch",
            steps: vec![step("work stealing", stealing), step("spin pool", rows)],
        },
        Hypothesis { name: "tiling", steps: vec![step("rows", rows), step("L2 tiles", tiles)] },
        Hypothesis { name: "instruction set", steps: sets(&isas) },
        Hypothesis {
            name: "the widest instruction set over the one before it",
            steps: sets(&isas[isas.len().saturating_sub(2)..]),
        },
    ];
    let packed = Work::Packed(best);
    if ahead.exists() {
        let huge = plain(ahead, Pages::Huge);
        all.push(Hypothesis {
            name: "pages and prefetch alone",
            steps: vec![
                step("file's rows", rows),
                step("prefetch", plain(ahead, Pages::Small)),
                step("and 2 MiB pages", huge),
            ],
        });
        all.push(Hypothesis {
            name: "order of the bytes alone",
            steps: vec![step("file's rows, prefetch, 2 MiB pages", huge), step("packed", packed)],
        });
    }
    all.push(Hypothesis {
        name: "data layout, with the pages and the prefetch that go with it",
        steps: vec![step("file's rows", rows), step("packed", packed)],
    });
    all.retain(|hypothesis| hypothesis.steps.len() > 1);
    all
}

/// What the measurements say about a hypothesis.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    hypothesis: &'static str,
    evidence: Vec<Evidence>,
}

/// The times of a shape on some threads.
#[derive(Debug, Serialize)]
struct Evidence {
    shape: &'static str,
    threads: usize,
    /// Whether the last step is faster than the first.
    holds: Answer,
    /// The medians that say so.
    steps: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |answer| self.evidence.iter().filter(|e| e.holds == answer).count();
        let verdict = match (n(Answer::Yes), n(Answer::No), n(Answer::Unclear)) {
            (1.., 0, 0) => "holds",
            (1.., ..) => "holds in part",
            (0, _, 1..) => "is unclear",
            (0, _, 0) => "does not hold",
        };
        write!(f, "- **{}** {verdict}", self.hypothesis)?;
        for Evidence { shape, threads, holds, steps } in &self.evidence {
            write!(f, "\n  - {shape}, threads {threads}: {steps}: {holds}")?;
        }
        Ok(())
    }
}

/// Judges by the times that `time(work, shape, threads)` looks up, where all steps have been timed.
pub(crate) fn judge(
    hypothesis: &Hypothesis,
    settings: &[(&'static str, usize)],
    time: impl Fn(Work, &'static str, usize) -> Option<Spread>,
) -> Verdict {
    let mut evidence = Vec::new();
    for &(shape, threads) in settings {
        let times = hypothesis.steps.iter().map(|step| time(step.work, shape, threads));
        let Some(times) = times.collect::<Option<Vec<_>>>() else { continue };
        let (first, last) = (times[0], times[times.len() - 1]);
        let steps = hypothesis.steps.iter().zip(&times).enumerate().map(|(i, (step, time))| {
            let ratio = if i > 0 { format!(" ({:.2}x)", first.over(time)) } else { String::new() };
            format!("{} {:.3} ms{ratio}", step.name, time.median * 1e3)
        });
        let steps = steps.collect::<Vec<_>>().join(", ");
        evidence.push(Evidence { shape, threads, holds: first.is_beaten_by(&last), steps });
    }
    Verdict { hypothesis: hypothesis.name, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_follows_from_the_times() {
        let work = [Work::Read(Pages::Small), Work::Read(Pages::Huge)];
        let step = |name: &str, work| Step { name: name.to_owned(), work };
        let hypothesis = Hypothesis {
            name: "pages",
            steps: vec![step("small", work[0]), step("huge", work[1])],
        };
        let check = |up: [f64; 2], down: [f64; 2], spread: f64, expected: &str| {
            let time = |w: Work, shape: &str, threads: usize| {
                let times = if shape == "up" { up } else { down };
                let t = times[usize::from(w == work[1])];
                let (q1, q3) = (t - spread, t + spread);
                (threads == 2).then_some(Spread { median: t, q1, q3, min: q1, max: q3 })
            };
            let verdict = judge(&hypothesis, &[("up", 1), ("up", 2), ("down", 2)], time);
            assert_eq!(verdict.to_string(), expected);
        };
        let ups = "up, threads 2: small 4.000 ms, huge 2.000 ms (2.00x)";
        let same = "down, threads 2: small 2.000 ms, huge 2.000 ms (1.00x): no";
        let down = "down, threads 2: small 3.000 ms, huge 2.000 ms (1.50x): yes";
        let slower = "up, threads 2: small 1.000 ms, huge 2.000 ms (0.50x): no";
        let unclear = "unclear, for the quartiles overlap";
        let (two, one) = ([0.004, 0.002], [0.002, 0.002]);
        check(two, [0.003, 0.002], 0.0, &format!("- **pages** holds\n  - {ups}: yes\n  - {down}"));
        check(two, one, 0.0, &format!("- **pages** holds in part\n  - {ups}: yes\n  - {same}"));
        check(two, one, 0.01, &format!("- **pages** is unclear\n  - {ups}: {unclear}\n  - {same}"));
        let neither = format!("- **pages** does not hold\n  - {slower}\n  - {same}");
        check([0.001, 0.002], one, 0.0, &neither);
    }
}
