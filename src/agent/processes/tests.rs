use super::cgroup;
use super::kill::{kill, members_of};
use super::procfs::Process;
use super::tree::{Group, MARK, Tree};
use nix::sys::signal::Signal;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(240);
const BOOT: &str = "this boot";

#[test]
fn a_process_is_read_whatever_its_name_is() {
    let fields = "S 7 42 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
    for name in ["sleep", "a b", ") S 1 1 (", "\u{fc}"] {
        let process = Process::parse(43, format!("43 ({name}) {fields}\n").as_bytes()).expect("a process");
        assert_eq!((process.parent, process.group, process.session), (7, 42, 9), "{name}");
        assert_eq!((process.started, process.is_zombie), (12_345, false), "{name}");
    }
    assert!(Process::parse(1, b"1 (torn) S 1").is_none());
    assert!(Process::read(i32::try_from(std::process::id()).expect("a pid")).is_some());
}

fn process(pid: i32, parent: i32, group: i32, session: i32, started: u64) -> Process {
    Process { pid, parent, group, session, started, is_zombie: false }
}

/// A tree that can be found only by its group.
fn grouped(id: i32, session: i32, started: u64) -> Tree {
    let group = Group { id, session, started, boot: BOOT.into() };
    Tree { groups: vec![group], ..Tree::new(Uuid::new_v4()) }
}

// These pids are above any that the kernel assigns, so that no environment is found for them.
const A: i32 = 900_000_001;
const B: i32 = 900_000_002;
const C: i32 = 900_000_003;
const ME: i32 = 900_000_009;

#[test]
fn a_group_is_known_by_more_than_its_number() {
    let tree = [grouped(A, 7, 100)];
    let found = |processes: &[Process]| members_of(&tree, processes, BOOT, ME);
    assert_eq!(found(&[process(A, 1, A, 7, 100), process(B, A, A, 7, 120)]), [A, B]);
    assert_eq!(found(&[process(B, 1, A, 7, 120)]), [B], "its leader is gone");
    assert!(found(&[process(A, 1, A, 7, 101), process(B, 1, A, 7, 120)]).is_empty(), "another leader of that number");
    assert!(found(&[process(B, 1, A, 8, 120)]).is_empty(), "a group in another session");
    assert!(found(&[process(B, 1, A, 7, 99)]).is_empty(), "older than the group");
    assert!(members_of(&tree, &[process(A, 1, A, 7, 100)], "another boot", ME).is_empty());
    let zombie = Process { is_zombie: true, ..process(A, 1, A, 7, 100) };
    assert_eq!(found(&[zombie, process(B, 1, A, 7, 100)]), [B]);
}

#[test]
fn descendants_belong_to_it_but_the_agent_itself_never_does() {
    let tree = [grouped(A, 7, 100)];
    let processes =
        [process(C, B, C, C, 140), process(A, 1, A, 7, 100), process(B, A, B, B, 120), process(ME, A, ME, ME, 150)];
    assert_eq!(members_of(&tree, &processes, BOOT, ME), [A, B, C]);
    let mine = [process(ME, 1, A, 7, 120), process(C, ME, C, 7, 130)];
    assert!(members_of(&tree, &mine, BOOT, ME).is_empty(), "what the agent started since is not of the old run");
}

fn sleeper(environment: &[(&str, &str)]) -> Child {
    let mut command = Command::new("sleep");
    command.arg("1000").env_clear().envs(environment.iter().copied()).stdout(Stdio::null()).process_group(0);
    command.spawn().expect("a sleeping process")
}

#[test]
fn processes_are_found_by_mark_and_by_group_and_no_others_are_killed() {
    let tree = Tree::new(Uuid::new_v4());
    let mark = tree.mark.to_string();
    let mut marked = sleeper(&[("A", "b"), (MARK, &mark)]);
    let mut other = sleeper(&[(MARK, &Uuid::new_v4().to_string()), ("X", &format!("{MARK}={mark}"))]);
    let mut grouped = sleeper(&[]);
    let pid = i32::try_from(grouped.id()).expect("a pid");
    let group = Group::led_by(pid).expect("a group");
    let later = Group { started: group.started + 1, ..group.clone() };
    // Killed processes are this test's zombies until it waits for them.
    assert!(kill(&[tree.clone(), Tree { groups: vec![later], ..Tree::new(Uuid::new_v4()) }], LONG).is_empty());
    assert_eq!(marked.wait().expect("its end").signal(), Some(Signal::SIGKILL as i32));
    assert!(other.try_wait().expect("its state").is_none(), "it has another mark");
    assert!(grouped.try_wait().expect("its state").is_none(), "the number is of a later process");
    assert!(kill(&[Tree { groups: vec![group], ..tree }], LONG).is_empty());
    assert_eq!(grouped.wait().expect("its end").signal(), Some(Signal::SIGKILL as i32));
    other.kill().expect("it lives");
    other.wait().expect("its end");
}

#[test]
fn the_control_group_is_read_from_what_the_kernel_says() {
    assert_eq!(
        cgroup::own_path("4:memory:/x\n0::/system.slice/odoshi.service\n"),
        Some("/system.slice/odoshi.service")
    );
    assert_eq!(cgroup::own_path("4:memory:/x\n"), None);
    let mounts = "24 1 0:5 / /dev rw - devtmpfs udev rw\n\
        30 24 0:26 /docker/x /sys/fs/other rw shared:9 - cgroup2 cgroup2 rw\n\
        31 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
    assert_eq!(cgroup::mount_point(mounts).as_deref(), Some(std::path::Path::new("/sys/fs/cgroup")));
    assert_eq!(cgroup::mount_point("24 1 0:5 / /dev rw - devtmpfs udev rw\n"), None);
    // A path from the journal without the run's name is left alone.
    let dir = tempfile::tempdir().expect("a folder");
    let tree = Tree { cgroup: Some(dir.path().to_path_buf()), ..Tree::new(Uuid::new_v4()) };
    assert!(cgroup::kill(&tree).is_empty() && !dir.path().join("cgroup.kill").exists());
}
