//! Secrets are planted everywhere they can come from, and looked for everywhere they could have gone.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

use crate::clouds::put_google;
use crate::common::nginx::Nginx;
use crate::common::s3::put;
use crate::common::scripted::{Request, Scripted, answer};
use crate::common::servers::Server;
use crate::harness::{Env, mounts, read};

/// The part that all planted secrets have.
const MARK: &str = "hunter2";

/// Every file below `directory` that holds a secret, but those in which it was planted.
fn leaks(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() && !path.ends_with("mnt") && !path.ends_with("planted") {
                left.push(path);
            } else if kind.is_file() {
                let bytes = fs::read(&path).unwrap();
                let holds = bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes());
                found.extend(holds.then(|| path.display().to_string()));
            }
        }
    }
    found
}

/// Everything that can be asked of a mount, with its logs at their loudest, holds no secret; nor does what is left of it.
pub(crate) fn nothing_leaks(env: &Env, source: &str, options: &[&str], variables: &[(&str, &str)]) {
    let (destination, mountpoint) = (env.destination(), env.mountpoint());
    let dirs = [mountpoint.to_str().unwrap(), destination.to_str().unwrap()];
    let log = env.path("daemon.log");
    let fixed = [
        "mount",
        source,
        dirs[0],
        "--dest",
        dirs[1],
        "--hydrate",
        "--log-level",
        "trace",
        "--log",
        log.to_str().unwrap(),
    ];
    let mut command = env.command([&fixed, options].concat());
    let output = command.envs(variables.iter().copied()).output().unwrap();
    assert!(
        output.status.success(),
        "{output:?}\n{}",
        fs::read_to_string(&log).unwrap_or_default()
    );
    let mounted = env.mounted_now();
    assert_eq!(read(mounted.path("file")).unwrap(), b"content");
    mounted.until_complete();
    let pid = mounted.pid().as_raw_nonzero();
    let mut said = vec![format!("{output:?}"), format!("{:?}", mounts())];
    // A URL is what its user typed where all can see; what we add is what is looked at.
    if !source.contains(MARK) {
        said.push(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap());
    }
    for args in [
        &["status", "--json", dirs[0]][..],
        &["status", dirs[0]],
        &["status", "--stuck", "--json", dirs[0]],
        &["verify", dirs[1], "--json"],
        &["doctor"],
    ] {
        said.push(format!("{:?}", env.run(args)));
    }
    mounted.unmount();
    // An error about the same source.
    let refused = [&["mount", source, "/nonexistent/place"], options].concat();
    let mut command = env.command(refused);
    said.push(format!("{:?}", command.envs(variables.iter().copied()).output().unwrap()));
    assert!(fs::metadata(&log).unwrap().len() > 0);
    let planted = env.path("planted");
    assert!(!planted.exists() || !leaks(&planted).is_empty(), "what is planted is found");
    let leaked: Vec<&String> = said.iter().filter(|said| said.contains(MARK)).collect();
    assert!(leaked.is_empty(), "{leaked:#?}");
    assert_eq!(leaks(&env.path("")), Vec::<String>::new());
}

pub(crate) fn planted(env: &Env, name: &str, text: &str) -> String {
    fs::create_dir_all(env.path("planted")).unwrap();
    let path = env.path("planted").join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn bucket() -> Option<(Server, String)> {
    let server = Server::start("moto")?;
    put(server.port, "/bucket", "", b"");
    put(server.port, "/bucket/file", "", b"content");
    let endpoint = format!("endpoint=http://127.0.0.1:{}", server.port);
    Some((server, endpoint))
}

#[test]
fn keys_from_files_are_nowhere() {
    let Some(env) = Env::new() else { return };
    let Some((_server, endpoint)) = bucket() else { return };
    let secret = format!("secret-access-key=@{}", planted(&env, "secret", "hunter2secret\n"));
    let token = format!("session-token=@{}", planted(&env, "token", "hunter2token\n"));
    let options = ["-S", &endpoint, "-S", "access-key-id=AK", "-S", &secret, "-S", &token];
    nothing_leaks(&env, "s3://bucket", &options, &[]);
}

#[test]
fn keys_from_the_environment_are_nowhere() {
    let Some(env) = Env::new() else { return };
    let Some((_server, endpoint)) = bucket() else { return };
    let variables = [
        ("AWS_ACCESS_KEY_ID", "AK"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("AWS_SESSION_TOKEN", "hunter2token"),
    ];
    nothing_leaks(&env, "s3://bucket", &["-S", &endpoint], &variables);
}

#[test]
fn keys_from_the_files_of_the_aws_tools_are_nowhere() {
    let Some(env) = Env::new() else { return };
    let Some((_server, endpoint)) = bucket() else { return };
    let keys = "[mine]\naws_access_key_id = AK\naws_secret_access_key = hunter2\naws_session_token = hunter2token\n";
    let credentials = planted(&env, "credentials", keys);
    let url = endpoint.strip_prefix("endpoint=").unwrap();
    let config = planted(
        &env,
        "config",
        &format!("[profile mine]\nregion = us-east-1\nendpoint_url = {url}\n"),
    );
    let variables = [
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.as_str()),
        ("AWS_CONFIG_FILE", config.as_str()),
    ];
    nothing_leaks(&env, "s3://bucket", &["-S", "profile=mine"], &variables);
}

fn bucket_of_google() -> Option<(Server, String)> {
    let server = Server::start("gcs")?;
    put_google(server.port, "file", b"content");
    let endpoint = format!("endpoint=http://127.0.0.1:{}", server.port);
    Some((server, endpoint))
}

#[test]
fn a_token_of_google_is_nowhere() {
    let Some(env) = Env::new() else { return };
    let Some((_server, endpoint)) = bucket_of_google() else { return };
    let token = format!("token=@{}", planted(&env, "token", "hunter2token\n"));
    nothing_leaks(&env, "gs://bucket", &["-S", &endpoint, "-S", &token], &[]);
}

#[test]
fn a_token_of_the_machine_is_nowhere_and_asked_for_once() {
    let Some(env) = Env::new() else { return };
    let Some((_server, endpoint)) = bucket_of_google() else { return };
    planted(&env, "token", "hunter2token");
    let machine = Scripted::fixed(|_| {
        answer(
            "200 OK",
            "",
            r#"{"access_token":"hunter2token","expires_in":3599,"token_type":"Bearer"}"#,
        )
    });
    let place = format!("127.0.0.1:{}", machine.port);
    nothing_leaks(&env, "gs://bucket", &["-S", &endpoint], &[("GCE_METADATA_HOST", &place)]);
    assert_eq!(machine.requests().len(), 1);
}

#[test]
fn a_file_of_credentials_that_makes_no_sense_is_not_shown() {
    let Some(env) = Env::new() else { return };
    for text in [
        "hunter2",
        r#"{"type":"service_account","client_email":"me","private_key":"hunter2"}"#,
        r#"{"type":"hunter2","refresh_token":"hunter2"}"#,
    ] {
        let credentials = format!("credentials={}", planted(&env, "credentials", text));
        let place = env.path("copied");
        let args = ["copy", "gs://bucket", place.to_str().unwrap(), "-S", &credentials];
        let ran = env.run([&args[..], &["-S", "endpoint=http://127.0.0.1:1"]].concat());
        assert_ne!(ran.code, Some(0), "{ran:?}");
        assert!(!format!("{ran:?}").contains(MARK), "{ran:?}");
    }
}

/// A container with one file, which lets everybody in and keeps what was asked.
fn container() -> (Scripted, String) {
    let server = Scripted::fixed(|request| {
        let about = "Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\nETag: \"x\"\r\n";
        let part = format!("{about}Content-Range: bytes 0-6/7\r\n");
        if request.target.contains("comp=list") {
            let is_root = !request.target.contains("prefix=");
            let blob = "<Blob><Name>file</Name><Properties><Content-Length>7</Content-Length><Etag>x</Etag>\
                <Last-Modified>Wed, 01 Jan 2020 00:00:00 GMT</Last-Modified></Properties></Blob>";
            let blobs = if is_root { blob } else { "" };
            let page = format!("<EnumerationResults><Blobs>{blobs}</Blobs></EnumerationResults>");
            answer("200 OK", "", &page)
        } else if !request.target.starts_with("/container/file") {
            answer("404 Not Found", "x-ms-error-code: BlobNotFound\r\n", "")
        } else if request.header("range").is_some() {
            answer("206 Partial Content", &part, "content")
        } else {
            answer("200 OK", about, "content")
        }
    });
    let endpoint = format!("endpoint=http://127.0.0.1:{}", server.port);
    (server, endpoint)
}

/// What is said of a source that is no longer there holds no secret either.
fn nothing_leaks_of_what_is_gone(
    env: &Env,
    url: &str,
    options: &[&str],
    variables: &[(&str, &str)],
) {
    let place = env.path("late");
    let mut command = env.command([&["copy", url, place.to_str().unwrap()], options].concat());
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!output.status.success() && !said.is_empty());
    assert!(!said.contains(MARK), "{said}");
}

#[test]
fn a_signature_of_azure_is_nowhere_although_it_is_in_every_url() {
    let Some(env) = Env::new() else { return };
    let (server, endpoint) = container();
    let sas = planted(&env, "sas", "sv=2020-12-06&sp=rl&sig=hunter2%2B\n");
    let sas = format!("sas-token=@{sas}");
    let options = ["-S", &endpoint, "-S", "account=me", "-S", &sas];
    nothing_leaks(&env, "az://container", &options, &[]);
    let requests = server.requests();
    assert!(
        requests.iter().all(|request| request.target.contains("sig=hunter2%2B")),
        "{requests:?}"
    );
    drop(server);
    nothing_leaks_of_what_is_gone(&env, "az://container", &options, &[]);
}

#[test]
fn a_connection_string_is_nowhere() {
    let Some(env) = Env::new() else { return };
    let (server, endpoint) = container();
    let url = endpoint.strip_prefix("endpoint=").unwrap();
    for secret in ["AccountKey=hunter2hunter2aa", "SharedAccessSignature=sv=1&sig=hunter2"] {
        let text = format!("AccountName=me;BlobEndpoint={url};{secret}");
        planted(&env, "connection", &text);
        let variables = [("AZURE_STORAGE_CONNECTION_STRING", text.as_str())];
        nothing_leaks(&env, "az://container", &[], &variables);
        fs::remove_dir_all(env.destination()).unwrap();
    }
    let requests = server.requests();
    let is_signed = |request: &Request| {
        let key = request.header("authorization").is_some_and(|by| by.starts_with("SharedKey me:"));
        key || request.target.contains("sig=hunter2")
    };
    assert!(requests.iter().all(is_signed), "{requests:?}");
}

#[test]
fn a_service_principal_of_azure_is_nowhere_and_asks_for_one_token() {
    let Some(env) = Env::new() else { return };
    let (server, endpoint) = container();
    planted(&env, "secret", "hunter2");
    let authority = Scripted::start(|_, connection| {
        let token = r#"{"access_token":"hunter2token","expires_in":3599,"token_type":"Bearer"}"#;
        connection.write_all(answer("200 OK", "", token).as_bytes())?;
        connection.shutdown(Shutdown::Write)?;
        // What was sent has to be taken, or the answer is lost with it.
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        connection.read_to_end(&mut Vec::new()).map(drop)
    });
    let variables = [
        ("AZURE_AUTHORITY_HOST", authority.url("").as_str()),
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_CLIENT_SECRET", "hunter2"),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let options = ["-S", &endpoint, "-S", "account=me"];
    nothing_leaks(&env, "az://container", &options, &variables);
    assert_eq!(authority.requests().len(), 1);
    let requests = server.requests();
    let is_signed =
        |request: &Request| request.header("authorization") == Some("Bearer hunter2token");
    assert!(requests.iter().all(is_signed), "{requests:?}");
}

#[test]
fn the_password_of_a_url_and_its_signature_are_nowhere() {
    let Some(env) = Env::new() else { return };
    env.put("file", "content");
    let password = planted(&env, "htpasswd", "me:{PLAIN}hunter2\n");
    let server = format!("auth_basic x; auth_basic_user_file {password};");
    let Some(nginx) = Nginx::start(&env.source(), &server) else { return };
    let url = format!("http://me:hunter2@127.0.0.1:{}/?signature=hunter2", nginx.port);
    nothing_leaks(&env, &url, &[], &[]);
}

#[test]
fn a_secret_on_the_command_line_is_refused_unseen() {
    let Some(env) = Env::new() else { return };
    for args in [
        ["-S", "secret-access-key=hunter2"],
        ["-S", "colour=hunter2"],
        ["-S", "anonymous=hunter2"],
        ["-S", "endpoint=http://me:hunter2@h/"],
    ] {
        let ran = env.run([&["copy", "s3://bucket", "/nonexistent/x"], &args[..]].concat());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(!format!("{ran:?}").contains(MARK), "{ran:?}");
    }
}
