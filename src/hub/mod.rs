//! Models and data sets by name: found on this machine, or downloaded from the Hugging Face Hub.
//!
//! A download is a folder like any other, and nothing but this room knows that it came from the Hub. Beside the files it
//! has a folder `.engraft` with the record of what was downloaded, the lock of whoever is downloading, and parts of
//! files that are not whole yet.

mod client;
mod download;
mod error;
mod fetch;
mod file;
mod listing;
mod name;
mod place;

pub use client::{Client, HubOptions};
pub use download::{Download, DownloadEvent, Outcome, WeightFiles};
pub use error::HubError;
pub use file::{FileDownload, FileOrigin};
pub use listing::{Digest, Listing, RemoteFile};
pub use name::{RepoKind, RepoName};
pub use place::{downloaded, downloaded_model, is_remote, model_folder, models_folder};
