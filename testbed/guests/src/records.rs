//! A user who writes down what was promised to him: numbered records, each on the disk before the next is begun.

use crate::Result;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

/// Appends records to a file for as long as that works, and says each number once its record is acknowledged.
pub(crate) fn write(file: &Path) -> Result<()> {
    let said = |error: std::io::Error| format!("writing {}: {error}.", file.display());
    let mut records = File::options().create(true).append(true).open(file).map_err(said)?;
    let mut stdout = std::io::stdout();
    for number in 1_u64.. {
        records.write_all(format!("{number}\n").as_bytes()).map_err(said)?;
        records.sync_all().map_err(said)?;
        writeln!(stdout, "{number}").and_then(|()| stdout.flush()).map_err(said)?;
    }
    Ok(())
}
