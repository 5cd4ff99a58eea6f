//! The log of this process, on stderr: lines for people, or JSON.
//!
//! One record is one line, whatever its parts hold: names of files, errors and what agents send come from others.

use super::output::AboveBar;
use super::repeats::Repeats;
use crate::domain::text::{escaped, escaped_json};
use env_logger::fmt::Formatter;
use env_logger::{Builder, Env, Target};
use log::kv::{self, Key, Value, VisitSource};
use log::{Level, LevelFilter, Record};
use std::io::{self, Write};
use std::time::Instant;

/// The format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// A JSON object per line
    Json,
}

/// Starts logging. `RUST_LOG` chooses the levels. Without it, a service logs what an operator wants to know, and other
/// commands only warnings, above their progress bar.
pub(super) fn start(format: LogFormat, is_service: bool) {
    let default = if is_service { "info,actix_server=warn,async_nats=warn,lapin=off,tracing=warn" } else { "warn" };
    let mut builder = Builder::from_env(Env::default().default_filter_or(default));
    // It logs whole messages, and a command may hold secrets. What becomes of them is logged elsewhere.
    builder.filter_module("lapin::returned_messages", LevelFilter::Off);
    let repeats = Repeats::default();
    builder.format(move |line, record| {
        let pairs = Pairs::of(record)?;
        // Counts and waits differ from one to the next.
        let texts: Vec<_> = pairs.0.iter().filter_map(|(key, value)| Some((key, value.as_str()?))).collect();
        let message = record.args().to_string();
        let left_out = match record.level() {
            // For debugging, all of them count.
            Level::Warn if log::max_level() < LevelFilter::Debug => {
                repeats.take(&(record.target(), &message, texts), Instant::now())
            }
            _ => Some(0),
        };
        match (left_out, format) {
            (None, _) => Ok(()),
            (Some(left_out), LogFormat::Text) => text(line, record, pairs.and_left_out(left_out)),
            (Some(left_out), LogFormat::Json) => json(line, record, pairs.and_left_out(left_out)),
        }
    });
    if !is_service {
        builder.target(Target::Pipe(Box::new(AboveBar)));
    }
    builder.init();
}

fn text(line: &mut Formatter, record: &Record<'_>, pairs: Pairs) -> io::Result<()> {
    let (level, style) = (record.level(), line.default_level_style(record.level()));
    let time = line.timestamp_millis();
    write!(line, "[{time} {style}{level:<5}{style:#} {}] {}", record.target(), escaped(&record.args().to_string()))?;
    for (key, value) in pairs.0 {
        write!(
            line,
            " {}={}",
            escaped(&key),
            escaped(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        )?;
    }
    writeln!(line)
}

fn json(line: &mut Formatter, record: &Record<'_>, pairs: Pairs) -> io::Result<()> {
    let mut object = serde_json::Map::new();
    object.insert("time".into(), line.timestamp_millis().to_string().into());
    object.insert("level".into(), record.level().as_str().to_ascii_lowercase().into());
    object.insert("target".into(), record.target().into());
    object.insert("message".into(), record.args().to_string().into());
    for (key, value) in pairs.0 {
        object.entry(key).or_insert(value);
    }
    writeln!(line, "{}", escaped_json(&serde_json::Value::from(object).to_string()))
}

/// The pairs of a record.
struct Pairs(Vec<(String, serde_json::Value)>);

impl Pairs {
    fn of(record: &Record<'_>) -> io::Result<Self> {
        let mut pairs = Self(Vec::new());
        record.key_values().visit(&mut pairs).map_err(io::Error::other)?;
        Ok(pairs)
    }

    /// Says how many lines like this one were left out.
    fn and_left_out(mut self, lines: u64) -> Self {
        if lines > 0 {
            self.0.push(("left_out".to_owned(), lines.into()));
        }
        self
    }
}

impl<'kvs> VisitSource<'kvs> for Pairs {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let json = match (value.to_u64(), value.to_i64(), value.to_f64(), value.to_bool()) {
            (Some(number), ..) => number.into(),
            (_, Some(number), ..) => number.into(),
            (_, _, Some(number), _) => number.into(),
            (_, _, _, Some(truth)) => truth.into(),
            _ => value.to_string().into(),
        };
        self.0.push((key.to_string(), json));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What is logged of one record in a format.
    fn logged(format: fn(&mut Formatter, &Record<'_>, Pairs) -> io::Result<()>) -> String {
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);

        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("the only thread").extend_from_slice(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let kept = Kept::default();
        let mut builder = Builder::new();
        let logger = builder.filter_level(LevelFilter::Info).target(Target::Pipe(Box::new(kept.clone())));
        let logger = logger.format(move |line, record| format(line, record, Pairs::of(record)?));
        let pairs: &[(&str, Value<'_>)] = &[("file", Value::from("a\n[ERROR] b")), ("items", Value::from(3_u64))];
        let record = Record::builder()
            .args(format_args!("a file\u{1b}[2J"))
            .level(log::Level::Warn)
            .target("odoshi::spool")
            .key_values(&pairs)
            .build();
        log::Log::log(&logger.build(), &record);
        let bytes = kept.0.lock().expect("the only thread").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn a_record_is_one_line_whatever_it_holds() {
        let line = logged(text);
        assert!(line.ends_with("WARN  odoshi::spool] a file\\u{1b}[2J file=a\\n[ERROR] b items=3\n"), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn as_json_it_is_one_object() {
        let line = logged(json);
        let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&object["level"], &object["items"]), (&"warn".into(), &3.into()));
        assert_eq!((&object["file"], &object["message"]), (&"a\n[ERROR] b".into(), &"a file\u{1b}[2J".into()));
        assert_eq!(line.matches('\n').count(), 1);
    }
}
