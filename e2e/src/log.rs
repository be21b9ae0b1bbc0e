//! The CRI log format: `<RFC 3339 time> <stdout|stderr> <F|P> <bytes>`, one record a line, where `P` marks a
//! record whose line goes on in the next one (cri-api, `logs.go`).

/// One record of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Time of writing, as it stands in the file.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line ends with this record (`F`).
    pub full: bool,
    /// What was written, without the line's end.
    pub text: String,
}

/// Reads a log. Panics at a line that is not in the format, since that is a fault under test. What comes after the last
/// line's end is being written: readers see a file grow page by page.
pub fn parse(bytes: &[u8]) -> Vec<Record> {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let text = String::from_utf8_lossy(&bytes[..end]);
    text.lines().map(|line| record(line).unwrap_or_else(|| panic!("not a CRI log record: {line:?}"))).collect()
}

/// Puts partial records together and returns the lines of one stream.
pub fn lines(records: &[Record], stream: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = false;
    for record in records.iter().filter(|record| record.stream == stream) {
        match lines.last_mut() {
            Some(last) if open => *last = format!("{last}{}", record.text),
            _ => lines.push(record.text.clone()),
        }
        open = !record.full;
    }
    lines
}

fn record(line: &str) -> Option<Record> {
    let mut fields = line.splitn(4, ' ');
    let (time, stream, tag, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let timed =
        time.len() >= 20 && time.as_bytes().get(10) == Some(&b'T') && (time.ends_with('Z') || time.contains('+') || time.contains('-'));
    let valid = timed && matches!(stream, "stdout" | "stderr") && matches!(tag, "F" | "P");
    valid.then(|| Record { time: time.to_owned(), stream: stream.to_owned(), full: tag == "F", text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_being_written_is_none_yet() {
        assert_eq!(lines(&parse(b"2026-01-02T03:04:05.1Z stdout F x\n2026-01-0"), "stdout"), ["x"]);
        assert_eq!(parse(b"2026-01-02T03:04:05.1Z std"), []);
    }

    #[test]
    fn partial_records_make_one_line() {
        let log = b"2026-01-02T03:04:05.000000006Z stdout P ab\n2026-01-02T03:04:05.1Z stderr F x\n2026-01-02T03:04:05.2Z stdout F c d\n";
        let records = parse(log);
        assert_eq!(lines(&records, "stdout"), ["abc d"]);
        assert_eq!(lines(&records, "stderr"), ["x"]);
    }
}
