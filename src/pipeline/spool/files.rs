//! Moves that never overwrite, and the search for free names.

use crate::domain::text::bytes_without_mark;
use serde::de::IgnoredAny;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How often a move is tried while other processes take the same names.
pub(super) const TRIES: usize = 1_000;
/// The longest file name of Linux' file systems, in bytes.
const MAX_NAME: usize = 255;
/// The ending of the file beside a file in `failed/`.
const ERROR_ENDING: usize = ".error".len();

/// Adds the path to an I/O error.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Makes the entries of a folder durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

/// Whether this process has the lock now. True as well on a file system without locks.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if matches!(error.raw_os_error(), Some(code) if has_no_locks(code)) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// `EBADF`: to lock a file, NFS wants it open for writing.
fn has_no_locks(code: i32) -> bool {
    use nix::errno::Errno;
    [Errno::EBADF, Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EINVAL, Errno::ENOLCK].contains(&Errno::from_raw(code))
}

/// Whether `path` still names the open file.
pub(super) fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Renames. Fails with `AlreadyExists` if anything exists at `to`.
pub(super) fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::errno::Errno;
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            // This file system or kernel doesn't know the flag.
            Err(Errno::EINVAL | Errno::ENOSYS) => {}
            result => return result.map_err(io::Error::from),
        }
    }
    rename_by_link(from, to)
}

/// The same by a hard link, which fails if the name is taken. A folder, or a file system without
/// links, is checked first and then renamed.
pub(super) fn rename_by_link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from).inspect_err(|error| {
            if error.kind() != ErrorKind::NotFound {
                // The move failed. With a second name, other processes would see a second file.
                let _ = fs::remove_file(to);
            }
        }),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => Err(error),
        Err(_) => match fs::symlink_metadata(to) {
            Ok(_) => Err(ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => fs::rename(from, to),
            Err(error) => Err(error),
        },
    }
}

/// Moves `from` into `dir` under `name`, or with the first free suffix. Returns the name.
pub(super) fn move_to_free_name(from: &Path, dir: &Path, name: &OsStr) -> io::Result<OsString> {
    for number in first_free(dir, name, suffixed) {
        let free = suffixed(name, number);
        match rename_no_replace(from, &dir.join(&free)) {
            Ok(()) => return Ok(free),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at(from)(error)),
        }
    }
    Err(at(&dir.join(name))(ErrorKind::AlreadyExists.into()))
}

/// Numbers to try, starting at what seems to be the first free one. It is found by doubling and
/// halving, since a producer may use one name for all of its files.
pub(super) fn first_free(dir: &Path, name: &OsStr, naming: fn(&OsStr, u64) -> OsString) -> std::ops::Range<u64> {
    let taken = |number| fs::symlink_metadata(dir.join(naming(name, number))).is_ok();
    let (mut below, mut free) = (0, 0);
    while taken(free) {
        below = free;
        free = (free * 2).max(1);
    }
    while free > below + 1 {
        let middle = below + (free - below) / 2;
        if taken(middle) { below = middle } else { free = middle }
    }
    free..free + TRIES as u64
}

/// `x.json`, `x.1.json`, `x.2.json`, ….
pub(super) fn suffixed(name: &OsStr, number: u64) -> OsString {
    fitting(name, number, MAX_NAME)
}

/// The same, with room for the `.error` file's name.
pub(super) fn in_failed(name: &OsStr, number: u64) -> OsString {
    fitting(name, number, MAX_NAME - ERROR_ENDING)
}

fn fitting(name: &OsStr, number: u64, room: usize) -> OsString {
    let bytes = name.as_bytes();
    let stem = bytes.strip_suffix(b".json").unwrap_or(bytes);
    let ending = match number {
        0 => ".json".to_owned(),
        _ => format!(".{number}.json"),
    };
    let mut length = stem.len().min(room - ending.len());
    // Don't cut within a UTF-8 character.
    while length < stem.len() && length > 0 && stem[length] & 0xC0 == 0x80 {
        length -= 1;
    }
    OsString::from_vec([&stem[..length], ending.as_bytes()].concat())
}

/// Whether somebody seems to be writing a file where it is: it has changed less than `settle` ago, and is not complete. Its
/// writer may not have set its mode yet either.
pub(super) fn is_being_written(path: &Path, max_body: u64, settle: Duration) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    let (seconds, nanos) = (u64::try_from(found.ctime()), u32::try_from(found.ctime_nsec()));
    let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0));
    let is_fresh = SystemTime::now().duration_since(changed).is_ok_and(|age| age < settle);
    if !is_fresh || !found.is_file() || found.len() > max_body {
        return false;
    }
    let mut content = Vec::new();
    match open_plainly(path).and_then(|file| file.take(max_body).read_to_end(&mut content)) {
        Ok(_) => serde_json::from_slice::<IgnoredAny>(bytes_without_mark(&content)).is_err(),
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

/// Follows no link, and doesn't wait for the other end of a FIFO. The standard library sets
/// `O_CLOEXEC`.
pub(super) fn open_plainly(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}
