//! The folder: takes files from `new/` and moves them to `done/`, to `failed/` or back.

use super::files::{
    TRIES, at, first_free, in_failed, is_being_written, move_to_free_name, open_plainly, rename_no_replace, same_file,
    sync_dir, try_lock,
};
use crate::domain::problem::{Problem, ProblemKind};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// The namespace of derived ids: a random constant that must never change.
const NAMESPACE: Uuid = Uuid::from_u128(0x6a0f_3c1e_52d4_4b7a_9c43_1f0e_8d26_b957);
/// Maximum number of waiting names to remember. Remembered names don't hold up other files.
const MAX_LATER: usize = 10_000;
/// How long a file that is empty, or no complete JSON, may go on growing: somebody copies it straight into `new/`.
const SETTLE: Duration = Duration::from_secs(2);
/// Maximum number of names to remember that are not taken.
const MAX_IGNORED: usize = 1_000;
/// Bytes after which no more files are taken at a time.
pub const BYTES_AT_A_TIME: usize = 16 * 1024 * 1024;

/// The folder, and the files that this process has taken from it.
#[derive(Debug)]
pub struct Spool {
    pub(super) dir: PathBuf,
    max_body: u64,
    /// Open and locked files in `cur/`.
    held: HashMap<OsString, File>,
    /// Names in `new/` that could not be taken. They are tried again when there are too few others.
    later: HashSet<OsString>,
    /// Names in `new/` that are none of ours, and were named in the log.
    ignored: HashSet<OsString>,
    /// See [`SETTLE`].
    pub(crate) settle: Duration,
}

/// A file in `cur/`, to be stored and then passed to [`Spool::done`], [`Spool::fail`] or
/// [`Spool::give_back`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenFile {
    /// Its name, without a folder; not always UTF-8.
    pub name: OsString,
    /// Its content: at least one byte and at most `max_body` bytes, not always JSON.
    pub content: Vec<u8>,
    /// The action's id if the document has none.
    pub derived_id: Uuid,
}

/// The result of taking one file.
#[derive(Debug)]
pub enum Taken {
    /// It is in `cur/` for the caller.
    File(TakenFile),
    /// It can't be read as a file, and has been moved to `failed/`.
    Failed {
        /// Its name in `new/`.
        name: OsString,
        /// What the `.error` file says.
        problem: Problem,
    },
    /// It could not be moved or opened, for a reason outside the file (no disk space, no file
    /// descriptors). It stays in `new/`, or in `cur/` where [`Spool::recover`] finds it, and is
    /// tried again.
    Stuck {
        /// Its name.
        name: OsString,
        /// The error, with the path.
        error: io::Error,
    },
    /// It is no `*.json`, and stays where it is. Returned once for each name.
    Ignored {
        /// Its name.
        name: OsString,
    },
}

impl Spool {
    /// Opens the folder and creates what is missing (mode 0700). Files over `max_body` bytes will
    /// fail.
    pub fn open(dir: impl Into<PathBuf>, max_body: u64) -> io::Result<Self> {
        let dir = dir.into();
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(at(&dir))?;
        let device = fs::metadata(&dir).map_err(at(&dir))?.dev();
        for name in ["tmp", "new", "cur", "done", "failed"] {
            let folder = dir.join(name);
            match DirBuilder::new().mode(0o700).create(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(at(&folder)(error)),
                _ => {}
            }
            let found = fs::metadata(&folder).map_err(at(&folder))?;
            if !found.is_dir() {
                return Err(at(&folder)(ErrorKind::NotADirectory.into()));
            }
            if found.dev() != device {
                // Moves between file systems would not be renames.
                return Err(at(&folder)(ErrorKind::CrossesDevices.into()));
            }
        }
        sync_dir(&dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // Best effort: the parent may belong to another user and be unreadable. In that case
            // this process did not create it.
            let _ = sync_dir(parent);
        }
        Ok(Self::of(dir, max_body))
    }

    fn of(dir: PathBuf, max_body: u64) -> Self {
        let (held, later, ignored) = (HashMap::new(), HashSet::new(), HashSet::new());
        Self { dir, max_body, held, later, ignored, settle: SETTLE }
    }

    /// The same folder, with no files taken from it.
    pub fn reopened(&self) -> Self {
        Self { settle: self.settle, ..Self::of(self.dir.clone(), self.max_body) }
    }

    /// The folder where new files appear, to watch.
    pub fn new_dir(&self) -> PathBuf {
        self.dir.join("new")
    }

    /// Moves files that a crash left in `cur/` back to `new/`, and returns their number. Files that
    /// this or another living process works on stay. Called at the start, and by a slow timer
    /// because processes may share the spool.
    pub fn recover(&mut self) -> io::Result<usize> {
        let cur = self.dir.join("cur");
        let mut moved = 0;
        for entry in fs::read_dir(&cur).map_err(at(&cur))? {
            let name = entry.map_err(at(&cur))?.file_name();
            if self.held.contains_key(&name) || !is_for_us(&name) {
                continue;
            }
            let path = cur.join(&name);
            let lock = match open_plainly(&path) {
                Ok(file) if !try_lock(&file)? || !same_file(&file, &path) => continue,
                Ok(file) => Some(file),
                // It is not a file, or not readable, so no process can have it locked. It fails
                // when it is taken again.
                Err(_) => None,
            };
            match self.put_back(&name) {
                Ok(()) => moved += 1,
                Err(error) if vanished(&path, &error) => {}
                Err(error) => return Err(error),
            }
            drop(lock);
        }
        Ok(moved)
    }

    /// Takes up to `limit` files from `new/`, oldest first, and no more after [`BYTES_AT_A_TIME`].
    ///
    /// The work is bounded by `limit` and not by the number of files: only the first `limit` in the
    /// folder's own order are sorted. Since taken files leave the folder, each has its turn.
    pub fn take(&mut self, limit: usize) -> io::Result<Vec<Taken>> {
        let (names, ignored) = self.candidates(limit)?;
        let mut taken: Vec<Taken> = ignored.into_iter().map(|name| Taken::Ignored { name }).collect();
        let mut bytes = 0;
        for name in names {
            if bytes >= BYTES_AT_A_TIME {
                break;
            }
            let one = self.take_one(name);
            if let Some(Taken::File(file)) = &one {
                bytes += file.content.len();
            }
            taken.extend(one);
        }
        Ok(taken)
    }

    /// The action of this file is committed: moves the file to `done/` and returns its name there.
    pub fn done(&mut self, name: &OsStr) -> io::Result<OsString> {
        let moved = move_to_free_name(&self.dir.join("cur").join(name), &self.dir.join("done"), name)?;
        self.held.remove(name);
        Ok(moved)
    }

    /// This file is not a valid action: moves it to `failed/` with the problem beside it, and
    /// returns its name there.
    pub fn fail(&mut self, name: &OsStr, problem: &Problem) -> io::Result<OsString> {
        let moved = self.move_to_failed(name, problem)?;
        self.held.remove(name);
        Ok(moved)
    }

    /// The store is unavailable: moves the file back to `new/` under its own name.
    pub fn give_back(&mut self, name: &OsStr) -> io::Result<()> {
        self.put_back(name)?;
        self.held.remove(name);
        Ok(())
    }

    /// Removes up to `limit` files that were moved to `done/` or `failed/` more than `age` ago, and
    /// returns their number.
    pub fn prune(&self, age: Duration, limit: usize) -> io::Result<usize> {
        let Some(before) = SystemTime::now().checked_sub(age) else { return Ok(0) };
        let before = before.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut removed = 0;
        for folder in ["done", "failed"].map(|name| self.dir.join(name)) {
            for entry in fs::read_dir(&folder).map_err(at(&folder))? {
                if removed == limit {
                    return Ok(removed);
                }
                let path = entry.map_err(at(&folder))?.path();
                // A rename sets the change time. The modification time comes from the producer.
                let Ok(found) = fs::symlink_metadata(&path) else { continue };
                if found.is_dir() || u64::try_from(found.ctime()).unwrap_or(0) >= before {
                    continue;
                }
                match fs::remove_file(&path) {
                    Ok(()) => removed += 1,
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(at(&path)(error)),
                }
            }
        }
        Ok(removed)
    }

    /// Up to `limit` names from `new/`, oldest first; and names that are none of ours and were not met before. Names that
    /// had to wait come only if there are too few others.
    pub(super) fn candidates(&mut self, limit: usize) -> io::Result<(Vec<OsString>, Vec<OsString>)> {
        let new = self.new_dir();
        let (mut fresh, mut waiting, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        let mut entries = fs::read_dir(&new).map_err(at(&new))?;
        while fresh.len() < limit {
            let Some(entry) = entries.next() else {
                self.later = waiting.iter().cloned().collect();
                break;
            };
            let name = entry.map_err(at(&new))?.file_name();
            if !is_for_us(&name) {
                let is_hidden = name.as_bytes().starts_with(b".");
                if !is_hidden && self.ignored.len() < MAX_IGNORED && self.ignored.insert(name.clone()) {
                    ignored.push(name);
                }
                continue;
            }
            if self.later.contains(&name) { waiting.push(name) } else { fresh.push(name) }
        }
        waiting.truncate(limit - fresh.len());
        fresh.append(&mut waiting);
        let mut aged: Vec<_> = fresh
            .into_iter()
            // Without metadata the file has vanished. The claim will notice.
            .map(|name| (fs::symlink_metadata(new.join(&name)).map_or(i128::MAX, |found| modified_ns(&found)), name))
            .collect();
        aged.sort();
        Ok((aged.into_iter().map(|(_, name)| name).collect(), ignored))
    }

    /// Takes one file. `None` if another process has it, or it has vanished.
    pub(super) fn take_one(&mut self, name: OsString) -> Option<Taken> {
        let (new, cur) = (self.new_dir().join(&name), self.dir.join("cur").join(&name));
        if is_being_written(&new, self.max_body, self.settle) {
            self.wait_for(name);
            return None;
        }
        match rename_no_replace(&new, &cur) {
            Ok(()) => {}
            Err(error) if vanished(&new, &error) => return None,
            // A file of the same name is still being stored. This one waits until that one has left
            // `cur/`.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.wait_for(name);
                return None;
            }
            Err(error) => return Some(self.stuck(name, at(&cur)(error))),
        }
        let refused = match self.read(&name, &cur) {
            Ok(Some((file, taken))) => {
                self.held.insert(name, file);
                return Some(Taken::File(taken));
            }
            Ok(None) => return None,
            Err(refused) => refused,
        };
        match refused {
            Refused::Problem(problem) => match self.move_to_failed(&name, &problem) {
                Ok(_) => Some(Taken::Failed { name, problem }),
                Err(error) if vanished(&cur, &error) => None,
                Err(error) => Some(self.back_and_stuck(name, error)),
            },
            Refused::NotNow(error) => Some(self.back_and_stuck(name, at(&cur)(error))),
        }
    }

    /// Opens, locks and reads a claimed file. `None` if another process recovered it before it was
    /// locked.
    fn read(&self, name: &OsStr, path: &Path) -> Result<Option<(File, TakenFile)>, Refused> {
        let shown = name.display();
        let unreadable = |why: String| Refused::Problem(Problem::new(ProblemKind::Unreadable, why));
        // Checked before opening, because opening a device can have effects.
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(found) => return Err(unreadable(format!("{shown} is {}, not a regular file", what_it_is(&found)))),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Refused::NotNow(error)),
        }
        let mut file = match open_plainly(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(unreadable(format!("{shown} cannot be opened: {error}")));
            }
            Err(error) => return Err(Refused::NotNow(error)),
        };
        let found = file.metadata().map_err(Refused::NotNow)?;
        if !found.is_file() {
            return Err(unreadable(format!("{shown} is {}, not a regular file", what_it_is(&found))));
        }
        if !try_lock(&file).map_err(Refused::NotNow)? || !same_file(&file, path) {
            return Ok(None);
        }
        let mut content = Vec::new();
        // One byte more than allowed, because the file may have grown since its size was read.
        (&mut file).take(self.max_body.saturating_add(1)).read_to_end(&mut content).map_err(Refused::NotNow)?;
        if content.is_empty() {
            return Err(Refused::Problem(Problem::new(ProblemKind::MalformedJson, format!("{shown} is empty"))));
        }
        if content.len() as u64 > self.max_body {
            let detail = format!(
                "{shown} has {} bytes, and at most {} are allowed (http.max_body)",
                found.len().max(content.len() as u64),
                self.max_body
            );
            return Err(Refused::Problem(Problem::new(ProblemKind::TooLarge, detail)));
        }
        let derived_id = derived_id(name, &content, modified_ns(&found));
        Ok(Some((file, TakenFile { name: name.to_owned(), content, derived_id })))
    }

    fn move_to_failed(&self, name: &OsStr, problem: &Problem) -> io::Result<OsString> {
        let failed = self.dir.join("failed");
        let text = serde_json::to_vec_pretty(problem)?;
        let from = self.dir.join("cur").join(name);
        fs::symlink_metadata(&from).map_err(at(&from))?;
        for number in first_free(&failed, name, in_failed) {
            let free = in_failed(name, number);
            let mut error_name = free.clone();
            error_name.push(".error");
            let error_path = failed.join(&error_name);
            // Created before the move, and only if it is new: this also reserves the name for this
            // process.
            let mut beside = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&error_path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(at(&error_path)(error)),
            };
            let written = beside.write_all(&text).and_then(|()| beside.sync_all()).map_err(at(&error_path));
            let moved = written.and_then(|()| rename_no_replace(&from, &failed.join(&free)));
            match moved {
                Ok(()) => return sync_dir(&failed).map(|()| free),
                Err(error) => {
                    // Without its file, the `.error` would be wrong. If the removal fails too, a
                    // name is lost and nothing else.
                    let _ = fs::remove_file(&error_path);
                    if error.kind() != ErrorKind::AlreadyExists {
                        return Err(at(&from)(error));
                    }
                }
            }
        }
        Err(at(&failed)(ErrorKind::AlreadyExists.into()))
    }

    /// Moves a file from `cur/` back to `new/` under the same name. If a newer file there has that
    /// name, which no process has taken yet, the newer file is renamed first.
    fn put_back(&self, name: &OsStr) -> io::Result<()> {
        let (cur, new) = (self.dir.join("cur").join(name), self.new_dir());
        for _ in 0..TRIES {
            match rename_no_replace(&cur, &new.join(name)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                result => return result.map_err(at(&cur)),
            }
            match move_to_free_name(&new.join(name), &new, name) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Err(at(&new.join(name))(ErrorKind::AlreadyExists.into()))
    }

    fn back_and_stuck(&mut self, name: OsString, error: io::Error) -> Taken {
        // If it can't be moved back, it stays in `cur/`, where `recover` finds it.
        let _ = self.put_back(&name);
        self.stuck(name, error)
    }

    fn stuck(&mut self, name: OsString, error: io::Error) -> Taken {
        self.wait_for(name.clone());
        Taken::Stuck { name, error }
    }

    fn wait_for(&mut self, name: OsString) {
        if self.later.len() >= MAX_LATER {
            self.later.clear();
        }
        self.later.insert(name);
    }
}

/// Why the caller doesn't get a claimed file.
enum Refused {
    /// The file is invalid.
    Problem(Problem),
    /// An operation on this machine failed.
    NotNow(io::Error),
}

/// The id of an action whose document has none: a UUIDv5 of the file's name, modification time and
/// content. A rename keeps all three, so the same file is the same action however often it is
/// taken.
pub fn derived_id(name: &OsStr, content: &[u8], modified_ns: i128) -> Uuid {
    let name = name.as_bytes();
    let mut all = Vec::with_capacity(name.len() + content.len() + 24);
    // The length comes first. Otherwise bytes could move from the name to the next field and give
    // the same id.
    all.extend((name.len() as u64).to_le_bytes());
    all.extend(name);
    all.extend(modified_ns.to_le_bytes());
    all.extend(content);
    Uuid::new_v5(&NAMESPACE, &all)
}

/// Whether an operation failed because the file is gone, and not because a folder is.
fn vanished(path: &Path, error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err()
}

fn modified_ns(found: &fs::Metadata) -> i128 {
    i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec())
}

fn is_for_us(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".json") && !name.as_bytes().starts_with(b".")
}

fn what_it_is(found: &fs::Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match found.file_type() {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}
