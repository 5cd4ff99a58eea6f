//! The command line, as somebody with an admin's token types it.

use super::server::{Server, program};
use std::process::{Command, Output, Stdio};

/// Somebody with an admin's token.
pub struct Operator {
    pub server: String,
    pub token: String,
}

impl Operator {
    pub fn of(server: &Server) -> Self {
        Self { server: server.url.clone(), token: server.admin_token() }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).env("ODOSHI_SERVER", &self.server).env("ODOSHI_TOKEN", &self.token);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What a call prints and how it ends.
    pub async fn call(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = self.command(arguments);
        let Output { status, stdout, stderr } =
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (status.code().unwrap(), text(&stdout), text(&stderr))
    }

    /// What a call prints that must go well.
    pub async fn prints(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.call(arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
        out
    }
}
