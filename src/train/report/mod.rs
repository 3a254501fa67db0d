//! `report.html`: a run as one page that needs nothing but itself, made from the files in the run's folder.
//!
//! The page is a template (`page.html`, escaped as HTML by minijinja) with its style sheet and script inside; charts are SVG from
//! `chart.rs`. It is written at evaluations and when the run's logs are closed, however the run ended.

mod chart;
mod page;

use super::logging::{METRICS_FILE, MetricsError, Record, Sink};
use crate::checkpoint::atomic;
use crate::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name of the page in the run's folder.
pub const REPORT_FILE: &str = "report.html";

/// Of the time of a run, writing the page takes no more than one part in so many.
const SHARE: u32 = 50;

/// Makes the page of a run again from its files; gives its path.
///
/// # Errors
/// A folder without a run, files that cannot be read or written.
pub fn write(run_dir: &Path) -> Result<PathBuf, Error> {
    if !run_dir.join(METRICS_FILE).is_file() {
        return Err(Error::input(format!(
            "{}: no folder of a run, there is no {METRICS_FILE} in it; give the --out_dir of a finetune command",
            run_dir.display()
        )));
    }
    let path = run_dir.join(REPORT_FILE);
    write_page(run_dir).map_err(|source| Error::Write { path: path.clone(), source })?;
    Ok(path)
}

fn write_page(run_dir: &Path) -> io::Result<()> {
    let html = page::render(run_dir)?;
    atomic::write_file(&run_dir.join(REPORT_FILE), |out| out.write_all(html.as_bytes()))
}

/// Writes the page while a run is under way, and when it ends.
pub(super) struct Report {
    run_dir: PathBuf,
    /// When the page was written last, and how long that took.
    last: Option<(Instant, Duration)>,
    /// Samples came after it.
    samples: bool,
}

impl Report {
    pub fn new(run_dir: &Path) -> Self {
        Report { run_dir: run_dir.to_path_buf(), last: None, samples: false }
    }
}

impl Sink for Report {
    /// After an evaluation, and once more with its samples; but for those that follow too closely for a page of this size.
    fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        let early = self.last.is_some_and(|(when, took)| when.elapsed() < took * SHARE);
        let due = record.get("val_loss").is_some() || (self.samples && record.get("loss").is_some());
        self.samples |= record.get("prompt").is_some();
        if early || !due {
            return Ok(());
        }
        let start = Instant::now();
        let written = write_page(&self.run_dir);
        self.last = Some((Instant::now(), start.elapsed()));
        written.map_err(MetricsError::write(&self.run_dir.join(REPORT_FILE)))?;
        self.samples = false;
        Ok(())
    }
}

impl Drop for Report {
    /// The end of a run, also of one that failed or was stopped. An error here must not hide that of the run; the page can be made
    /// again.
    fn drop(&mut self) {
        let _ = write_page(&self.run_dir);
    }
}
