//! Compaction: copies the lines that still count into a new file.
//!
//! While the agent runs, the copy is made without the journal's lock, and what is written meanwhile is added under it. So
//! nobody waits for a large copy.

use super::append_log::{COMPACT_ABOVE, Journal};
use super::entry::State;
use super::error::JournalError;
use super::files::{io_error, options, sync_dir};
use super::index::Index;
use super::record::Record;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A journal as it is being copied.
#[derive(Debug)]
pub(super) struct Compaction {
    /// The file that is copied, up to `len`.
    from: File,
    from_path: PathBuf,
    len: u64,
    /// What is known at that length.
    index: Index,
    /// The journal's number of replacements.
    replaced: u64,
    path: PathBuf,
}

/// The copy.
#[derive(Debug)]
pub(super) struct Copy {
    file: File,
    path: PathBuf,
    /// The length of the new file, which stands for `through` bytes of the old one.
    len: u64,
    through: u64,
    /// Where the lines are in the new file, by their offsets in the old one.
    places: HashMap<u64, u64>,
    replaced: u64,
}

impl Compaction {
    /// Copies the lines that count. Of a copy that fails, nothing is left.
    pub(super) fn copy(self) -> Result<Copy, JournalError> {
        let path = self.path.clone();
        self.write().inspect_err(|_| drop(fs::remove_file(path)))
    }

    fn write(self) -> Result<Copy, JournalError> {
        let fail = |what| io_error(what, &self.path);
        let file = options().read(true).write(true).truncate(true).open(&self.path).map_err(fail("open"))?;
        let mut writer = BufWriter::with_capacity(64 * 1024, &file);
        let (mut places, mut len) = (HashMap::new(), 0);
        // In the file's order, so that waiting commands keep the order of their arrival.
        let mut entries: Vec<_> = self.index.entries.iter().collect();
        entries.sort_by_key(|(_, entry)| entry.lines.iter().flatten().map(|place| place.offset).min());
        for (run, entry) in entries {
            for place in entry.lines.iter().flatten() {
                let mut line = vec![0; usize::try_from(place.len).unwrap_or(usize::MAX)];
                self.from.read_exact_at(&mut line, place.offset).map_err(io_error("read", &self.from_path))?;
                writer.write_all(&line).map_err(fail("write"))?;
                places.insert(place.offset, len);
                len += place.len;
            }
            let more = match entry.state {
                State::Stored => Record::Stored { run: *run },
                State::Forgotten if entry.lines == [None, None] => {
                    Record::Forgotten { run: *run, expires_at: entry.expires_at }
                }
                _ => continue,
            };
            let mut line = serde_json::to_vec(&more).map_err(|error| fail("write")(error.into()))?;
            line.push(b'\n');
            writer.write_all(&line).map_err(fail("write"))?;
            len += line.len() as u64;
        }
        writer.flush().map_err(fail("write"))?;
        drop(writer);
        file.sync_all().map_err(fail("sync"))?;
        Ok(Copy { file, path: self.path, len, through: self.len, places, replaced: self.replaced })
    }
}

impl Journal {
    /// Begins a compaction, if one pays, and no other is under way.
    pub(super) fn begin_compaction(&mut self) -> Option<Compaction> {
        if self.is_copying || self.suspect || !std::mem::take(&mut self.pays) {
            return None;
        }
        match self.compaction("jsonl.copy") {
            Ok(begun) => {
                self.is_copying = true;
                Some(begun)
            }
            Err(error) => {
                self.compaction_failed(&error);
                None
            }
        }
    }

    /// A failure costs only space, and is tried again when the file has grown.
    fn compaction_failed(&mut self, error: &JournalError) {
        log::warn!(error:%; "the journal could not be compacted");
        self.pays = false;
        self.pays_above = self.len + COMPACT_ABOVE / 4;
    }

    fn compaction(&self, extension: &str) -> Result<Compaction, JournalError> {
        #[cfg(test)]
        if self.room.is_some() {
            return Err(io_error("write", &self.path)(std::io::ErrorKind::StorageFull.into()));
        }
        Ok(Compaction {
            from: self.file.try_clone().map_err(io_error("open", &self.path))?,
            from_path: self.path.clone(),
            len: self.len,
            index: self.index().clone(),
            replaced: self.replaced,
            path: self.path.with_extension(extension),
        })
    }

    /// Writes the lines that still count into a new file, and replaces the journal by it.
    pub(super) fn compact(&mut self) -> Result<(), JournalError> {
        self.pays = false;
        let copy = self.compaction("jsonl.new")?.copy()?;
        self.replace(copy)
    }

    /// Adds to a copy what was written since it was begun, and replaces the journal by it. Drops it if the journal was
    /// replaced meanwhile, or what the file holds is not known.
    pub(super) fn finish_compaction(&mut self, copy: Result<Copy, JournalError>) {
        self.is_copying = false;
        let finished = copy.and_then(|copy| {
            if copy.replaced != self.replaced || self.suspect {
                return fs::remove_file(&copy.path).map_err(io_error("remove", &copy.path));
            }
            self.replace(copy)
        });
        if let Err(error) = finished {
            self.compaction_failed(&error);
        }
    }

    /// Adds to the copy what was written since it was begun. Returns how much that is.
    fn add_tail(&self, copy: &Copy) -> Result<u64, JournalError> {
        let fail = |what| io_error(what, &copy.path);
        let mut tail = vec![0; usize::try_from(self.len - copy.through).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut tail, copy.through).map_err(io_error("read", &self.path))?;
        if !tail.is_empty() {
            copy.file.write_all_at(&tail, copy.len).map_err(fail("write"))?;
            copy.file.sync_data().map_err(fail("sync"))?;
        }
        fs::rename(&copy.path, &self.path).map_err(fail("rename"))?;
        Ok(tail.len() as u64)
    }

    fn replace(&mut self, copy: Copy) -> Result<(), JournalError> {
        let added = self.add_tail(&copy).inspect_err(|_| drop(fs::remove_file(&copy.path)))?;
        let Copy { file, len, through, places, .. } = copy;
        // From here on the new file is the journal, even if the sync of the folder fails.
        self.file = file;
        self.len = len + added;
        self.replaced += 1;
        (self.pays, self.pays_above) = (false, 0);
        let mut index = self.index_mut();
        for place in index.entries.values_mut().flat_map(|entry| entry.lines.iter_mut().flatten()) {
            place.offset = match places.get(&place.offset) {
                Some(offset) => *offset,
                // It was written after the copy was begun.
                None => len + (place.offset - through),
            };
        }
        index.recount();
        drop(index);
        self.suspect = true;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        self.suspect = false;
        Ok(())
    }
}
