//! The pages of `docs/` say what the code does: nothing is missing there, and nothing is made up.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use lazycopy::control::UnmountRequest;
use lazycopy::control::orders::{
    Done, HistoryReport, LimitRequest, PathsDone, PathsRequest, ROUTES,
};
use lazycopy::control::status::{StatusReport, StuckReport};
use lazycopy::control::verify::VerifyOrder;
use lazycopy::engine::events::Line;
use lazycopy::jobs::plan::{self, Plan};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const CONTROL: &str = include_str!("../docs/control.md");
const EVENTS: &str = include_str!("../docs/events.md");
const JOBS: &str = include_str!("../docs/jobs.md");
const README: &str = include_str!("../README.md");
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

/// Whether `T` has exactly the fields of an example, and reads it.
fn is_one<T: Serialize + DeserializeOwned>(example: &str) {
    let shown: Value = serde_json::from_str(example).unwrap();
    let read: T =
        serde_json::from_str(example).unwrap_or_else(|error| panic!("{error}: {example}"));
    assert_eq!(serde_json::to_value(&read).unwrap(), shown);
}

#[test]
fn every_route_is_documented_and_every_documented_route_exists() {
    let documented: BTreeSet<&str> =
        sections(CONTROL).into_iter().map(|(heading, _)| heading).collect();
    let routes: Vec<String> =
        ROUTES.iter().map(|(method, path)| format!("{method} {path}")).collect();
    assert_eq!(documented, routes.iter().map(String::as_str).collect());
}

#[test]
fn the_examples_of_routes_are_what_they_take_and_answer() {
    for (heading, section) in sections(CONTROL) {
        let examples = examples(section);
        match heading.trim_start_matches(|c| c != '/') {
            "/v1/status" => is_one::<StatusReport>(examples[0]),
            "/v1/stuck" => is_one::<StuckReport>(examples[0]),
            "/v1/history" => is_one::<HistoryReport>(examples[0]),
            "/v1/unmount" => is_one::<UnmountRequest>(examples[0]),
            "/v1/verify" => is_one::<VerifyOrder>(examples[0]),
            "/v1/pause" | "/v1/resume" | "/v1/drain" | "/v1/stop" => is_one::<Done>(examples[0]),
            "/v1/limit" => {
                is_one::<LimitRequest>(examples[0]);
                is_one::<Done>(examples[1]);
            }
            "/v1/hydrate" | "/v1/evict" | "/v1/pin" | "/v1/unpin" | "/v1/refresh" => {
                is_one::<PathsRequest>(examples[0]);
                is_one::<PathsDone>(examples[1]);
            }
            "/v1/events" => assert!(examples.is_empty()),
            other => panic!("{other} has no example that is looked at"),
        }
    }
}

/// What is read from a jobs file with this text; what is wrong with it.
fn read_jobs(text: &str) -> Result<Plan, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("jobs.toml");
    std::fs::write(&file, text).unwrap();
    plan::read(&file).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn toml_examples(page: &str) -> Vec<&str> {
    page.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

#[test]
fn the_examples_of_jobs_files_are_jobs_files() {
    for page in [JOBS, README] {
        let examples = toml_examples(page);
        assert!(!examples.is_empty());
        for example in examples {
            let plan = read_jobs(example).unwrap_or_else(|found| panic!("{found:#?}: {example}"));
            assert!(!plan.jobs.is_empty());
        }
    }
}

#[test]
fn every_key_of_a_jobs_file_is_documented_and_every_documented_key_exists() {
    for (heading, own) in
        [("[run]", ""), ("[[job]]", "name = 'a'\nsource = 'a'\ndestination = 'b'")]
    {
        let found = read_jobs(&format!("{heading}\n{own}\n'?' = 1\n")).unwrap_err();
        let (_, known) = found[0].split_once("possible are ").unwrap();
        let known: BTreeSet<&str> = known.split(", ").collect();
        let (_, section) = sections(JOBS).into_iter().find(|(name, _)| *name == heading).unwrap();
        assert_eq!(documented_fields(section), known, "{heading}");
    }
}
