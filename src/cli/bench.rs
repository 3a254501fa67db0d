use super::args::BenchTrainArgs;
use crate::error::Error;

pub fn train(_args: BenchTrainArgs) -> Result<(), Error> {
    Err(Error::input("not built yet"))
}
