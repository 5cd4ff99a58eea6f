//! Turns spool files into actions.
//!
//! A reconciler, woken by the file system's notification and by a period, so that a lost
//! notification costs `scan_interval` and nothing else. It takes a bounded number of files at a
//! time, stores their actions in one transaction, and only then moves them to `done/`. If the store
//! is away, the files go back to `new/`. If the transaction fails, each file is tried alone. A file
//! that keeps failing while others are stored goes to `failed/` with its error.
//!
//! Crash: the files it had taken are in `cur/` and are taken back at the restart. A file that was
//! stored but not moved is stored again as the same action, since its id is derived from the file.

use super::spool::{BYTES_AT_A_TIME, Spool, Taken, TakenFile};
use crate::context::Node;
use crate::domain::action::NewAction;
use crate::domain::audit::Author;
use crate::domain::problem::{Problem, ProblemKind};
use crate::error_chain::ErrorChain;
use crate::runtime::{OnDrain, Pace, Reconcile, RoundFailed, Waker};
use crate::service::actions::submit_all;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A file is given up after failing in this many rounds in which other files were stored.
const GIVE_UP_AFTER: u32 = 8;
/// Maximum number of such failing files to remember.
const SUSPECTS: usize = 10_000;
/// How often `done/` and `failed/` are searched for old files, and `cur/` for forgotten ones.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of old files removed at a time.
const PRUNE_AT_A_TIME: usize = 1_000;

/// See the module.
pub struct SpoolLoader {
    node: Arc<Node>,
    /// Maximum number of files per round. They are stored in one transaction, and stay open until
    /// the round is over.
    files_per_round: usize,
    spool: Arc<Mutex<Spool>>,
    /// Something has changed in `new/` since the last round.
    notified: Arc<AtomicBool>,
    _watcher: Option<RecommendedWatcher>,
    recovered: bool,
    pruned: Option<Instant>,
    suspects: Suspects,
}

impl SpoolLoader {
    /// A loader for this folder, woken through `waker` by changes in it.
    pub fn new(node: Arc<Node>, spool: Spool, files_per_round: usize, waker: Waker) -> Self {
        let notified = Arc::new(AtomicBool::new(false));
        let watcher = watch(&spool, notified.clone(), waker);
        let spool = Arc::new(Mutex::new(spool));
        let (pruned, suspects) = (None, Suspects::new());
        Self { node, files_per_round, spool, notified, _watcher: watcher, recovered: false, pruned, suspects }
    }

    /// Takes back the files that an interrupted run, or a crash of this actor, left in `cur/`.
    async fn recover(&mut self) {
        self.recovered = true;
        match on_disk(&self.spool, Spool::recover).await {
            Ok(0) => {}
            Ok(files) => log::info!(files; "spool files of an interrupted run are taken again"),
            Err(error) => log::error!(error:% = error.chain(); "spool/cur cannot be recovered"),
        }
    }

    /// Removes old files, now and then.
    async fn prune(&mut self) {
        if self.pruned.is_some_and(|last| last.elapsed() < PRUNE_INTERVAL) {
            return;
        }
        self.pruned = Some(Instant::now());
        let keep = self.node.config.retention.spool_done.0;
        let pruned = on_disk(&self.spool, move |spool| {
            let removed = spool.prune(keep, PRUNE_AT_A_TIME)?;
            if removed > 0 {
                log::info!(files = removed; "old files removed from the spool");
            }
            // Files of a crashed actor whose disk task was still running at the restart.
            let recovered = spool.recover()?;
            if recovered > 0 {
                log::warn!(files = recovered; "forgotten spool files are taken again");
            }
            Ok(())
        });
        if let Err(error) = pruned.await {
            log::error!(error:% = error.chain(); "the spool cannot be pruned");
        }
    }
}

/// Wakes the loader when something changes in `new/`.
fn watch(spool: &Spool, notified: Arc<AtomicBool>, waker: Waker) -> Option<RecommendedWatcher> {
    let folder = spool.new_dir();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the folder is an event too, and would cause another reading.
        let is_access = event.is_ok_and(|event| event.kind.is_access());
        // Ten thousand files cause one wake-up.
        if !is_access && !notified.swap(true, Ordering::AcqRel) {
            waker.wake();
        }
    });
    let watching =
        watcher.and_then(|mut watcher| watcher.watch(&folder, RecursiveMode::NonRecursive).map(|()| watcher));
    watching
        .inspect_err(|error| {
            log::warn!(folder:?, error:% = error.chain();
                "no file notification; the spool is polled every scan_interval only");
        })
        .ok()
}

impl Reconcile for SpoolLoader {
    const NAME: &'static str = "spool_loader";
    const ON_DRAIN: OnDrain = OnDrain::Finish;

    fn period(&self) -> Duration {
        self.node.config.spool.scan_interval.0
    }

    async fn run_once(&mut self) -> Result<Pace, RoundFailed> {
        if self.notified.swap(false, Ordering::AcqRel) {
            crate::fault_point!("spool_loader.notified");
        }
        if !self.recovered {
            self.recover().await;
        }
        self.prune().await;
        let suspects = std::mem::take(&mut self.suspects);
        let round = load(&self.spool, &self.node, self.files_per_round, suspects).await;
        self.suspects = round.suspects;
        crate::fault_point!("spool_loader.stored");
        match round.error {
            Some(error) => Err(RoundFailed(error)),
            // Moving files back is an event as well, which would wake the loader at once.
            None if round.must_rest => Ok(Pace::Rest(self.period() / 2)),
            None if round.full => Ok(Pace::Again),
            None => Ok(Pace::Wait),
        }
    }
}

/// The number of rounds in which a file could not be stored while others could.
type Suspects = HashMap<OsString, u32>;

/// The result of a round.
#[derive(Debug, Default)]
struct Round {
    /// There may be more files.
    full: bool,
    /// Files were moved back, because the store is away or the disk is full.
    must_rest: bool,
    /// Why files were moved back.
    error: Option<String>,
    /// The failing files known now.
    suspects: Suspects,
}

/// Takes files, stores their actions, and moves each file to where it belongs.
async fn load(spool: &Arc<Mutex<Spool>>, node: &Node, files: usize, suspects: Suspects) -> Round {
    let taken = on_disk(spool, move |spool| spool.take(files)).await;
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            log::error!(error:% = error.chain(); "the spool cannot be read");
            return Round { error: Some(error.to_string()), suspects, ..Round::default() };
        }
    };
    let bytes = taken.iter().map(|one| if let Taken::File(file) = one { file.content.len() } else { 0 });
    let full = taken.len() >= files || bytes.sum::<usize>() >= BYTES_AT_A_TIME;
    let mut round = Round { full, suspects, ..Round::default() };
    let (mut files, metrics) = (Vec::new(), &node.metrics);
    for one in taken {
        match one {
            Taken::File(file) => files.push(file),
            Taken::Failed { name, problem } => {
                metrics.spool_files("failed", 1);
                log::warn!(file:% = name.display(), problem = problem.detail.as_str();
                    "a spool entry is not an action");
            }
            Taken::Ignored { name } => {
                metrics.spool_files("ignored", 1);
                log::warn!(file:% = name.display(); "a file in spool/new is no *.json: it is left alone");
            }
            Taken::Stuck { name, error } => {
                round.full = false;
                log::error!(file:% = name.display(), error:% = error.chain(); "a spool file cannot be taken now");
            }
        }
    }
    if files.is_empty() {
        return round;
    }
    let now = node.store.now();
    let (mut actions, mut sources, mut moves) = (Vec::new(), Vec::new(), Vec::new());
    for TakenFile { name, content, derived_id } in files {
        match NewAction::from_json(&content, derived_id, now) {
            Ok(mut action) => {
                action.author = Author::server("spool");
                actions.push(action);
                sources.push(name);
            }
            Err(problem) => moves.push((name, Err(problem))),
        }
    }
    let stored = submit_all(node, actions).await;
    // A file that fails while others are stored may be at fault itself.
    let works = stored.iter().any(|stored| matches!(stored, Some(Ok(_))));
    let mut back = Vec::new();
    for (name, stored) in sources.into_iter().zip(stored) {
        match stored {
            Some(Ok(accepted)) => {
                round.suspects.remove(&name);
                moves.push((name, accepted.map(|_| ())));
            }
            Some(Err(error)) if !error.is_transient() => {
                moves.push((name, Err(Problem::new(ProblemKind::InvalidDocument, error.chain().to_string()))));
            }
            Some(Err(error)) => {
                if works && (round.suspects.len() < SUSPECTS || round.suspects.contains_key(&name)) {
                    *round.suspects.entry(name.clone()).or_default() += 1;
                }
                if round.suspects.get(&name).is_some_and(|rounds| *rounds >= GIVE_UP_AFTER) {
                    round.suspects.remove(&name);
                    moves.push((name, Err(Problem::new(ProblemKind::Internal, error.chain().to_string()))));
                } else {
                    round.error = Some(error.chain().to_string());
                    back.push(name);
                }
            }
            None => back.push(name),
        }
    }
    if !back.is_empty() {
        let error = round.error.clone().unwrap_or_default();
        log::warn!(files = back.len(), error = error.as_str(); "spool files wait for the store");
        round.must_rest = true;
        let back = on_disk(spool, move |spool| back.iter().try_for_each(|name| spool.give_back(name))).await;
        if let Err(error) = back {
            log::error!(error:% = error.chain(); "spool files stay in cur/ until the next start");
        }
    }
    let failed = moves.iter().filter(|(_, fate)| fate.is_err()).count();
    metrics.spool_files("failed", failed);
    metrics.spool_files("done", moves.len() - failed);
    let stuck = on_disk(spool, move |spool| {
        let mut stuck = Vec::new();
        for (name, fate) in &moves {
            let moved = match fate {
                Ok(()) => spool.done(name),
                Err(problem) => {
                    log::warn!(file:% = name.display(), problem = problem.detail.as_str(); "a spool file is not a valid action");
                    spool.fail(name, problem)
                }
            };
            if let Err(error) = moved {
                // It is taken again: as the same action if it was stored, or with the same problem
                // if it is invalid.
                let back = spool.give_back(name);
                stuck.push((name.clone(), back.err().unwrap_or(error)));
            }
        }
        Ok(stuck)
    })
    .await;
    match stuck {
        Ok(stuck) => {
            for (name, error) in stuck {
                log::error!(file:% = name.display(), error:% = error.chain(); "a spool file cannot be put away now");
                round.must_rest = true;
            }
        }
        Err(error) => log::error!(error:% = error.chain(); "spool files stay in cur/ until the next start"),
    }
    round
}

/// Runs a blocking task on a blocking thread.
async fn on_disk<T: Send + 'static>(
    spool: &Arc<Mutex<Spool>>,
    task: impl FnOnce(&mut Spool) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let spool = spool.clone();
    tokio::task::spawn_blocking(move || task(&mut spool.lock().unwrap_or_else(PoisonError::into_inner)))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::domain::time::Span;
    use crate::runtime::{Reconciler, Unstarted};
    use crate::testing::{AWAY, REFUSED, TestNode, supervision, until};
    use std::path::PathBuf;

    struct Fixture {
        node: TestNode,
        spool: Spool,
        loader: SpoolLoader,
    }

    async fn fixture(files_per_round: usize) -> Fixture {
        let mut config = Config::default();
        config.retention.spool_done = Span::secs(0);
        let node = TestNode::with(config).await;
        let mut spool = Spool::open(node.dir().join("spool"), 10_000).expect("it opens");
        spool.settle = Duration::ZERO;
        let loader = loader(&node, &spool, files_per_round);
        Fixture { node, spool, loader }
    }

    /// One that nothing wakes.
    fn loader(node: &TestNode, spool: &Spool, files_per_round: usize) -> SpoolLoader {
        let waker = Waker::new(Unstarted::<Reconciler<SpoolLoader>>::default().address().recipient());
        SpoolLoader::new(node.node.clone(), spool.reopened(), files_per_round, waker)
    }

    fn document(name: &str) -> String {
        format!(r#"{{"name":"{name}","target":"TRUE","operations":[{{"module":"ping"}}]}}"#)
    }

    impl Fixture {
        fn folder(&self, name: &str) -> PathBuf {
            self.node.dir().join("spool").join(name)
        }

        fn put(&self, name: &str, content: &str) {
            std::fs::write(self.folder("tmp").join(name), content).expect("written");
            std::fs::rename(self.folder("tmp").join(name), self.folder("new").join(name)).expect("renamed");
        }

        fn names(&self, folder: &str) -> Vec<String> {
            let entries = std::fs::read_dir(self.folder(folder)).expect("listed");
            let mut names: Vec<_> =
                entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }

        async fn actions(&self) -> Vec<String> {
            let mut actions = self.node.store.action_list(None, None, None, 99).await.unwrap();
            actions.reverse();
            actions.into_iter().map(|action| action.name).collect()
        }
    }

    #[actix_rt::test]
    async fn a_file_becomes_an_action_and_then_goes_to_done() {
        let mut fixture = fixture(10).await;
        fixture.put("a.json", &document("a"));
        assert_eq!(fixture.loader.run_once().await.unwrap(), Pace::Wait);
        assert_eq!((fixture.names("done"), fixture.names("new").len()), (vec!["a.json".to_owned()], 0));
        assert_eq!(fixture.actions().await, ["a"]);
        assert_eq!(fixture.node.heard().await, ["resolver: wake"]);
        assert_eq!(fixture.node.store.audit_list(None, 9).await.unwrap()[0].by.name, "spool");
    }

    #[actix_rt::test]
    async fn a_file_that_is_no_action_goes_to_failed_and_stops_no_other() {
        let mut fixture = fixture(10).await;
        fixture.put("a.json", "{");
        fixture.put("b.json", &document("b"));
        fixture.put("c.json", &document("").replace("TRUE", "nonsense ="));
        assert_eq!(fixture.loader.run_once().await.unwrap(), Pace::Wait);
        assert_eq!(fixture.names("failed"), ["a.json", "a.json.error", "c.json", "c.json.error"]);
        assert_eq!((fixture.names("done"), fixture.actions().await), (vec!["b.json".to_owned()], vec!["b".to_owned()]));
    }

    #[actix_rt::test]
    async fn a_file_with_an_id_that_is_taken_by_other_content_fails() {
        let mut fixture = fixture(10).await;
        let with_id = |name| document(name).replacen('{', r#"{"id":"0b8a3c52-6f8e-4f61-9f4e-2f1f3d1b7a10","#, 1);
        fixture.put("a.json", &with_id("a"));
        fixture.loader.run_once().await.unwrap();
        fixture.put("b.json", &with_id("a"));
        fixture.put("c.json", &with_id("other"));
        fixture.loader.run_once().await.unwrap();
        assert_eq!(fixture.names("done"), ["a.json", "b.json"], "the same again is the same action");
        assert_eq!(fixture.names("failed"), ["c.json", "c.json.error"]);
        assert_eq!(fixture.actions().await, ["a"]);
    }

    #[actix_rt::test]
    async fn a_round_takes_so_many_files_and_the_next_follows_at_once() {
        let mut fixture = fixture(2).await;
        (0..3).for_each(|n| fixture.put(&format!("{n}.json"), &document(&n.to_string())));
        assert_eq!(fixture.loader.run_once().await.unwrap(), Pace::Again);
        assert_eq!(fixture.names("new").len(), 1);
        assert_eq!(fixture.loader.run_once().await.unwrap(), Pace::Wait);
        assert_eq!(fixture.actions().await.len(), 3);
    }

    #[actix_rt::test]
    async fn files_go_back_while_the_store_is_away() {
        let mut fixture = fixture(10).await;
        (0..9).for_each(|n| fixture.put(&format!("{n}.json"), &document(&n.to_string())));
        fixture.node.break_inserts("actions", "TRUE", AWAY);
        for _ in 0..=GIVE_UP_AFTER {
            assert!(fixture.loader.run_once().await.is_err());
            assert_eq!((fixture.names("new").len(), fixture.names("cur").len()), (9, 0));
        }
        fixture.node.mend_inserts("actions");
        fixture.loader.run_once().await.unwrap();
        assert_eq!((fixture.names("done").len(), fixture.names("failed").len()), (9, 0), "none is given up");
    }

    #[actix_rt::test]
    async fn a_file_that_fails_while_others_are_stored_is_given_up_after_some_rounds() {
        let mut fixture = fixture(10).await;
        fixture.put("bad.json", &document("bad"));
        fixture.node.break_inserts("actions", "NEW.name = 'bad'", AWAY);
        for round in 1..=GIVE_UP_AFTER {
            assert_eq!(fixture.names("new"), ["bad.json"], "round {round}");
            fixture.put(&format!("{round}.json"), &document("good"));
            assert_eq!(fixture.loader.run_once().await.is_err(), round < GIVE_UP_AFTER);
        }
        assert_eq!(fixture.names("failed"), ["bad.json", "bad.json.error"]);
        assert_eq!(fixture.names("done").len(), GIVE_UP_AFTER as usize);
        assert!(fixture.loader.suspects.is_empty());
    }

    #[actix_rt::test]
    async fn a_file_that_the_store_refuses_fails_at_once() {
        let mut fixture = fixture(10).await;
        fixture.put("bad.json", &document("bad"));
        fixture.put("good.json", &document("good"));
        fixture.node.break_inserts("actions", "NEW.name = 'bad'", REFUSED);
        assert_eq!(fixture.loader.run_once().await.unwrap(), Pace::Wait);
        assert_eq!((fixture.names("failed").len(), fixture.names("done")), (2, vec!["good.json".to_owned()]));
    }

    #[actix_rt::test]
    async fn a_restart_takes_back_what_was_in_hand() {
        let mut fixture = fixture(10).await;
        fixture.put("a.json", &document("a"));
        let mut crashed = fixture.spool.reopened();
        assert_eq!(crashed.take(9).expect("taken").len(), 1);
        drop(crashed);
        assert_eq!(fixture.names("cur"), ["a.json"]);
        fixture.loader.run_once().await.unwrap();
        assert_eq!((fixture.names("done"), fixture.actions().await), (vec!["a.json".to_owned()], vec!["a".to_owned()]));
    }

    #[actix_rt::test]
    async fn a_notification_causes_a_round() {
        let fixture = fixture(10).await;
        let unstarted = Unstarted::<Reconciler<SpoolLoader>>::default();
        let waker = Waker::new(unstarted.address().recipient());
        let (node, spool) = (fixture.node.node.clone(), fixture.spool.reopened());
        let loader = move || SpoolLoader::new(node.clone(), spool.reopened(), 10, waker.clone());
        let loader = Reconciler::new(fixture.node.node.metrics.progress().clone(), loader);
        let loader = unstarted.start("spool_loader", loader, &supervision());
        fixture.put("a.json", &document("a"));
        until("it is done", async || fixture.names("done") == ["a.json"]).await;
        loader.send(crate::runtime::Drain).await.expect("it is answered");
    }
}
