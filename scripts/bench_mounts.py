"""The mounts that scripts/bench.py measures, and how programs are run and waited for."""

import json
import os
import shutil
import subprocess
import time

DEADLINE_S = 120


class Failure(Exception):
    """A tool did not do what it must; its numbers are left out and the reason is printed."""


# What leaves a tool out of a shape: also an answer that cannot be read.
FAILURES = (Failure, OSError, subprocess.SubprocessError, KeyError, ValueError)

# ---------------------------------------------------------------------------------------------- mounts under test


class Mount:
    """A mounted tree of the origin; a context in which `path` can be used."""

    def __init__(self, bench, name):
        bench.serial += 1
        self.bench = bench
        self.base = os.path.join(bench.work, f"{name}-{bench.serial}")
        self.path = os.path.join(self.base, "mount")
        self.store = os.path.join(self.base, "store")
        os.makedirs(self.path)

    def __enter__(self):
        try:
            self.start()
            if not os.path.ismount(self.path):
                raise Failure(f"nothing is mounted on {self.path}")
        except BaseException:
            self.abandon()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.base, ignore_errors=True)

    def abandon(self):
        """Ends what a failed start left running; the script unmounts what is left."""

    def file(self, name):
        return os.path.join(self.path, name)


class Ours(Mount):
    """lazycopy mount with a destination; reads are kept there."""

    options = ()

    def __init__(self, bench):
        super().__init__(bench, "ours")
        self.source = bench.url
        self.started = None

    def start(self):
        self.started = time.perf_counter()
        command = [self.bench.lazycopy, "mount", self.source, self.path, "--dest", self.store, *self.options]
        run(command, "lazycopy mount")

    def stop(self):
        run([self.bench.lazycopy, "unmount", "--wait", self.path], "lazycopy unmount")

    def status(self):
        return json.loads(run([self.bench.lazycopy, "status", "--json", self.path], "lazycopy status"))


class OursHydrated(Ours):
    """The same, filled and published in the background."""

    options = ("--hydrate",)


class OursKept(OursHydrated):
    """A finished copy that nobody serves: unmounted as soon as it is complete."""

    def __enter__(self):
        with_mount = super().__enter__()
        try:
            wait_until(lambda: self.status()["phase"] == "complete", "hydration", DEADLINE_S)
        finally:
            super().stop()
        return with_mount

    def stop(self):
        """Nothing is mounted."""


class Rclone(Mount):
    """rclone mount with its full cache, everything else as it comes."""

    def __init__(self, bench):
        super().__init__(bench, "rclone")
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            ["rclone", "mount", ":http:", self.path, "--http-url", self.bench.url, "--config", "/dev/null", "--read-only",
             "--vfs-cache-mode", "full", "--cache-dir", self.store],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: os.path.ismount(self.path), "rclone mount", 20, self.process)

    def abandon(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def stop(self):
        subprocess.run(["fusermount3", "-u", self.path], stderr=subprocess.DEVNULL, check=False)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


MOUNTS = {"ours": Ours, "rclone": Rclone}


def run(command, what, environment=None, deadline_s=DEADLINE_S):
    """Runs a command to its end and gives its output."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s, check=False, env=environment)
    if result.returncode != 0:
        raise Failure(f"{what}: exit {result.returncode}: {(result.stderr or result.stdout).strip()[-400:]}")
    return result.stdout


def is_running(pid):
    """Whether a process runs; its remains do not count."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, what, deadline_s, process=None):
    """Looks every 10 ms until it is true."""
    end = time.monotonic() + deadline_s
    while not condition():
        if process is not None and process.poll() is not None:
            raise Failure(f"{what}: ended with {process.returncode}")
        if time.monotonic() > end:
            raise Failure(f"{what}: not there after {deadline_s} s")
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------- reading
