//! `[[hook]]`

use super::error::Checks;
use super::hook_url::HookUrl;
use super::setting::{Key, Kind, Setting, section};
use crate::domain::agent::check_name;
use crate::domain::hook::{HookEvent, Listener};
use crate::domain::time::Span;
use std::collections::HashMap;
use std::path::PathBuf;

/// Maximum number of hooks. Each may have a few requests in flight.
const MOST: usize = 32;

section! {
    /// An address that is told when something happened.
    pub struct Hook {
        /// The hook's name in lists, metrics and the store: up to 128 of A-Z, a-z, 0-9, dot, _ and
        /// -. Default: the URL's host and the hook's position, such as hooks.example.com-0. Events
        /// that wait for a hook are lost when its name changes, so give one.
        name: Option<String> = None, example "on-call";
        /// Where events are sent by POST: http:// or https://. The path is masked when settings
        /// are shown, because it often holds a secret.
        url: Option<HookUrl> = None, example "https://hooks.example.com/odoshi";
        /// A file with the secret that signs the requests (Standard Webhooks: whsec_ and base64),
        /// one a line while secrets rotate. Without it, requests are not signed.
        secret_file: Option<PathBuf> = None, example "/etc/odoshi/hook.secret";
        /// The events: action.ended, action.halted, schedule.missed, node.lost. Rollouts, and with
        /// them action.halted, don't exist yet.
        on: Vec<String> = Vec::new(), example "action.ended,node.lost";
        /// Timeout of one request.
        timeout: Span = Span::secs(30);
    }
}

impl Setting for Vec<Hook> {
    const KIND: Kind = Kind::Tables;

    fn inner_keys(path: &str, keys: &mut Vec<Key>) {
        Hook::inner_keys(&format!("{path}[]"), keys);
    }

    fn table() -> Option<toml::Value> {
        toml::Value::try_from(Hook::default()).ok()
    }
}

impl Hook {
    /// Its name, or the default for the hook at this position.
    pub fn name_at(&self, index: usize) -> String {
        let host = || {
            let host = self.url.as_ref().and_then(HookUrl::host).unwrap_or_else(|| "hook".into());
            let is_fine = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
            // What a name can't hold: the brackets and colons of an IPv6 address.
            let host: String =
                host.chars().map(|letter| if is_fine(letter) { letter } else { '-' }).take(120).collect();
            format!("{host}-{index}")
        };
        self.name.clone().unwrap_or_else(host)
    }

    /// The events, without names of none.
    pub fn events(&self) -> Vec<HookEvent> {
        self.on.iter().filter_map(|name| HookEvent::from_name(name)).collect()
    }

    fn validate(&self, index: usize, checks: &mut Checks) {
        let key = |name: &str| format!("hook[{index}].{name}");
        if let Some(name) = &self.name {
            let fine = check_name(name).is_ok();
            checks.that(&key("name"), fine, "must be 1 to 128 of A-Z, a-z, 0-9, dot, _ and -, and not . or ..");
        }
        match &self.url {
            None => checks.that(&key("url"), false, "is needed"),
            Some(url) => {
                checks.that(&key("url"), url.is_usable(), "must be a URL that begins with http:// or https://")
            }
        }
        if let Some(file) = &self.secret_file {
            checks.that(&key("secret_file"), !file.as_os_str().is_empty(), "must not be empty");
        }
        let known = HookEvent::ALL.map(HookEvent::as_str).join(", ");
        checks.that(&key("on"), !self.on.is_empty(), format!("must name at least one of {known}"));
        for (position, name) in self.on.iter().enumerate() {
            let is_known = HookEvent::from_name(name).is_some();
            checks.that(&key("on"), is_known, format!("holds \"{name}\", which is none of {known}"));
            checks.that(&key("on"), !self.on[..position].contains(name), format!("holds \"{name}\" twice"));
        }
        checks.duration(&key("timeout"), self.timeout, Span::secs(300));
    }
}

pub(super) fn validate(hooks: &[Hook], checks: &mut Checks) {
    checks.that("hook", hooks.len() <= MOST, format!("may be given at most {MOST} times, and is {}", hooks.len()));
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, hook) in hooks.iter().enumerate() {
        hook.validate(index, checks);
        let name = hook.name_at(index);
        if let Some(other) = seen.get(&name) {
            checks.that(&format!("hook[{index}].name"), false, format!("is \"{name}\", as is that of hook[{other}]"));
        }
        seen.entry(name).or_insert(index);
    }
}

/// The hooks as the store knows them.
pub(super) fn listeners(hooks: &[Hook]) -> Vec<Listener> {
    let listener = |(index, hook): (usize, &Hook)| Listener { name: hook.name_at(index), on: hook.events() };
    hooks.iter().enumerate().map(listener).collect()
}
