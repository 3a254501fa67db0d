//! A second start of the program, in the environment in which its device is faster.

use super::args::Command;

/// Starts the program again where it is about to use a device that gains by it ([`crate::gpu::wide_vectors`]). Returns where
/// there is none, or where that failed: the device works as it is too.
pub(super) fn with_wide_vectors(command: &Command) {
    #[cfg(target_os = "linux")]
    if opens_device(command)
        && let Some(variable) = crate::gpu::wide_vectors()
    {
        again(variable);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

#[cfg(target_os = "linux")]
fn opens_device(command: &Command) -> bool {
    match command {
        Command::Finetune(_)
        | Command::FinetuneFull(_)
        | Command::Generate(_)
        | Command::Chat(_)
        | Command::Serve(_)
        | Command::Evaluate(_)
        | Command::Devices(_)
        | Command::Plan(_)
        | Command::Tune(_)
        | Command::Bench(_) => true,
        Command::Download(_)
        | Command::Data(_)
        | Command::MergeLora(_)
        | Command::Export(_)
        | Command::Validate(_)
        | Command::Init(_)
        | Command::Completions(_)
        | Command::Report(_) => false,
    }
}

/// As the process was started, by way of a loader too: `ld.so --library-path … program …`. Returns where that failed.
#[cfg(target_os = "linux")]
fn again((variable, value): (&str, &str)) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::process::CommandExt;

    let Ok(line) = std::fs::read("/proc/self/cmdline") else { return };
    // every word ends in a zero, the last one too
    let line = line.strip_suffix(&[0]).unwrap_or(&line);
    let mut words = line.split(|&byte| byte == 0).map(OsStr::from_bytes);
    let Some(name) = words.next() else { return };
    let _ = std::process::Command::new("/proc/self/exe").arg0(name).args(words).env(variable, value).exec();
}
