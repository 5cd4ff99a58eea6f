//! Agents, and the tokens of agents and people.

use super::json::{self, JsonObject};
use super::problem::{Problem, ProblemKind};
use super::text::has_nul;
use super::time::Timestamp;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

/// The transport of agents that connect to the server.
pub const STREAM: &str = "stream";
/// Maximum size of an agent's labels, and of its facts, as JSON in bytes.
pub const MAX_DESCRIPTION: usize = 64 * 1024;

/// Checks an agent's name: `[A-Za-z0-9._-]{1,128}`, but neither `.` nor `..`, which can't be names
/// in paths.
pub fn check_name(name: &str) -> Result<(), Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if matches!(name, "." | "..") {
        let detail = format!("name: {name:?} means a folder in paths");
        return Err(Problem::new(ProblemKind::InvalidDocument, detail));
    }
    if name.is_empty() || name.len() > 128 || !name.chars().all(allowed) {
        let detail = format!("name: {name:?} is not 1 to 128 of A-Z a-z 0-9 . _ -");
        return Err(Problem::new(ProblemKind::InvalidDocument, detail));
    }
    Ok(())
}

/// What an agent reports about itself when it enrolls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrollment {
    /// Unique among agents.
    #[schema(pattern = "^[A-Za-z0-9._-]{1,128}$")]
    pub name: String,
    /// Labels for targets; any strings. Without them, those that the agent reported before stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Facts: a JSON object. Without them, those that the agent reported before stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub facts: Option<JsonObject>,
    /// The agent program's version.
    #[serde(default)]
    pub version: String,
}

impl Enrollment {
    /// Reads and checks an enrollment.
    pub fn from_json(json: &[u8]) -> Result<Self, Problem> {
        let enrollment: Self = json::from_agent(json)?;
        enrollment.check()?;
        Ok(enrollment)
    }

    /// Checks the name, the sizes, and that every value can be stored.
    ///
    /// # Errors
    /// A problem that names the key.
    pub fn check(&self) -> Result<(), Problem> {
        check_name(&self.name)?;
        let nul = |key: &str| Problem::new(ProblemKind::InvalidDocument, format!("{key}: holds a NUL character"));
        let labels = || self.labels.iter().flatten();
        if let Some((key, _)) = labels().find(|(key, value)| has_nul(key) || has_nul(value)) {
            return Err(nul(&format!("labels.{}", key.escape_default())));
        }
        if labels().any(|(key, _)| key.is_empty()) {
            return Err(Problem::new(ProblemKind::InvalidDocument, "labels: a key is empty"));
        }
        if has_nul(&self.version) {
            return Err(nul("version"));
        }
        let too_large = |key: &str| {
            let detail = format!("{key}: larger than {MAX_DESCRIPTION} bytes as JSON");
            Problem::new(ProblemKind::InvalidDocument, detail)
        };
        let size: usize = labels().map(|(key, value)| key.len() + value.len() + 6).sum();
        if size > MAX_DESCRIPTION {
            return Err(too_large("labels"));
        }
        if !fits(self.facts.as_ref()) {
            return Err(too_large("facts"));
        }
        if self.version.len() > 128 {
            return Err(Problem::new(ProblemKind::InvalidDocument, "version: longer than 128 bytes"));
        }
        Ok(())
    }
}

/// Whether facts are small enough to be stored.
pub fn fits(facts: Option<&JsonObject>) -> bool {
    facts.is_none_or(|facts| facts.as_str().len() <= MAX_DESCRIPTION)
}

/// An agent as the pipeline refers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRef {
    /// The store's key; never reused for another agent.
    pub no: i64,
    /// Unique among agents that are not removed.
    pub name: String,
    /// How commands reach it.
    pub transport: String,
    /// Its address, if the transport needs one.
    pub address: Option<String>,
    /// A disabled agent gets no commands.
    pub disabled: bool,
    /// The version of its program, as it said last.
    pub version: String,
}

/// What a sender needs to reach an agent that doesn't connect to the server.
#[derive(Clone, Debug)]
pub struct AgentContact {
    /// The store's key.
    pub no: i64,
    /// Unique among agents that are not removed.
    pub name: String,
    /// Its address, if the transport needs one.
    pub address: Option<String>,
    /// Signs webhooks to it.
    pub secret: Option<SigningSecret>,
}

/// A token's role, from least to most; `Enroll` and `Agent` are outside this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// All reading calls.
    Viewer,
    /// Actions, schedules and previews as well.
    Operator,
    /// Agents and tokens as well.
    Admin,
    /// Enrolling and nothing else.
    Enroll,
    /// One agent's own calls.
    Agent,
}

impl Role {
    /// The word in the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Enroll => "enroll",
            Self::Agent => "agent",
        }
    }

    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Viewer, Self::Operator, Self::Admin, Self::Enroll, Self::Agent]
            .into_iter()
            .find(|role| role.as_str() == name)
    }

    /// Whether a token of this role may make calls that need `needed`.
    pub fn allows(self, needed: Self) -> bool {
        let rank = |role| match role {
            Self::Viewer => Some(0),
            Self::Operator => Some(1),
            Self::Admin => Some(2),
            Self::Enroll | Self::Agent => None,
        };
        match (rank(self), rank(needed)) {
            (Some(has), Some(needs)) => has >= needs,
            (Some(2), None) => needed == Self::Enroll,
            _ => self == needed,
        }
    }
}

/// A secret token. It is shown once; the store keeps its hash.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new secret: 32 random bytes.
    pub fn random() -> Self {
        let bytes: [u8; 32] = rand::rng().random();
        Self(format!("odoshi_{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The text to show once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The hash that the store keeps.
    pub fn hash(&self) -> Vec<u8> {
        hash_of(&self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A secret that signs webhooks: Standard Webhooks' `whsec_` and 32 random bytes in base64.
#[derive(Clone)]
pub struct SigningSecret(String);

impl SigningSecret {
    /// A new secret.
    pub fn random() -> Self {
        let bytes: [u8; 32] = rand::rng().random();
        Self(format!("whsec_{}", STANDARD.encode(bytes)))
    }

    /// A secret that was stored.
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    /// The text to show once, and to store.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

/// SHA-256 of a token's text. The tokens are long and random, so a fast hash is safe. Looking one
/// up by its hash gives a timing attack no information about the token.
pub fn hash_of(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

/// A token as it is stored and listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Token {
    /// The id by which it is revoked.
    pub id: Uuid,
    /// Its role.
    pub role: Role,
    /// A name for people.
    pub name: String,
    /// The agent that it belongs to, if any.
    #[serde(skip)]
    pub agent_no: Option<i64>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// It was issued by enrolling with a nonce and has never been used: repeating that call
    /// replaces it.
    #[serde(skip)]
    pub is_unused: bool,
}

impl Token {
    fn is_admin(&self, now: Timestamp) -> bool {
        let lasts = self.expires_at.is_none_or(|expires_at| expires_at > now);
        self.role == Role::Admin && self.revoked_at.is_none() && lasts
    }

    /// Whether revoking this token would leave no admin token that is valid as long. True if it is
    /// an admin token and each of the `others` is not, or expires earlier.
    pub fn is_last_admin<'a>(&self, others: impl IntoIterator<Item = &'a Self>, now: Timestamp) -> bool {
        let lasts_as_long = |other: &Self| match (other.expires_at, self.expires_at) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(other), Some(this)) => other >= this,
        };
        let replaces = |other: &Self| other.id != self.id && other.is_admin(now) && lasts_as_long(other);
        self.is_admin(now) && !others.into_iter().any(replaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_contain_each_other_and_agents_stand_aside() {
        assert!(Role::Admin.allows(Role::Viewer) && Role::Operator.allows(Role::Viewer));
        assert!(!Role::Viewer.allows(Role::Operator) && !Role::Operator.allows(Role::Admin));
        assert!(Role::Enroll.allows(Role::Enroll) && Role::Admin.allows(Role::Enroll));
        assert!(
            !Role::Enroll.allows(Role::Viewer) && !Role::Admin.allows(Role::Agent) && !Role::Agent.allows(Role::Viewer)
        );
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "...", ".a", "web-1.example_com", &"x".repeat(128)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ü", &"x".repeat(129), "a\n"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_enrollment_holds_nothing_that_no_database_takes() {
        let json =
            r#"{"name":"a","labels":{"role":"we\u0000b"},"version":"\ud800","facts":{"motd":"x\u0000","n":1.10}}"#;
        let read = Enrollment::from_json(json.as_bytes()).expect("taken");
        assert_eq!(read.labels, Some([("role".to_owned(), "we\u{FFFD}b".to_owned())].into()));
        assert_eq!(
            (read.version.as_str(), read.facts.expect("given").as_str()),
            ("\u{FFFD}", r#"{"motd":"x\ufffd","n":1.10}"#)
        );
        let nul = Enrollment { name: "a".into(), version: "\0".into(), ..Enrollment::default() };
        assert!(nul.check().expect_err("refused").detail.starts_with("version: "));
    }

    #[test]
    fn what_an_enrollment_leaves_out_is_not_the_same_as_what_is_empty() {
        let read = |json: &str| Enrollment::from_json(json.as_bytes()).expect("taken");
        assert_eq!(read(r#"{"name":"a"}"#), Enrollment { name: "a".into(), ..Enrollment::default() });
        let empty = read(r#"{"name":"a","labels":{},"facts":{}}"#);
        assert_eq!((empty.labels, empty.facts), (Some(BTreeMap::new()), Some(JsonObject::default())));
    }

    #[test]
    fn the_last_admin_is_the_one_that_no_other_lasts_as_long_as() {
        let now = Timestamp(1_000);
        let token = |n: u128, role, expires_at: Option<i64>, revoked_at: Option<i64>| Token {
            id: Uuid::from_u128(n),
            role,
            name: String::new(),
            agent_no: None,
            created_at: Timestamp(0),
            expires_at: expires_at.map(Timestamp),
            revoked_at: revoked_at.map(Timestamp),
            is_unused: false,
        };
        let [forever, later, soon, over] = [(1, None), (2, Some(9_000)), (3, Some(2_000)), (4, Some(1_000))]
            .map(|(n, at)| token(n, Role::Admin, at, None));
        let revoked = token(5, Role::Admin, None, Some(500));
        let operator = token(6, Role::Operator, None, None);
        let all = [&forever, &later, &soon, &over, &revoked, &operator];
        let lasts: Vec<u128> = all.iter().filter(|t| t.is_last_admin(all, now)).map(|t| t.id.as_u128()).collect();
        assert_eq!(lasts, [1]);
        let all = [&later, &soon, &over, &revoked, &operator];
        let lasts: Vec<u128> = all.iter().filter(|t| t.is_last_admin(all, now)).map(|t| t.id.as_u128()).collect();
        assert_eq!(lasts, [2]);
        let again = token(7, Role::Admin, None, None);
        assert!(!forever.is_last_admin([&forever, &again], now) && forever.is_last_admin([&forever], now));
        assert!(!over.is_last_admin([], now) && !operator.is_last_admin([], now));
    }

    #[test]
    fn a_secret_is_not_shown_by_accident() {
        let secret = Secret::random();
        assert!(!format!("{secret:?}").contains(secret.reveal()));
        assert_eq!(secret.hash(), hash_of(secret.reveal()));
    }
}
