//! `-o OPTS` as mount(8) and fstab(5) write them.

use crate::error::{Error, Kind, Result};
use crate::vfs::mount::MountOptions;

const POSSIBLE: &str = "possible: allow_other, noexec, fsname=NAME; ro, rw, nosuid, nodev, default_permissions, \
noatime, defaults, auto, noauto, nofail, user, users, _netdev and x-… change nothing";

/// Reads comma-separated options; `\,` is a comma within a value.
///
/// # Errors
/// `Invalid` for an option that is unknown, or that would weaken the mount.
pub(crate) fn parse(lists: &[String]) -> Result<MountOptions> {
    let mut options = MountOptions::default();
    for option in lists.iter().flat_map(|list| split(list)) {
        apply(&mut options, &option)?;
    }
    Ok(options)
}

fn apply(options: &mut MountOptions, option: &str) -> Result<()> {
    let refused =
        |why: String| Err(Error::new(Kind::Invalid, "read -o").because(why).hint(POSSIBLE));
    match option.split_once('=') {
        Some(("fsname", "")) => return refused("fsname needs a name: fsname=NAME".to_owned()),
        Some(("fsname", name)) => options.fsname = Some(name.to_owned()),
        _ => match option {
            "allow_other" => options.allow_other = true,
            "noexec" => options.noexec = true,
            "exec" => options.noexec = false,
            // What is so anyway, and what fstab adds for others to read.
            ""
            | "ro"
            | "rw"
            | "nosuid"
            | "nodev"
            | "default_permissions"
            | "noatime"
            | "defaults"
            | "auto"
            | "noauto"
            | "nofail"
            | "user"
            | "users"
            | "_netdev" => {}
            other if other.starts_with("x-") => {}
            "suid" | "dev" => {
                return refused(format!(
                    "{option} is not possible: mounts are always nosuid,nodev"
                ));
            }
            _ => return refused(format!("unknown option {option}")),
        },
    }
    Ok(())
}

fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        match character {
            ',' => options.push(String::new()),
            character => {
                let escaped = if character == '\\' { characters.next() } else { None };
                if let Some(last) = options.last_mut() {
                    last.push(escaped.unwrap_or(character));
                }
            }
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<MountOptions> {
        parse(&[list.to_owned()])
    }

    #[test]
    fn options_are_read_in_order() {
        let options = parsed("allow_other,ro,noexec,fsname=a\\,b,x-systemd.automount,").unwrap();
        assert_eq!(
            options,
            MountOptions { fsname: Some("a,b".to_owned()), allow_other: true, noexec: true }
        );
        assert!(!parsed("noexec,exec").unwrap().noexec);
    }

    #[test]
    fn an_unknown_option_is_an_error_that_says_what_is_possible() {
        for list in ["allow_othr", "suid", "dev", "fsname=", "allow_root", "ro=1"] {
            let error = parsed(list).unwrap_err().to_string();
            assert!(error.contains("possible: allow_other"), "{error}");
        }
    }
}
