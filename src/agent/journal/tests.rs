use super::append_log::{COMPACT_ABOVE, PURGE_EVERY};
use super::entry::KEEP;
use super::*;
use crate::agent::processes::Tree;
use crate::agent::run::without_output;
use crate::domain::protocol::{Command, Operations, RunRef, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use uuid::Uuid;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn open(dir: &Path) -> (Journal, Recovered) {
    Journal::open(dir, NOW).expect("an open journal")
}

fn run(n: u128) -> RunRef {
    RunRef { action: Uuid::from_u128(n), run: 1 }
}

fn received(n: u128) -> Record {
    let command = Command {
        action: Uuid::from_u128(n),
        run: 1,
        attempt: 1,
        name: format!("action {n}"),
        operations: Operations::from_json(r#"[{"module":"ping","parameters":{"n":1.50}}]"#.into()).expect("JSON"),
        priority: 0,
        timeout_ms: 60_000,
        expires_at: NOW.plus(HOUR),
        scheduled_for: None,
    };
    Record::Received { command, at: NOW, clock_ms: 7 }
}

fn started(n: u128) -> Record {
    Record::Started { run: run(n), expires_at: NOW.plus(HOUR), module: "ping".into(), at: NOW, mark: None }
}

fn result(n: u128, error: &str) -> Record {
    let result = RunResult {
        action: Uuid::from_u128(n),
        run: 1,
        status: RunStatus::Failed,
        results: vec![without_output("ping".into(), error.into())],
        started_at: Some(NOW),
        finished_at: Some(NOW),
    };
    Record::Result { expires_at: NOW.plus(HOUR), result }
}

fn stored(n: u128) -> Record {
    Record::Stored { run: run(n) }
}

fn forgotten(n: u128) -> Record {
    Record::Forgotten { run: run(n), expires_at: NOW.plus(HOUR) }
}

fn commit(journal: &mut Journal, records: &[Record]) {
    journal.commit(records, NOW).expect("written");
}

/// As the agent does after each turn.
fn compact_if_it_pays(journal: &mut Journal) {
    if let Some(compaction) = journal.begin_compaction() {
        journal.finish_compaction(compaction.copy());
    }
}

fn error_of(journal: &Journal, n: u128) -> Option<String> {
    let (results, _) = journal.results(&[run(n)], u64::MAX).expect("readable");
    results.first().and_then(|result| result.results[0].error.clone())
}

fn waiting(recovered: &Recovered) -> Vec<u128> {
    recovered.waiting.iter().map(|waiting| waiting.command.action.as_u128()).collect()
}

fn append(dir: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(dir.join("journal.jsonl")).expect("the journal");
    file.write_all(bytes).expect("written");
}

#[test]
fn what_was_received_waits_again_after_a_restart_in_its_order() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(3), received(1)]);
    commit(&mut journal, &[received(2), received(4), forgotten(4)]);
    drop(journal);
    let (journal, recovered) = open(dir.path());
    assert_eq!(waiting(&recovered), [3, 1, 2]);
    assert_eq!(recovered.waiting[0].received_at, Timestamp(NOW.0 + 7));
    assert_eq!(recovered.waiting[0].command.operations.get(), r#"[{"module":"ping","parameters":{"n":1.50}}]"#);
    assert_eq!(journal.state(run(4)), Some(State::Forgotten));
    assert_eq!(journal.unfinished(), [run(1), run(2), run(3)]);
}

#[test]
fn a_run_without_a_result_was_interrupted_and_never_waits_again() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(1), started(1)]);
    drop(journal);
    for interrupted in [1, 0] {
        let (journal, recovered) = open(dir.path());
        assert_eq!((recovered.interrupted, recovered.waiting.len()), (interrupted, 0));
        assert_eq!(error_of(&journal, 1).as_deref(), Some("interrupted"));
        assert_eq!(journal.unstored(), [run(1)]);
    }
}

#[test]
fn what_is_left_of_an_interrupted_run_is_killed_before_it_is_reported() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    let trees = [Tree::new(Uuid::new_v4()), Tree::new(Uuid::new_v4()), Tree::new(Uuid::new_v4())];
    let mut left: Vec<std::process::Child> = trees
        .iter()
        .map(|tree| {
            let mut command = std::process::Command::new("sleep");
            command.arg("1000").env("ODOSHI_RUN", tree.mark.to_string()).spawn().expect("a program")
        })
        .collect();
    let marked = |n: u128, tree: &Tree| match started(n) {
        Record::Started { run, expires_at, module, at, .. } => {
            Record::Started { run, expires_at, module, at, mark: Some(tree.mark) }
        }
        other => other,
    };
    // The second run is known to have started a program; the third one has ended.
    commit(&mut journal, &[received(1), marked(1, &trees[0]), received(2), marked(2, &trees[1])]);
    journal.spawned(run(2), Tree { groups: vec![], ..trees[1].clone() }).expect("written");
    commit(&mut journal, &[received(3), marked(3, &trees[2]), result(3, "three")]);
    // The recorded lines survive a compaction.
    journal.compact().expect("compacted");
    drop(journal);
    let (journal, recovered) = open(dir.path());
    assert_eq!((recovered.interrupted, journal.unstored().len()), (2, 3));
    for child in &mut left[..2] {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().expect("its end").signal(), Some(9));
    }
    assert!(left[2].try_wait().expect("its state").is_none(), "what a run left that ended by itself");
    left[2].kill().expect("it lives");
    left[2].wait().expect("its end");
}

#[test]
fn a_journal_of_an_earlier_version_is_read() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(1)]);
    drop(journal);
    let line = format!(
        r#"{{"started":{{"run":{},"expires_at":{},"module":"ping","at":{}}}}}"#,
        serde_json::to_string(&run(1)).expect("JSON"),
        serde_json::to_string(&NOW.plus(HOUR)).expect("JSON"),
        serde_json::to_string(&NOW).expect("JSON"),
    );
    append(dir.path(), format!("{line}\n").as_bytes());
    let (journal, recovered) = open(dir.path());
    assert_eq!((recovered.interrupted, error_of(&journal, 1).as_deref()), (1, Some("interrupted")));
}

#[test]
fn a_result_stays_readable_after_it_is_stored() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(1), started(1), result(1, "one"), received(2), started(2), result(2, "two")]);
    commit(&mut journal, &[stored(1)]);
    drop(journal);
    let (journal, _) = open(dir.path());
    assert_eq!((journal.state(run(1)), journal.unstored()), (Some(State::Stored), vec![run(2)]));
    assert_eq!(error_of(&journal, 1).as_deref(), Some("one"));
    // A limit with room for only one line returns one, and where to continue.
    let (results, done) = journal.results(&[run(2), run(9), run(1)], 1).expect("readable");
    assert_eq!((results.len(), done), (1, 2));
}

#[test]
fn a_torn_last_line_is_cut_off() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(1)]);
    drop(journal);
    append(dir.path(), br#"{"received":{"command":{"act"#);
    let (mut journal, recovered) = open(dir.path());
    assert_eq!(waiting(&recovered), [1]);
    commit(&mut journal, &[received(2)]);
    drop(journal);
    assert_eq!(waiting(&open(dir.path()).1), [1, 2]);
}

#[test]
fn an_unreadable_line_costs_only_itself() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(1)]);
    drop(journal);
    append(dir.path(), b"\0\0garbage\n{\"unknown\":{}}\n");
    // The run's own `received` may be the unreadable line: the run started all the same.
    let mut line = serde_json::to_vec(&started(2)).expect("JSON");
    line.push(b'\n');
    append(dir.path(), &line);
    let (mut journal, recovered) = open(dir.path());
    assert_eq!((waiting(&recovered), recovered.interrupted), (vec![1], 1));
    assert_eq!(journal.state(run(2)), Some(State::Done));
    commit(&mut journal, &[received(3)]);
    drop(journal);
    assert_eq!(waiting(&open(dir.path()).1), [1, 3]);
}

#[test]
fn what_is_over_is_dropped_once_the_time_is_known_and_the_rest_is_kept() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    let done = [received(1), started(1), result(1, "one")];
    commit(&mut journal, &done);
    commit(&mut journal, &[received(2), started(2), result(2, "unsent"), received(3), received(4), forgotten(4)]);
    commit(&mut journal, &[stored(1)]);
    let before = journal.len;
    drop(journal);
    let day_later = NOW.plus(HOUR + KEEP).minus(Duration::from_secs(1));
    for (now, known) in [(day_later, true), (day_later.plus(HOUR), false)] {
        // This machine's clock is years ahead: nothing is dropped because of that.
        let wrong = NOW.plus(HOUR * 100_000);
        let (mut journal, recovered) = Journal::open(dir.path(), wrong).expect("open");
        assert!(journal.state(run(1)).is_some() && journal.state(run(4)).is_some());
        journal.commit(&[received(5), forgotten(5)], now).expect("written");
        compact_if_it_pays(&mut journal);
        assert_eq!(journal.state(run(1)).is_some(), known);
        assert_eq!(journal.state(run(4)).is_some(), known);
        assert_eq!(error_of(&journal, 2).as_deref(), Some("unsent"), "a result that is not stored stays");
        assert_eq!(waiting(&recovered), [3]);
        assert!(journal.len < before);
    }
}

#[test]
fn a_large_file_that_is_mostly_dead_is_compacted_while_the_agent_runs() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(1), received(2), started(2), result(2, "two"), stored(2)]);
    let long = "x".repeat(1024 * 1024);
    for n in 100..120 {
        commit(&mut journal, &[received(n), started(n), result(n, &long)]);
        journal.commit(&[stored(n)], NOW.plus(HOUR + KEEP + PURGE_EVERY * (n as u32 - 99))).expect("written");
        compact_if_it_pays(&mut journal);
    }
    assert!(journal.len < COMPACT_ABOVE, "{}", journal.len);
    commit(&mut journal, &[received(3), started(3)]);
    assert_eq!(journal.state(run(1)), Some(State::Received));
    drop(journal);
    let (_, recovered) = open(dir.path());
    assert_eq!((waiting(&recovered), recovered.interrupted), (vec![1], 1));
}

#[test]
fn what_is_written_during_a_compaction_is_in_the_new_file() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(
        &mut journal,
        &[received(1), received(2), started(2), received(3), started(3), result(3, "three"), received(4)],
    );
    journal.pays = true;
    let copy = journal.begin_compaction().expect("it pays").copy();
    journal.pays = true;
    assert!(journal.begin_compaction().is_none(), "one at a time");
    commit(&mut journal, &[result(2, "two"), stored(3), received(5), started(1), forgotten(4)]);
    journal.finish_compaction(copy);
    assert!(journal.replaced == 1 && !journal.is_copying);
    let check = |journal: &Journal| {
        let states = [1, 2, 3, 4, 5].map(|n| journal.state(run(n)).expect("known"));
        use State::{Done, Forgotten, Received, Started, Stored};
        assert!(matches!(states, [Started | Done, Done, Stored, Forgotten, Received]), "{states:?}");
        assert_eq!(error_of(journal, 2).as_deref(), Some("two"));
        assert_eq!(error_of(journal, 3).as_deref(), Some("three"));
    };
    check(&journal);
    commit(&mut journal, &[received(6), started(6), result(6, "six")]);
    assert_eq!(error_of(&journal, 6).as_deref(), Some("six"));
    drop(journal);
    let (journal, recovered) = open(dir.path());
    check(&journal);
    assert_eq!((waiting(&recovered), recovered.interrupted), (vec![5], 1));
}

#[test]
fn a_copy_is_dropped_if_the_journal_was_replaced_meanwhile() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(1), started(1), result(1, "one")]);
    journal.pays = true;
    let copy = journal.begin_compaction().expect("it pays").copy();
    journal.compact().expect("compacted");
    commit(&mut journal, &[received(2)]);
    journal.finish_compaction(copy);
    assert_eq!((error_of(&journal, 1).as_deref(), journal.state(run(2))), (Some("one"), Some(State::Received)));
    let files = std::fs::read_dir(dir.path()).expect("a folder").map(|file| file.expect("a file").file_name());
    let mut files: Vec<_> = files.collect();
    files.sort();
    assert_eq!(files, ["journal.jsonl", "lock"]);
}

#[test]
fn results_that_the_server_has_are_forgotten_when_they_take_too_much_room() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    let long = "x".repeat(1024 * 1024);
    commit(
        &mut journal,
        &[received(1), started(1), result(1, "kept"), stored(1), received(2), started(2), result(2, "unsent")],
    );
    for n in 100..120 {
        commit(&mut journal, &[received(n), started(n), result(n, &long), stored(n)]);
        compact_if_it_pays(&mut journal);
    }
    assert!(journal.len <= 2 * COMPACT_ABOVE, "{}", journal.len);
    // The oldest first; none of them starts again.
    assert_eq!(journal.state(run(100)), Some(State::Forgotten));
    assert_eq!(journal.state(run(119)), Some(State::Stored));
    assert_eq!(error_of(&journal, 2).as_deref(), Some("unsent"));
    journal.compact().expect("compacted");
    drop(journal);
    let (journal, _) = open(dir.path());
    assert_eq!((journal.state(run(100)), error_of(&journal, 100)), (Some(State::Forgotten), None));
    assert_eq!(error_of(&journal, 119).as_deref(), Some(long.as_str()));
    assert!(journal.index().live <= super::index::STORED_MAX);
}

#[tokio::test]
async fn compactions_beside_the_work_never_meet() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    let shared = SharedJournal::new(journal);
    let large = "x".repeat(100 * 1024);
    // Each run is over at once, so that a compaction pays again and again while copies are made.
    for n in 0..600 {
        let records = [received(n), started(n), result(n, &large), stored(n)];
        shared.with(move |journal| journal.commit(&records, NOW)).await.expect("written");
        let forgets = shared.with(move |journal| {
            journal.pays = true;
            journal.commit(&[received(10_000 + n), started(10_000 + n), result(10_000 + n, "kept")], NOW)
        });
        forgets.await.expect("written");
    }
    // Those that are left make their copies in a moment.
    while shared.lock().is_copying {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(shared.lock().replaced > 1);
    for n in 0..600 {
        assert_eq!(error_of(&shared.lock(), 10_000 + n).as_deref(), Some("kept"));
    }
    drop(shared);
    let (journal, recovered) = open(dir.path());
    assert_eq!((recovered.waiting.len(), recovered.interrupted), (0, 0));
    assert!((0..600).all(|n| error_of(&journal, 10_000 + n).as_deref() == Some("kept")));
}

#[test]
fn after_a_failed_write_nothing_of_it_counts_and_the_next_goes_into_a_new_file() {
    let dir = folder();
    let (mut journal, _) = open(dir.path());
    commit(&mut journal, &[received(1), received(2), started(2), result(2, "two")]);
    let path = dir.path().join("journal.jsonl");
    let good = std::mem::replace(&mut journal.file, File::open(&path).expect("the journal, for reading only"));
    assert!(journal.commit(&[received(3)], NOW).is_err());
    assert_eq!(journal.state(run(3)), None);
    // Remains of a failed write.
    good.write_all_at(b"{\"half a line", journal.len).expect("written");
    commit(&mut journal, &[received(4)]);
    assert_eq!(error_of(&journal, 2).as_deref(), Some("two"));
    drop(journal);
    assert_eq!(waiting(&open(dir.path()).1), [1, 4]);
}

#[test]
fn two_agents_do_not_share_a_folder() {
    let dir = folder();
    let (journal, _) = open(dir.path());
    assert!(matches!(Journal::open(dir.path(), NOW), Err(JournalError::Locked(_))));
    drop(journal);
    open(dir.path());
}

/// Records as a runner writes them in its turns: each number moves one run one step further.
fn turns(steps: &[Vec<u8>]) -> Vec<Vec<Record>> {
    let mut stages = BTreeMap::new();
    let mut turn = |numbers: &Vec<u8>| {
        let mut records = Vec::new();
        for number in numbers {
            let n = u128::from(*number);
            let stage = stages.entry(n).or_insert(0);
            *stage += 1;
            records.push(match (*stage, n % 5) {
                (1, _) => received(n),
                (2, 0) => forgotten(n),
                (2, _) => started(n),
                (3, 1..) => result(n, "its own"),
                (4, 1..) => stored(n),
                _ => continue,
            });
        }
        records
    };
    steps.iter().map(&mut turn).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A crash at any byte, and another one after the repair.
    #[test]
    fn a_crash_anywhere_loses_nothing_that_was_safe_and_starts_nothing_twice(
        steps in prop::collection::vec(prop::collection::vec(0_u8..12, 1..5), 1..12),
        cut in 0.0_f64..=1.0,
        cut_again in 0.0_f64..=1.0,
    ) {
        let dir = folder();
        let path = dir.path().join("journal.jsonl");
        let (mut journal, _) = open(dir.path());
        let mut lines = Vec::new();
        for records in turns(&steps) {
            for record in records {
                // Written one by one only to learn where each line ends.
                commit(&mut journal, std::slice::from_ref(&record));
                lines.push((journal.len, record));
            }
        }
        let len = journal.len;
        drop(journal);
        let cut_at = (len as f64 * cut) as u64;
        OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(cut_at)).expect("cut");

        let safe = lines.iter().filter(|(end, _)| *end <= cut_at).map(|(_, record)| record);
        let mut expected = BTreeMap::new();
        for record in safe {
            expected.insert(record.run_ref(), match record {
                Record::Received { .. } => State::Received,
                Record::Started { .. } | Record::Spawned { .. } | Record::Result { .. } => State::Done,
                Record::Stored { .. } => State::Stored,
                Record::Forgotten { .. } => State::Forgotten,
            });
        }
        let check = |crash_again: Option<f64>| {
            let before = path.metadata().expect("the journal").len();
            let (journal, recovered) = open(dir.path());
            let after = journal.len;
            let states: BTreeMap<_, _> = journal.index().entries.iter().map(|(run, entry)| (*run, entry.state)).collect();
            prop_assert_eq!(&states, &expected);
            let mut startable: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.command.run_ref()).collect();
            startable.sort();
            let waits = expected.iter().filter(|(_, state)| **state == State::Received).map(|(run, _)| *run);
            prop_assert_eq!(startable, waits.collect::<Vec<_>>());
            for (run, state) in &states {
                let has_result = matches!(state, State::Done | State::Stored);
                prop_assert_eq!(!journal.results(&[*run], u64::MAX).expect("readable").0.is_empty(), has_result);
            }
            drop(journal);
            // The lines that the repair appended (`interrupted`) may be torn as well. A rewritten
            // file is safe as a whole.
            if let Some(cut) = crash_again.filter(|_| recovered.interrupted > 0 && after > before) {
                let cut_at = before + ((after - before) as f64 * cut) as u64;
                OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(cut_at)).expect("cut");
            }
            Ok(())
        };
        check(Some(cut_again))?;
        check(None)?;
    }
}
