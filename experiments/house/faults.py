# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands leave when something goes wrong beside them.

    python -m experiments.house.faults [--only NAME ...] [--kills 50]

Commands are run as processes of their own, on small scans, and: the disk is full;
the target cannot be written; the process is killed, or interrupted, at a random moment; its input
is cut short or removed meanwhile; the device has memory for a few patterns alone. Told are how the
processes ended, and what then lay under the names that were asked for. Writes
results/faults.json after each fault; half an hour on two free processors.
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import jax
import numpy as np
import tyro

from experiments.common.markdown import flowed, table
from experiments.common.results import DATA, ROOT, load, results_file, save, settings
from experiments.house.sample_files import merlin_frames
from jaxstem.files import read_disks, read_map
from jaxstem.network.model import load_model

NAMES = ("full disk", "read-only target", "killed", "interrupted", "input gone", "device memory")

_LIST = ("--refine", "none", "--context", "none", "--geometry", "given", "--judge", "list")

_TRAIN = ("--steps", "8", "--batch", "32", "--spacing-deg", "12")

_PATIENCE = 600.0
"""Seconds that a command may take at most, its compilations among them."""


@dataclass(frozen=True)
class Arguments:
    """only: faults, all if none is given; kills, interrupts, changes: random moments of each; seed:
    of these moments; out: JSON to write, to which some of the faults are added; quick: written
    nowhere.
    """

    only: tuple[str, ...] = ()
    kills: int = 50
    interrupts: int = 12
    changes: int = 24
    seed: int = 0
    out: Path | None = None

    quick: bool = False


def commands(folder: Path) -> dict[str, list[str]]:
    """Each command as words, the file or folder that it writes last."""
    disks, cube, cif = folder / "disks.h5", folder / "cube.h5", ROOT / "tests/fixtures/Cu.cif"
    words = {
        "map": ["map", disks, "--model", "cu", *_LIST, "--overwrite", "--out", "map.h5"],
        "detect": ["detect", cube, "--overwrite", "--out", "found.h5"],
        "train": ["train", "--cif", cif, *_TRAIN, "--out", "model"],
        "convert": ["convert", disks, "--overwrite", "--out", "table.h5"],
        "report": ["report", folder / "map.h5", "--overwrite", "--out", "map.html"],
        "export": ["export", folder / "map.h5", "--overwrite", "--out", "map.ang"],
    }
    return {
        name: [*map(str, each[:-1]), str(folder / "out" / each[-1])] for name, each in words.items()
    }


def prepare(folder: Path) -> None:
    """The inputs: a list of disks, and raw patterns as HDF5 and as Merlin writes them."""
    shutil.copy(DATA / "cu_random_bragg.h5", folder / "disks.h5")
    shutil.copy(DATA / "cu_random_cube.h5", folder / "cube.h5")
    found = []
    with h5py.File(folder / "cube.h5") as file:
        file.visititems(
            lambda _, node: (
                found.append(node[()])
                if isinstance(node, h5py.Dataset) and node.ndim == 4
                else None
            )
        )
    counts = found[0].reshape(-1, *found[0].shape[2:])
    (folder / "raw.mib").write_bytes(merlin_frames(counts))
    (folder / "out").mkdir()


def started(words: list[str], before: Callable[[], None] | None = None) -> subprocess.Popen:
    """The command in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxstem", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=before,
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code, and what was said on stderr; of a process that hangs, which is ended, that."""
    try:
        _, said = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate()
        said += " A HANG"
    return process.returncode, said


def run(words: list[str], before: Callable[[], None] | None = None) -> tuple[int, str, float]:
    """The command to its end, and the seconds that it took."""
    start = time.monotonic()
    return *ended(started(words, before)), time.monotonic() - start


def one_sentence(code: int, said: str) -> bool:
    """Whether a command was refused as it should be: exit code 2, the last line one sentence, and
    nothing but warnings of jaxstem's own before it.
    """
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip()]
    own = all(line.startswith("jaxstem: ") for line in lines)
    return code == 2 and bool(lines) and own and lines[-1].endswith(".")


def whole(path: Path) -> bool:
    """Whether what lies under the name is complete."""
    read = {"map.h5": read_map, "found.h5": read_disks, "model": load_model}[path.name]
    try:
        read(path)
    except Exception:
        return False
    return True


def same_result(path: Path, expected: dict[str, np.ndarray]) -> bool:
    """Whether what lies under the name is complete, and has these numbers."""
    return whole(path) and _same(_numbers(path), expected)


def bytes_of(path: Path) -> bytes | None:
    """What a file holds, None where there is none; of a folder, its model."""
    path = path / "model.json" if path.is_dir() else path
    return path.read_bytes() if path.is_file() else None


def unfinished(folder: Path) -> list[str]:
    """Names of temporary files, and of folders that orbax writes."""
    found = {*folder.rglob(".*"), *folder.rglob("*.orbax-checkpoint-tmp*")}
    return sorted(path.name for path in found)


def left_over(process: subprocess.Popen) -> int:
    """Processes of the command's session that still live some seconds after it."""
    for _ in range(50):
        listed = subprocess.run(["ps", "-s", str(process.pid), "-o", "pid="], capture_output=True)
        if not (left := len(listed.stdout.split())):
            break
        time.sleep(0.1)
    return left


def full_disk(folder: Path, _: Arguments, rng: random.Random) -> Iterator[tuple[str, str]]:
    """No file can be longer than a part of what the command would write."""
    for name in ("map", "detect", "convert", "report", "export", "train"):
        words = commands(folder)[name]
        out = Path(words[-1])
        if name != "train":
            code, said, _ = run(words)
            size = out.stat().st_size if code == 0 else 0
            before = bytes_of(out)
        else:
            size, before = 3000, None
        for share in (0.02, 0.5, 0.95) if name != "train" else (1.0,):
            most = max(1, int(share * size))

            def limited(most=most) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

            code, said, _ = run(words, limited)
            kept = bytes_of(out) == before and not unfinished(out.parent)
            fine = one_sentence(code, said) and kept
            yield name, "one sentence, the old result kept" if fine else f"{code}: {said[-300:]}"
    shutil.rmtree(folder / "out" / "model", ignore_errors=True)


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Within the block nothing can be written there, be it by root."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def read_only(folder: Path, _: Arguments, rng: random.Random) -> Iterator[tuple[str, str]]:
    """The folder of the result cannot be written."""
    (folder / "out").rename(folder / "kept")
    (folder / "out").mkdir()
    with unwritable(folder / "out"):
        for name, words in commands(folder).items():
            code, said, _ = run(words)
            fine = one_sentence(code, said)
            yield name, "one sentence" if fine else f"{code}: {said[-300:]}"
    (folder / "out").rmdir()
    (folder / "kept").rename(folder / "out")


def killed(folder: Path, given: Arguments, rng: random.Random) -> Iterator[tuple[str, str]]:
    """SIGKILL at a random moment; there is an old result in half of the tries."""
    names = ["map", "detect", "map", "detect", "train"]
    usual, old, expected = {}, {}, {}
    for name in dict.fromkeys(names):
        words = commands(folder)[name]
        run(words)  # programs are compiled and kept
        if name == "train":
            shutil.rmtree(words[-1], ignore_errors=True)
        _, _, usual[name] = run(words)
        old[name], expected[name] = bytes_of(Path(words[-1])), _numbers(Path(words[-1]))
    for number in range(given.kills):
        name = names[number % len(names)]
        words = commands(folder)[name]
        out, there = Path(words[-1]), number % 2 == 0
        if name == "train":
            shutil.rmtree(out, ignore_errors=True)
            there = False
        elif there:
            out.write_bytes(old[name])
        else:
            out.unlink(missing_ok=True)
        process = started(words)
        time.sleep(rng.uniform(0, usual[name]))
        process.kill()
        ended(process)
        yield name, _what_is_left(out, old[name] if there else None, expected[name], process)
        for path in out.parent.glob(".*"):  # what a killed process leaves, under its own names
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if name == "train" and not whole(out):
            steps, rows = _checkpointed(out), _rows(out)
            code, said, _ = run(words)
            if code != 0 or not same_result(out, expected[name]):
                how = f"{code}: {said[-300:]}"
            elif _rows(out)[:steps] != rows[:steps]:
                how = "BEGUN ANEW DESPITE A CHECKPOINT"
            else:
                how = "went on from its checkpoint" if steps else "no checkpoint yet, begun anew"
                how += " to the same model"
            yield "train, again", how


def _checkpointed(out: Path) -> int:
    """Steps of the newest checkpoint of a run, each of which has a row in its metrics."""
    found = (out / "checkpoints").glob("*") if out.is_dir() else ()
    return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def _rows(out: Path) -> list[str]:
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def _what_is_left(out: Path, old: bytes | None, expected, process: subprocess.Popen) -> str:
    if children := left_over(process):
        return f"{children} children live on"
    now = bytes_of(out)
    if now is None:
        return "nothing under the name" if old is None else "THE OLD RESULT LOST"
    if now == old:
        return "the old result" if whole(out) else "THE OLD RESULT DAMAGED"
    return "the whole new result" if same_result(out, expected) else "HALF A RESULT"


def interrupted(folder: Path, given: Arguments, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Ctrl-C at a random moment after Python has begun, to a command and its children."""
    names, usual = ("map", "detect", "train"), {}
    for number in range(given.interrupts):
        name = names[number % 3]
        words = commands(folder)[name]
        out = Path(words[-1])
        if name not in usual:
            shutil.rmtree(folder / "out" / "model", ignore_errors=True)
            run(words)  # programs are compiled and kept
            shutil.rmtree(folder / "out" / "model", ignore_errors=True)
            _, _, usual[name] = run(words)
        if name == "train":
            shutil.rmtree(out, ignore_errors=True)
        before = bytes_of(out)
        process = started(words)
        time.sleep(rng.uniform(1.0, max(usual[name], 2.0)))
        os.killpg(process.pid, signal.SIGINT)
        code, said = ended(process)
        children, files = left_over(process), unfinished(out.parent)
        if code == 0:
            yield name, "finished already"
        elif code == 130 and not children and not files and bytes_of(out) == before:
            yield name, "exit code 130, no child, no temporary file"
        else:
            yield name, f"{code}, {children} children, {files}: {said[-300:]}"


def input_gone(folder: Path, given: Arguments, rng: random.Random) -> Iterator[tuple[str, str]]:
    """The file that is read is cut to a half, or removed, at a random moment."""
    inputs, usual = {"disks.h5": "map", "cube.h5": "detect", "raw.mib": "detect"}, {}
    for number in range(given.changes):
        scan = list(inputs)[number % 3]
        cut = number // 3 % 2 == 0
        good = (folder / scan).read_bytes()
        words = commands(folder)[inputs[scan]]
        words = [*words[:1], str(folder / scan), *words[2:]]
        if scan == "raw.mib":
            words += ["--scan-shape", "16", "10", "--pixel-size", "0.0328"]
            words += ["--voltage-kv", "300"]
        out = Path(words[words.index("--out") + 1])
        if scan not in usual:
            run(words)  # programs are compiled and kept
            _, _, seconds = run(words)
            usual[scan] = seconds, _numbers(out)
        out.unlink(missing_ok=True)
        process = started(words)
        time.sleep(rng.uniform(0.3, usual[scan][0]))
        if cut:
            os.truncate(folder / scan, len(good) // 2)
        else:
            (folder / scan).unlink()
        code, said = ended(process)
        (folder / scan).unlink(missing_ok=True)
        (folder / scan).write_bytes(good)
        what = f"{scan} {'cut short' if cut else 'removed'}"
        if code == 0 and same_result(out, usual[scan][1]):
            yield what, "read before, the usual result"
        elif one_sentence(code, said) and not out.exists() and not unfinished(out.parent):
            yield what, "one sentence"
        else:
            yield what, f"{code}: {said[-300:]}"


_SMALL_DEVICE = """
import sys
import jax
from jaxstem.detection import scan
from jaxstem.inference import stream
from jaxstem.runtime import memory

most = int(sys.argv[1])
fitting = memory.in_parts_that_fit

def on_a_small_device(ask, *more):
    def asked(batch):
        if len(jax.tree.leaves(batch)[0]) > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating.")
        return ask(batch)
    return fitting(asked, *more)

for module in (scan, stream):
    module.in_parts_that_fit = on_a_small_device

from jaxstem.app.main import main
sys.exit(main(sys.argv[2:]))
"""


def device_memory(folder: Path, _: Arguments, rng: random.Random) -> Iterator[tuple[str, str]]:
    """XLA's error of exhausted memory is raised for batches of more than a few patterns."""
    for name, more, most in (("map", ["--batch", "128"], 64), ("detect", [], 8)):
        words = [*commands(folder)[name], *more]
        out = Path(commands(folder)[name][-1])
        run(words)
        expected = _numbers(out)
        small = [sys.executable, "-c", _SMALL_DEVICE, str(most), *words]
        done = subprocess.run(small, capture_output=True, text=True, timeout=_PATIENCE)
        said = len(re.findall("do not fit in the device's memory", done.stderr))
        same = done.returncode == 0 and _same(_numbers(out), expected)
        fine = f"the same result, said {said} time{'s' * (said != 1)}"
        yield name, fine if same else f"{done.returncode}: {done.stderr[-300:]}"


def _numbers(path: Path) -> dict[str, np.ndarray]:
    """All arrays of numbers of a file, and the lists of disks as one; a model's parameters."""
    found: dict[str, np.ndarray] = {}
    if path.is_dir():
        leaves = jax.tree.leaves(load_model(path).params)
        return {f"{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)}

    def collect(name: str, node) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf":
            found[name] = node[()]
        elif isinstance(node, h5py.Dataset) and name.endswith("_v_uncal/data"):
            lists = list(node[()].ravel())
            found[name] = np.concatenate([own.view("f8") for own in lists])

    with h5py.File(path) as file:
        file.visititems(collect)
    return found


def _same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    """Whether numbers are equal but for rounding."""
    close = lambda x, y: x.shape == y.shape and np.allclose(x, y, 1e-3, 1e-3, equal_nan=True)  # noqa: E731
    return ours.keys() == theirs.keys() and all(close(ours[x], theirs[x]) for x in ours)


def to_markdown(results: dict) -> str:
    """The table of faults and what they left."""
    rows = []
    for fault in NAMES:
        for name, counts in results.get(fault, {}).items():
            ends = "; ".join(f"{how}: {n}" for how, n in sorted(counts.items()))
            rows.append((fault, name, sum(counts.values()), ends.replace("\n", " ")))
    words = flowed("""
Commands on small scans, run as processes of their own (`experiments/house/faults.py`). Full disk:
no file may be longer than a part of the result, or than 3,000 bytes where a model is trained.
Killed, and interrupted as by Ctrl-C: at a random moment of the time that the command usually takes.
Input: cut to a half or removed at such a moment. Device memory: XLA's error of exhausted memory is
raised for batches of more than a few patterns.
""")
    return f"{table(('fault', 'in', 'times', 'how it ended'), rows)}\n\n{words}"


def main(arguments: Arguments) -> None:
    """Do them, one after the other."""
    faults = (full_disk, read_only, killed, interrupted, input_gone, device_memory)
    out = results_file(arguments, "faults")
    results = load(out)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        run([*commands(folder)["map"][:-1], str(folder / "map.h5")])
        for fault, do in zip(NAMES, faults, strict=True):
            if arguments.only and fault not in arguments.only:
                continue
            found: dict[str, Counter] = {}
            for name, how in do(folder, arguments, random.Random(f"{arguments.seed} {fault}")):
                found.setdefault(name, Counter())[how.replace(place, "")] += 1
                print(f"{fault}, {name}: {how}", flush=True)
            results[fault] = {name: dict(counts) for name, counts in found.items()}
            results["settings"] = settings(arguments)
            save(out, results, to_markdown)
            results = load(out) or results
    print(to_markdown(results))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
