//! `ORG/NAME`, the name of a model on the Hub, with a revision where that is not `main`: `ORG/NAME@REVISION`.

use super::HubError;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A model on the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    organisation: String,
    name: String,
    /// A branch, a tag or a commit.
    revision: String,
}

/// The branch that is meant where none is named.
const MAIN: &str = "main";

impl ModelName {
    /// The same model at another revision.
    ///
    /// # Errors
    /// A revision that is none.
    pub fn at(self, revision: &str) -> Result<Self, HubError> {
        match is_revision(revision) {
            true => Ok(ModelName { revision: revision.to_owned(), ..self }),
            false => Err(HubError::BadName { name: format!("{self}@{revision}") }),
        }
    }

    /// `ORG/NAME`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.organisation, self.name)
    }

    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The folder of this model in the folder of all models. Each revision has its own.
    pub fn folder(&self) -> PathBuf {
        let name = match self.revision.as_str() {
            MAIN => self.name.clone(),
            // a slash is a path's, and no name has two dashes
            revision => format!("{}@{}", self.name, revision.replace('/', "--")),
        };
        [&self.organisation, &name].iter().collect()
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl FromStr for ModelName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let bad = || HubError::BadName { name: text.to_owned() };
        let (model, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (organisation, name) = model.split_once('/').ok_or_else(bad)?;
        match is_part(organisation) && is_part(name) && is_revision(revision) {
            true => Ok(ModelName {
                organisation: organisation.to_owned(),
                name: name.to_owned(),
                revision: revision.to_owned(),
            }),
            false => Err(bad()),
        }
    }
}

/// As the Hub has it: letters, digits, `-`, `_` and `.`, but not at an end; no `--` or `..`.
fn is_part(part: &str) -> bool {
    let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let edge = |c: char| c == '-' || c == '.';
    plain
        && (1..=96).contains(&part.len())
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

fn is_revision(revision: &str) -> bool {
    revision.len() <= 255 && revision.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for (text, folder) in [
            ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
            ("a/b_c.d@main", "a/b_c.d"),
            ("a/b@v1.0", "a/b@v1.0"),
            ("a/b@refs/pr/12", "a/b@refs--pr--12"),
        ] {
            let name: ModelName = text.parse().unwrap();
            assert_eq!(name.folder(), folder.split('/').collect::<PathBuf>());
        }
        for text in [
            "model", "/a/b", "a/b/c", "./a", "../a", "a/..", "a/.b", "a/", "/a", "a b/c", "a/b@", "a/b@../c",
            "a/b--c", "a\\b/c", "~/model",
        ] {
            assert!(text.parse::<ModelName>().is_err(), "{text}");
        }
        let name: ModelName = "a/b@x".parse().unwrap();
        assert_eq!((name.to_string(), name.repository().as_str()), ("a/b@x".into(), "a/b"));
        assert_eq!(name.clone().at("main").unwrap().to_string(), "a/b");
        assert!(name.at("a//b").is_err());
    }
}
