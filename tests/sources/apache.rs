//! Apache with mod_dav: entity tags by PROPFIND as by GET, weak ones for young files.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use tempfile::TempDir;

use crate::common::{rel, skip};
use crate::ground::{Can, Ground, remote};
use crate::local;

const PROGRAM: &str = "/usr/sbin/apache2";
const MODULES: [&str; 5] = ["mpm_event", "authz_core", "dav", "dav_fs", "mime"];

pub(crate) struct Apache {
    port: u16,
    root: PathBuf,
    child: Child,
    base: TempDir,
}

pub(crate) async fn start() -> Option<Apache> {
    if !Path::new(PROGRAM).exists() {
        skip("apache2");
        return None;
    }
    let started = (0..5).find_map(|_| Apache::try_start());
    Some(started.unwrap_or_else(|| panic!("apache2 does not start")))
}

fn configuration(base: &Path, port: u16) -> String {
    let modules: String = MODULES
        .iter()
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .collect();
    // Its children are never root.
    let user = if rustix::process::geteuid().is_root() { "User nobody\nGroup nogroup" } else { "" };
    let base = base.display();
    format!(
        "{modules}{user}\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile {base}/pid\nErrorLog {base}/error.log\n\
         DefaultRuntimeDir {base}\nTypesConfig /dev/null\nMaxKeepAliveRequests 0\nDavLockDB {base}/lock\nDocumentRoot {base}/tree\n\
         <Directory {base}/tree>\nDav On\nRequire all granted\n</Directory>\n<Location /forbidden>\nRequire all denied\n</Location>\n"
    )
}

impl Apache {
    fn try_start() -> Option<Self> {
        let base = TempDir::new().unwrap();
        fs::set_permissions(base.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let root = base.path().join("tree");
        fs::create_dir(&root).unwrap();
        // Free now; if somebody takes it before Apache does, that ends and another one is tried.
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let file = base.path().join("apache.conf");
        fs::write(&file, configuration(base.path(), port)).unwrap();
        let child = Command::new(PROGRAM)
            .arg("-f")
            .arg(&file)
            .arg("-DFOREGROUND")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut apache = Self { port, root, child, base };
        apache.is_up().then_some(apache)
    }

    fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if self.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.base.path().join("error.log"));
                println!("{}", log.unwrap_or_default());
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        // SIGTERM: its children end with it.
        let pid = rustix::process::Pid::from_child(&self.child);
        if rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok() {
            drop(self.child.wait());
        }
    }
}

#[async_trait]
impl Ground for Apache {
    fn can(&self) -> Can {
        Can { any_bytes: true, empty_directories: true, plain_http: true }
    }

    fn directory(&self) -> PathBuf {
        self.root.clone()
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    async fn open(&self, port: Option<u16>) -> Arc<dyn Source> {
        let port = port.unwrap_or(self.port);
        remote(&format!("webdav://127.0.0.1:{port}/"), &[]).await.unwrap()
    }

    async fn forbidden(&self) -> Option<Error> {
        local::put(&self.root, b"forbidden", b"secret");
        self.open(None).await.stat(&rel("forbidden")).await.err()
    }
}
