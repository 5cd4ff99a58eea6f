//! Compaction: copies the lines that still count into a new file.

use super::append_log::Journal;
use super::entry::{Entry, State};
use super::error::JournalError;
use super::files::{io_error, options, sync_dir};
use super::record::Record;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

impl Journal {
    /// Writes the lines that still count into a new file, and replaces the journal by it.
    pub(super) fn compact(&mut self) -> Result<(), JournalError> {
        #[cfg(test)]
        if self.room.is_some() {
            return Err(io_error("write", &self.path)(std::io::ErrorKind::StorageFull.into()));
        }
        let path = self.path.with_extension("jsonl.new");
        let fail = |what| io_error(what, &path);
        let file = options().read(true).write(true).truncate(true).open(&path).map_err(fail("open"))?;
        let mut writer = BufWriter::with_capacity(64 * 1024, &file);
        let (mut index, mut len) = (self.index.clone(), 0);
        // In the file's order, so that waiting commands keep the order of their arrival.
        let mut entries: Vec<_> = index.iter_mut().collect();
        entries.sort_by_key(|(_, entry)| entry.lines.iter().flatten().map(|place| place.offset).min());
        for (run, entry) in entries {
            for place in entry.lines.iter_mut().flatten() {
                writer.write_all(&self.read(*place)?).map_err(fail("write"))?;
                place.offset = len;
                len += place.len;
            }
            if entry.state == State::Stored {
                let mut line =
                    serde_json::to_vec(&Record::Stored { run: *run }).map_err(|error| fail("write")(error.into()))?;
                line.push(b'\n');
                writer.write_all(&line).map_err(fail("write"))?;
                len += line.len() as u64;
            }
        }
        writer.flush().map_err(fail("write"))?;
        drop(writer);
        file.sync_all().map_err(fail("sync"))?;
        fs::rename(&path, &self.path).map_err(fail("rename"))?;
        // From here on the new file is the journal, even if the sync of the folder fails.
        (self.file, self.index, self.len) = (file, index, len);
        self.live = self.index.values().map(Entry::live).sum();
        self.suspect = true;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        self.suspect = false;
        Ok(())
    }
}
