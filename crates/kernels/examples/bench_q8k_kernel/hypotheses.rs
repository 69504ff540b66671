//! What was blamed for the slowness of the first engine, and whether it costs time here.

use crate::kernels::{Form, Kernel};
use crate::spread::Spread;
use crate::work::{Dispatch, Order, Pages, Work};
use hurtle_kernels::Isa;
use serde::Serialize;

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
pub(crate) fn plain(kernel: Kernel, pages: Pages) -> Work {
    Work::Plain { kernel, order: Order::Rows, dispatch: Dispatch::SpinPool, pages }
}

/// The instruction sets that there are kernels for on the file's layout, here, slowest first.
pub(crate) fn plain_isas() -> Vec<Isa> {
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
    for hypothesis in hypotheses() {
        for step in hypothesis.steps {
            if !all.contains(&step.work) {
                all.push(step.work);
            }
        }
    }
    for isa in Isa::available() {
        if !all.contains(&Work::Packed(isa)) {
            all.push(Work::Packed(isa));
        }
    }
    all
}

/// What can be tried on this machine.
pub(crate) fn hypotheses() -> Vec<Hypothesis> {
    let isas = plain_isas();
    let best = isas.last().copied().unwrap_or(Isa::scalar());
    let fastest = Kernel { form: Form::Q8K, isa: best, prefetch: false };
    let ahead = Kernel { prefetch: true, ..fastest };
    let rows = Work::Plain {
        kernel: fastest,
        order: Order::Rows,
        dispatch: Dispatch::SpinPool,
        pages: Pages::Small,
    };
    let tiles = Work::Plain {
        kernel: fastest,
        order: Order::Tiles,
        dispatch: Dispatch::SpinPool,
        pages: Pages::Small,
    };
    let stealing = Work::Plain {
        kernel: fastest,
        order: Order::Rows,
        dispatch: Dispatch::WorkStealing,
        pages: Pages::Small,
    };
    let step = |name: &str, work: Work| Step { name: name.to_owned(), work };

    // The widest instruction set that all forms have been written for.
    let every = |isa: &Isa| {
        Form::ALL.iter().all(|&form| Kernel { form, isa: *isa, prefetch: false }.exists())
    };
    let common = isas.iter().copied().filter(every).next_back().unwrap_or(Isa::scalar());
    let forms = Form::ALL.map(|form| Step {
        name: format!("{form} {common}"),
        work: plain(Kernel { form, isa: common, prefetch: false }, Pages::Small),
    });
    let sets = isas.iter().map(|&isa| Step {
        name: isa.to_string(),
        work: plain(Kernel { isa, ..fastest }, Pages::Small),
    });

    let mut all = vec![
        Hypothesis { name: "activation format", steps: forms.into() },
        Hypothesis {
            name: "dispatch",
            steps: vec![step("work stealing", stealing), step("spin pool", rows)],
        },
        Hypothesis { name: "tiling", steps: vec![step("rows", rows), step("L2 tiles", tiles)] },
        Hypothesis { name: "instruction set", steps: sets.collect() },
        Hypothesis {
            name: "data layout, with the pages and the prefetch that go with it",
            steps: vec![step("file's rows", rows), step("packed", Work::Packed(best))],
        },
    ];
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
            steps: vec![
                step("file's rows, prefetch, 2 MiB pages", huge),
                step("packed", Work::Packed(best)),
            ],
        });
    }
    all.retain(|hypothesis| hypothesis.steps.len() > 1);
    all
}

/// What the measurements say about a hypothesis.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    hypothesis: &'static str,
    /// Shapes where the last step is faster than the first.
    holds_for: Vec<&'static str>,
    n_shapes: usize,
    /// The medians that say so.
    evidence: String,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = match self.holds_for.as_slice() {
            [] => "does not hold".to_owned(),
            all if all.len() == self.n_shapes => "holds".to_owned(),
            some => format!("holds for {} only", some.join(", ")),
        };
        write!(f, "{}: {verdict}. {}", self.hypothesis, self.evidence)
    }
}

/// Judges by the medians of each shape, which `time(shape, work)` looks up in seconds.
pub(crate) fn judge(
    hypothesis: &Hypothesis,
    shapes: &[&'static str],
    time: impl Fn(usize, Work) -> Spread,
) -> Verdict {
    let mut holds_for = Vec::new();
    let mut evidence = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let times: Vec<Spread> = hypothesis.steps.iter().map(|s| time(i, s.work)).collect();
        let first = times[0];
        if first.is_beaten_by(&times[times.len() - 1]) {
            holds_for.push(*shape);
        }
        let steps: Vec<String> = hypothesis
            .steps
            .iter()
            .zip(&times)
            .enumerate()
            .map(|(i, (step, time))| {
                let ratio =
                    if i > 0 { format!(" ({:.2}x)", first.over(time)) } else { String::new() };
                format!("{} {:.3} ms{ratio}", step.name, time.median * 1e3)
            })
            .collect();
        evidence.push(format!("{shape}: {}", steps.join(", ")));
    }
    Verdict {
        hypothesis: hypothesis.name,
        holds_for,
        n_shapes: shapes.len(),
        evidence: evidence.join("; ") + ".",
    }
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
        let check = |times: [[f64; 2]; 2], expected: &str| {
            let time = |shape: usize, w: Work| {
                let t = times[shape][usize::from(w == work[1])];
                Spread { median: t, q1: t, q3: t, min: t, max: t }
            };
            assert_eq!(judge(&hypothesis, &["up", "down"], time).to_string(), expected);
        };
        check(
            [[0.004, 0.002], [0.003, 0.002]],
            "pages: holds. up: small 4.000 ms, huge 2.000 ms (2.00x); down: small 3.000 ms, huge 2.000 ms (1.50x).",
        );
        check(
            [[0.004, 0.002], [0.002, 0.002]],
            "pages: holds for up only. up: small 4.000 ms, huge 2.000 ms (2.00x); down: small 2.000 ms, huge 2.000 ms (1.00x).",
        );
        check(
            [[0.001, 0.002], [0.002, 0.002]],
            "pages: does not hold. up: small 1.000 ms, huge 2.000 ms (0.50x); down: small 2.000 ms, huge 2.000 ms (1.00x).",
        );
    }
}
