//! The older text format of Prometheus, 0.0.4, for readers that don't ask for OpenMetrics.

/// Rewrites OpenMetrics: a counter is called by the name of its samples, and there are neither units nor an end.
pub fn plain(open_metrics: &str) -> String {
    let mut counters = std::collections::HashSet::new();
    for line in open_metrics.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" counter")) {
            counters.insert(name);
        }
    }
    let mut plain = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let comment = ["# HELP ", "# TYPE "].into_iter().find_map(|begin| Some((begin, line.strip_prefix(begin)?)));
        match comment {
            Some((begin, rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let total = if counters.contains(name) { "_total" } else { "" };
                plain.push_str(&format!("{begin}{name}{total} {rest}\n"));
            }
            None if line.starts_with("# UNIT ") || line == "# EOF" => {}
            None => {
                plain.push_str(line);
                plain.push('\n');
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_get_the_names_of_their_samples() {
        let open = "# HELP x_cpu_seconds Time.\n# TYPE x_cpu_seconds counter\n# UNIT x_cpu_seconds seconds\n\
            x_cpu_seconds_total{a=\"b\"} 1\n# HELP x_up Up.\n# TYPE x_up gauge\nx_up 1\n# EOF\n";
        let expected = "# HELP x_cpu_seconds_total Time.\n# TYPE x_cpu_seconds_total counter\n\
            x_cpu_seconds_total{a=\"b\"} 1\n# HELP x_up Up.\n# TYPE x_up gauge\nx_up 1\n";
        assert_eq!(plain(open), expected);
    }
}
