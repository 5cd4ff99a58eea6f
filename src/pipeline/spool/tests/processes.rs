//! What takes a process of its own: another user, limits of the whole process, and two that race.

use super::*;
use nix::unistd::{Gid, Uid, chown};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Set in processes that a test starts from its own binary.
const CHILD: &str = "ODOSHI_SPOOL_TEST_CHILD";

fn start_child(test: &str, arguments: &[&Path], uid: Option<u32>) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", &format!("pipeline::spool::tests::processes::{test}")]).env(CHILD, "1").current_dir("/");
    for (index, argument) in arguments.iter().enumerate() {
        command.env(format!("{CHILD}_{index}"), argument);
    }
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.spawn().expect("started")
}

fn run_child(test: &str, arguments: &[&Path], uid: Option<u32>) {
    assert!(start_child(test, arguments, uid).wait().expect("ended").success(), "{test} failed");
}

fn argument(index: usize) -> Option<PathBuf> {
    std::env::var_os(format!("{CHILD}_{index}")).map(PathBuf::from)
}

#[test]
fn a_file_that_may_not_be_read_fails() {
    const NOBODY: u32 = 65_534;
    let (dir, spool) = spool();
    fs::set_permissions(put(&spool, "closed.json", "{}"), fs::Permissions::from_mode(0o000)).expect("set");
    if Uid::effective().is_root() {
        // Root may read everything, so the test needs another user.
        let folders = ["", "tmp", "new", "cur", "done", "failed", "new/closed.json"].map(|name| spool.dir.join(name));
        for path in folders.iter().map(PathBuf::as_path).chain([dir.path()]) {
            chown(path, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY))).expect("changed");
        }
        run_child("child_that_may_not_read", &[&spool.dir], Some(NOBODY));
    } else {
        run_child("child_that_may_not_read", &[&spool.dir], None);
    }
    assert_eq!(names(&spool, "failed"), ["closed.json", "closed.json.error"], "the child did run");
}

/// The body of [`a_file_that_may_not_be_read_fails`], as a user who is not root.
#[test]
fn child_that_may_not_read() {
    let Some(dir) = argument(0) else { return };
    assert!(!Uid::effective().is_root());
    let problem = failure(&mut open(dir));
    assert!(problem.detail.contains("closed.json cannot be opened"), "{problem}");
}

#[test]
fn of_two_processes_only_one_takes_each_file() {
    let (dir, spool) = spool();
    for number in 0..1_000 {
        put(&spool, format!("{number}.json"), "{}");
    }
    let lists = ["one", "two"].map(|name| dir.path().join(name));
    let children = lists.each_ref().map(|list| start_child("child_that_races", &[&spool.dir, list], None));
    for mut child in children {
        assert!(child.wait().expect("ended").success());
    }
    let mut taken: Vec<String> = Vec::new();
    for list in lists {
        taken.extend(fs::read_to_string(list).expect("the child did run").lines().map(str::to_owned));
    }
    let different: HashSet<_> = taken.iter().collect();
    assert_eq!((taken.len(), different.len(), names(&spool, "done").len()), (1_000, 1_000, 1_000));
}

/// One of the two processes of [`of_two_processes_only_one_takes_each_file`].
#[test]
fn child_that_races() {
    let (Some(dir), Some(list)) = (argument(0), argument(1)) else { return };
    let mut spool = open(dir);
    let mut list = File::create(list).expect("made");
    while !names(&spool, "new").is_empty() {
        spool.recover().expect("nothing is left behind, and what the other holds stays");
        for file in files(spool.take(7).expect("taken")) {
            writeln!(list, "{}", file.name.display()).expect("written");
            spool.done(&file.name).expect("moved");
        }
    }
}

#[test]
fn a_full_disk_leaves_the_file_where_it_is() {
    // Only a privileged process in its own namespace could mount a small disk. A limit on file size
    // has the same effect on the code: the `.error` file can't be written.
    run_child("child_with_no_room", &[], None);
}

/// The body of [`a_full_disk_leaves_the_file_where_it_is`], in its own process because limits apply
/// to a whole process.
#[test]
fn child_with_no_room() {
    use nix::sys::{resource, signal};
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let (_dir, mut spool) = spool();
    put(&spool, "x.json", "{}");
    let file = take_files(&mut spool).remove(0);
    let mut ignored = signal::SigSet::empty();
    ignored.add(signal::Signal::SIGXFSZ);
    ignored.thread_block().expect("blocked");
    let (_, hard) = resource::getrlimit(resource::Resource::RLIMIT_FSIZE).expect("read");
    resource::setrlimit(resource::Resource::RLIMIT_FSIZE, 0, hard).expect("set");
    let failed = spool.fail(&file.name, &Problem::new(ProblemKind::Internal, "no room"));
    resource::setrlimit(resource::Resource::RLIMIT_FSIZE, hard, hard).expect("set");
    failed.expect_err("no room");
    assert_eq!((names(&spool, "cur").len(), names(&spool, "failed").len()), (1, 0));
    spool.fail(&file.name, &Problem::new(ProblemKind::Internal, "room")).expect("now");
}
