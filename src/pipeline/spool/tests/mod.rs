mod processes;

use super::*;
use crate::domain::problem::{Problem, ProblemKind};
use nix::unistd::mkfifo;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const MAX: u64 = 100;

fn spool() -> (TempDir, Spool) {
    let dir = tempfile::tempdir().expect("a folder");
    let spool = open(dir.path().join("spool"));
    (dir, spool)
}

/// One that waits for no file to settle.
fn open(dir: impl Into<PathBuf>) -> Spool {
    let mut spool = Spool::open(dir, MAX).expect("opens");
    spool.settle = Duration::ZERO;
    spool
}

fn put(spool: &Spool, name: impl AsRef<OsStr>, content: &str) -> PathBuf {
    let path = spool.dir.join("new").join(name.as_ref());
    fs::write(&path, content).expect("written");
    path
}

fn files(taken: Vec<Taken>) -> Vec<TakenFile> {
    let one = |taken| match taken {
        Taken::File(file) => file,
        other => panic!("not a file to store: {other:?}"),
    };
    taken.into_iter().map(one).collect()
}

fn take_files(spool: &mut Spool) -> Vec<TakenFile> {
    files(spool.take(usize::MAX).expect("taken"))
}

fn names(spool: &Spool, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(spool.dir.join(folder)).expect("listed");
    let mut names: Vec<_> = entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Takes the one file in `new/`, which must fail, and returns what is beside it in `failed/`.
fn failure(spool: &mut Spool) -> Problem {
    let mut taken = spool.take(10).expect("taken");
    let Some(Taken::Failed { name, problem }) = taken.pop() else { panic!("not failed: {taken:?}") };
    assert!(taken.is_empty() && names(spool, "new").is_empty() && names(spool, "cur").is_empty());
    let error = spool.dir.join("failed").join(format!("{}.error", name.display()));
    assert_eq!(serde_json::from_slice::<Problem>(&fs::read(error).expect("read")).expect("a problem"), problem);
    assert!(fs::symlink_metadata(spool.dir.join("failed").join(name)).is_ok(), "what failed is kept");
    problem
}

#[test]
fn folders_that_are_missing_are_made_for_the_owner_alone() {
    let (_dir, spool) = spool();
    for name in ["", "tmp", "new", "cur", "done", "failed"] {
        assert_eq!(fs::metadata(spool.dir.join(name)).expect("made").permissions().mode() & 0o777, 0o700, "{name}");
    }
    fs::remove_dir(spool.dir.join("cur")).expect("removed");
    fs::write(spool.dir.join("cur"), "").expect("written");
    assert!(Spool::open(&spool.dir, MAX).expect_err("not a folder").to_string().contains("cur"));
}

#[test]
fn a_file_goes_from_new_over_cur_to_done() {
    let (_dir, mut spool) = spool();
    put(&spool, "a.json", "{}");
    let taken = take_files(&mut spool);
    assert_eq!((taken[0].name.as_os_str(), taken[0].content.as_slice()), (OsStr::new("a.json"), b"{}".as_slice()));
    assert_eq!((names(&spool, "new").len(), names(&spool, "cur").len()), (0, 1));
    assert_eq!(spool.done(&taken[0].name).expect("moved"), "a.json");
    assert_eq!((names(&spool, "cur").len(), names(&spool, "done").len()), (0, 1));
    assert!(take_files(&mut spool).is_empty());
}

#[test]
fn older_files_are_taken_first_and_no_more_than_asked_for() {
    let (_dir, mut spool) = spool();
    let now = SystemTime::now();
    for (name, age) in [("a.json", 1), ("b.json", 3), ("c.json", 2)] {
        let file = File::options().write(true).open(put(&spool, name, "{}")).expect("opened");
        file.set_modified(now - Duration::from_secs(age)).expect("set");
    }
    let order: Vec<_> = take_files(&mut spool).into_iter().map(|file| file.name).collect();
    assert_eq!(order, ["b.json", "c.json", "a.json"]);
    for number in 0..5 {
        put(&spool, format!("{number}.json"), "{}");
    }
    assert_eq!([2, 2, 2, 0].map(|_| files(spool.take(2).expect("taken")).len()), [2, 2, 1, 0]);
    assert!(spool.take(0).expect("nothing").is_empty());
}

#[test]
fn hidden_files_and_other_endings_are_left_alone() {
    let (_dir, mut spool) = spool();
    for name in [".a.json", "a.json.tmp", "json", "a.JSON"] {
        put(&spool, name, "{}");
    }
    let taken = spool.take(10).expect("nothing");
    assert!(taken.iter().all(|taken| matches!(taken, Taken::Ignored { .. })), "{taken:?}");
    assert_eq!(names(&spool, "new").len(), 4);
}

#[test]
fn empty_and_too_large_files_fail_by_name() {
    let (_dir, mut spool) = spool();
    put(&spool, "empty.json", "");
    assert!(failure(&mut spool).detail.contains("empty.json is empty"));
    put(&spool, "large.json", &"x".repeat(101));
    let problem = failure(&mut spool);
    assert_eq!((problem.status, problem.detail.contains("large.json has 101 bytes")), (413, true), "{problem}");
    put(&spool, "just.json", &"x".repeat(100));
    // Truncated JSON and bytes that are not text are for the caller to judge.
    put(&spool, "truncated.json", "{\"name\": \"x");
    fs::write(spool.dir.join("new/latin.json"), b"{\"name\": \"\xe9\"}").expect("written");
    assert_eq!(take_files(&mut spool).len(), 3);
}

#[test]
fn what_is_not_a_regular_file_fails_and_is_not_followed() {
    let (dir, mut spool) = spool();
    let secret = dir.path().join("secret.json");
    fs::write(&secret, "{}").expect("written");
    symlink(&secret, spool.dir.join("new/link.json")).expect("linked");
    assert!(failure(&mut spool).detail.contains("link.json is a symbolic link"));
    fs::create_dir(spool.dir.join("new/folder.json")).expect("made");
    assert!(failure(&mut spool).detail.contains("folder.json is a directory"));
    // Without a writer, a plain open of the FIFO would never return.
    mkfifo(&spool.dir.join("new/fifo.json"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    assert!(failure(&mut spool).detail.contains("fifo.json is a FIFO"));
    let socket = std::os::unix::net::UnixListener::bind(spool.dir.join("new/socket.json")).expect("bound");
    assert!(failure(&mut spool).detail.contains("socket.json is a socket"));
    drop(socket);
    assert_eq!(fs::read_to_string(&secret).expect("still there"), "{}");
}

#[test]
fn a_name_taken_in_done_or_failed_gets_a_suffix_and_so_does_its_error() {
    let (_dir, mut spool) = spool();
    for round in 0..4 {
        put(&spool, "x.json", &format!("{round}"));
        let file = take_files(&mut spool).remove(0);
        spool.done(&file.name).expect("moved");
        put(&spool, "x.json", &format!("{round}"));
        let file = take_files(&mut spool).remove(0);
        spool.fail(&file.name, &Problem::new(ProblemKind::InvalidDocument, format!("{round}"))).expect("moved");
    }
    assert_eq!(names(&spool, "done"), ["x.1.json", "x.2.json", "x.3.json", "x.json"]);
    for (name, content) in [("x.json", "0"), ("x.1.json", "1"), ("x.2.json", "2"), ("x.3.json", "3")] {
        assert_eq!(fs::read_to_string(spool.dir.join("done").join(name)).expect("read"), content);
        assert_eq!(fs::read_to_string(spool.dir.join("failed").join(name)).expect("read"), content);
        let error = fs::read(spool.dir.join("failed").join(format!("{name}.error"))).expect("beside");
        assert_eq!(serde_json::from_slice::<Problem>(&error).expect("a problem").detail, content);
    }
    // A stray `.error` file of an earlier crash occupies its name.
    fs::write(spool.dir.join("failed/y.json.error"), "old").expect("written");
    put(&spool, "y.json", "");
    spool.take(1).expect("taken");
    assert!(names(&spool, "failed").contains(&"y.1.json".to_owned()), "{:?}", names(&spool, "failed"));
    assert_eq!(fs::read_to_string(spool.dir.join("failed/y.json.error")).expect("kept"), "old");
}

#[test]
fn names_that_are_not_utf_8_or_as_long_as_they_can_be_work() {
    let (_dir, mut spool) = spool();
    let latin = OsString::from_vec(b"caf\xe9.json".to_vec());
    let long = OsString::from(format!("{}.json", "é".repeat(125)));
    for name in [&latin, &long] {
        for done in [true, true, false, false] {
            put(&spool, name, "{}");
            let file = take_files(&mut spool).remove(0);
            assert_eq!(&file.name, name);
            let moved =
                if done { spool.done(name) } else { spool.fail(name, &Problem::new(ProblemKind::Internal, "")) };
            assert!(moved.expect("moved").as_bytes().ends_with(b".json"));
        }
    }
    assert_eq!((names(&spool, "done").len(), names(&spool, "failed").len()), (4, 8));
    assert!(names(&spool, "failed").iter().any(|name| name.ends_with("é.1.json.error")), "cut between characters");
}

/// Waits until files can be recovered, and returns their number. A child process that another test
/// starts holds this process's files and locks until it executes its program.
#[allow(clippy::disallowed_methods, reason = "no arbiter runs here")]
fn soon_recovered(spool: &mut Spool) -> usize {
    let started = std::time::Instant::now();
    loop {
        match spool.recover().expect("recovered") {
            0 if started.elapsed().as_secs() < 60 => std::thread::sleep(std::time::Duration::from_millis(20)),
            files => return files,
        }
    }
}

/// Takes so many files whose locks were released just now. A child that another test has just started may hold them for a
/// little longer: then they stay in `cur/`, and are found again.
#[allow(clippy::disallowed_methods, reason = "no arbiter runs here")]
fn take_soon(spool: &mut Spool, count: usize) -> Vec<TakenFile> {
    let started = std::time::Instant::now();
    let mut taken = take_files(spool);
    while taken.len() < count && started.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        spool.recover().expect("recovered");
        taken.extend(take_files(spool));
    }
    taken
}

#[test]
fn the_same_file_has_the_same_id_however_often_it_is_taken() {
    let (_dir, mut spool) = spool();
    put(&spool, "a.json", "{}");
    let first = take_files(&mut spool);
    spool.give_back(&first[0].name).expect("given back");
    assert_eq!(take_soon(&mut spool, 1), first);
    // A crash: the locks are gone, and the file is in `cur/`.
    let mut after = open(&spool.dir);
    drop(spool);
    assert_eq!(soon_recovered(&mut after), 1);
    assert_eq!(take_soon(&mut after, 1), first);

    let id = derived_id(OsStr::new("ab"), b"c", 1);
    assert_eq!(id, derived_id(OsStr::new("ab"), b"c", 1));
    for other in [derived_id(OsStr::new("a"), b"bc", 1), derived_id(OsStr::new("ab"), b"c", 2)] {
        assert_ne!(id, other);
    }
    assert_eq!(id.get_version_num(), 5);
}

#[test]
fn a_file_that_goes_back_keeps_its_name_and_a_newcomer_makes_way() {
    let (_dir, mut spool) = spool();
    put(&spool, "x.json", "first");
    let first = take_files(&mut spool).remove(0);
    put(&spool, "x.json", "second");
    assert!(take_files(&mut spool).is_empty(), "it waits until the name is free in cur/");
    spool.give_back(&first.name).expect("given back");
    assert_eq!(names(&spool, "new"), ["x.1.json", "x.json"]);
    let again = take_soon(&mut spool, 2);
    assert!(again.contains(&first) && again.iter().any(|file| file.content == b"second"));
    for file in again {
        spool.done(&file.name).expect("moved");
    }
    assert_eq!(names(&spool, "done"), ["x.1.json", "x.json"]);
}

#[test]
fn what_a_living_process_holds_is_not_recovered_by_another() {
    let (_dir, mut one) = spool();
    put(&one, "x.json", "{}");
    let mut other = open(&one.dir);
    take_files(&mut one);
    assert_eq!((other.recover().expect("looked"), one.recover().expect("looked")), (0, 0));
    drop(one);
    assert_eq!(soon_recovered(&mut other), 1);
    fs::create_dir(other.dir.join("cur/folder.json")).expect("made");
    assert_eq!(other.recover().expect("recovered"), 1);
    assert!(names(&other, "cur").is_empty());
}

#[test]
fn a_move_that_fails_leaves_the_file_and_is_an_error() {
    let (_dir, mut spool) = spool();
    put(&spool, "x.json", "{}");
    let file = take_files(&mut spool).remove(0);
    for folder in ["done", "failed"] {
        fs::remove_dir(spool.dir.join(folder)).expect("removed");
    }
    spool.done(&file.name).expect_err("no place");
    spool.fail(&file.name, &Problem::new(ProblemKind::Internal, "")).expect_err("no place");
    assert_eq!(names(&spool, "cur"), ["x.json"]);
    fs::create_dir(spool.dir.join("done")).expect("made");
    spool.done(&file.name).expect("now");
    // A file that should fail but can't be moved is reported, stays, and doesn't block other files.
    put(&spool, "empty.json", "");
    let taken = spool.take(1).expect("taken");
    assert!(matches!(&taken[..], [Taken::Stuck { name, .. }] if name == "empty.json"), "{taken:?}");
    assert_eq!(names(&spool, "new"), ["empty.json"]);
    put(&spool, "good.json", "{}");
    assert_eq!(files(spool.take(1).expect("taken"))[0].name, "good.json");
    fs::create_dir(spool.dir.join("failed")).expect("made");
    assert!(matches!(spool.take(1).expect("taken")[..], [Taken::Failed { .. }]));
}

#[test]
fn files_that_vanish_between_listing_and_claiming_are_nobodys() {
    let (_dir, mut spool) = spool();
    put(&spool, "stays.json", "{}");
    let gone = put(&spool, "gone.json", "{}");
    let (listed, _) = spool.candidates(10).expect("listed");
    fs::remove_file(gone).expect("removed");
    let taken = listed.into_iter().filter_map(|name| spool.take_one(name)).collect();
    assert_eq!(files(taken).len(), 1);
    spool.done(OsStr::new("gone.json")).expect_err("never taken");
}

#[test]
fn ten_thousand_files_at_once_are_taken_in_bounded_steps() {
    let (_dir, mut spool) = spool();
    for number in 0..10_000 {
        put(&spool, format!("{number}.json"), "{}");
    }
    let mut seen = HashSet::new();
    loop {
        let taken = files(spool.take(250).expect("taken"));
        if taken.is_empty() {
            break;
        }
        assert!(taken.len() <= 250);
        for file in taken {
            spool.done(&file.name).expect("moved");
            assert!(seen.insert(file.name), "taken twice");
        }
    }
    assert_eq!((seen.len(), names(&spool, "done").len()), (10_000, 10_000));
}

#[test]
fn of_large_files_a_few_are_taken_at_a_time() {
    const SIZE: usize = 4 * 1024 * 1024;
    let dir = tempfile::tempdir().expect("a folder");
    let mut spool = Spool::open(dir.path().join("spool"), SIZE as u64).expect("opens");
    for number in 0..10 {
        put(&spool, format!("{number}.json"), &format!("\"{}\"", "x".repeat(SIZE - 2)));
    }
    let sizes: Vec<usize> = (0..4).map(|_| take_files(&mut spool).len()).collect();
    assert_eq!(sizes, [4, 4, 2, 0]);
}

#[test]
fn without_renameat2_nothing_is_overwritten_either() {
    let (dir, _spool) = spool();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for is_dir in [false, true] {
        let make = |path: &Path| if is_dir { fs::create_dir(path) } else { fs::write(path, "") };
        make(&from).expect("made");
        make(&to).expect("made");
        let error = files::rename_by_link(&from, &to).expect_err("taken");
        assert_eq!((error.kind(), from.exists()), (ErrorKind::AlreadyExists, true));
        if is_dir { fs::remove_dir(&to) } else { fs::remove_file(&to) }.expect("removed");
        files::rename_by_link(&from, &to).expect("free");
        assert_eq!((from.exists(), to.exists()), (false, true));
        if is_dir { fs::remove_dir(&to) } else { fs::remove_file(&to) }.expect("removed");
    }
}

#[test]
fn old_files_in_done_and_failed_are_removed() {
    let (_dir, mut spool) = spool();
    put(&spool, "a.json", "{}");
    put(&spool, "b.json", "");
    for taken in spool.take(10).expect("taken") {
        if let Taken::File(file) = taken {
            spool.done(&file.name).expect("moved");
        }
    }
    assert_eq!(spool.prune(Duration::from_secs(3600), 10).expect("none"), 0);
    for name in ["done/a.json", "failed/b.json", "failed/b.json.error"] {
        assert!(spool.dir.join(name).exists(), "{name}");
    }
    assert_eq!(spool.prune(Duration::from_secs(u64::MAX), 10).expect("none"), 0);
}

#[test]
fn a_file_that_somebody_copies_into_the_folder_is_taken_when_it_is_complete() {
    let (_dir, mut spool) = spool();
    spool.settle = Duration::from_secs(3_600);
    let path = put(&spool, "copied.json", "");
    assert!(take_files(&mut spool).is_empty(), "empty");
    fs::write(&path, "{\"name\":").expect("written");
    assert!(take_files(&mut spool).is_empty(), "a part");
    let whole = "\u{FEFF}{\"name\":1}\n";
    fs::write(&path, whole).expect("written");
    assert_eq!(take_files(&mut spool)[0].content, whole.as_bytes());
    // It is given up when it has not changed for long.
    let torn = put(&spool, "torn.json", "{");
    assert!(take_files(&mut spool).is_empty());
    assert!(torn.exists(), "it stays where it is, under its name");
    spool.settle = Duration::ZERO;
    // The first take after a wait is for others.
    let taken: Vec<Taken> = (0..2).flat_map(|_| spool.take(usize::MAX).expect("taken")).collect();
    assert!(matches!(&taken[..], [Taken::File(file)] if file.content == b"{"), "{taken:?}");
}

#[test]
fn what_is_no_json_file_is_named_once_and_left_alone() {
    let (_dir, mut spool) = spool();
    let paths = ["notes.txt", "a.JSON", "b.json.tmp"].map(|name| put(&spool, name, "x"));
    put(&spool, ".hidden", "x");
    let named = |taken: Vec<Taken>| {
        let name = |taken| match taken {
            Taken::Ignored { name } => name.into_string().expect("UTF-8"),
            other => panic!("{other:?}"),
        };
        let mut names: Vec<String> = taken.into_iter().map(name).collect();
        names.sort();
        names
    };
    assert_eq!(named(spool.take(10).expect("taken")), ["a.JSON", "b.json.tmp", "notes.txt"]);
    assert!(named(spool.take(10).expect("taken")).is_empty());
    assert!(paths.iter().all(|path| path.exists()));
}
