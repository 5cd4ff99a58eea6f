//! The modules of an agent, by name.

use super::exec::Exec;
use super::external::{self, External};
use super::module::Module;
use super::ping::Ping;
use crate::agent::config::{AgentConfig, Bounds};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Maximum length of a module's name.
const MAX_NAME: usize = 128;

/// All modules of an agent, by name.
#[derive(Clone)]
pub struct Modules {
    built_in: BTreeMap<String, Arc<dyn Module>>,
    folder: Option<PathBuf>,
    bounds: Bounds,
    /// Names of the agent's variables that programs in the folder get, in addition to the basic
    /// ones.
    env: Vec<String>,
}

impl Modules {
    /// The reference agent's modules.
    pub fn new(config: &AgentConfig) -> Self {
        let (folder, env) = (config.modules_dir.clone(), config.exec.env.clone());
        Self { built_in: BTreeMap::new(), folder, bounds: config.bounds(), env }
            .with("ping", Ping)
            .with("exec", Exec::new(config.exec.clone(), config.bounds()))
    }

    /// Adds a module, or replaces the one with that name.
    #[must_use]
    pub fn with(mut self, name: &str, module: impl Module + 'static) -> Self {
        self.built_in.insert(name.to_owned(), Arc::new(module));
        self
    }

    /// The module with that name; built-in ones take precedence over the folder. The error is a
    /// sentence for people.
    pub fn find(&self, name: &str) -> Result<Arc<dyn Module>, String> {
        if let Some(module) = self.built_in.get(name) {
            return Ok(module.clone());
        }
        let is_name = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if !is_name {
            return Err(format!("a module's name is 1 to {MAX_NAME} of A-Z a-z 0-9 _ -"));
        }
        let unknown = || format!("this agent has no module \"{name}\"");
        let folder = self.folder.as_ref().ok_or_else(unknown)?;
        match external::find(folder, name) {
            Ok(Some(program)) => Ok(Arc::new(External::new(program, self.bounds, self.env.clone()))),
            Ok(None) => Err(unknown()),
            Err(error) => Err(format!("the module \"{name}\" can't be used: {error}")),
        }
    }
}

impl std::fmt::Debug for Modules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Modules")
            .field("built_in", &self.built_in.keys().collect::<Vec<_>>())
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}
