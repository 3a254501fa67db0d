use super::args::GenerateArgs;
use crate::error::Error;

pub fn run(_args: GenerateArgs) -> Result<(), Error> {
    Err(Error::input("not built yet"))
}
