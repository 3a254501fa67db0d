//! Data sets by name: the file of one, downloaded where it is not here yet.

use super::args::DataArgs;
use super::args::NamedSet;
use super::download::Report;
use crate::error::Error;
use crate::hub::{Client, FileDownload, HubOptions};
use crate::train::options::{DataOptions, OptionsError};

/// A data set that `--data` names.
pub struct NamedData {
    name: String,
    download: FileDownload,
}

impl From<(NamedSet, FileDownload)> for NamedData {
    fn from((set, download): (NamedSet, FileDownload)) -> Self {
        NamedData { name: set.to_string(), download }
    }
}

impl NamedData {
    /// The set that was named, if one was; nothing is looked at.
    ///
    /// # Errors
    /// Options that do not go with it.
    pub fn of(args: &DataArgs) -> Result<Option<Self>, OptionsError> {
        Ok(args.named()?.map(Self::from))
    }

    /// Has the file in its place, and the options read it.
    ///
    /// # Errors
    /// See [`FileDownload::run`].
    pub fn resolve(&self, options: &mut DataOptions, quiet: bool) -> Result<(), Error> {
        let (name, origin, place) = (&self.name, &self.download.origin, self.download.place());
        let report = Report::new(quiet);
        options.json_path = match self.download.here() {
            Some(file) => {
                report.line(&format!("{name} is {}", file.display()));
                file
            }
            None => {
                let client = Client::new(HubOptions::from_environment()?);
                if !client.options().offline {
                    report.line(&format!("{name} is not here: downloading {origin} to {}", place.display()));
                }
                self.download.run(&client, &|event| report.show(event))?
            }
        };
        Ok(())
    }
}
