//! Trees of WebDAV servers.

use std::path::Path;
use std::process::Command;

use crate::common::nginx::Nginx;
use crate::common::servers::Server;
use crate::common::skip;
use crate::harness::{Env, tool};
use crate::s3::{assert_ran, environment, every_way_gives_the_tree};
use crate::secrets::{nothing_leaks, planted};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so";
const LOCK: &str = "dav_ext_methods PROPFIND OPTIONS;\nauth_basic x;\nauth_basic_user_file";

/// nginx with the tree of the environment, for the user `me` with the password `hunter2`.
fn nginx(env: &Env) -> Option<Nginx> {
    if !Path::new(MODULE).exists() {
        skip("nginx's WebDAV module");
        return None;
    }
    let users = planted(env, "htpasswd", "me:{PLAIN}hunter2\n");
    Nginx::start(&env.source(), &format!("{LOCK} {users};"))
}

fn password(env: &Env) -> Vec<String> {
    let password = format!("password=@{}", planted(env, "password", "hunter2\n"));
    ["-S", "user=me", "-S", &password].map(str::to_owned).into()
}

#[test]
fn a_tree_of_nginx_is_copied_mounted_and_cloned() {
    let Some(env) = environment() else { return };
    let Some(nginx) = nginx(&env) else { return };
    let url = format!("webdav://127.0.0.1:{}/", nginx.port);
    every_way_gives_the_tree(&env, &url, &password(&env));
}

#[test]
fn a_tree_of_wsgidav_is_copied_mounted_and_cloned() {
    let Some(env) = environment() else { return };
    let Some(server) = Server::start("webdav") else { return };
    tool(Command::new("cp").arg("-r").arg(env.source()).arg(server.directory().join("private")));
    let url = format!("dav://127.0.0.1:{}/private/source", server.port);
    every_way_gives_the_tree(&env, &url, &password(&env));
    // Nobody is let in without it, and nobody else.
    for (user, hint) in [("", "-S password=@FILE"), ("me:wrong@", "-S password=@FILE")] {
        let url = format!("dav://{user}127.0.0.1:{}/private/source", server.port);
        let ran = env.run(["copy", &url, env.path("refused").to_str().unwrap()]);
        assert!(ran.code != Some(0) && ran.err.contains(hint), "{ran:?}");
    }
}

#[test]
fn what_is_no_webdav_server_is_refused_with_a_way_out() {
    let Some(env) = environment() else { return };
    let Some(nginx) = Nginx::start(&env.source(), "") else { return };
    let target = env.path("refused");
    let ran =
        env.run(["copy", &format!("webdav://127.0.0.1:{}/", nginx.port), target.to_str().unwrap()]);
    assert!(ran.code != Some(0) && ran.err.contains("try http(s)://"), "{ran:?}");
    let http = env.run(["copy", &nginx.url("/"), target.to_str().unwrap()]);
    assert_ran(&http);
}

#[test]
fn a_password_from_a_file_is_nowhere() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let Some(nginx) = nginx(&env) else { return };
    let options = password(&env);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    nothing_leaks(&env, &format!("webdav://127.0.0.1:{}/", nginx.port), &options, &[]);
}

#[test]
fn the_password_of_a_url_is_nowhere() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let Some(nginx) = nginx(&env) else { return };
    let url = format!("webdav://me:hunter2@127.0.0.1:{}/?signature=hunter2", nginx.port);
    nothing_leaks(&env, &url, &[], &[]);
}
