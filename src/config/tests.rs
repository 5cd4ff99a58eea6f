use super::*;
use crate::domain::time::Span;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

fn load(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut on_disk = tempfile::NamedTempFile::new().expect("a temporary file");
    on_disk.write_all(file.as_bytes()).expect("written");
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Config::load_with(Some(on_disk.path()), environment, &flags)
}

fn fault(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Fault {
    let error = load(file, environment, flags).expect_err("a fault");
    assert_eq!(error.faults.len(), 1, "{error}");
    error.faults.into_iter().next().expect("one")
}

#[test]
fn the_defaults_are_valid_and_are_those_of_an_empty_file() {
    Config::default().validate().expect("valid defaults");
    assert_eq!(load("", &[], &[]).expect("loads"), Config::default());
    assert_eq!(Config::load_with(None, [], &[]).expect("loads"), Config::default());
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "data_dir = 'a'\n[http]\nmax_body = 1\n[sender]\nenabled = []\n\
                [store.batch]\nmax_items = 7\n[node]\nname = 'x'";
    let environment = [
        ("ODOSHI__DATA_DIR", "b"),
        ("ODOSHI__HTTP__LISTEN", "[::1]:80"),
        ("ODOSHI__STORE__BATCH__MAX_ITEMS", "8"),
        ("ODOSHI__SENDER__ENABLED", "stream, slack"),
        ("ODOSHI__HTTP__PUBLIC_METRICS", "true"),
        ("ODOSHI__NODE__NAME", "007"),
        ("ODOSHI_SERVER", "not a setting"),
        ("PATH", "/bin"),
    ];
    let config = load(file, &environment, &[("data_dir", "c"), ("http.max_body", "2MiB")]).expect("loads");
    assert_eq!(config.data_dir, PathBuf::from("c"));
    assert_eq!(config.http.listen.to_string(), "[::1]:80");
    assert_eq!(config.http.max_body, ByteSize::mib(2));
    assert!(config.http.public_metrics);
    assert_eq!(config.store.batch.max_items, 8);
    assert_eq!(config.sender.enabled, ["stream", "slack"]);
    assert_eq!(config.node_name(), "007");
    assert_eq!(load("[http]\nmax_body = 1048576", &[], &[]).expect("loads").http.max_body, ByteSize::mib(1));
}

#[test]
fn a_key_that_does_not_exist_is_an_error_that_names_it_and_its_place() {
    let found = fault("[http]\nlisten_on = '127.0.0.1:1'", &[], &[]);
    assert_eq!(found.key, "http.listen_on");
    assert!(found.message.contains("did you mean http.listen?"), "{found}");
    assert!(found.origin.is_some_and(|origin| origin.contains("tmp")), "the file's path");

    let found = fault("", &[("ODOSHI__STORE__BATCHES__MAX_ITEMS", "1")], &[]);
    assert_eq!(found.key, "store.batches.max_items");
    assert_eq!(found.origin.as_deref(), Some("environment variable ODOSHI__STORE__BATCHES__MAX_ITEMS"));

    assert_eq!(fault("", &[], &[("colour", "red")]).to_string(), "colour is not a setting (from the command line)");
    assert_eq!(fault("[weather]\nsun = true", &[], &[]).key, "weather");
    assert_eq!(fault("[http.listen]\nport = 1", &[], &[]).key, "http.listen");
    assert_eq!(fault("http = 1", &[], &[]).key, "http");
    assert_eq!(fault("", &[("ODOSHI__HTTP", "1")], &[]).key, "http");
}

#[test]
fn values_that_cannot_be_are_errors_that_name_their_key() {
    for (key, value) in [
        ("http.max_body", "0"),
        ("http.max_body", "4 parsecs"),
        ("http.listen", "here"),
        ("http.public_metrics", "maybe"),
        ("http.tls.cert", "/x"),
        ("http.tls.key", "/x"),
        ("http.token_rate", "0"),
        ("http.token_streams", "0"),
        ("http.max_connections", "0"),
        ("retention.audit", "0s"),
        ("store.url", "mysql://x"),
        ("store.url", "sqlite://"),
        ("store.url", "sqlite://:memory:"),
        ("store.pool_size", "0"),
        ("store.pool_size", "-1"),
        ("store.warn_transaction", "0s"),
        ("store.pool_size", "8.5"),
        ("store.batch.max_items", "0"),
        ("store.batch.max_wait", "2m"),
        ("store.batch.idle", "1s"),
        ("spool.scan_interval", "0s"),
        ("spool.scan_interval", "5"),
        ("spool.dir", ""),
        ("data_dir", ""),
        ("resolver.page", "0"),
        ("delay.capacity", "0"),
        ("delay.horizon", "0s"),
        ("sender.enabled", "Stream"),
        ("sender.enabled", "stream,stream"),
        ("sender.webhook.concurrency", "0"),
        ("sender.webhook.per_host", "0"),
        ("sender.webhook.allow", "10.0.0.0/8, here"),
        ("sender.webhook.allow", "10.0.0.0/33"),
        ("sender.smtp.from", "a@b\nBcc: c@d"),
        ("sender.smtp.concurrency", "0"),
        ("sender.nats.url", "http://x"),
        ("metadata.max_items", "0"),
        ("node.dead_after", "3s"),
        ("node.name", ""),
        ("supervision.max_restarts", "4294967296"),
        ("supervision.backoff_max", "1ms"),
        ("retention.actions", "0s"),
        ("retention.spool_done", "100000d"),
        ("shutdown_timeout", "100h"),
    ] {
        let found = fault("", &[], &[(key, value)]);
        assert_eq!((found.key.as_str(), found.origin.as_deref()), (key, Some("the command line")), "{found}");
    }
    assert_eq!(fault("", &[], &[("sender.enabled", "nats")]).key, "sender.nats.url");
    assert!(load("", &[], &[("sender.enabled", "nats"), ("sender.nats.url", "nats://n")]).is_ok());
    let smtp = [("sender.enabled", "smtp"), ("sender.smtp.url", "smtp://m")];
    assert_eq!(fault("", &[], &smtp).key, "sender.smtp.from");
    assert!(load("", &[], &[&smtp[..], &[("sender.smtp.from", "a@b")]].concat()).is_ok());
}

#[test]
fn types_are_minded_in_the_file() {
    for (file, key) in [
        ("[store]\npool_size = true", "store.pool_size"),
        ("[store]\npool_size = 8.7", "store.pool_size"),
        ("[http]\nlisten = 5", "http.listen"),
        ("[sender]\nenabled = 'stream'", "sender.enabled"),
        ("[sender]\nenabled = [1]", "sender.enabled"),
        ("[http]\nmax_body = -1", "http.max_body"),
    ] {
        assert_eq!(fault(file, &[], &[]).key, key);
    }
}

#[test]
fn all_faults_are_found_at_once() {
    let error = load("[store]\npool_size = 0\n[resolver]\npage = 0", &[], &[]).expect_err("faults");
    assert_eq!(error.faults.iter().map(|f| f.key.as_str()).collect::<Vec<_>>(), ["store.pool_size", "resolver.page"]);
    assert_eq!(error.to_string().lines().count(), 2);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = std::path::Path::new("/nowhere/odoshi.toml");
    let error = Config::load_with(Some(missing), [], &[]).expect_err("no such file").to_string();
    assert!(error.starts_with("/nowhere/odoshi.toml: cannot be read"), "{error}");
    let error = load("[http\n", &[], &[]).expect_err("not TOML").to_string();
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn the_places_that_default_to_data_dir_follow_it() {
    let mut config = load("data_dir = '/var/lib/odoshi'", &[], &[]).expect("loads");
    assert_eq!(config.store_url().expose(), "sqlite:///var/lib/odoshi/odoshi.db");
    assert_eq!(config.spool_dir(), PathBuf::from("/var/lib/odoshi/spool"));
    config.spool.dir = Some("/srv/spool".into());
    config.store.url = Some(ServiceUrl::new("postgres://db/odoshi"));
    assert_eq!(config.store_url().expose(), "postgres://db/odoshi");
    assert_eq!(config.spool_dir(), PathBuf::from("/srv/spool"));
    assert!(!config.node_name().is_empty());
}

#[test]
fn what_is_in_effect_can_be_loaded_again_and_shows_no_secret() {
    let mut config = full();
    let shown = config.to_toml();
    assert_eq!(load(&shown, &[], &[]).expect("loads"), config, "{shown}");
    config.store.url = Some(ServiceUrl::new("postgres://odoshi:hunter2@db/odoshi"));
    for shown in [config.to_toml(), format!("{config:?}")] {
        assert!(!shown.contains("hunter2") && shown.contains("odoshi:***@db"), "{shown}");
    }
    assert_eq!(load(&Config::default().to_toml(), &[], &[]).expect("loads"), Config::default());
}

#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Slack {
    url: String,
    #[serde(default)]
    concurrency: usize,
    #[serde(default)]
    retry: Retry,
}

#[derive(Debug, Default, PartialEq, serde::Deserialize)]
struct Retry {
    wait: Option<String>,
    limit: Option<u8>,
}

#[test]
fn a_senders_own_section_reaches_it_typed() {
    let file = "[sender.slack]\nurl = 'https://hooks/x'\nconcurrency = 3\n[sender.slack.retry]\nlimit = 2";
    let read = |file, environment: &[(&str, &str)]| load(file, environment, &[]).expect("loads").sender.custom("slack");
    let retry = Retry { wait: None, limit: Some(2) };
    assert_eq!(read(file, &[]), Ok(Slack { url: "https://hooks/x".into(), concurrency: 3, retry }));
    let environment = [("ODOSHI__SENDER__SLACK__URL", "https://other"), ("ODOSHI__SENDER__SLACK__CONCURRENCY", "4")];
    let slack: Slack = read("", &environment).expect("the environment is enough");
    assert_eq!((slack.url.as_str(), slack.concurrency), ("https://other", 4));
    assert_eq!(read(file, &environment).expect("both").retry.limit, Some(2));
}

#[test]
fn faults_in_a_senders_own_section_name_the_key() {
    for (file, key) in [
        ("", "sender.slack.url"),
        ("[sender.slack]\nconcurrency = 1", "sender.slack.url"),
        ("[sender.slack]\nurl = 'x'\nconcurrency = 'many'", "sender.slack.concurrency"),
        ("[sender.slack]\nurl = 'x'\n[sender.slack.retry]\nlimit = 1000", "sender.slack.retry.limit"),
    ] {
        let error = load(file, &[], &[]).expect("loads").sender.custom::<Slack>("slack").expect_err("a fault");
        assert_eq!(error.faults[0].key, key, "{error}");
    }
    let unknown = load("[sender.slack]\nurl = 'x'\ncolour = 'red'", &[], &[]).expect("loads");
    let error = unknown.sender.custom::<Slack>("slack").expect_err("a fault").to_string();
    assert!(error.starts_with("sender.slack") && error.contains("colour"), "{error}");
    assert_eq!(fault("[sender]\nslack = 1", &[], &[]).key, "sender.slack");
    assert_eq!(fault("", &[("ODOSHI__SENDER__SLACK", "1")], &[]).key, "sender.slack");
    assert_eq!(fault("[sender.'sl ack']\nx = 1", &[], &[]).key, "sender.sl ack");
}

#[test]
fn transports_and_sections_without_a_sender_are_errors() {
    let config = load("[sender]\nenabled = ['stream', 'slack', 'pager']\n[sender.webhok]\nx = 1", &[], &[]);
    let config = config.expect("loads");
    let error = config.check_senders(&["pager"]).expect_err("two faults");
    let keys: Vec<&str> = error.faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["sender.enabled", "sender.webhok"], "{error}");
    assert!(error.faults[0].message.contains("\"slack\""), "{error}");
    assert!(config.check_senders(&["pager", "slack", "webhok"]).is_ok());
    assert!(Config::default().check_senders(&[]).is_ok());
}

#[test]
fn texts_of_a_senders_own_section_are_never_shown() {
    let config = load("[sender.slack]\nurl = 'hunter2'\nlist = ['hunter2']\nn = 7", &[], &[]).expect("loads");
    for shown in [config.to_toml(), format!("{config:?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert!(
        config.to_toml().contains("[sender.slack]\nlist = [\"***\"]\nn = 7\nurl = \"***\"\n"),
        "{}",
        config.to_toml()
    );
}

const HOOK: &str = "[[hook]]\nurl = 'https://h.example/x'\non = ['action.ended']\n";

#[test]
fn hooks_are_read_with_defaults_and_names_of_their_own() {
    let file = format!("{HOOK}{HOOK}timeout = '2s'\nname = 'on-call'\n");
    let config = load(&file, &[], &[]).expect("loads");
    assert_eq!(config.hook.len(), 2);
    assert_eq!((config.hook[0].timeout, config.hook[1].timeout), (Span::secs(30), Span::secs(2)));
    let listeners = config.hook_listeners();
    assert_eq!(listeners[0].name, "h.example-0");
    assert_eq!(listeners[1].name, "on-call");
    assert_eq!(listeners[1].on, [crate::domain::hook::HookEvent::ActionEnded]);
    let many = HOOK.repeat(12);
    assert_eq!(load(&many, &[], &[]).expect("loads").hook_listeners()[11].name, "h.example-11");
}

#[test]
fn faults_in_hooks_name_the_place() {
    let with = |line: &str| format!("{HOOK}{HOOK}{line}");
    for (file, key, says) in [
        (with("urll = 'x'"), "hook[1].urll", "did you mean hook[1].url?"),
        (with("timeout = 5"), "hook[1].timeout", "must be a text"),
        (with("timeout = 'soon'"), "hook[1].timeout", "is not a duration"),
        (with("timeout = '0s'"), "hook[1].timeout", "must be at least 1ms"),
        (with("name = 'a b'"), "hook[1].name", "must be 1 to 128"),
        (with("name = 'h.example-0'"), "hook[1].name", "as is that of hook[0]"),
        (with("secret_file = ''"), "hook[1].secret_file", "must not be empty"),
        (HOOK.replace("ended", "began"), "hook[0].on", "holds \"action.began\", which is none of action.ended"),
        (HOOK.replace("'action.ended'", ""), "hook[0].on", "must name at least one"),
        (HOOK.replace("'action.ended'", "'node.lost', 'node.lost'"), "hook[0].on", "holds \"node.lost\" twice"),
        (HOOK.replace("https", "ftp"), "hook[0].url", "http:// or https://"),
        ("[[hook]]\non = ['node.lost']".into(), "hook[0].url", "is needed"),
        ("[[hook]]".into(), "hook[0]", "is empty"),
        ("hook = [1]".into(), "hook[0]", "must be a table"),
        ("[hook]\nurl = 'https://h'".into(), "hook", "must be a list of tables"),
        (HOOK.repeat(33), "hook", "at most 32 times"),
    ] {
        let found = fault(&file, &[], &[]);
        assert_eq!(found.key, key, "{found}");
        assert!(found.message.contains(says), "{found}");
        assert!(found.origin.is_some_and(|origin| origin.contains("tmp")) || key == "hook", "the file's path: {key}");
    }
    for name in ["ODOSHI__HOOK", "ODOSHI__HOOK__0__URL"] {
        assert!(fault("", &[(name, "x")], &[]).message.contains("in a file only"));
    }
}

/// Regenerate with `ODOSHI_WRITE_SAMPLE=1 cargo test --lib config::tests::the_sample`.
#[test]
fn the_sample_file_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/odoshi.toml");
    if std::env::var_os("ODOSHI_WRITE_SAMPLE").is_some() {
        std::fs::write(path, Config::sample()).expect("written");
    }
    let sample = std::fs::read_to_string(path).expect("the sample");
    assert!(sample == Config::sample(), "config/odoshi.toml is old; this test's comment says how to write it anew");
    assert_eq!(load(&sample, &[], &[]).expect("the sample loads"), Config::default());
}

#[test]
fn the_sample_holds_every_key_of_the_structs_and_nothing_else() {
    // Includes the commented-out lines: the examples of keys without a default.
    let sample: String = Config::sample()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with("[[") => format!("{rest}\n"),
            Some(rest) if rest.split_once(" = ").is_some_and(|(name, _)| !name.contains(' ')) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let sample: toml::Value = toml::from_str(&sample).expect("TOML");
    let structs = toml::Value::try_from(full()).expect("TOML");
    assert_eq!(leaves("", &sample), leaves("", &structs));
    let is_leaf = |key: &Key| !matches!(key.kind, Kind::Section | Kind::Tables);
    let listed = Config::keys().into_iter().filter(is_leaf).map(|key| key.path).collect();
    assert_eq!(leaves("", &structs), listed);
    for key in Config::keys() {
        assert!(!key.docs.is_empty(), "{} has no documentation", key.path);
        assert_eq!(key.example.is_some(), is_leaf(&key) && leaf_default(&key.path).is_none(), "{}", key.path);
    }
    let config = sample.try_into::<Config>().expect("every key of the sample is read by the code");
    config.validate().expect("the examples are valid");
}

fn leaf_default(path: &str) -> Option<toml::Value> {
    if let Some(name) = path.strip_prefix("hook[].") {
        let defaults = toml::Value::try_from(Hook::default()).expect("TOML");
        // An empty list is no default: it has to be given.
        return defaults.get(name).filter(|value| value.as_array().is_none_or(|items| !items.is_empty())).cloned();
    }
    let defaults = toml::Value::try_from(Config::default()).expect("TOML");
    path.split('.').try_fold(&defaults, |value, name| value.get(name)).cloned()
}

fn leaves(path: &str, value: &toml::Value) -> BTreeSet<String> {
    if let Some(tables) = value.as_array().filter(|items| items.iter().any(toml::Value::is_table)) {
        return tables.iter().flat_map(|table| leaves(&format!("{path}[]"), table)).collect();
    }
    let Some(table) = value.as_table() else { return BTreeSet::from([path.to_owned()]) };
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    table.iter().flat_map(|(name, value)| leaves(&join(name), value)).collect()
}

/// Settings with every optional key set. There is no `..default()` where a key is optional, so a
/// new key doesn't compile until it is added here.
fn full() -> Config {
    let url = |text: &str| Some(ServiceUrl::new(text));
    Config {
        http: Http { tls: Tls { cert: Some("c".into()), key: Some("k".into()) }, ..Http::default() },
        store: Store {
            url: url("postgres://db/odoshi"),
            password_file: Some("secret".into()),
            pool_size: 3,
            warn_transaction: Span::secs(30),
            batch: Batch::default(),
        },
        spool: Spool { dir: Some("s".into()), scan_interval: Span::millis(1500) },
        sender: Sender {
            enabled: vec!["slack".into()],
            webhook: Webhook::default(),
            nats: Nats {
                url: url("nats://n"),
                credentials_file: Some("c".into()),
                ca_file: Some("a".into()),
                replicas: 1,
                max_bytes: ByteSize::mib(64),
            },
            amqp: Amqp {
                url: url("amqp://a"),
                password_file: Some("p".into()),
                ca_file: Some("a".into()),
                max_bytes: ByteSize::mib(32),
            },
            smtp: Smtp {
                url: url("smtp://s"),
                password_file: Some("p".into()),
                from: Some("a@b".into()),
                ..Smtp::default()
            },
            custom: CustomSections::default(),
        },
        hook: vec![Hook {
            name: Some("h".into()),
            url: Some(HookUrl::new("https://h")),
            secret_file: Some("s".into()),
            on: vec!["action.ended".into()],
            timeout: Span::secs(1),
        }],
        node: Node { name: Some("n".into()), heartbeat: Span::secs(1), notify: false, dead_after: Span::secs(2) },
        ..Config::default()
    }
}
