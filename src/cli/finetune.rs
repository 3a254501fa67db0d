use super::args::{FinetuneArgs, FinetuneFullArgs};
use crate::error::Error;

pub fn lora(_args: FinetuneArgs, _quiet: bool) -> Result<(), Error> {
    Err(Error::input("not built yet"))
}

pub fn full(_args: FinetuneFullArgs, _quiet: bool) -> Result<(), Error> {
    Err(Error::input("not built yet"))
}
