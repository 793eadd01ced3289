#!/usr/bin/env python3
"""Programs across the moment in which a clone dissolves: errors, and the longest stall.

    scripts/dissolve.py [MIB]       LAZYCOPY=path uses another binary than target/release/lazycopy

Copies MIB (default 512) of local files sealed by fio in place, while
  - fio reads them through the mount at random and verifies every block, again and again,
  - one program preads from a file that it opened before,
  - one reads from a mapping made before,
  - one opens a file by its path, reads it and looks at it (its st_dev tells the moment),
and prints what each saw within a second of the moment. Works below ${TMPDIR:-/var/tmp} and removes it. Exit 1 if anything failed.
"""
import mmap
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

LAZYCOPY = os.environ.get("LAZYCOPY", os.path.join(os.path.dirname(__file__), "../target/release/lazycopy"))
MIB = int(sys.argv[1]) if len(sys.argv) > 1 else 512
FORK = multiprocessing.get_context("fork")
JOBS, BLOCK, AFTER_S, NEAR_S = 4, 65536, 2.0, 1.0
FIO = ["fio", "--name=sealed", f"--numjobs={JOBS}", f"--bs={BLOCK}", f"--size={MIB // JOBS}m", "--verify=sha256",
       "--fallocate=none", "--verify_state_save=0", "--randseed=9", "--group_reporting", "--output=/dev/null"]


class Prober:
    """A process that calls `probe` again and again, and remembers when each call began and how long it took."""

    def __init__(self, what, probe):
        self.what, self.probe = what, probe
        self.stop, self.answer = FORK.Event(), FORK.Queue()
        self.process = FORK.Process(target=self.run, daemon=True)
        self.process.start()

    def run(self):
        seen, errors = [], []
        while not self.stop.is_set() and len(errors) < 20:
            began = time.monotonic()
            try:
                self.probe()
            except Exception as error:  # whatever it is, a program would have seen it
                errors.append(repr(error))
            seen.append((began, time.monotonic() - began))
            time.sleep(0.0005)
        self.answer.put((seen, errors))

    def report(self, moment):
        self.stop.set()
        seen, errors = self.answer.get()
        near = [took for began, took in seen if began + took > moment - NEAR_S and began < moment + NEAR_S]
        print(f"{self.what:<28} {len(seen):>7} calls, {len(near):>5} near the moment, longest there "
              f"{max(near, default=0) * 1000:7.2f} ms, longest of all {max(took for _, took in seen) * 1000:7.2f} ms, "
              f"{len(errors)} errors {errors[:1] or ''}")
        return len(errors)


def main():
    base = tempfile.mkdtemp(prefix="lazycopy-dissolve-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    source, tree = os.path.join(base, "source"), os.path.join(base, "tree")
    env = dict(os.environ, LAZYCOPY_RUNTIME_DIR=os.path.join(base, "run"), XDG_STATE_HOME=os.path.join(base, "state"), LAZYCOPY_RESERVE="0")
    os.mkdir(source)
    try:
        subprocess.run(FIO + [f"--directory={source}", "--rw=write", "--do_verify=0"], check=True)
        time.sleep(3)  # files younger than that rest before they are copied
        return across(source, tree, env)
    finally:
        subprocess.run([LAZYCOPY, "unmount", "--force", tree], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(base, ignore_errors=True)


def across(source, tree, env):
    clone = subprocess.Popen([LAZYCOPY, "clone", source, tree, "--wait", "--linger", "5s"], env=env,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not os.path.ismount(tree):
        if clone.poll() is not None:
            sys.exit("clone has ended before it could be used")
        time.sleep(0.005)
    names = sorted(os.listdir(tree))
    truth = {name: open(os.path.join(source, name), "rb").read() for name in names[:2]}
    held, mapped = os.path.join(tree, names[0]), os.path.join(tree, names[1])
    descriptor = os.open(held, os.O_RDONLY)
    with open(mapped, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    covered, moment = os.stat(held).st_dev, FORK.Value("d", 0.0)

    def check(what, name, offset, got):
        if got != truth[name][offset:offset + len(got)] or not got:
            raise ValueError(f"{what}: wrong bytes at {offset}")

    def offset_in(name):
        return random.randrange(len(truth[name]) - 4096)

    def by_handle():
        offset = offset_in(names[0])
        check("handle", names[0], offset, os.pread(descriptor, 4096, offset))

    def by_mapping():
        offset = offset_in(names[1])
        check("mapping", names[1], offset, mapping[offset:offset + 4096])

    def by_path():
        offset = offset_in(names[0])
        opened = os.open(held, os.O_RDONLY)
        try:
            check("path", names[0], offset, os.pread(opened, 4096, offset))
            if os.fstat(opened).st_dev != covered and not moment.value:
                moment.value = time.monotonic()
        finally:
            os.close(opened)

    probers = [Prober("read from an open file", by_handle), Prober("read from a mapping", by_mapping),
               Prober("open by path, read, stat", by_path)]
    rounds = failed = 0
    until = None
    while until is None or time.monotonic() < until:
        fio = subprocess.run(FIO + [f"--directory={tree}", "--rw=randread", "--verify_only", "--verify_fatal=1"], capture_output=True)
        rounds, failed = rounds + 1, failed + (fio.returncode != 0)
        if fio.returncode != 0:
            print(fio.stdout.decode()[-500:], fio.stderr.decode()[-500:])
        if until is None and moment.value:
            until = time.monotonic() + AFTER_S
        if clone.poll() not in (None, 0):
            sys.exit(f"clone ended with {clone.returncode}")
    errors = sum(prober.report(moment.value) for prober in probers)
    print(f"{'fio --verify, random':<28} {rounds:>7} rounds of {MIB} MiB, {failed} failed; clone: exit {clone.wait()}")
    os.close(descriptor)
    mapping.close()
    return 1 if failed or errors else 0


sys.exit(main())
