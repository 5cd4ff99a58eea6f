//! The metrics, as Prometheus reads them.

use crate::cluster::free_port;
use crate::support::{AgentProcess, Operator, Server, ServerOptions, eventually};
use serde_json::Value;
use std::io::Write;
use std::process::{Child, Command, Stdio};

/// Ends when it is dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[actix_rt::test]
async fn prometheus_reads_the_metrics_and_its_linter_finds_nothing() {
    let server = Server::start(ServerOptions::default()).await;
    let token = server.enroll_token().await;
    let folder = server.folder.path();
    let _agent = AgentProcess::start(&server.url, "a", &[], folder, &token);
    server.drop_file("wrong.json", "[]");
    Operator::of(&server).prints(&["run", "--target", "TRUE", "--allow-empty", "--", "true"]).await;

    let call = reqwest::Client::new().get(format!("{}/metrics", server.url)).bearer_auth(server.admin_token());
    let metrics = call.header("Accept", "text/plain").send().await.unwrap().text().await.unwrap();
    let mut linter = Command::new("promtool");
    linter.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut linter = linter.spawn().expect("Prometheus is installed (scripts/test does it)");
    linter.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let found = linter.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned() + &String::from_utf8_lossy(&found.stderr);
    assert!(found.status.success() && text.trim().is_empty(), "{text}");

    let (port, settings) = (free_port(), folder.join("prometheus.yml"));
    std::fs::write(folder.join("token"), server.admin_token()).unwrap();
    let target = server.url.trim_start_matches("http://");
    let text = format!(
        "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n  - job_name: odoshi\n    \
         authorization: {{credentials_file: token}}\n    static_configs: [{{targets: [\"{target}\"]}}]\n"
    );
    std::fs::write(&settings, text).unwrap();
    let mut prometheus = Command::new("prometheus");
    prometheus.arg(format!("--config.file={}", settings.display()));
    prometheus.arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()));
    prometheus.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let log = std::fs::File::create(folder.join("prometheus.log")).unwrap();
    let _prometheus = Prometheus(prometheus.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let query = async |what: &str| -> Option<Value> {
        let url = format!("http://127.0.0.1:{port}/api/v1/query?query={what}");
        let answer: Value = reqwest::get(url).await.ok()?.json().await.ok()?;
        answer["data"]["result"].as_array()?.first().cloned()
    };
    eventually("Prometheus to have read the metrics", || async {
        let build = query("odoshi_build_info").await?;
        (build["metric"]["version"] == env!("CARGO_PKG_VERSION")).then_some(())
    })
    .await;
    let up = query("up").await.unwrap();
    assert_eq!(up["value"][1], "1", "{up}");
}
