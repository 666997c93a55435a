//! The machine that a measurement ran on, in words.

/// One sentence: cores, processor, memory, kernel.
pub(super) fn described() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let [processors, memory, kernel] = ["/proc/cpuinfo", "/proc/meminfo", "/proc/sys/kernel/osrelease"].map(read);
    let model = value(&processors, "model name").unwrap_or("a processor that does not tell its name");
    let kib = value(&memory, "MemTotal").and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let gib = kib.map_or_else(|| "unknown".to_owned(), |kib| format!("{} GiB", kib >> 20));
    format!("{cores} cores of {model}, {gib} of memory, Linux {}.", kernel.trim())
}

/// What a line `key : value` says.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == key))
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        assert_eq!(value("a : b\nmodel name\t: A Processor\n", "model name"), Some("A Processor"));
        assert!(described().contains("GiB of memory"), "{}", described());
    }
}
