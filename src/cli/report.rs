//! `engraft report`: the page of a run, made again from the run's files.

use super::args::ReportArgs;
use crate::error::Error;
use crate::train::report;

/// Writes `report.html` and prints its path.
pub fn run(args: ReportArgs) -> Result<(), Error> {
    let path = report::write(&args.run_dir)?;
    println!("{}", path.display());
    Ok(())
}
