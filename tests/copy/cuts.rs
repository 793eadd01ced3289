//! A copy that is cut off at any step of its publisher: nothing is lost, and the same command ends alike.

use std::fs;

use crate::tree::{assert_same, looks, make_mixed, set_modified};
use crate::{Env, ended, exists};

/// Runs `copy` with an end after `step`; `false` if it never came to that.
fn cut(env: &Env, step: &str, options: &[&str]) -> bool {
    let args = [&["copy", "--json"], options, &["source", "copy"]].concat();
    let child = env.command(&args).env("LAZYCOPY_TEST_CUT_AFTER", step).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.code().is_none_or(|code| code == 0),
        "{step}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.status.code().is_none()
}

/// Whatever has its name is whole, and the catalog says nothing of what is not.
fn assert_nothing_is_wrong(env: &Env, step: &str) {
    let source = looks(&env.source());
    for (path, found) in looks(&env.dir()) {
        let is_marker = path.starts_with("LAZYCOPY-INCOMPLETE.txt");
        if found.is_file() && !is_marker {
            let wanted = source.get(&path);
            assert!(wanted.is_some_and(|wanted| wanted.same_bytes(&found)), "{step}: {path:?}");
        }
    }
    let verified = env.command(&["verify", "copy"]).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert_ne!(verified.status.code(), Some(4), "{step}: {said}");
}

fn all_settled(env: &Env) {
    // Young files rest before they are copied: one wait for all the runs.
    let young = fs::metadata(env.source()).unwrap().modified().unwrap();
    while young.elapsed().unwrap() < std::time::Duration::from_millis(2100) {
        std::thread::yield_now();
    }
}

#[test]
fn cut_after_any_step_of_a_first_copy_the_same_command_ends_alike() {
    let env = Env::new();
    make_mixed(&env.source());
    all_settled(&env);
    let mut cuts = 0;
    for number in 1..4 {
        for what in ["synced", "recorded", "placed one", "placed"] {
            let step = format!("step {number} {what}");
            println!("{step}");
            if cut(&env, &step, &[]) {
                cuts += 1;
                assert!(exists(&env.dir().join("LAZYCOPY-INCOMPLETE.txt")), "{step}");
                assert_nothing_is_wrong(&env, &step);
            }
            env.copied(&[]);
            assert_nothing_is_wrong(&env, &step);
            fs::remove_dir_all(env.dir()).unwrap();
        }
    }
    assert!(cuts >= 6, "{cuts}");
}

#[test]
fn cut_after_any_step_of_a_delta_pass_the_same_command_ends_alike() {
    let env = Env::new();
    make_mixed(&env.source());
    all_settled(&env);
    env.copied(&[]);
    let mut cuts = 0;
    for number in 1..4 {
        for what in ["synced", "recorded", "placed one", "placed"] {
            let step = format!("step {number} {what}");
            // Something is new, changed, renamed and gone each time.
            let name = format!("a/{step}");
            env.write(&name, &step);
            fs::rename(env.source().join("moving"), env.source().join(format!("{name} moved")))
                .ok();
            env.write("moving", &format!("{step} that moves"));
            env.write("changing", &step);
            for name in [&name, "moving", "changing"] {
                set_modified(
                    &env.source().join(name),
                    1_500_000_000 + number * 100,
                    what.len() as i64,
                );
            }
            all_settled(&env);
            let was_cut = cut(&env, &step, &["--delete"]);
            cuts += usize::from(was_cut);
            let ended = env.copied(&["--delete"]);
            assert_eq!(ended.count("/files/failed"), 0, "{step}");
            assert_same(&env.source(), &env.dir());
            assert_nothing_is_wrong(&env, &step);
            fs::remove_file(env.source().join(&name)).unwrap();
        }
    }
    assert!(cuts >= 6, "{cuts}");
}

#[test]
fn told_to_end_in_the_middle_of_a_batch_what_is_ready_is_published() {
    let env = Env::new();
    for number in 0..40 {
        env.write(&format!("{number:02}"), &"x".repeat(100_000));
    }
    all_settled(&env);
    let child = env.start(&["--limit", "400KB", "--max-jobs", "1"]);
    crate::eventually("a few files", || {
        let bytes = crate::orders::status(&env)?["bytes"]["fetched"].as_u64()?;
        (bytes >= 300_000).then_some(())
    });
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let first = ended(child).expect(5);
    assert!(first.count("/files/copied") > 0, "{}", first.summary);
    let second = env.copied(&[]);
    assert_eq!(first.count("/files/copied") + second.count("/files/copied"), 40);
}
