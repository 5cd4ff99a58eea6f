//! How a server gets at PostgreSQL: TLS in all its modes, and where the password comes from.

use crate::cluster::{self, Cluster};
use crate::support::{On, Server, ServerOptions, program};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

fn openssl(folder: &Path, arguments: &str) {
    let made = Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

/// A server that takes TLS alone, with a certificate for `localhost` and not for 127.0.0.1; and the authorities: the one that
/// made it, and another one.
fn with_tls(folder: &Path) -> (&'static Cluster, PathBuf, PathBuf) {
    for authority in ["ca", "other"] {
        let (key, certificate) = (format!("{authority}.key"), format!("{authority}.crt"));
        let subject = format!("-subj /CN=odoshi-test-{authority}");
        openssl(
            folder,
            &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate} {subject}"),
        );
    }
    openssl(folder, "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost");
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        folder,
        "x509 -req -days 2 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile names -out server.crt",
    );
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let cluster = cluster::own(&[]);
    cluster.stop();
    cluster.put("server.key", &read("server.key"));
    cluster.put("server.crt", &read("server.crt"));
    cluster.append("postgresql.conf", "ssl = on\n");
    cluster.put("pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n");
    cluster.resume();
    (cluster, folder.join("ca.crt"), folder.join("other.crt"))
}

/// `odoshi migrate`, with this in its environment.
fn migrate(environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    command.arg("migrate").env_remove("PGPASSWORD").envs(environment.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    assert!(!text.contains(cluster::PASSWORD) && !text.contains("word%2F7"), "a password: {text}");
    (status.code(), text)
}

#[actix_rt::test]
async fn tls_means_what_it_means_to_other_clients() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let (cluster, ca, other) = tokio::task::spawn_blocking(move || with_tls(&path)).await.unwrap();
    let (ca, other) = (ca.display(), other.display());
    let by_address = cluster.url("postgres");
    let by_name = by_address.replace("127.0.0.1", "localhost");
    for (url, good) in [
        (by_address.clone(), true),
        (format!("{by_address}?sslmode=disable"), false),
        (format!("{by_address}?sslmode=prefer"), true),
        (format!("{by_address}?sslmode=require"), true),
        (format!("{by_address}?sslmode=require&sslrootcert={ca}"), true),
        (format!("{by_address}?sslmode=require&sslrootcert={other}"), false),
        (format!("{by_address}?sslmode=verify-ca&sslrootcert={ca}"), true),
        (format!("{by_address}?sslmode=verify-ca&sslrootcert={other}"), false),
        (format!("{by_address}?sslmode=verify-ca"), false),
        (format!("{by_address}?sslmode=verify-full&sslrootcert={ca}"), false),
        (format!("{by_name}?sslmode=verify-full&sslrootcert={ca}"), true),
        (format!("{by_name}?sslmode=verify-full&sslrootcert={other}"), false),
    ] {
        let (code, text) = tokio::task::spawn_blocking({
            let url = url.clone();
            move || migrate(&[("ODOSHI__STORE__URL", &url)])
        })
        .await
        .unwrap();
        assert_eq!(code, Some(if good { 0 } else { 1 }), "{url}: {text}");
        let about_tls = ["certificate", "pg_hba.conf", "trusts no authorities"].iter().any(|word| text.contains(word));
        assert!(good || about_tls, "{url}: {text}");
    }
    let mut server = Server::prepare(ServerOptions { cluster: Some(cluster), ..ServerOptions::default() });
    server.set("ODOSHI__STORE__URL", &format!("{by_name}?sslmode=verify-full&sslrootcert={ca}"));
    server.restart().await;
    let plain = tokio::task::spawn_blocking(|| {
        cluster.psql(
            "postgres",
            "SELECT count(*) || '|' || count(*) FILTER (WHERE ssl) FROM pg_stat_ssl JOIN \
            pg_stat_activity USING (pid) WHERE application_name = 'odoshi'",
        )
    });
    let plain = plain.await.unwrap();
    let (all, encrypted) = plain.split_once('|').unwrap();
    assert!(all == encrypted && all.parse::<u32>().unwrap() >= 2, "{plain}");
}

#[actix_rt::test]
async fn a_password_comes_from_a_file_or_the_environment_and_is_never_shown() {
    let server = Server::prepare(On::Postgres.options());
    let url = server.store_url();
    let bare = url.replace(":pass%20word%2F7@", "@");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{}\n", cluster::PASSWORD)).unwrap();
    let file = file.display().to_string();
    tokio::task::spawn_blocking(move || {
        let in_file = ("ODOSHI__STORE__PASSWORD_FILE", file.as_str());
        let store = |url| ("ODOSHI__STORE__URL", url);
        for (environment, code) in [
            (vec![store(url.as_str())], 0),
            (vec![store(&bare), in_file], 0),
            (vec![store(&bare), ("PGPASSWORD", cluster::PASSWORD)], 0),
            // The URL's own is not overruled by what is in the environment for others.
            (vec![store(&url), ("PGPASSWORD", "wrong")], 0),
            (vec![store(&bare), ("PGPASSWORD", "wrong")], 1),
            (vec![store(&bare)], 1),
            (vec![store(&bare), ("ODOSHI__STORE__PASSWORD_FILE", "/nowhere")], 1),
        ] {
            let (ended, text) = migrate(&environment);
            assert_eq!(ended, Some(code), "{environment:?}: {text}");
        }
        let show = Command::new(program()).args(["config", "show"]).env("ODOSHI__STORE__URL", &url).output().unwrap();
        let shown = String::from_utf8_lossy(&show.stdout).into_owned();
        assert!(shown.contains("odoshi:***@") && !shown.contains("word%2F7"), "{shown}");
    })
    .await
    .unwrap();
}

#[actix_rt::test]
async fn a_database_in_another_encoding_is_refused_with_what_to_do() {
    let url = tokio::task::spawn_blocking(|| {
        let cluster = cluster::shared();
        cluster.url(&cluster.database_in("LATIN1"))
    });
    let url = url.await.unwrap();
    let what_to_do = "ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0";
    let mut server = Server::prepare(ServerOptions::default());
    server.set("ODOSHI__STORE__URL", &url);
    server.spawn();
    assert_eq!(server.wait().await.code(), Some(1), "{}", server.log_text());
    let log = server.log_text();
    assert!(log.contains("LATIN1") && log.contains(what_to_do), "{log}");
    let migrated = tokio::task::spawn_blocking(move || migrate(&[("ODOSHI__STORE__URL", &url)]));
    let (code, text) = migrated.await.unwrap();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("LATIN1") && text.contains(what_to_do), "{text}");
}

/// PgBouncer before a server, in a mode of its own. It ends when it is dropped.
struct Pooler {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Pooler {
    fn start(cluster: &Cluster, mode: &str) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), cluster::free_port());
        let (path, server) = (folder.path().display(), cluster.port);
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {path}/users\npool_mode = {mode}\n\
             default_pool_size = 50\n"
        );
        std::fs::write(folder.path().join("settings"), settings).unwrap();
        std::fs::write(folder.path().join("users"), format!("\"odoshi\" \"{}\"\n", cluster::PASSWORD)).unwrap();
        // It doesn't run as root.
        let mut command = Command::new("/usr/sbin/pgbouncer");
        if let Some((uid, gid)) = cluster::unprivileged() {
            for path in [folder.path().to_owned(), folder.path().join("settings"), folder.path().join("users")] {
                nix::unistd::chown(&path, Some(uid.into()), Some(gid.into())).unwrap();
            }
            command.uid(uid).gid(gid);
        }
        let child = command.arg("-q").arg(folder.path().join("settings")).current_dir("/").spawn().unwrap();
        Self { child, port, _folder: folder }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[actix_rt::test]
async fn a_pooler_that_changes_sessions_is_refused_and_one_that_keeps_them_is_not() {
    for (mode, is_fine) in [("transaction", false), ("session", true)] {
        let (pooler, url) = tokio::task::spawn_blocking(move || {
            let cluster = cluster::shared();
            let pooler = Pooler::start(cluster, mode);
            let url = cluster.url_through(pooler.port, &cluster.database());
            (pooler, url)
        })
        .await
        .unwrap();
        let listens = || async { tokio::net::TcpStream::connect(("127.0.0.1", pooler.port)).await.ok() };
        crate::support::eventually("PgBouncer to listen", listens).await;
        let mut server = Server::prepare(ServerOptions::default());
        server.set("ODOSHI__STORE__URL", &url);
        // The second start finds the tables there.
        for _ in 0..2 {
            if is_fine {
                server.restart().await;
                server.terminate().await;
            } else {
                server.spawn();
                assert_eq!(server.wait().await.code(), Some(1), "{}", server.log_text());
                assert!(server.log_text().contains("pool_mode = session"), "{}", server.log_text());
            }
        }
    }
}
