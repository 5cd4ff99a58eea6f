//! TLS of the server's own: agents, operators and others over https, and a certificate that is renewed under way.

use crate::support::{AgentProcess, Server, ServerOptions, eventually, program};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Output};

/// Has `server.crt` and `server.key` for 127.0.0.1 made by the authority `ca`, which is made if there is none.
pub fn certificate(folder: &Path, ca: &str) {
    let openssl = |arguments: String| {
        let made = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
    };
    if !folder.join(format!("{ca}.crt")).exists() {
        openssl(format!(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {ca}.key -out {ca}.crt -subj /CN=test-{ca}"
        ));
    }
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl("req -newkey rsa:2048 -nodes -keyout new.key -out new.csr -subj /CN=127.0.0.1".into());
    let by = format!("-CA {ca}.crt -CAkey {ca}.key -CAcreateserial");
    openssl(format!("x509 -req -days 2 -in new.csr {by} -extfile names -out new.crt"));
    std::fs::rename(folder.join("new.key"), folder.join("server.key")).unwrap();
    std::fs::rename(folder.join("new.crt"), folder.join("server.crt")).unwrap();
}

/// Somebody who trusts one authority and nobody else.
fn trusting(folder: &Path, ca: &str) -> reqwest::Client {
    let pem = std::fs::read(folder.join(format!("{ca}.crt"))).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let builder = rustls::ClientConfig::builder_with_provider(provider.into()).with_safe_default_protocol_versions();
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let tls = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap()
}

#[actix_rt::test]
async fn agents_and_operators_speak_tls_and_a_new_certificate_is_taken_up() {
    let keys = tempfile::tempdir().unwrap();
    let (folder, path) = (keys.path(), |name: &str| keys.path().join(name).to_str().unwrap().to_owned());
    certificate(folder, "ca");
    certificate(folder, "other");
    certificate(folder, "ca");
    let options = ServerOptions::default()
        .with("ODOSHI__HTTP__TLS__CERT", &path("server.crt"))
        .with("ODOSHI__HTTP__TLS__KEY", &path("server.key"));
    let mut server = Server::prepare(options);
    server.url = server.url.replace("http://", "https://");
    server.spawn();
    let (good, other) = (trusting(folder, "ca"), trusting(folder, "other"));
    let ready = format!("{}/readyz", server.url);
    let is_ready = async |client: &reqwest::Client| client.get(&ready).send().await.is_ok_and(|a| a.status() == 200);
    eventually("the server", || async { is_ready(&good).await.then_some(()) }).await;
    assert!(!is_ready(&other).await, "a certificate of somebody else's");

    let operator = |arguments: &[&str], ca: &str| {
        let mut command = Command::new(program());
        command.args(arguments).env("ODOSHI_SERVER", &server.url).env("ODOSHI_TOKEN", server.admin_token());
        command.env("ODOSHI_CA_FILE", path(&format!("{ca}.crt")));
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (status.code().unwrap(), text(&stdout), text(&stderr))
    };
    let (code, token, said) = operator(&["token", "create", "--role", "enroll"], "ca");
    assert_eq!(code, 0, "{said}");
    assert_eq!(operator(&["actions", "list"], "other").0, 3, "not the server that was asked for");
    let extra = format!("ca_file = \"{}\"\n", path("ca.crt"));
    let _agent = AgentProcess::start_with(&server.url, "a", &[], server.folder.path(), &token, &extra);
    eventually("the agent to be online", || async {
        operator(&["agents", "list"], "ca").1.contains("online").then_some(())
    })
    .await;
    let (code, out, err) = operator(&["run", "--name", "n", "--target", "TRUE", "--", "echo", "over tls"], "ca");
    assert!(code == 0 && out.contains("succeeded"), "{out}{err}");

    // A broken pair changes nothing; a new one is taken up, and connections that are open stay.
    std::fs::write(path("server.crt"), "no certificate").unwrap();
    eventually("the broken certificate to be told of", || async {
        server.log_text().contains("the one before stays in use").then_some(())
    })
    .await;
    assert!(is_ready(&trusting(folder, "ca")).await);
    certificate(folder, "other");
    eventually("the new certificate", || async { is_ready(&trusting(folder, "other")).await.then_some(()) }).await;
    assert!(!is_ready(&trusting(folder, "ca")).await);
    let call = trusting(folder, "other").post(format!("{}/v1/actions", server.url)).bearer_auth(server.admin_token());
    let document = json!({ "name": "n", "target": "TRUE", "operations": [{ "module": "ping" }] });
    assert_eq!(call.json(&document).send().await.unwrap().status(), 202);
    eventually("the agent's answer over its open connection", || async {
        let (_, list, _) = operator(&["actions", "list", "--status", "completed", "-o", "json"], "other");
        (serde_json::from_str::<serde_json::Value>(&list).ok()?.as_array()?.len() == 2).then_some(())
    })
    .await;
}
