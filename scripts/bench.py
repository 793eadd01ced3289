"""Takes the numbers of scripts/bench.sh, which makes the origin and cleans up whatever this program leaves.

Every number is the median of several runs. A run of a mount starts with nothing: a new process, a new mount, an empty cache or
destination. Only what a user would wait for is inside the clock: not the start of the mount, not the clean-up.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

from bench_copies import COPY_SHAPES, Copies
from bench_mounts import DEADLINE_S, FAILURES, MOUNTS, Failure, Ours, OursHydrated, OursKept, Rclone, is_running, run, wait_until
from bench_remotes import REMOTE_SHAPES, Remotes

MIB = 1 << 20
BLOCK = 128 * 1024
PIECE = 64 * 1024
SMALL = 4096
CONNECTIONS = 16

SHAPES = {
    "request": "one request: a 128 KiB block on a warm connection (curl), the unit of what follows",
    "first": "first byte: open + read 64 KiB of a file already looked up (after stat)",
    "lookup": "first byte without that: lookup + open + read 64 KiB (a HEAD more)",
    "tail": "tail: open + read the last 64 KiB of a file already looked up",
    "random": "cold random 4 KiB reads of an open file, one after the other",
    "sequential": "cold sequential: the whole big file, 1 MiB reads",
    "parallel": "4 parallel readers: 4 files at once, 1 MiB reads",
    "reopen": "mount of a destination whose catalog knows 1 000 000 files, after kill -9 (local source)",
    "small": "small files: 20 000 of 4 KiB from a local directory, until every one is durable, beside cp -a and sync",
    "published": "published file through the mount beside the native file, both warm (fio, psync, one job)",
    "verify": "a finished copy proven again beside b3sum on the same files, all cores; cold: the page cache was dropped",
    **COPY_SHAPES,
    **REMOTE_SHAPES,
}


def timed_read(path, offset, length):
    """Milliseconds of open + pread, and the bytes."""
    started = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, length, offset)
        elapsed = time.perf_counter() - started
    finally:
        os.close(descriptor)
    return elapsed * 1000, data


def read_whole(path):
    """Reads a file in order with 1 MiB reads; gives its length."""
    buffer = bytearray(MIB)
    total = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while got := os.readv(descriptor, [buffer]):
            total += got
    finally:
        os.close(descriptor)
    return total


class Bench(Copies, Remotes):
    """The settings of one run of the benchmark and everything that was measured."""

    def __init__(self, options, lazycopy, tools):
        self.url = options.url
        self.origin = options.origin
        self.work = options.work
        self.quick = options.quick
        self.runs = options.runs
        self.copy_files, self.copy_bytes = options.copy_files, options.copy_mib * MIB
        self.delta_files = options.delta_files
        self.lazycopy = lazycopy
        self.tools = tools
        self.serial = 0
        self.random = random.Random(7)
        self.big = "big.bin"
        self.parts = [f"part{number}.bin" for number in range(1, 5)]
        self.rows = []

    # -- helpers

    def size(self, name):
        return os.path.getsize(os.path.join(self.origin, name))

    def expect(self, name, offset, data, length):
        """Compares what was read with the origin."""
        with open(os.path.join(self.origin, name), "rb") as file:
            file.seek(offset)
            if file.read(length) != data:
                raise Failure(f"wrong bytes at {offset} of {name}")

    def origin_bytes(self):
        """Bytes that the origin has sent until now."""
        with urllib.request.urlopen(self.url + ".origin/counters") as answer:
            return int(answer.read().split()[1])

    def add(self, shape, tool, metric, unit, values, note=""):
        row = {"shape": shape, "tool": tool, "metric": metric, "unit": unit, "values": values,
               "median": statistics.median(values), "min": min(values), "max": max(values), "note": note}
        self.rows.append(row)
        text = f"{number(row['median'])} {unit} ({number(row['min'])} .. {number(row['max'])})"
        print(f"  {shape:<11}{tool:<12}{metric:<22}{text}", flush=True)

    def median(self, shape, tool, metric):
        for row in self.rows:
            if (row["shape"], row["tool"], row["metric"]) == (shape, tool, metric):
                return row["median"]
        return None

    def mounts(self):
        return [(name, MOUNTS[name]) for name in MOUNTS if name in self.tools]

    def repeat(self, shape, tool, action):
        """Runs an action `runs` times; a failure is said and leaves the tool out of this shape."""
        try:
            return [action() for _ in range(self.runs)]
        except FAILURES as error:
            print(f"  {shape:<11}{tool:<12}FAILED: {error}", flush=True)
            self.rows.append({"shape": shape, "tool": tool, "failed": str(error)})
            return []

    # -- one request and small reads

    def curl_blocks(self, offset, count, length=BLOCK):
        """Milliseconds of each of `count` requests on one warm connection (the first, which connects, is left out)."""
        targets = []
        for _ in range(count + 1):
            targets += ["-o", "/dev/null", self.url + self.big]
        command = ["curl", "-sS", "-r", f"{offset}-{offset + length - 1}", "-w", "%{time_total}\\n", *targets]
        return [float(line) * 1000 for line in run(command, "curl").split()][1:]

    def shape_request(self):
        offset = self.size(self.big) // 2
        values = self.repeat("request", "curl", lambda: statistics.median(self.curl_blocks(offset, 20)))
        if values:
            self.add("request", "curl", "median of 20", "ms", values)

    def small_read(self, shape, offset, looked_up):
        """First byte and tail: each run on a fresh mount."""
        if "curl" in self.tools:
            values = self.repeat(shape, "curl", lambda: statistics.median(self.curl_blocks(offset, 5, PIECE)))
            if values:
                self.add(shape, "curl", "time", "ms", values, "64 KiB on a warm connection")
        for tool, kind in self.mounts():
            def once(kind=kind):
                with kind(self) as mount:
                    path = mount.file(self.big)
                    if looked_up:
                        os.stat(path)
                    elapsed, data = timed_read(path, offset, PIECE)
                    self.expect(self.big, offset, data, PIECE)
                    return elapsed
            values = self.repeat(shape, tool, once)
            if values:
                self.add(shape, tool, "time", "ms", values)

    def shape_first(self):
        self.small_read("first", 0, True)

    def shape_lookup(self):
        self.small_read("lookup", 0, False)

    def shape_tail(self):
        self.small_read("tail", self.size(self.big) - PIECE, True)

    def shape_reopen(self):
        files = 100_000 if self.quick else 1_000_000
        if "ours" not in self.tools:
            return
        base = os.path.join(self.work, "reopen")
        source, away, store, path = (os.path.join(base, name) for name in ("source", "away", "store", "mount"))
        try:
            os.makedirs(os.path.join(source, "directory 0000"))
            os.makedirs(path)
            made = {**os.environ, "LAZYCOPY_BENCH_DEST": store, "LAZYCOPY_BENCH_SOURCE": source, "LAZYCOPY_BENCH_FILES": str(files)}
            run(["cargo", "test", "--quiet", "--release", "--test", "store", "--", "--ignored", "--exact",
                 "million::a_catalog_of_many_files_is_made"], "making a catalog", made, 1800)
            mount = [self.lazycopy, "mount", source, path, "--dest", store]
            runs = []
            for _ in range(self.runs):
                run(mount, "lazycopy mount")
                # As a crash would leave it; the mount without a daemon is taken away by the next start.
                self.kill_daemon_of(path)
                os.rename(source, away)
                started = time.perf_counter()
                run(mount, "lazycopy mount")
                usable = time.perf_counter()
                shown = sum(1 for entry in os.scandir(os.path.join(path, "directory 0007")) if entry.stat().st_size)
                listed = time.perf_counter()
                resident = self.resident_kib(path)
                run([self.lazycopy, "unmount", "--wait", path], "lazycopy unmount")
                os.rename(away, source)
                if shown != 1000:
                    raise Failure(f"{shown} of 1000 files in a directory")
                runs.append(((usable - started) * 1000, (listed - usable) * 1000, resident / 1024))
        except FAILURES as failure:
            self.rows.append({"shape": "reopen", "tool": "ours", "failed": str(failure)})
            print(f"  reopen: FAILED: {failure}", flush=True)
            return
        finally:
            subprocess.run([self.lazycopy, "unmount", "--force", path], capture_output=True, check=False)
            shutil.rmtree(base, ignore_errors=True)
        self.add("reopen", "ours", "usable", "ms", [one[0] for one in runs],
                 f"{files} files known; lazycopy mount until it returns, its source away")
        self.add("reopen", "ours", "ls -l of 1000", "ms", [one[1] for one in runs], "names and attributes out of the catalog")
        self.add("reopen", "ours", "resident", "MiB", [one[2] for one in runs], "after that")

    def pid_of(self, path):
        """The process that serves a mount."""
        directory = os.environ["LAZYCOPY_RUNTIME_DIR"]
        for name in os.listdir(directory):
            if name.endswith(".json"):
                with open(os.path.join(directory, name), encoding="utf-8") as file:
                    record = json.load(file)
                if record["mountpoint"] == os.path.realpath(path):
                    return record["pid"]
        raise Failure(f"nobody serves {path}")

    def kill_daemon_of(self, path):
        pid = self.pid_of(path)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), "the daemon's end", 20)

    def resident_kib(self, path):
        with open(f"/proc/{self.pid_of(path)}/status", encoding="utf-8") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))

    def shape_random(self):
        count = 50 if self.quick else 100
        blocks = self.size(self.big) // BLOCK
        for tool, kind in self.mounts():
            def once(kind=kind):
                # One read per block, so that no read is answered by the block of another.
                chosen = self.random.sample(range(1, blocks), count)
                with kind(self) as mount:
                    path = mount.file(self.big)
                    os.stat(path)
                    before = self.origin_bytes()
                    times = []
                    descriptor = os.open(path, os.O_RDONLY)
                    try:
                        for block in chosen:
                            offset = block * BLOCK + self.random.randrange(BLOCK // SMALL) * SMALL
                            started = time.perf_counter()
                            data = os.pread(descriptor, SMALL, offset)
                            times.append((time.perf_counter() - started) * 1000)
                            self.expect(self.big, offset, data, SMALL)
                    finally:
                        os.close(descriptor)
                    time.sleep(0.1)
                    sent = self.origin_bytes() - before
                    fetched = mount.status()["bytes"]["fetched"] if hasattr(mount, "status") else None
                times.sort()
                return times[len(times) // 2], times[int(len(times) * 0.95)], sent / (count * SMALL), fetched
            found = self.repeat("random", tool, once)
            if not found:
                continue
            self.add("random", tool, "p50", "ms", [run[0] for run in found])
            self.add("random", tool, "p95", "ms", [run[1] for run in found])
            self.add("random", tool, "sent / asked", "x", [run[2] for run in found],
                     "bytes the origin sent per byte asked; one block per read = 32")
            if found[0][3] is not None:
                self.add("random", tool, "fetched / asked", "x", [run[3] / (count * SMALL) for run in found],
                         "bytes.fetched of its status per byte asked")

    # -- throughput

    def curls(self, ranges):
        """MB/s of curl processes that fetch (name, first, last) each, all at once."""
        total = sum(last - first + 1 for _, first, last in ranges)
        started = time.perf_counter()
        processes = [subprocess.Popen(["curl", "-sS", "-o", "/dev/null", "-r", f"{first}-{last}", self.url + name])
                     for name, first, last in ranges]
        try:
            if any([process.wait() for process in processes]):
                raise Failure("curl failed")
        finally:
            for process in processes:
                process.kill()
        return total / (time.perf_counter() - started) / 1e6

    def split(self, name, parts):
        step = self.size(name) // parts
        return [(name, index * step, (index + 1) * step - 1) for index in range(parts)]

    def aria(self, names, connections):
        """MB/s of one aria2c that fetches the files to disk."""
        directory = os.path.join(self.work, "aria")
        shutil.rmtree(directory, ignore_errors=True)
        listing = os.path.join(self.work, "aria.txt")
        with open(listing, "w", encoding="ascii") as file:
            file.writelines(f"{self.url}{name}\n" for name in names)
        started = time.perf_counter()
        run(["aria2c", "-q", "-x", str(connections), "-s", str(connections), "-j", str(len(names)), "-k", "1M",
             "--file-allocation=none", "--no-conf=true", "-d", directory, "-i", listing], "aria2c")
        rate = sum(map(self.size, names)) / (time.perf_counter() - started) / 1e6
        shutil.rmtree(directory)
        return rate

    def read_mount(self, kind, names):
        """MB/s of one reader per file, all at once, through a fresh mount."""
        with kind(self) as mount:
            lengths = {}

            def read(name):
                lengths[name] = read_whole(mount.file(name))

            for name in names:
                os.stat(mount.file(name))
            readers = [threading.Thread(target=read, args=(name,)) for name in names]
            started = time.perf_counter()
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            elapsed = time.perf_counter() - started
        if lengths != {name: self.size(name) for name in names}:
            raise Failure(f"short or failed reads: {lengths}")
        return sum(lengths.values()) / elapsed / 1e6

    def throughput(self, shape, actions):
        for tool, name, action, note in actions:
            if tool in self.tools:
                values = self.repeat(shape, name, action)
                if values:
                    self.add(shape, name, "rate", "MB/s", values, note)

    def shape_sequential(self):
        first = (self.big, 0, min(256 * MIB, self.size(self.big)) - 1)
        self.throughput("sequential", [
            ("curl", "curl", lambda: self.curls([first]), "the first 256 MiB only"),
            ("curl", "16 curls", lambda: self.curls(self.split(self.big, CONNECTIONS)), "16 processes, ranges, to /dev/null"),
            ("aria2", "aria2c -x16", lambda: self.aria([self.big], CONNECTIONS), "to disk"),
            ("rclone", "rclone", lambda: self.read_mount(Rclone, [self.big]), ""),
            ("ours", "ours", lambda: self.read_mount(Ours, [self.big]), "kept in the destination"),
        ])

    def shape_parallel(self):
        each = [(name, 0, self.size(name) - 1) for name in self.parts]
        quarters = [part for name in self.parts for part in self.split(name, CONNECTIONS // 4)]
        self.throughput("parallel", [
            ("curl", "4 curls", lambda: self.curls(each), "one per file"),
            ("curl", "16 curls", lambda: self.curls(quarters), "4 per file, ranges, to /dev/null"),
            ("aria2", "aria2c -x16", lambda: self.aria(self.parts, CONNECTIONS), "4 files at once, to disk"),
            ("rclone", "rclone", lambda: self.read_mount(Rclone, self.parts), ""),
            ("ours", "ours", lambda: self.read_mount(Ours, self.parts), "kept in the destination"),
        ])

    # -- small files

    def small_tree(self):
        """Makes the source once: 20 directories of 1000 files."""
        tree = os.path.join(self.work, "small")
        if not os.path.isdir(tree):
            for directory in range(20):
                os.makedirs(os.path.join(tree, f"d{directory}"))
                for file in range(100 if self.quick else 1000):
                    with open(os.path.join(tree, f"d{directory}", f"f{file}"), "wb") as target:
                        target.write(self.random.randbytes(SMALL))
        # ext4 leaves the inodes of files that were just removed alone for a while and looks at each of them (recently_deleted in
        # fs/ext4/ialloc.c): whoever is measured after a removal pays for it.
        os.sync()
        time.sleep(0 if self.quick else 6)
        return tree

    def shape_small(self):
        def copied():
            tree, target = self.small_tree(), os.path.join(self.work, "small-copy")
            started = time.perf_counter()
            run(["cp", "-a", tree, target], "cp")
            run(["sync", "-f", target], "sync")
            elapsed = time.perf_counter() - started
            shutil.rmtree(target)
            return elapsed

        def published():
            tree, mount = self.small_tree(), OursHydrated(self)
            mount.source = tree
            with mount:
                marker = os.path.join(mount.store, "LAZYCOPY-INCOMPLETE.txt")
                wait_until(lambda: not os.path.exists(marker), "hydration", DEADLINE_S)
                return time.perf_counter() - mount.started

        actions = [("cp -a + sync", copied)]
        if "ours" in self.tools:
            actions.append(("ours", published))
        for name, action in actions:
            if values := self.repeat("small", name, action):
                self.add("small", name, "time", "s", values)

    # -- published

    def fio(self, path, pattern):
        """Bytes per second of fio on one file that is in the page cache already."""
        size = "1M" if pattern == "read" else "4k"
        seconds = 1 if self.quick else 3
        answer = run(["fio", "--name=published", f"--filename={path}", f"--rw={pattern}", f"--bs={size}", "--readonly",
                      "--ioengine=psync", "--invalidate=0", "--time_based", f"--runtime={seconds}", "--randseed=7",
                      "--norandommap", "--output-format=json"], "fio")
        return json.loads(answer[answer.index("{"):])["jobs"][0]["read"]["bw_bytes"]

    def shape_published(self):
        if "ours" not in self.tools:
            return
        if not shutil.which("fio"):
            print("  published  fio is not installed: left out", flush=True)
            return
        try:
            with OursHydrated(self) as mount:
                wait_until(lambda: mount.status()["phase"] == "complete", "hydration", DEADLINE_S)
                through, native = mount.file(self.big), os.path.join(mount.store, self.big)
                read_whole(native)
                read_whole(through)
                for pattern, metric, unit, scale in (("read", "sequential 1 MiB", "GB/s", 1e9), ("randread", "random 4 KiB", "MB/s", 1e6)):
                    pairs = [(self.fio(native, pattern) / scale, self.fio(through, pattern) / scale) for _ in range(self.runs)]
                    self.add("published", "native", metric, unit, [pair[0] for pair in pairs])
                    self.add("published", "ours", metric, unit, [pair[1] for pair in pairs])
        except FAILURES as error:
            print(f"  published  ours        FAILED: {error}", flush=True)
            self.rows.append({"shape": "published", "tool": "ours", "failed": str(error)})

    # -- proving again

    def b3sum(self):
        """The b3sum that there is, else one from crates.io, built for this machine like a user's."""
        found = shutil.which("b3sum") or os.path.join("target", "bench-tools", "bin", "b3sum")
        if not os.path.exists(found):
            print("  verify     b3sum is not a Debian package: cargo install b3sum", flush=True)
            subprocess.run(["cargo", "install", "--quiet", "b3sum", "--root", "target/bench-tools"], check=True, timeout=600)
        return found

    def timed_mb(self, command, size, is_cold):
        """MB/s of one command over `size` bytes."""
        if is_cold:
            os.sync()
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
                file.write("3")
        began = time.monotonic()
        run(command, command[0])
        return size / (time.monotonic() - began) / 1e6

    def shape_verify(self):
        if "ours" not in self.tools:
            return
        try:
            peer = self.b3sum()
        except FAILURES as error:
            print(f"  verify     b3sum cannot be had, and no other tool hashes alike: left out ({error})", flush=True)
            return
        try:
            with OursKept(self) as copy:
                names = [os.path.join(copy.store, name) for name in [self.big, *self.parts]]
                size = sum(os.path.getsize(name) for name in names)
                commands = {"b3sum": [peer, *names], "ours": [self.lazycopy, "verify", copy.store]}
                for state in ["warm", "cold"] if os.geteuid() == 0 else ["warm"]:
                    for command in commands.values():
                        run(command, command[0])
                    pairs = [{tool: self.timed_mb(command, size, state == "cold") for tool, command in commands.items()}
                             for _ in range(self.runs)]
                    for tool in commands:
                        self.add("verify", tool, state, "MB/s", [pair[tool] for pair in pairs], version([peer, "--version"]) if tool == "b3sum" else "")
        except FAILURES as error:
            print(f"  verify     ours        FAILED: {error}", flush=True)
            self.rows.append({"shape": "verify", "tool": "ours", "failed": str(error)})


# ---------------------------------------------------------------------------------------------- report


def number(value):
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def version(command):
    """The first version number that a tool tells."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    found = re.search(r"\d+(\.\d+)+\S*", answer.stdout + answer.stderr)
    return found.group(0) if found else None


def versions(bench):
    """Of everything that takes part."""
    commands = {"nginx": ["nginx", "-v"], "curl": ["curl", "--version"], "aria2c": ["aria2c", "--version"],
                "rclone": ["rclone", "--version"], "fio": ["fio", "--version"]}
    if "ours" in bench.tools:
        commands["lazycopy"] = [bench.lazycopy, "--version"]
    found = {name: version(command) for name, command in commands.items()}
    return {"kernel": platform.release(), "cpus": os.cpu_count(), **{name: text for name, text in found.items() if text}}


def baseline(bench, row):
    """What a row is compared with: (name, ratio), or None."""
    if row["shape"] == "published":
        base, name = bench.median("published", "native", row["metric"]), "native"
    elif row["shape"] == "small":
        base, name = bench.median("small", "cp -a + sync", "time"), "cp -a + sync"
    elif row["shape"] == "copy":
        base, name = bench.median("copy", "cp -a", row["metric"]), "cp -a + sync"
    elif row["shape"] == "copyhttp":
        base, name = bench.median("copyhttp", "rclone copy", row["metric"]), "rclone copy + sync"
    elif row["shape"] == "delta":
        base, name = bench.median("delta", "rsync -an", row["metric"]), "rsync -an"
    elif row["shape"] == "verify":
        base, name = bench.median("verify", "b3sum", row["metric"]), "b3sum"
    elif row["unit"] == "MB/s":
        base, name = bench.median(row["shape"], "16 curls", "rate"), "16 curls"
    elif row["unit"] == "ms" and row["shape"] != "reopen":
        base, name = bench.median("request", "curl", "median of 20"), "one request"
    else:
        return None
    return (name, row["median"] / base) if base else None


def print_table(bench):
    """Everything once more, in order, with the ratios."""
    for shape, title in SHAPES.items():
        rows = [row for row in bench.rows if row["shape"] == shape]
        if not rows:
            continue
        print(f"\n{title}")
        for row in rows:
            if "failed" in row:
                print(f"  {row['tool']:<12} FAILED: {row['failed']}")
                continue
            compared = baseline(bench, row)
            ratio = ""
            if compared:
                ratio = f"{compared[1]:6.2f} of {compared[0]}"
                if row["unit"] == "ms":
                    ratio += f" ({row['median'] - row['median'] / compared[1]:+.1f} ms)"
            spread = f"{number(row['min'])} .. {number(row['max'])}"
            print(f"  {row['tool']:<12} {row['metric']:<17} {number(row['median']):>8} {row['unit']:<5} {spread:<18} {ratio:<34} {row['note']}".rstrip())


def parse():
    parser = argparse.ArgumentParser(description="see scripts/bench.sh")
    parser.add_argument("--url", required=True)
    parser.add_argument("--origin", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=list(SHAPES))
    parser.add_argument("--tools")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--json")
    parser.add_argument("--copy-files", type=int, default=50_000)
    parser.add_argument("--copy-mib", type=int, default=2048)
    parser.add_argument("--delta-files", type=int, default=1_000_000)
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 5)
    return options


def main():
    options = parse()
    # Ending in order: the contexts unmount, subprocess ends what it waits for.
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, lambda received, _: sys.exit(128 + received))
    os.environ["PATH"] += ":/usr/sbin"
    # So that each daemon's process is known, and no other daemon is seen.
    os.environ["LAZYCOPY_RUNTIME_DIR"] = os.path.join(options.work, "run")
    known = {"ours": os.environ.get("LAZYCOPY"), "curl": "curl", "aria2": "aria2c", "rclone": "rclone"}
    wanted = options.tools.split(",") if options.tools else list(known)
    if unknown := [tool for tool in wanted if tool not in known]:
        sys.exit(f"bench: unknown tools: {', '.join(unknown)} (there are {', '.join(known)})")
    tools = [tool for tool in wanted if known[tool] and shutil.which(known[tool])]
    if left_out := [tool for tool in wanted if tool not in tools]:
        print(f"bench: not installed, left out: {', '.join(left_out)}")
    bench = Bench(options, known["ours"], tools)

    found = versions(bench)
    size = bench.size(bench.big) // MIB
    method = (
        f"origin: nginx + lua on loopback, 20 ms per request, 60 MB/s per connection from the first byte, files of {size} MiB and 4 x "
        f"{bench.size(bench.parts[0]) // MIB} MiB, in its page cache. Median of {options.runs} runs with min .. max; every cold run of a mount "
        "has a new process, mount and store; curl writes to /dev/null, all others to disk. MB = 10^6 bytes.")
    print("bench:", ", ".join(f"{name} {text}" for name, text in found.items()))
    print("bench:", method, flush=True)
    started = time.monotonic()
    for shape in SHAPES:
        # One request is the unit of the others.
        if not options.only or shape in options.only or (shape == "request" and not {"published", "small", "verify", "reopen", *COPY_SHAPES, *REMOTE_SHAPES} & set(options.only)):
            getattr(bench, f"shape_{shape}")()
    print_table(bench)

    target = options.json or time.strftime("bench-results/%Y%m%dT%H%M%S.json")
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    with open(target, "w", encoding="utf-8") as file:
        json.dump({"schema": 1, "taken_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": found, "method": method,
                   "runs": options.runs, "quick": options.quick, "rows": bench.rows}, file, indent=1)
    print(f"\nbench: took {time.monotonic() - started:.0f} s; numbers in {target}")
    if any("failed" in row for row in bench.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
