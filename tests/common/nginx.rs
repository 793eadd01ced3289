//! A real nginx on a port of its own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const MODULES: [&str; 3] =
    ["ndk_http_module.so", "ngx_http_lua_module.so", "ngx_http_dav_ext_module.so"];

/// A running nginx; it ends with its owner.
pub(crate) struct Nginx {
    /// Where it listens on 127.0.0.1.
    pub(crate) port: u16,
    /// What it serves.
    pub(crate) root: PathBuf,
    program: String,
    directory: TempDir,
    child: Child,
}

fn launch(program: &str, directory: &Path) -> Child {
    Command::new(program)
        .arg("-p")
        .arg(directory)
        .arg("-e")
        .arg(directory.join("error.log"))
        .arg("-c")
        .arg(directory.join("nginx.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Nginx {
    /// Serves `root` with `server` as the content of the server block, after `root` and `autoindex on`; locations are given by the caller
    /// where they are needed. `None` (or a panic, see [`super::skip`]) if there is no nginx.
    pub(crate) fn start(root: &Path, server: &str) -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let Some(program) = program else {
            super::skip("nginx");
            return None;
        };
        for _ in 0..10 {
            if let Some(nginx) = Self::try_start(program, root, server) {
                return Some(nginx);
            }
        }
        panic!("nginx does not start");
    }

    fn try_start(program: &str, root: &Path, server: &str) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        // Free now; if somebody takes it before nginx does, nginx exits and another one is tried.
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let config = directory.path().join("nginx.conf");
        fs::write(&config, configuration(directory.path(), port, root, server)).unwrap();
        let child = launch(program, directory.path());
        let program = program.to_owned();
        let mut nginx = Self { port, root: root.to_owned(), program, directory, child };
        nginx.is_up().then_some(nginx)
    }

    fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        // The pid file appears after the port is bound.
        while fs::read_to_string(self.directory.path().join("pid"))
            .map_or(true, |pid| pid.is_empty())
        {
            if self.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                println!("{}", self.error_log());
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Takes it away: connections are refused.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn stop(&mut self) {
        // SIGTERM to the master: its workers end with it.
        let pid = rustix::process::Pid::from_child(&self.child);
        if rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok() {
            drop(self.child.wait());
        }
    }

    /// Starts it again where it was.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn start_again(&mut self) {
        self.child = launch(&self.program, self.directory.path());
        assert!(self.is_up(), "nginx does not start again");
    }

    /// A URL on it; `path` begins with a slash.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What it complained about.
    pub(crate) fn error_log(&self) -> String {
        fs::read_to_string(self.directory.path().join("error.log")).unwrap_or_default()
    }

    /// One line per request: method, URI, status, Range header and bytes of the body sent.
    pub(crate) fn access_log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
    }
}

fn configuration(directory: &Path, port: u16, root: &Path, server: &str) -> String {
    let modules: String = MODULES
        .iter()
        .map(|name| Path::new("/usr/lib/nginx/modules").join(name))
        .filter(|path| path.exists())
        .map(|path| format!("load_module {};\n", path.display()))
        .collect();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {}/{name};\n", directory.display()))
        .concat();
    format!(
        "{modules}{user}\ndaemon off;\nworker_processes 2;\npid {dir}/pid;\nevents {{ worker_connections 1024; }}\n\
        http {{\n{temporary}log_format short '$request_method $request_uri $status \"$http_range\" $body_bytes_sent';\n\
        access_log {dir}/access.log short;\nsendfile on;\ntcp_nopush on;\nkeepalive_timeout 60;\nkeepalive_requests 100000;\ndefault_type application/octet-stream;\n\
        server {{\nlisten 127.0.0.1:{port} backlog=1024;\nserver_name localhost;\nroot \"{root}\";\nautoindex on;\n{server}\n}}\n}}\n",
        dir = directory.display(),
        root = root.display(),
    )
}
