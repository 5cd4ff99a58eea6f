//! Starts that can't succeed: one line that names the setting, exit code 1, and nothing left in the store.

use crate::cluster::free_port;
use crate::support::{On, Server, program};
use std::net::TcpListener;
use std::process::Command;

/// Starts a server with these settings beside the usual ones. It must end with 1, one line on stderr, and an untouched store;
/// `odoshi config check` must say the same line.
async fn refused(on: On, settings: &[(&str, String)], wanted: &[&str]) {
    let options = settings.iter().fold(on.options(), |options, (key, value)| options.with(key, value));
    let mut server = Server::prepare(options);
    server.spawn();
    assert_eq!(server.wait().await.code(), Some(1));
    let said = server.log_text();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
    match on {
        On::Sqlite => assert!(!server.data().join("odoshi.db").exists(), "the store was made"),
        On::Postgres => {
            let tables = "SELECT count(*) AS n FROM pg_tables WHERE schemaname = 'public'";
            assert_eq!(server.sql().number(tables), 0, "the store was touched");
        }
    }

    let mut check = Command::new(program());
    check
        .args(["config", "check"])
        .env("ODOSHI__DATA_DIR", server.data())
        .env("ODOSHI__STORE__URL", server.store_url())
        .envs(settings.iter().cloned());
    let checked = tokio::task::spawn_blocking(move || check.output().unwrap()).await.unwrap();
    assert_eq!((checked.status.code(), String::from_utf8_lossy(&checked.stderr)), (Some(1), said.into()));
}

pub async fn a_start_that_cannot_listen_leaves_the_store_untouched(on: On) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(on, &[("ODOSHI__HTTP__LISTEN", address.clone())], &["http.listen", &address, "in use"]).await;

    // An address of the range that is kept for documentation is nobody's.
    let foreign = format!("192.0.2.1:{}", free_port());
    refused(on, &[("ODOSHI__HTTP__LISTEN", foreign.clone())], &["http.listen", &foreign]).await;
}

pub async fn a_start_without_its_certificate_leaves_the_store_untouched(on: On) {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("server.crt").display().to_string();
    let port = format!("127.0.0.1:{}", free_port());
    let settings = [
        ("ODOSHI__HTTP__LISTEN", port),
        ("ODOSHI__HTTP__TLS__CERT", missing.clone()),
        ("ODOSHI__HTTP__TLS__KEY", missing.clone()),
    ];
    refused(on, &settings, &["http.tls.cert", &missing, "No such file"]).await;
}
