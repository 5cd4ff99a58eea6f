//! What this process uses: the metrics that Prometheus' own client libraries have, under the same names.

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

/// See the module.
#[derive(Debug)]
pub(super) struct Process {
    /// Without the prefix of the others.
    pub(super) registry: Registry,
    cpu: Counter<f64, AtomicU64>,
    memory: Gauge,
    files: Gauge,
    most_files: Gauge,
}

impl Default for Process {
    fn default() -> Self {
        let (mut registry, cpu, start) = (Registry::default(), Counter::default(), Gauge::<f64, AtomicU64>::default());
        let (memory, files, most_files) = (Gauge::default(), Gauge::default(), Gauge::default());
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        registry.register_with_unit("process_cpu", "Time on processors", Unit::Seconds, cpu.clone());
        registry.register_with_unit("process_resident_memory", "Memory in use", Unit::Bytes, memory.clone());
        registry.register("process_open_fds", "Open files", files.clone());
        registry.register("process_max_fds", "Limit of open files", most_files.clone());
        registry.register_with_unit("process_start_time", "Unix time of the start", Unit::Seconds, start);
        Self { registry, cpu, memory, files, most_files }
    }
}

impl Process {
    /// Reads the numbers. What can't be read keeps its last value.
    pub(super) fn read(&self) {
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
            let used = seconds(usage.user_time()) + seconds(usage.system_time());
            self.cpu.inc_by((used - self.cpu.get()).max(0.0));
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        if let Some(kib) = resident.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok()) {
            self.memory.set(kib.saturating_mul(1_024));
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            self.most_files.set(i64::try_from(soft).unwrap_or(i64::MAX));
        }
    }
}
