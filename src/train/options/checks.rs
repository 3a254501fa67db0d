//! Checks of options that need no file and no device, and what they say.

use super::RecomputeKind;
use crate::autograd::Recompute;
use crate::data::PromptStyle;
use crate::train::trainer::SMALLEST_BUCKET;
use std::fmt;
use std::path::Path;
use thiserror::Error;

/// Options that cannot be run, all of them.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{}", list(problems))]
pub struct OptionsError {
    pub problems: Vec<OptionProblem>,
}

/// One option that cannot be run.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{option}{}: {allowed}", said(given))]
pub struct OptionProblem {
    /// As it is typed: `--batch_size`.
    pub option: &'static str,
    /// Empty for one that was left out.
    pub given: String,
    /// What is allowed.
    pub allowed: String,
}

fn said(given: &str) -> String {
    if given.is_empty() { String::new() } else { format!(" {given}") }
}

/// Collects problems, so that a user sees all of them at once.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(super) problems: Vec<OptionProblem>,
}

impl Checks {
    pub(crate) fn require(
        &mut self,
        holds: bool,
        option: &'static str,
        given: impl fmt::Display,
        allowed: impl Into<String>,
    ) {
        if !holds {
            self.problems.push(OptionProblem { option, given: given.to_string(), allowed: allowed.into() });
        }
    }

    pub(crate) fn at_least(&mut self, option: &'static str, given: usize, least: usize) {
        self.require(given >= least, option, given, format!("must be at least {least}"));
    }

    /// A count that may be left out; `without` says what that means.
    pub(crate) fn optional_count(&mut self, option: &'static str, given: Option<usize>, without: &str) {
        if given == Some(0) {
            self.require(false, option, 0, format!("must be at least 1; leave it out {without}"));
        }
    }

    pub(crate) fn positive(&mut self, option: &'static str, given: f64) {
        self.require(given.is_finite() && given > 0.0, option, given, "must be a finite number above 0");
    }

    pub(crate) fn not_negative(&mut self, option: &'static str, given: f64) {
        self.require(given.is_finite() && given >= 0.0, option, given, "must be a finite number, 0 or above");
    }

    pub(crate) fn below_one(&mut self, option: &'static str, given: f64) {
        self.require((0.0..1.0).contains(&given), option, given, "must be at least 0 and below 1");
    }

    pub(crate) fn prompt_style(&mut self, option: &'static str, given: &str) {
        if let Err(unknown) = given.parse::<PromptStyle>() {
            self.require(false, option, given, unknown.to_string());
        }
    }

    pub(crate) fn offload_activations(&mut self, given: bool, recompute: RecomputeKind) {
        let without = [Recompute::None, Recompute::Selective].map(RecomputeKind::Policy);
        self.require(
            !given || !without.contains(&recompute),
            "--offload_activations",
            given,
            "keeps what blocks are made again from; give --recompute layer, every-N or auto",
        );
    }

    pub(crate) fn mlp_chunks(&mut self, given: usize) {
        let most = SMALLEST_BUCKET;
        let allowed = format!("must be 1 to {most}: the smallest micro-batch is planned as {most} tokens");
        self.require((1..=most).contains(&given), "--mlp_chunks", given, allowed);
    }

    pub(crate) fn path(&mut self, option: &'static str, given: &Path) {
        self.require(!given.as_os_str().is_empty(), option, "", "must be given");
    }

    /// The run's files name it, and they are text.
    pub(crate) fn utf8(&mut self, option: &'static str, given: &Path) {
        let allowed = "must be a path of valid UTF-8: hyperparameters.json holds it as text";
        self.require(given.to_str().is_some(), option, given.display(), allowed);
    }

    pub(crate) fn finish(self) -> Result<(), OptionsError> {
        if self.problems.is_empty() { Ok(()) } else { Err(OptionsError { problems: self.problems }) }
    }
}

pub(super) fn check_max_seq_length(checks: &mut Checks, length: Option<usize>) {
    if let Some(length) = length {
        checks.require(
            length >= 2,
            "--max_seq_length",
            length,
            "must be at least 2: a token and the one that follows",
        );
    }
}

pub(super) fn check_gpu(checks: &mut Checks, gpu: Option<&str>) {
    checks.require(
        gpu.is_none_or(|name| !name.trim().is_empty()),
        "--gpu",
        "\"\"",
        "must be a name or an index; `engraft devices` lists them",
    );
}

fn list(problems: &[OptionProblem]) -> String {
    match problems {
        [one] => one.to_string(),
        many => {
            let lines: String = many.iter().map(|problem| format!("\n  {problem}")).collect();
            format!("{} options cannot be used:{lines}", many.len())
        }
    }
}
