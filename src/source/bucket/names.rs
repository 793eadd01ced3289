//! Keys become names of a directory: which are shown, and which have no place in a tree.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ffi::OsString;

use super::{Item, Object};
use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::error::{Error, Kind, Result};
use crate::source::{Entry, ListBatch};

/// Sorts the items of one directory, page after page, in the order of keys.
///
/// Between the key `a` and the prefix `a/` there can be any number of others (`a!`, `a-1`), on other pages too: an object is held back
/// until no prefix of its name can follow. Those that wait are each the beginning of the next, so they are few.
#[derive(Debug)]
pub(super) struct Names {
    directory: RelPath,
    /// What all keys of this directory begin with.
    prefix: String,
    waiting: Vec<(String, Object)>,
    batch: ListBatch,
    /// Objects that have the name of a directory.
    shadowed: BTreeSet<OsString>,
    /// The last key of the page before.
    last: Option<String>,
}

impl Names {
    pub(super) fn new(directory: RelPath, prefix: String) -> Self {
        Self {
            directory,
            prefix,
            waiting: Vec::new(),
            batch: ListBatch::default(),
            shadowed: BTreeSet::new(),
            last: None,
        }
    }

    /// Whether anything was there.
    pub(super) fn is_something(&self) -> bool {
        self.last.is_some()
    }

    /// The objects that have the name of a directory, when all is taken.
    pub(super) fn into_shadowed(self) -> BTreeSet<OsString> {
        self.shadowed
    }

    /// Takes the next page; gives what is certain by now.
    ///
    /// # Errors
    /// `Invalid` if it does not go on where the page before ended: a name could come twice.
    pub(super) fn take(&mut self, items: Vec<Item>) -> Result<ListBatch> {
        if let (Some(last), Some(first)) = (&self.last, items.first())
            && first.key() <= last.as_str()
            && tree_order(first.key(), last).is_le()
        {
            return Err(Error::new(Kind::Invalid, "list directory")
                .because("the server does not list keys in their order"));
        }
        if let Some(last) = items.last() {
            self.last = Some(last.key().to_owned());
        }
        for item in items {
            let Some(name) = item.key().strip_prefix(&self.prefix).map(str::to_owned) else {
                self.refuse(item.key(), "the server lists a key that was not asked for");
                continue;
            };
            self.let_go(&name);
            match item {
                Item::Prefix(_) => self.take_prefix(name.strip_suffix('/').unwrap_or(&name)),
                // The marker of this directory.
                Item::Object(object) if name.is_empty() => {
                    if object.size != Some(0) {
                        self.refuse(&object.key, "the object of a directory holds bytes");
                    }
                }
                Item::Object(object) => self.waiting.push((name, object)),
            }
        }
        Ok(std::mem::take(&mut self.batch))
    }

    /// Nothing follows; gives the rest.
    pub(super) fn end(&mut self) -> ListBatch {
        while let Some((name, object)) = self.waiting.pop() {
            self.show_object(name, object);
        }
        std::mem::take(&mut self.batch)
    }

    /// Lets those go whose prefix cannot follow `next` any more.
    fn let_go(&mut self, next: &str) {
        while let Some((name, _)) = self.waiting.last() {
            let may_follow = next
                .strip_prefix(name.as_str())
                .is_some_and(|rest| rest.as_bytes().first().is_none_or(|first| *first <= b'/'));
            if may_follow {
                return;
            }
            if let Some((name, object)) = self.waiting.pop() {
                self.show_object(name, object);
            }
        }
    }

    fn take_prefix(&mut self, name: &str) {
        while let Some(place) = self.waiting.iter().position(|(waiting, _)| waiting == name) {
            let (name, object) = self.waiting.remove(place);
            self.refuse(&object.key, "there is a directory of the same name");
            self.shadowed.insert(name.into());
        }
        self.show(Entry { name: name.into(), kind: EntryKind::Directory, attributes: None });
    }

    fn show_object(&mut self, name: String, object: Object) {
        let attributes = object.attributes;
        self.show(Entry { name: name.into(), kind: EntryKind::File, attributes });
    }

    fn show(&mut self, entry: Entry) {
        match RelPath::check_name(&entry.name) {
            Ok(()) => self.batch.entries.push(entry),
            Err(refusal) => {
                tracing::warn!(directory = %self.directory, err = %refusal, "name refused");
                self.batch.refused += 1;
            }
        }
    }

    fn refuse(&mut self, key: &str, why: &str) {
        tracing::warn!(directory = %self.directory, key, why, "object not shown");
        self.batch.refused += 1;
    }
}

/// The order of services that keep directories as such: what is in `a` comes before `a!`, although a slash comes after. One of the two orders
/// holds over all pages.
fn tree_order(one: &str, other: &str) -> Ordering {
    let slash_first = |key: &str| {
        key.bytes().map(|byte| if byte == b'/' { 0 } else { byte }).collect::<Vec<u8>>()
    };
    slash_first(one).cmp(&slash_first(other))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// What a listing with a delimiter gives of `keys` below `prefix`, `per_page` items a page.
    fn pages(keys: &BTreeSet<String>, prefix: &str, per_page: usize) -> Vec<Vec<Item>> {
        let mut items = BTreeMap::new();
        for key in keys.iter().filter(|key| key.starts_with(prefix)) {
            match key[prefix.len()..].find('/') {
                Some(at) => {
                    let common = key[..prefix.len() + at + 1].to_owned();
                    items.insert(common.clone(), Item::Prefix(common));
                }
                None => {
                    let object = Object { key: key.clone(), size: Some(0), ..Object::default() };
                    items.insert(key.clone(), Item::Object(object));
                }
            }
        }
        let mut pages: Vec<Vec<Item>> = vec![Vec::new()];
        for item in items.into_values() {
            if pages.last().unwrap().len() == per_page {
                pages.push(Vec::new());
            }
            pages.last_mut().unwrap().push(item);
        }
        pages
    }

    fn listed(
        keys: &[&str],
        prefix: &str,
        per_page: usize,
    ) -> (Vec<(String, EntryKind)>, u64, BTreeSet<OsString>) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        let mut names = Names::new(RelPath::root(), prefix.to_owned());
        let mut batches: Vec<ListBatch> = pages(&keys, prefix, per_page)
            .into_iter()
            .map(|page| names.take(page).unwrap())
            .collect();
        batches.push(names.end());
        let refused = batches.iter().map(|batch| batch.refused).sum();
        let entries = batches.into_iter().flat_map(|batch| batch.entries);
        let mut entries: Vec<_> =
            entries.map(|entry| (entry.name.into_string().unwrap(), entry.kind)).collect();
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        (entries, refused, names.into_shadowed())
    }

    #[test]
    fn a_directory_goes_before_an_object_of_its_name_on_any_page() {
        use EntryKind::{Directory, File};
        let keys = ["p/", "p/a", "p/a!", "p/a!/x", "p/a-1", "p/a/b", "p/a/c/d", "p/b", "q"];
        for per_page in 1..8 {
            let (entries, refused, shadowed) = listed(&keys, "p/", per_page);
            let expected = [("a", Directory), ("a!", Directory), ("a-1", File), ("b", File)];
            assert_eq!(entries, expected.map(|(name, kind)| (name.to_owned(), kind)), "{per_page}");
            assert_eq!((refused, shadowed.len()), (2, 2));
        }
    }

    #[test]
    fn a_listing_out_of_order_is_refused() {
        let object = |key: &str| Item::Object(Object { key: key.to_owned(), ..Object::default() });
        let mut names = Names::new(RelPath::root(), String::new());
        names.take(vec![object("b")]).unwrap();
        assert_eq!(names.take(vec![object("a")]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(names.take(vec![object("b")]).unwrap_err().kind(), Kind::Invalid);
        assert!(names.take(Vec::new()).is_ok() && names.take(vec![object("c")]).is_ok());
    }

    #[test]
    fn directories_may_come_in_the_order_of_a_tree() {
        use EntryKind::{Directory, File};
        let object = |key: &str| Item::Object(Object { key: key.to_owned(), ..Object::default() });
        let prefix = |key: &str| Item::Prefix(key.to_owned());
        let mut names = Names::new(RelPath::root(), String::new());
        let mut entries = Vec::new();
        for page in [
            vec![object("a"), prefix("a/")],
            vec![object("a!"), object("a-1")],
            vec![prefix("a1/")],
        ] {
            entries.extend(names.take(page).unwrap().entries);
        }
        entries.extend(names.end().entries);
        let kinds: Vec<_> =
            entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.kind)).collect();
        assert_eq!(kinds, [("a", Directory), ("a!", File), ("a-1", File), ("a1", Directory)]);
        assert_eq!(names.take(vec![object("a2")]).unwrap().entries.len(), 0);
        assert_eq!(names.take(vec![object("a0")]).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn what_has_no_place_in_a_tree_is_counted() {
        let long = "x".repeat(256);
        let (entries, refused, _) = listed(&["/a", "..", "./x", "../x", &long, "a//b"], "", 2);
        // `a//b` lies in the directory without a name of `a`, and is counted there.
        assert_eq!((entries.len(), refused), (1, 5));
        assert_eq!(listed(&["a//b"], "a/", 2).1, 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(
            keys in proptest::collection::btree_set("[a!/.0]{1,6}", 0..40), per_page in 1usize..6,
        ) {
            let all: Vec<&str> = keys.iter().map(String::as_str).collect();
            let (entries, refused, _) = listed(&all, "", per_page);
            let names: BTreeSet<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
            prop_assert_eq!(names.len(), entries.len());
            let items: usize = pages(&keys, "", 1000).iter().map(Vec::len).sum();
            prop_assert_eq!(entries.len() as u64 + refused, items as u64);
            for (name, kind) in &entries {
                let is_directory = keys.iter().any(|key| key.starts_with(&format!("{name}/")));
                prop_assert_eq!(*kind == EntryKind::Directory, is_directory, "{}", name);
            }
        }
    }
}
