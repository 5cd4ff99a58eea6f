//! A PostgreSQL server of the tests' own: on a free port of loopback, in a temporary folder, as a user without privileges.
//!
//! It is watched over by a small shell that ends it when the test's process is gone, however that went.

#![allow(dead_code, reason = "each crate of tests uses a part of it")]

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, chown};
use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What connections show. It has what URLs need percent-encoded, and must never be seen in a log.
pub const PASSWORD: &str = "pass word/7";
/// The same in a URL.
const PASSWORD_IN_URL: &str = "pass%20word%2F7";
/// A start or a stop that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(240);

/// Ends the server when its input ends, and removes its folder if it is told to.
const WATCH: &str = r#"
"$1" -D "$2" >>"$3" 2>&1 </dev/null &
server=$!
read -r last_words
kill -INT "$server" 2>/dev/null
wait "$server"
[ "$last_words" = keep ] || rm -rf "$4"
"#;

/// A port that is free and stays so over a restart: below those that the system gives to connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 100) as u16 * 100;
    (0..10_000)
        .map(|_| 20_000 + (start - 20_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one of ten thousand ports is free")
}

/// Who runs what root may not run: the user of Debian's package, or nobody.
pub fn unprivileged() -> Option<(u32, u32)> {
    if !Uid::effective().is_root() {
        return None;
    }
    let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    let user = user.expect("a user without privileges");
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// The newest PostgreSQL's programs, and its version.
fn installed() -> (PathBuf, u32) {
    let version = |path: &Path| path.file_name().and_then(OsStr::to_str).and_then(|name| name.parse::<u32>().ok());
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = installed.filter(|path| path.join("bin/postgres").exists()).max_by_key(|path| version(path));
    let newest = newest.expect("PostgreSQL is installed (scripts/test does it)");
    (newest.join("bin"), version(&newest).unwrap_or_default())
}

fn programs() -> PathBuf {
    installed().0
}

/// A process's state and its parent, while it is there.
fn state_of(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have anything in it.
    let mut after_name = stat.rsplit(')').next()?.split_whitespace();
    Some((after_name.next()?.chars().next()?, after_name.next()?.parse().ok()?))
}

/// The processes that this one has started and that are there.
fn children_of(parent: i32) -> impl Iterator<Item = i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(move |pid| state_of(*pid).is_some_and(|(_, its)| its == parent))
}

/// The library that gives processes another wall clock (`scripts/test` installs it). Its folder is the architecture's.
fn libfaketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path().join("faketime"));
    let mut libraries = folders.map(|folder| folder.join("libfaketime.so.1")).filter(|library| library.exists());
    libraries.next().expect("libfaketime is installed (scripts/test does it)")
}

/// A server, and how it is reached. It is stopped, and its folder removed, when it is dropped.
pub struct Cluster {
    folder: PathBuf,
    pub port: u16,
    /// Its wall clock can be set.
    has_own_clock: bool,
    watch: Mutex<Option<Child>>,
}

impl Cluster {
    /// Makes and starts one. `settings` are lines of `postgresql.conf`.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(&std::env::temp_dir(), settings)
    }

    /// The same, with its folder in this one.
    pub fn start_in(parent: &Path, settings: &[&str]) -> Self {
        let cluster = Self::prepare_in(parent, settings, false);
        cluster.resume();
        cluster
    }

    /// One whose wall clock can be set, see [`set_clock`](Self::set_clock).
    pub fn start_with_own_clock(settings: &[&str]) -> Self {
        let cluster = Self::prepare_in(&std::env::temp_dir(), settings, true);
        cluster.set_clock(0);
        cluster.resume();
        cluster
    }

    fn prepare_in(parent: &Path, settings: &[&str], has_own_clock: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("odoshi-postgres-").tempdir_in(parent).unwrap().keep();
        let cluster = Self { folder, port: free_port(), has_own_clock, watch: Mutex::default() };
        cluster.make(settings);
        cluster
    }

    /// Sets its wall clock so many seconds away from this machine's, all at once. Its processes see that within a second, not
    /// all at the same moment.
    pub fn set_clock(&self, seconds: i64) {
        assert!(self.has_own_clock);
        // By a rename: nobody reads half of it.
        let (new, file) = (self.folder.join("clock.new"), self.clock());
        fs::write(&new, format!("{seconds:+}s\n")).unwrap();
        fs::rename(new, file).unwrap();
    }

    fn clock(&self) -> PathBuf {
        self.folder.join("clock")
    }

    /// A copy of this one as it is at this moment, taken while it is used, as an operator's backup is; not started.
    pub fn base_backup(&self) -> Self {
        let folder =
            tempfile::Builder::new().prefix("odoshi-postgres-").tempdir_in(std::env::temp_dir()).unwrap().keep();
        if let Some((uid, gid)) = unprivileged() {
            chown(&folder, Some(uid.into()), Some(gid.into())).unwrap();
        }
        let copy = Self { folder, port: free_port(), has_own_clock: false, watch: Mutex::default() };
        let mut backup = self.program("pg_basebackup");
        backup.env("PGPASSWORD", PASSWORD).args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "odoshi"]);
        let made = backup.args(["-c", "fast", "-X", "stream", "-D"]).arg(copy.data()).output().unwrap();
        assert!(made.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&made.stderr));
        copy.append(
            "postgresql.conf",
            &format!("port = {}\nunix_socket_directories = '{}'\n", copy.port, copy.folder.display()),
        );
        copy
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(programs().join(name));
        if let Some((uid, gid)) = unprivileged() {
            command.uid(uid).gid(gid);
        }
        // Programs that look for a user's own files find none.
        command.current_dir(&self.folder).env("HOME", &self.folder).stdin(Stdio::null());
        command
    }

    fn make(&self, settings: &[&str]) {
        let password = self.folder.join("password");
        fs::write(&password, PASSWORD).unwrap();
        if let Some((uid, gid)) = unprivileged() {
            for path in [&self.folder, &password] {
                chown(path, Some(uid.into()), Some(gid.into())).unwrap();
            }
        }
        // Its own order of texts is a language's: that texts are compared bytewise must not depend on it.
        let mut initdb = self.program("initdb");
        initdb.arg("-D").arg(self.data()).args(["-U", "odoshi", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8"]);
        if installed().1 >= 15 {
            initdb.args(["--locale-provider=icu", "--icu-locale=en-US"]);
        }
        initdb.args(["--locale=C.UTF-8", "--pwfile"]).arg(&password);
        let made = initdb.output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        // A process that is killed needs no disk to have written its pages: only a machine that falls does.
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nmax_connections = 1000\n\
             max_locks_per_transaction = 10\n\
             fsync = off\nfull_page_writes = off\nshared_buffers = 256MB\nmax_wal_size = 4GB\n",
            self.port,
            self.folder.display()
        );
        text.extend(settings.iter().map(|line| format!("{line}\n")));
        self.append("postgresql.conf", &text);
    }

    /// Adds to a file of its configuration; read at its next start.
    pub fn append(&self, file: &str, text: &str) {
        let path = self.data().join(file);
        fs::write(&path, fs::read_to_string(&path).unwrap() + text).unwrap();
    }

    /// Puts a file beside its configuration, for the server alone to read; answers its path.
    pub fn put(&self, file: &str, text: &str) -> PathBuf {
        let path = self.data().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        if let Some((uid, gid)) = unprivileged() {
            chown(&path, Some(uid.into()), Some(gid.into())).unwrap();
        }
        path
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the server has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Starts it, if it is stopped, and waits until it can be used.
    pub fn resume(&self) {
        let mut running = self.watch.lock().unwrap();
        if running.is_some() {
            return;
        }
        let mut watch = Command::new("sh");
        if let Some((uid, gid)) = unprivileged() {
            watch.uid(uid).gid(gid);
        }
        watch.args(["-c", WATCH, "watch"]).arg(programs().join("postgres")).arg(self.data());
        watch.arg(self.folder.join("log")).arg(&self.folder).current_dir("/").process_group(0);
        watch.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        if self.has_own_clock {
            // Durations are real ones: only the wall clock is set. Read anew each second, and not at each look.
            watch.env("LD_PRELOAD", libfaketime()).env("FAKETIME_TIMESTAMP_FILE", self.clock());
            watch.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_CACHE_DURATION", "1");
        }
        *running = Some(watch.spawn().unwrap());
        let started = Instant::now();
        let port = self.port.to_string();
        while !self.program("pg_isready").args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success() {
            assert!(started.elapsed() < PATIENCE, "PostgreSQL does not start: {}", self.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Stops it as an operator does: connections are ended, nothing is lost.
    pub fn stop(&self) {
        self.end("keep\n");
    }

    fn end(&self, last_words: &str) {
        let Some(mut watch) = self.watch.lock().unwrap().take() else { return };
        let mut input = watch.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, last_words.as_bytes()).unwrap();
        drop(input);
        watch.wait().unwrap();
    }

    /// `kill -9` on the server and all that belongs to it; it can be resumed. A server doesn't start beside a process of
    /// the one before, and such a process may outlive it by as long as its statement takes: it waits until all are gone.
    pub fn kill(&self) {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let pid: i32 = pid.lines().next().unwrap().trim().parse().unwrap();
        let send = |pid: i32, signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        // Stopped first, so that it starts none meanwhile.
        send(pid, Signal::SIGSTOP).unwrap();
        let all: Vec<i32> = children_of(pid).chain([pid]).collect();
        all.iter().for_each(|pid| {
            send(*pid, Signal::SIGKILL).ok();
        });
        self.stop();
        let started = Instant::now();
        // Of one that nobody has waited for yet, only its number is left.
        while all.iter().any(|pid| state_of(*pid).is_some_and(|(state, _)| state != 'Z')) {
            assert!(started.elapsed() < PATIENCE, "processes of PostgreSQL outlive their end");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// The CPU time that its processes have taken that still run, and those before them that it has waited for.
    pub fn cpu(&self) -> Duration {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let pid: i32 = pid.lines().next().unwrap().trim().parse().unwrap();
        let ticks = |pid: i32, fields: std::ops::Range<usize>| -> u64 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields =
                stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(fields.start).take(fields.len());
            fields.filter_map(|field| field.parse::<u64>().ok()).sum()
        };
        // utime and stime; of the server itself also those of the children that have ended.
        let all: u64 = children_of(pid).map(|child| ticks(child, 11..13)).sum::<u64>() + ticks(pid, 11..15);
        Duration::from_millis(all * 10)
    }

    /// Removes what is left of one that was killed and is not to come back.
    pub fn bury(&self) {
        assert!(self.watch.lock().unwrap().is_none(), "it runs");
        fs::remove_dir_all(&self.folder).unwrap();
    }

    /// Where a database of it is.
    pub fn url(&self, database: &str) -> String {
        self.url_through(self.port, database)
    }

    /// Where it is through something that listens on another port.
    pub fn url_through(&self, port: u16, database: &str) -> String {
        format!("postgres://odoshi:{PASSWORD_IN_URL}@127.0.0.1:{port}/{database}")
    }

    /// What `psql` answers to a query, a line per row, columns separated by `|`.
    pub fn psql(&self, database: &str, query: &str) -> String {
        self.try_psql(database, query).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// The same; the error is what psql says.
    pub fn try_psql(&self, database: &str, query: &str) -> Result<String, String> {
        let mut psql = self.client("psql", database);
        let output = psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", query]).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// One of PostgreSQL's own clients, about to be run on a database.
    pub fn client(&self, program: &str, database: &str) -> Command {
        let mut command = self.program(program);
        command.env("PGPASSWORD", PASSWORD);
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "odoshi", "-d", database]);
        command
    }

    /// A fresh, empty database; answers its name.
    pub fn database(&self) -> String {
        self.database_like("template0")
    }

    /// A fresh, empty database in another encoding than the server's own; answers its name.
    pub fn database_in(&self, encoding: &str) -> String {
        self.new_database(&format!("ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"))
    }

    /// A copy of a database that nobody is connected to.
    pub fn database_like(&self, template: &str) -> String {
        self.new_database(&format!("TEMPLATE {template}"))
    }

    fn new_database(&self, how: &str) -> String {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", MADE.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name} {how}"));
        name
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.watch.lock().unwrap().is_none() {
            fs::remove_dir_all(&self.folder).ok();
        }
        self.end("\n");
    }
}

/// One of a test's own, which it may stop. It goes with the process.
pub fn own(settings: &[&str]) -> &'static Cluster {
    Box::leak(Box::new(Cluster::start(settings)))
}

/// One of a test's own whose wall clock it may set. It goes with the process.
pub fn own_with_clock() -> &'static Cluster {
    Box::leak(Box::new(Cluster::start_with_own_clock(&[])))
}

/// The one that all tests of this process share.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(&[]))
}

/// A folder in memory, where there is one: a commit waits for no disk.
pub fn in_memory(prefix: &str) -> TempDir {
    let memory = Some(Path::new("/dev/shm")).filter(|memory| memory.is_dir());
    let parent = memory.map_or_else(std::env::temp_dir, Path::to_owned);
    tempfile::Builder::new().prefix(prefix).tempdir_in(parent).unwrap()
}
