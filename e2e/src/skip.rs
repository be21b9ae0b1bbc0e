//! Tests that a machine cannot run.

use std::fmt::Display;
use std::fs::File;
use std::io::Write as _;

/// The variable that names a file for what was skipped.
const VARIABLE: &str = "CORACLE_E2E_SKIPPED";

/// Says that the test that runs, or a part of it, is skipped, and why: to its output, and with its name to the file that
/// `CORACLE_E2E_SKIPPED` names, since nobody is shown the output of a test that passes.
pub fn skip(why: impl Display) {
    eprintln!("skipped: {why}");
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    let line = format!("{}: {why}\n", std::thread::current().name().unwrap_or("a test"));
    let file = File::options().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
