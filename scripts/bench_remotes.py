"""The shapes of scripts/bench.py on other origins than HTTP: a bucket of S3 (moto) and a tree behind SFTP (OpenSSH), each behind
scripts/pace.py, beside rclone mount and s3fs or sshfs.

What a reader waits for is inside the clock, the start of the mount is not. Every run has a new process, mount and cache; what was
read is compared with the origin's files.
"""

import os
import shutil
import subprocess
import sys
import time
from functools import partial

from bench_mounts import DEADLINE_S, FAILURES, Mount, run, wait_until

REMOTE_SHAPES = {
    "s3": "a bucket behind 20 ms and 60 MB/s per connection: first byte, tail, random 4 KiB, whole file, 4 files at once, tar of small files",
    "sftp": "the same tree behind SFTP, 20 ms and 60 MB/s per connection",
}
MIB = 1 << 20
PIECE, SMALL = 64 * 1024, 4096
DELAY_MS, RATE_MB = 20, 60
HERE = os.path.dirname(os.path.abspath(__file__))


class Paced:
    """A server of scripts/servers.sh with our files in it, behind the pace."""

    def __init__(self, name, base):
        self.name, self.base = name, base
        self.proxy = None

    def __enter__(self):
        os.makedirs(os.path.join(self.base, "data", "bench"))
        started = subprocess.run([os.path.join(HERE, "servers.sh"), "start", self.name, self.base],
                                 check=True, capture_output=True, text=True, timeout=60)
        self.address = started.stdout.strip()
        port = self.address.rsplit(":", 1)[1]
        self.proxy = subprocess.Popen(
            [sys.executable, "-B", os.path.join(HERE, "pace.py"), port, "--delay", str(DELAY_MS), "--rate", str(RATE_MB)],
            stdout=subprocess.PIPE, text=True)
        self.port = int(self.proxy.stdout.readline())
        return self

    def __exit__(self, *_):
        if self.proxy:
            self.proxy.kill()
            self.proxy.wait()
        subprocess.run([os.path.join(HERE, "servers.sh"), "stop", self.base], check=False, timeout=60)

    @property
    def files(self):
        return os.path.join(self.base, "data", "bench")

    def fill(self):
        """Puts our files into the bucket; behind SFTP they are there already."""
        if self.name != "moto":
            return
        bucket = f"{self.address}/bench"
        run(["curl", "-sSf", "-o", "/dev/null", "-X", "PUT", bucket], "making a bucket")
        words = [word for place, _, names in os.walk(self.files) for name in names for word in
                 ("-T", os.path.join(place, name), f"{bucket}/{os.path.relpath(os.path.join(place, name), self.files)}", "-o", "/dev/null")]
        run(["curl", "-sSf", *words], "filling a bucket")


class RemoteMount(Mount):
    """The tree of a paced server, mounted by one of the tools."""

    def __init__(self, bench, server, commands, tool):
        super().__init__(bench, tool)
        self.tool = tool
        self.command, environment, self.stays = commands(bench, server, self)[tool]
        self.environment = {**os.environ, **environment}
        self.process = None

    def start(self):
        os.makedirs(self.store, exist_ok=True)
        if not self.stays:
            run(self.command, f"{self.tool} mount", self.environment)
            return
        self.process = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: os.path.ismount(self.path), f"{self.tool} mount", 20, self.process)

    def abandon(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self):
        if not self.stays:
            run([self.bench.lazycopy, "unmount", "--wait", self.path], "lazycopy unmount")
            return
        subprocess.run(["fusermount3", "-u", self.path], stderr=subprocess.DEVNULL, check=False)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.abandon()


def s3_commands(bench, server, mount):
    """How each tool mounts the bucket: (command, environment, whether it stays in the foreground)."""
    endpoint = f"http://127.0.0.1:{server.port}"
    keys = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_REGION": "us-east-1"}
    password = os.path.join(mount.base, "passwd-s3fs")
    with open(password, "w", opener=lambda path, flags: os.open(path, flags, 0o600), encoding="ascii") as file:
        file.write("AK:SK")
    return {
        "ours": ([bench.lazycopy, "mount", "s3://bench", mount.path, "--dest", mount.store, "-S", f"endpoint={endpoint}"], keys, False),
        "rclone": (["rclone", "mount", f":s3,provider=Other,env_auth=true,endpoint='{endpoint}':bench", mount.path, *RCLONE, mount.store],
                   # It starts with no bundle of certificates.
                   {**keys, "AWS_CA_BUNDLE": ""}, True),
        "s3fs": (["s3fs", "bench", mount.path, "-f", "-o", f"passwd_file={password},url={endpoint},use_path_request_style,ro",
                  "-o", f"use_cache={mount.store}"], {}, True),
    }


def sftp_commands(bench, server, mount):
    """As above, for the tree behind SSH."""
    user, directory, key = os.environ.get("USER", "root"), os.path.realpath(server.files), os.path.join(server.base, "key")
    known = os.path.join(mount.base, "known_hosts")
    with open(os.path.join(server.base, "host_key.pub"), encoding="ascii") as public, open(known, "w", encoding="ascii") as file:
        file.write(f"[127.0.0.1]:{server.port} {public.read()}")
    return {
        "ours": ([bench.lazycopy, "mount", f"sftp://{user}@127.0.0.1:{server.port}{directory}", mount.path, "--dest", mount.store,
                  "-S", f"identity={key}", "-S", f"known-hosts={known}"], {}, False),
        "rclone": (["rclone", "mount", f":sftp,host=127.0.0.1,port={server.port},user={user},key_file='{key}':{directory}", mount.path,
                    *RCLONE, mount.store], {}, True),
        "sshfs": (["sshfs", f"{user}@127.0.0.1:{directory}", mount.path, "-f", "-p", str(server.port), "-o",
                   f"IdentityFile={key},UserKnownHostsFile={known},ro"], {}, True),
    }


RCLONE = ["--config", "/dev/null", "--read-only", "--vfs-cache-mode", "full", "--cache-dir"]
ORIGINS = {"s3": ("moto", ["s3fs", "rclone", "ours"], s3_commands), "sftp": ("sshd", ["sshfs", "rclone", "ours"], sftp_commands)}


class Remotes:
    """What scripts/bench.py takes in; it has the settings and collects the numbers."""

    def shape_s3(self):
        self.remote("s3")

    def shape_sftp(self):
        self.remote("sftp")

    def remote(self, shape):
        name, tools, commands = ORIGINS[shape]
        base = os.path.join(self.work, f"origin-{shape}")
        try:
            with Paced(name, base) as server:
                small = self.make_remote_tree(server.files)
                server.fill()
                for tool in tools:
                    if tool in self.tools or (tool not in ("ours", "rclone") and shutil.which(tool)):
                        self.measure_remote(shape, tool, partial(RemoteMount, self, server, commands, tool), server.files, small)
                    else:
                        print(f"  {shape:<11}{tool:<12}left out: not installed, or not wanted", flush=True)
        except FAILURES as error:
            self.failed(shape, error)
        finally:
            shutil.rmtree(base, ignore_errors=True)

    def make_remote_tree(self, files):
        """A big file, four smaller ones, and many small ones in one directory; answers how many."""
        for number in range(5):
            with open(os.path.join(files, f"file{number}"), "wb") as file:
                for _ in range((64 if self.quick else 256) // (4 if number else 1)):
                    file.write(os.urandom(MIB))
        small = 100 if self.quick else 500
        os.mkdir(os.path.join(files, "small"))
        for number in range(small):
            with open(os.path.join(files, "small", f"{number:04}"), "wb") as file:
                file.write(os.urandom(16 * 1024))
        time.sleep(2.5)
        return small

    def measure_remote(self, shape, tool, mounted, files, small):
        """Every number of one tool, each of a new mount."""
        size = os.path.getsize(os.path.join(files, "file0"))
        for metric, unit, once in [
            ("first byte", "ms", partial(self.piece_once, offset=0)),
            ("tail", "ms", partial(self.piece_once, offset=size - PIECE)),
            ("random 4 KiB p50", "ms", partial(self.random_once, size=size)),
            ("whole file", "MB/s", partial(self.whole_once, names=["file0"])),
            ("4 files at once", "MB/s", partial(self.whole_once, names=[f"file{number}" for number in range(1, 5)])),
            ("tar of small files", "s", partial(self.tar_once, count=small)),
        ]:
            values = self.repeat(shape, tool, lambda once=once: self.with_mount(mounted, files, once))
            if values:
                self.add(shape, tool, metric, unit, values)

    def with_mount(self, mounted, files, once):
        with mounted() as mount:
            return once(mount, files)

    def piece_once(self, mount, files, offset):
        os.stat(mount.file("file0"))
        started = time.perf_counter()
        with open(mount.file("file0"), "rb", buffering=0) as file:
            data = os.pread(file.fileno(), PIECE, offset)
        elapsed = (time.perf_counter() - started) * 1000
        self.compare(files, "file0", offset, data, PIECE)
        return elapsed

    def random_once(self, mount, files, size):
        times = []
        with open(mount.file("file0"), "rb", buffering=0) as file:
            for block in self.random.sample(range(1, size // PIECE), 20 if self.quick else 50):
                started = time.perf_counter()
                data = os.pread(file.fileno(), SMALL, block * PIECE)
                times.append((time.perf_counter() - started) * 1000)
                self.compare(files, "file0", block * PIECE, data, SMALL)
        return sorted(times)[len(times) // 2]

    def whole_once(self, mount, files, names):
        total = sum(os.path.getsize(os.path.join(files, name)) for name in names)
        started = time.perf_counter()
        readers = [subprocess.Popen(["cmp", mount.file(name), os.path.join(files, name)]) for name in names]
        if any([reader.wait(DEADLINE_S) for reader in readers]):
            raise OSError("wrong bytes")
        return total / (time.perf_counter() - started) / 1e6

    def tar_once(self, mount, _files, count):
        started = time.perf_counter()
        # To a pipe: to /dev/null tar reads nothing.
        run(["bash", "-c", 'tar cf - -C "$1" small | wc -c', "tar", mount.path], "tar")
        elapsed = time.perf_counter() - started
        if (found := len(os.listdir(mount.file("small")))) != count:
            raise OSError(f"{found} of {count} small files")
        return elapsed

    def compare(self, files, name, offset, data, length):
        with open(os.path.join(files, name), "rb") as file:
            if os.pread(file.fileno(), length, offset) != data:
                raise OSError(f"wrong bytes at {offset} of {name}")
