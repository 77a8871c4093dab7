//! Schedules: which of several things happens next, all of them in turn, or drawn.

/// The variable that names one schedule to run alone.
pub(crate) const ONE: &str = "INTERLEAVING";

/// Among how many options an answer was, where that is not known.
const ANY: usize = usize::MAX;

/// Where a schedule is decided. A run asks it the same questions in the same order as long as it gets
/// the same answers, so that a sequence of answers names a schedule.
#[derive(Debug)]
pub(crate) struct Choices {
    /// What was answered, and among how many.
    taken: Vec<(usize, usize)>,
    at: usize,
    drawn: Option<fastrand::Rng>,
}

impl Choices {
    /// One of 0 up to `options`, which is left out.
    pub(crate) fn choose(&mut self, options: usize) -> usize {
        assert!(options > 0, "there is nothing to choose from");
        if self.at == self.taken.len() {
            let first = self.drawn.as_mut().map_or(0, |rng| rng.usize(..options));
            self.taken.push((first, options));
        }
        let (answer, among) = self.taken[self.at];
        assert!(
            among == options || among == ANY,
            "the run does not depend on its choices alone"
        );
        self.at += 1;
        answer
    }

    /// On to the next schedule in depth-first order; `false` if that was the last.
    fn next(&mut self) -> bool {
        self.at = 0;
        while let Some((answer, options)) = self.taken.pop() {
            if answer + 1 < options {
                self.taken.push((answer + 1, options));
                return true;
            }
        }
        false
    }
}

impl Drop for Choices {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let answers: Vec<_> = self.taken[..self.at]
                .iter()
                .map(|(answer, _)| answer.to_string())
                .collect();
            eprintln!("the schedule is INTERLEAVING={}", answers.join(","));
        }
    }
}

/// Schedules of a race that are tried in order.
const BOUND: usize = 1400;
/// And drawn ones of a race that has more.
const DRAWN: usize = 400;

/// What was looked at.
pub(crate) struct Explored {
    pub(crate) schedules: usize,
    /// There are no others.
    pub(crate) all: bool,
}

/// Runs every schedule, if there are no more than [`BOUND`]; otherwise that many in depth-first order,
/// which vary how a race ends, and some drawn ones.
///
/// `INTERLEAVINGS` multiplies both. `INTERLEAVING`, as a failure prints it, runs that one alone.
pub(crate) fn explore(mut run: impl FnMut(&mut Choices)) -> Explored {
    let fresh = |taken, drawn| Choices { taken, at: 0, drawn };
    if let Ok(answers) = std::env::var(ONE) {
        // Among how many, it does not say.
        let answers = answers.split(',').filter_map(|answer| answer.parse().ok());
        run(&mut fresh(answers.map(|answer| (answer, ANY)).collect(), None));
        return Explored {
            schedules: 1,
            all: false,
        };
    }
    let times = std::env::var("INTERLEAVINGS").ok().and_then(|times| times.parse().ok());
    let times: usize = times.unwrap_or(1);
    let mut choices = fresh(Vec::new(), None);
    for schedules in 1..=BOUND * times {
        run(&mut choices);
        if !choices.next() {
            return Explored { schedules, all: true };
        }
    }
    for seed in 0..DRAWN * times {
        run(&mut fresh(Vec::new(), Some(fastrand::Rng::with_seed(seed as u64))));
    }
    Explored {
        schedules: (BOUND + DRAWN) * times,
        all: false,
    }
}
