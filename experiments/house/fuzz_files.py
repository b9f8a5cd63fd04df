# SPDX-License-Identifier: GPL-3.0-or-later
"""Damaged files of every format: read sanely, refused in one sentence, or worse?

    python -m experiments.house.fuzz_files [--n 9700 --commands 300] [--real DIR] [--only KIND ...]

Good small files (`sample_files.py`) get a few bits flipped, bytes or lengths replaced, blocks
zeroed, doubled or cut out, or are cut short; texts get words, numbers and lines changed. Each is
read whole by its reader, in a process that is kept and is ended where it takes more than 60 s or
4 GiB. Some are given to whole commands instead, run by `jaxstem.app.main.main` in that process,
which is what the `jaxstem` command itself calls. Mutations follow from --seed and their number.
What went wrong is kept in --keep, each in a folder of its own. Writes results/fuzz_files.json.
"""

import faulthandler
import io
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import h5py
import tyro

from experiments.common.markdown import flowed, table
from experiments.common.results import results_file, save, settings
from experiments.house.sample_files import (
    FIXTURES,
    kinds,
    read_disks_whole,
    read_map_whole,
    require,
)
from jaxstem.errors import InputError

DETECTED = ("mib", "blo", "hspy", "dectris", "empad")
"""Formats of raw patterns in which `jaxstem detect` looks for disks."""

OUTCOMES = ("read", "refused", "insane", "traceback", "crash", "hang", "memory")

_NUMBERS = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)

_WORDS = ("nan", "inf", "-1", "0", "1e400", "?", "'", '"', "\0", "ü", "[", "{", "true", "9" * 40)


_IDLE = 5
"""Times the limit after which a process is ended that waits, or that others keep waiting."""


@dataclass(frozen=True)
class Arguments:
    """n: mutated files that are read; commands: that are given to commands; real: a folder of
    instruments' files; only: formats; seed, first: of the mutations; limit: seconds of processors
    for each, so that what else the machine does counts little;
    memory: GiB; keep: folder for what went wrong; out: JSON to write.
    """

    n: int = 9700
    commands: int = 300
    real: Path | None = None
    only: tuple[str, ...] = ()
    seed: int = 0
    first: int = 0
    limit: float = 60.0
    memory: float = 4.0
    keep: Path | None = None
    out: Path | None = None
    quick: bool = False


def mutated(content: bytes, rng: random.Random, text: bool) -> bytes:
    """The content with one to four changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if not data:
            break
        change = _edited if text and rng.random() < 0.7 else _damaged
        data = bytearray(change(data, rng))
    return bytes(data)


def _damaged(data: bytearray, rng: random.Random) -> bytearray:
    n, place = len(data), _place(data, rng)
    size = min(rng.choice((1, 2, 4, 8, 16, 64, 512, 4096)), n)
    kind = rng.choice(("bit", "byte", "zero", "ones", "twice", "out", "length", "swap", "cut"))
    if kind == "bit":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[place] = rng.randrange(256)
    elif kind in ("zero", "ones"):
        size = min(size, n - place)
        data[place : place + size] = (b"\0" if kind == "zero" else b"\xff") * size
    elif kind == "twice":
        other = rng.randrange(n)
        block = data[other : other + size]
        end = place + len(block) if rng.random() < 0.5 else place  # over what is there, or between
        data[place:end] = block
    elif kind == "out":
        del data[place : place + size]
    elif kind == "length":
        width = rng.choice((2, 4, 8))
        place -= place % width
        value = rng.choice((*_NUMBERS, n, n - 1, n + 1, place)) % 256**width
        data[place : place + width] = value.to_bytes(width, rng.choice(("little", "little", "big")))
        del data[n:]
    elif kind == "swap":
        other = _place(data, rng)
        here, there = data[place : place + 8], data[other : other + 8]
        if len(here) == len(there) and abs(place - other) >= 8:
            data[place : place + 8], data[other : other + 8] = there, here
    elif rng.random() < 0.5:
        del data[place:]
    return data


def _place(data: bytearray, rng: random.Random) -> int:
    """Anywhere, at the beginning, or within a structure that HDF5 marks."""
    way = rng.random()
    if way < 0.3:
        return rng.randrange(min(len(data), 1024))
    if way < 0.6:
        mark = rng.choice((b"GCOL", b"TREE", b"SNOD", b"HEAP", b"OHDR", b"FRHP", b"BTHD"))
        found = [match.start() for match in re.finditer(mark, bytes(data))]
        if found:
            return min(rng.choice(found) + rng.randrange(64), len(data) - 1)
    return rng.randrange(len(data))


def _edited(data: bytearray, rng: random.Random) -> bytes:
    text = bytes(data).decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    kind = rng.choice(
        ("word", "word", "number", "number", "line out", "line twice", "swap", "join")
    )
    row = rng.randrange(len(lines))
    if kind in ("word", "number"):
        found = list(re.finditer(r"-?\d+\.?\d*" if kind == "number" else r"\S+", text))
        if found:
            match = rng.choice(found)
            new = rng.choice((*_WORDS, str(rng.choice(_NUMBERS)), rng.choice(found)[0]))
            text = text[: match.start()] + new + text[match.end() :]
        return text.encode("utf-8", "surrogateescape")
    if kind == "line out":
        del lines[row]
    elif kind == "line twice":
        lines.insert(rng.randrange(len(lines)), lines[row])
    elif kind == "swap":
        other = rng.randrange(len(lines))
        lines[row], lines[other] = lines[other], lines[row]
    else:
        lines[row : row + 2] = [" ".join(lines[row : row + 2])]
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def spoil(good: Path, folder: Path, rng: random.Random, text: bool) -> None:
    """A copy of the folder of a good sample, one of whose files is mutated, `folder`."""
    shutil.copytree(good, folder, dirs_exist_ok=True)
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    described = (".json", ".xml", ".hdr", ".txt", "")  # files of Zarr have no suffix
    text = text or (path.suffix in described and _is_text(path))
    path.write_bytes(mutated(path.read_bytes(), rng, text))


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def command_of(name: str, main: Path, folder: Path) -> list[str]:
    """The command line that reads the file."""
    bragg, out = str(FIXTURES / "bragg_all.h5"), str(folder / "out.h5")
    mapped = ["map", bragg, "--refine", "none", "--no-figure", "--context", "none", "--out", out]
    mapped += ["--geometry", "given", "--judge", "list", "--batch", "16"]
    cu, seen = ["--model", "cu"], ["--origin", "8", "9", "--radius", "2.5"]
    if name == "map":
        return ["report", str(main), "--out", str(folder / "o.html")]
    if name == "map export":
        return ["export", str(main), "--out", str(folder / "o.ang")]
    if name == "toml":
        # what is typed wins: a line that is lost asks for no programs that compile for a minute
        quick = ["--refine", "none", "--context", "none", "--geometry", "given"]
        return ["map", bragg, "--out", out, *quick, "--config", str(main)]
    if name == "training":
        return ["train", "--cif", str(folder / "none.cif"), "--out", out, "--config", str(main)]
    if name == "calibration":
        return [*mapped, *cu, "--calibration", str(main)]
    if name == "model":
        return [*mapped, "--model", str(folder)]
    if name in DETECTED:
        return ["detect", str(main), "--pixel-size", "0.03", "--out", out, *seen]
    if name == "cif":
        return [*mapped, "--cif", str(main), "--voltage-kv", "300"]
    given = seen if name == "emd" else []
    given += ["--voltage-kv", "300"] if name in ("vectors", "emd") else []
    return [mapped[0], str(main), *mapped[2:], *cu, *given]


def commands() -> list[str]:
    """The formats that commands are given, each as often as it stands here."""
    read = ["bragg", "bragg", "bragg", "detected", "packed", "vectors", "csv", "bragg-each", "cif"]
    others = ["map", "map export", "toml", "training", "calibration", "model", "emd"]
    return [*read, *others, *DETECTED]


def judged(name: str, main: Path, whole_command: bool, real: Path | None) -> tuple[str, str]:
    """How the reader, or the command, ends, and what it says."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            if whole_command:
                return _ended(name, main, said)
            kinds(real)[name].read(main)
        return "read", ""
    except InputError as error:
        return _sentence(str(error))
    except AssertionError as error:
        return "insane", f"{error}"
    except BaseException:
        return "traceback", traceback.format_exc()


def _ended(name: str, main: Path, said: io.StringIO) -> tuple[str, str]:
    from jaxstem.app.main import main as run

    code = run(command_of(name, main, main.parent))
    lines = [line for line in said.getvalue().splitlines() if line.startswith("jaxstem: ")]
    if code == 0:
        _require_sane(main.parent)
        return "read", ""
    if code != 2 or "Traceback" in said.getvalue():
        return "traceback", f"exit code {code}: {said.getvalue()[-2000:]}"
    if lines:
        return _sentence(lines[-1])
    return "refused", said.getvalue()[-500:]  # tyro's box about options


def _require_sane(folder: Path) -> None:
    """What a command wrote makes sense: a map, or disks; others have written a page or a table."""
    out = folder / "out.h5"
    if not out.exists():
        require(any(folder.glob("o.*")), "nothing was written")
    elif "format" in h5py.File(out).attrs:
        read_map_whole(out)
    else:
        read_disks_whole(out)


def _sentence(message: str) -> tuple[str, str]:
    one = message.endswith(".") and "\n" not in message and len(message) < 700
    return ("refused" if one else "traceback"), message


def work(pipe, real: Path | None, log: Path) -> None:
    """Judge what comes through the pipe, for ever."""
    with log.open("w") as said:
        sys.stderr = said
        faulthandler.enable(said)
        while (order := pipe.recv()) is not None:
            faulthandler.dump_traceback_later(order[3], file=said)
            pipe.send(judged(*order[:3], real))
            faulthandler.cancel_dump_traceback_later()


class Worker:
    """A process that is kept, and begun anew where it had to be ended or died."""

    def __init__(self, arguments: Arguments, log: Path):
        self.arguments, self.log, self.process = arguments, log, None

    def judge(self, name: str, main: Path, whole_command: bool, limit: float) -> tuple[str, str]:
        """How it ended, also where the process did."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            work_on = theirs, self.arguments.real, self.log
            self.process = context.Process(target=work, args=work_on, daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send((name, main, whole_command, 0.9 * _IDLE * limit))
        start, used, ended = time.monotonic(), self._seconds(), None
        while not self.pipe.poll(0.02):
            idle = time.monotonic() - start > _IDLE * limit
            if idle or self._seconds() - used > limit:
                ended = "hang"
            elif self._gibibytes() > self.arguments.memory:
                ended = "memory"
            if ended:
                break
        try:
            if ended is None:
                found = self.pipe.recv()
                if self._gibibytes() <= self.arguments.memory:
                    return found
                ended = "memory"
        except EOFError:
            ended = "crash"
        self.process.kill()
        self.process.join()
        code, self.process = self.process.exitcode, None
        return ended, f"exit code {code}\n{self.log.read_text()[-3000:]}"

    def _seconds(self) -> float:
        """Of processors that it took so far."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return 0.0
        return sum(map(int, text.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def _gibibytes(self) -> float:
        """The most memory that it ever held; a process that held too much is not kept."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0.0
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        return int(found[1]) / 2**20 if found else 0.0

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            self.pipe.send(None)
            self.process.join()


def to_markdown(results: dict) -> str:
    """The table of outcomes for each format."""
    rows = []
    for way in ("readers", "commands"):
        total: Counter = Counter()
        for name, counts in sorted(results[way].items()):
            total.update(counts)
            rows.append((name if way == "readers" else f"command: {name}", *_row(counts)))
        rows.append((f"all {way}", *_row(total)))
    given = results["settings"]
    words = flowed(f"""
Files of each format with a few bits, bytes, lengths, blocks, words or lines changed, or cut short
(`experiments/house/fuzz_files.py`). Read: what was read makes sense, and so does what a command
wrote. Refused: exit code 2 and one sentence. The others are faults: what was read is no sense, a
traceback, a crash, more than {given["limit"]:g} s of processor time, more than
{given["memory"]:g} GiB.
""")
    return f"{table(('format', 'files', *OUTCOMES), rows)}\n\n{words}"


def _row(counts: dict) -> tuple:
    return (sum(counts.values()), *(counts.get(outcome, 0) for outcome in OUTCOMES))


def main(arguments: Arguments) -> None:
    """Mutate, judge, count."""
    results: dict = {"settings": settings(arguments), "readers": {}, "commands": {}}
    known = kinds(arguments.real)
    kept = arguments.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        good, spoiled = Path(place) / "good", Path(place) / "spoiled"
        mains = {}
        for name, kind in known.items():
            (good / name).mkdir(parents=True)
            mains[name] = kind.write(good / name).name
        worker = Worker(arguments, Path(place) / "log")
        for way, count in (("readers", arguments.n), ("commands", arguments.commands)):
            names = commands() if way == "commands" else list(known)
            names = [name for name in names if not arguments.only or name in arguments.only]
            for name in dict.fromkeys(names):  # the good ones, without a limit: programs compile
                own = name.split()[0]
                shutil.copytree(good / own, spoiled)
                verdict = worker.judge(name, spoiled / mains[own], way == "commands", 900.0)
                # formats that are not read yet, and commands that cannot go on, are refused
                print(f"{way}: good {name}: {' '.join(verdict)[:200]}", flush=True)
                shutil.rmtree(spoiled)
            for number in range(arguments.first, count if names else 0):
                name = names[number % len(names)]
                own = name.split()[0]
                rng = random.Random(f"{arguments.seed} {way} {number}")
                spoil(good / own, spoiled, rng, known[own].text)
                begun = time.monotonic()
                outcome, said = worker.judge(
                    name, spoiled / mains[own], way == "commands", arguments.limit
                )
                counts = results[way].setdefault(name, {})
                counts[outcome] = counts.get(outcome, 0) + 1
                if outcome not in ("read", "refused"):
                    folder = kept / f"{way}-{arguments.seed}-{number}-{name}-{outcome}"
                    shutil.copytree(spoiled, folder, dirs_exist_ok=True)
                    (folder / "said.txt").write_text(said)
                    seconds = time.monotonic() - begun
                    print(f"{folder.name} ({seconds:.0f} s): {said[-300:]}", flush=True)
                shutil.rmtree(spoiled)
        worker.close()
    save(results_file(arguments, "fuzz_files"), results, to_markdown)
    print(to_markdown(results))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
