//! No law: a destination whose catalog holds as many names as a large copy, made for `scripts/bench.py`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::SystemTime;

use lazycopy::core::attributes::{Attributes, EntryKind, Fingerprint, Timestamp, Validator};
use lazycopy::core::path::RelPath;
use lazycopy::store::catalog::{NameChange, NameRecord, Packed, SourceShape, Version};

use crate::support::{metadata, open};

/// Files in each directory.
const EACH: u64 = 1000;

fn record(ino: u64, position: u64, attributes: &Attributes) -> NameRecord {
    let kind = attributes.kind;
    let attributes = Some(Packed::new(attributes));
    // Known to have none, as after an `ls -l`.
    let xattrs = Some(Vec::new());
    NameRecord { attributes, xattrs, ..NameRecord::listed(ino, kind, position) }
}

fn attributes_of(ino: u64) -> Attributes {
    let modified = Timestamp { seconds: 1_600_000_000, nanos: 987_654_321 };
    let size = 1000 + ino % 5000;
    Attributes {
        size,
        modified: Some(modified),
        accessed: Some(modified),
        changed: Some(modified),
        fingerprint: Fingerprint { size, validator: Validator::Modified(modified) },
        is_settled: true,
        ..metadata(EntryKind::File, 0o644).attributes
    }
}

/// `LAZYCOPY_BENCH_DEST` knows `LAZYCOPY_BENCH_FILES` files of `LAZYCOPY_BENCH_SOURCE`, a local directory, as an earlier life left them.
#[test]
#[ignore = "makes a catalog for scripts/bench.py"]
fn a_catalog_of_many_files_is_made() {
    let place = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let files: u64 = std::env::var("LAZYCOPY_BENCH_FILES").unwrap().parse().unwrap();
    let destination = open(&place("LAZYCOPY_BENCH_DEST"));
    let catalog = destination.catalog();
    let source = place("LAZYCOPY_BENCH_SOURCE").display().to_string();
    catalog.ensure_job(&source, SystemTime::now()).unwrap();
    let shape = SourceShape {
        lists_attributes: true,
        is_remote: false,
        has_modes: true,
        connections: 16,
        refresh_ms: 2000,
        single_file: None,
    };
    catalog.set_source_shape(&shape).unwrap();
    catalog.set_examined().unwrap();
    let directory = metadata(EntryKind::Directory, 0o755).attributes;
    let directories = files.div_ceil(EACH);
    let mut inos = catalog.reserve_inos(files + directories).unwrap();
    let root =
        NameChange::Put { parent: 0, name: OsString::new(), record: record(1, 0, &directory) };
    catalog.record_names(&[root]).unwrap();
    for number in 0..directories {
        let parent = inos.next().unwrap();
        let own = OsString::from(format!("directory {number:04}"));
        let path = RelPath::root().child(&own).unwrap();
        let mut changes = vec![NameChange::Put {
            parent: 1,
            name: own,
            record: record(parent, number + 1, &directory),
        }];
        let mut entries = Vec::new();
        for position in 1..=EACH {
            let (ino, name) = (inos.next().unwrap(), format!("a file {position:04}.bin"));
            let attributes = attributes_of(ino);
            let fingerprint = attributes.fingerprint.clone();
            entries.push((
                path.child(name.as_ref()).unwrap(),
                Version { ino, fingerprint, is_settled: true },
            ));
            let record = record(ino, position, &attributes);
            changes.push(NameChange::Put { parent, name: name.into(), record });
        }
        changes.push(NameChange::Complete { directory: parent, next_position: EACH + 1 });
        catalog.record_names(&changes).unwrap();
        catalog.know(&entries).unwrap();
    }
    let next_position = directories + 1;
    catalog.record_names(&[NameChange::Complete { directory: 1, next_position }]).unwrap();
    catalog.flush().unwrap();
}
