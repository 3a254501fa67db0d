use super::args::DevicesArgs;
use crate::error::Error;

pub fn run(_args: DevicesArgs) -> Result<(), Error> {
    Err(Error::input("not built yet"))
}
