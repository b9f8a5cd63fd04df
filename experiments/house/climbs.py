# SPDX-License-Identifier: GPL-3.0-or-later
"""How often an opened file, and the scan read from it, climb back up on their way to a map.

    python -m experiments.house.climbs SCAN [MODEL]

Runs `jaxstem map` on SCAN (without a picture) with the `jaxstem` that Python finds and writes down
each function of it that is handed the object, in the order of the calls: an opened file is an
`h5py.File` or the `Cube` read from it, a scan these and whatever class of `jaxstem` is called
`DiskScan`, `DiskSource` or `PlannedSearch`. A step from one room to one whose floor is higher (the
longest way down from it along the imports between rooms) is a climb; in a package without rooms
each module is one. Prints Markdown; the map goes to a temporary folder.
"""

import importlib
import sys
import tempfile
import threading
from pathlib import Path

import h5py
import networkx as nx

import jaxstem
from experiments.common.markdown import table
from experiments.house.architecture import arrows, levels, modules


def room_of(module: str) -> str:
    """The room that a module stands in."""
    return module.split(".")[0]


def floors(package: Path) -> dict[str, int]:
    """The floor of each room."""
    rooms = nx.DiGraph()
    for a, b in arrows(modules(package), package.name).edges:
        if room_of(a) != room_of(b):
            rooms.add_edge(room_of(a), room_of(b))
    return levels(rooms)


def visits(command: list[str], package: Path) -> dict[str, list[str]]:
    """Rooms that the opened file and the scan come to, without repetitions in a row."""
    files = {str(path): name for name, path in modules(package).items()}
    seen: dict[str, list[str]] = {"opened file": [], "scan": []}

    def kind(value: object) -> list[str]:
        of = type(value)
        own = of.__name__ if of.__module__.startswith("jaxstem.") else ""
        if of is h5py.File or own == "Cube":
            return ["opened file", "scan"]
        return ["scan"] if own in ("DiskScan", "DiskSource", "PlannedSearch") else []

    def look(frame, event, _):
        code = frame.f_code
        if event != "call" or code.co_filename not in files:
            return
        n = code.co_argcount + code.co_kwonlyargcount
        for name in code.co_varnames[:n]:
            room = room_of(files[code.co_filename])
            for found in kind(frame.f_locals.get(name)):
                if seen[found][-1:] != [room]:
                    seen[found].append(room)

    names = set(files.values())
    main = importlib.import_module("jaxstem.app.main" if "app.main" in names else "jaxstem.cli")
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        code = main.main(command)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if code:
        raise SystemExit(code)
    return seen


def main(scan: str, model: str = "cu") -> None:
    """Map, and print."""
    package = Path(jaxstem.__file__).parent
    floor = floors(package)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "map.h5")
        words = ["map", scan, "--model", model, "--out", out, "--no-figure", "--voltage-kv", "300"]
        seen = visits(words, package)
    rows = []
    for what, way in seen.items():
        steps = zip(way, way[1:], strict=False)
        climbs = [(a, b) for a, b in steps if floor[a] < floor[b]]
        rows.append((what, len(set(way)), len(climbs), len(set(climbs))))
        print(f"{what}: {' → '.join(way)}", file=sys.stderr)
    print(table(("", "rooms visited", "climbs", "different climbs"), rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
