"""The shapes of scripts/bench.py that copy whole trees: lazycopy copy beside cp, rsync and rclone, and its delta pass beside rsync -an.

Runs of the tools take turns, so that whatever else the machine does meets all of them alike; each copies into a new directory until
everything is durable.
"""

import os
import random
import shutil
import subprocess
import time

COPY_SHAPES = {
    "copy": "a whole local tree, mixed sizes, until it is durable; warm: the source is in the page cache; cold: it was dropped",
    "copyhttp": "a whole tree from the paced origin until it is durable",
    "delta": "nothing has changed: how long it takes to find out (rsync -an: both sides are listed and compared)",
}
COPY_TOOLS = {
    "cp -a": [["cp", "-a", "{source}", "{target}"], ["sync", "-f", "{target}"]],
    "rsync -a": [["rsync", "-a", "{source}/", "{target}"], ["sync", "-f", "{target}"]],
    "rclone copy": [["rclone", "copy", "--config", "/dev/null", "--links", "{source}", "{target}"], ["sync", "-f", "{target}"]],
    "ours": [["{lazycopy}", "copy", "--json", "{source}", "{target}"]],
}
HTTP_TOOLS = {
    "rclone copy": [["rclone", "copy", ":http:", "{target}", "--http-url", "{source}", "--config", "/dev/null", "--transfers", "32",
                     "--checkers", "32"], ["sync", "-f", "{target}"]],
    "ours": [["{lazycopy}", "copy", "--json", "{source}", "{target}"]],
}
DEADLINE_S = 1800


def mixed_sizes(files, total, seed):
    """Sizes of a tree as people have it: most files are small, most bytes are in few files. The same every time."""
    chance = random.Random(seed)
    weights = [chance.paretovariate(0.9) for _ in range(files)]
    scale = total / sum(min(weight, 2000) for weight in weights)
    return [int(min(weight, 2000) * scale) for weight in weights]


def make_tree(base, files, total):
    """Files of mixed sizes, 100 in each directory, three levels deep."""
    block = os.urandom(1 << 20)
    for number, size in enumerate(mixed_sizes(files, total, 7)):
        directory = os.path.join(base, f"d{number // 10_000}", f"d{number // 100}")
        if number % 100 == 0:
            os.makedirs(directory)
        with open(os.path.join(directory, f"file {number}"), "wb") as file:
            start = number * 4099 % (1 << 19)
            while size > 0:
                piece = block[start:start + min(size, 1 << 19)]
                file.write(piece)
                size -= len(piece)
    subprocess.run(["sync", "-f", base], check=True)
    # Young files rest before they are copied.
    time.sleep(2.5)


def drop_caches():
    subprocess.run(["sync"], check=True)
    with open("/proc/sys/vm/drop_caches", "w", encoding="utf-8") as file:
        file.write("3")


def read_all(tree):
    """Brings a tree into the page cache."""
    for directory, _, names in os.walk(tree):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                while file.read(1 << 20):
                    pass


class Copies:
    """What scripts/bench.py takes in; it has the settings and collects the numbers."""

    def steps(self, tools, tool, source, target):
        words = {"source": source, "target": target, "lazycopy": self.lazycopy}
        return [[word.format(**words) for word in command] for command in tools[tool]]

    def timed_copy(self, tools, tool, source, target, is_cold):
        subprocess.run(["sync"], check=True)
        if is_cold:
            drop_caches()
        started = time.perf_counter()
        for command in self.steps(tools, tool, source, target):
            subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
        return time.perf_counter() - started

    def copy_tools(self, tools):
        known = {"ours": "ours" in self.tools, "rclone copy": "rclone" in self.tools}
        return [tool for tool in tools if known.get(tool, shutil.which(tools[tool][0][0]) is not None)]

    def copy_in_turns(self, shape, tools, source, states, served=None):
        """What the origin has `served` stays in its page cache, and copies stay until all runs are over: ext4 passes over the inodes of
        what was deleted a moment ago one by one.
        """
        chosen = self.copy_tools(tools)
        targets = os.path.join(self.work, "copy-targets")
        for state in states:
            values = {tool: [] for tool in chosen}
            for run in range(self.runs):
                for number, tool in enumerate(chosen):
                    target = os.path.join(targets, f"{number}-{run}")
                    os.makedirs(targets, exist_ok=True)
                    if served is not None and os.geteuid() == 0:
                        # Memory that the machine has never touched costs its first user much.
                        drop_caches()
                        read_all(served)
                    values[tool].append(self.timed_copy(tools, tool, source, target, state == "cold"))
                    if served is None:
                        shutil.rmtree(targets)
            shutil.rmtree(targets, ignore_errors=True)
            for tool in chosen:
                self.add(shape, tool, state, "s", values[tool])

    def shape_copy(self):
        files, total = (10_000, 400 << 20) if self.quick else (self.copy_files, self.copy_bytes)
        tree = os.path.join(self.work, "copy-tree")
        try:
            make_tree(tree, files, total)
            states = ["warm", "cold"] if os.geteuid() == 0 else ["warm"]
            self.copy_in_turns("copy", COPY_TOOLS, tree, states)
        except (OSError, subprocess.SubprocessError) as error:
            self.failed("copy", error)
        finally:
            shutil.rmtree(tree, ignore_errors=True)

    def shape_copyhttp(self):
        files, total = (200, 100 << 20) if self.quick else (2000, 1 << 30)
        tree = os.path.join(self.origin, "tree")
        try:
            make_tree(tree, files, total)
            self.copy_in_turns("copyhttp", HTTP_TOOLS, self.url + "tree/", ["20 ms, 60 MB/s"], served=tree)
        except (OSError, subprocess.SubprocessError) as error:
            self.failed("copyhttp", error)
        finally:
            shutil.rmtree(tree, ignore_errors=True)

    def shape_delta(self):
        files = 50_000 if self.quick else self.delta_files
        tree, target = os.path.join(self.work, "delta-tree"), os.path.join(self.work, "delta-copy")
        try:
            make_tree(tree, files, files * 16)
            ours = [self.lazycopy, "copy", "--json", tree, target]
            subprocess.run(ours, check=True, capture_output=True, timeout=DEADLINE_S)
            peer = ["rsync", "-an", "--exclude=/.lazycopy", tree + "/", target]
            values = {"rsync -an": [], "ours": []}
            for command in (peer, ours):
                subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
            for _ in range(self.runs):
                for tool, command in (("rsync -an", peer), ("ours", ours)):
                    started = time.perf_counter()
                    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
                    values[tool].append(time.perf_counter() - started)
            for tool, times in values.items():
                self.add("delta", tool, "unchanged", "s", times, f"{files} files")
        except (OSError, subprocess.SubprocessError) as error:
            self.failed("delta", error)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)

    def failed(self, shape, error):
        told = getattr(error, "stderr", None) or b""
        print(f"  {shape:<11}FAILED: {error} {told[-400:]!r}", flush=True)
        self.rows.append({"shape": shape, "tool": "ours", "failed": str(error)})
