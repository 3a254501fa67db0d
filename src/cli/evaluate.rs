use super::args::EvaluateArgs;
use crate::error::Error;

pub fn run(_args: EvaluateArgs, _quiet: bool) -> Result<(), Error> {
    Err(Error::input("not built yet"))
}
