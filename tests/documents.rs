//! The pages of `docs/` say what the code does: nothing is missing there, and nothing is made up.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use lazycopy::engine::events::Line;
use serde_json::{Value, json};

const EVENTS: &str = include_str!("../docs/events.md");
/// What every line has.
const COMMON: [&str; 7] = ["schema", "seq", "time", "session", "job", "event", "path_b64"];

/// The words between backticks.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The parts of a page below its headings of the second level, each with its heading.
fn sections(page: &str) -> Vec<(&str, &str)> {
    page.split("\n## ").skip(1).map(|part| part.split_once('\n').unwrap()).collect()
}

/// The lines of its examples.
fn examples(section: &str) -> Vec<&str> {
    let blocks = section.split("```json\n").skip(1);
    blocks.flat_map(|block| block.split("```").next().unwrap().lines()).collect()
}

/// The first cells of its tables.
fn documented_fields(section: &str) -> BTreeSet<&str> {
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap()).collect()
}

/// serde names all variants when it is shown one that it does not know.
fn variants_of(line: Value) -> BTreeSet<String> {
    let error = serde_json::from_value::<Line>(line).unwrap_err().to_string();
    let (_, names) = error.split_once("expected ").unwrap_or_else(|| panic!("{error}"));
    quoted(names).into_iter().map(str::to_owned).collect()
}

#[test]
fn every_event_is_documented_and_every_documented_event_exists() {
    let line = json!({"schema":1,"seq":1,"time":"","session":"","job":"","event":"?"});
    let known = variants_of(line);
    let documented: BTreeSet<String> =
        sections(EVENTS).iter().map(|(heading, _)| (*heading).to_owned()).collect();
    assert!(known.len() > 10, "{known:?}");
    assert_eq!(documented, known);
}

#[test]
fn every_example_is_an_event_with_exactly_the_documented_fields() {
    for (heading, section) in sections(EVENTS) {
        let examples = examples(section);
        assert!(!examples.is_empty(), "{heading} has no example");
        for example in examples {
            let shown: Value = serde_json::from_str(example).unwrap();
            let line: Line = serde_json::from_str(example)
                .unwrap_or_else(|error| panic!("{heading}: {error}: {example}"));
            // Nothing that the code does not write, and nothing that it writes is left out.
            assert_eq!(serde_json::to_value(&line).unwrap(), shown, "{heading}");
            assert_eq!(shown["event"], heading);
            let mut fields: BTreeSet<&str> =
                shown.as_object().unwrap().keys().map(String::as_str).collect();
            fields.retain(|field| !COMMON.contains(field));
            assert_eq!(documented_fields(section), fields, "{heading}");
        }
    }
}

#[test]
fn every_word_of_what_is_documented() {
    for (heading, section) in sections(EVENTS) {
        let mut line: Value = serde_json::from_str(examples(section)[0]).unwrap();
        if line.get("what").is_none() {
            continue;
        }
        line["what"] = "?".into();
        let row = section.lines().find(|line| line.starts_with("| `what`")).unwrap();
        for word in variants_of(line) {
            assert!(quoted(row).contains(word.as_str()), "{heading}: {word}");
        }
    }
}

#[test]
fn the_fields_of_every_line_are_documented() {
    let head = EVENTS.split("\n## ").next().unwrap();
    let mut documented = documented_fields(head);
    documented.insert("path_b64");
    assert_eq!(documented, COMMON.into_iter().collect());
}
