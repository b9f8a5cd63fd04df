# SPDX-License-Identifier: GPL-3.0-or-later
"""The house: a room imports only from those below it, no circle, every door with its name."""

import ast
import importlib
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jaxstem

PACKAGE = Path(jaxstem.__file__).parent
FLOOR = {room: number for number, floor in enumerate(jaxstem.FLOORS) for room in floor}
LONGEST = 450
"""Lines of a file."""


def module_name(path: Path, package: Path) -> str:
    """Of a file within the package, without the package's own name; "" for its `__init__`."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(package: Path) -> dict[str, set[str]]:
    """Which modules of a package each one imports, wherever in it the import stands."""
    files = {module_name(path, package): path for path in package.rglob("*.py")}
    found = defaultdict(set)
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            targets = []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            for target in targets:
                parts = target.split(".")
                if parts[0] == package.name:
                    while parts and ".".join(parts[1:]) not in files:
                        parts.pop()
                    found[name].add(".".join(parts[1:]))
        found[name] -= {name, ""}
    return found


def climbs(arrows: dict[str, set[str]]) -> list[str]:
    """Imports from a room on the same floor or above; what stands at the door, such as
    `__main__`, may use all.
    """
    room = lambda name: name.split(".")[0]  # noqa: E731
    return sorted(
        f"{start} -> {end}"
        for start, ends in arrows.items()
        for end in ends
        if room(start) in FLOOR and room(start) != room(end)
        if FLOOR[room(end)] >= FLOOR[room(start)]
    )


def test_rooms_import_only_from_below():
    assert climbs(imports(PACKAGE)) == []


def test_no_circle_of_imports():
    assert list(TopologicalSorter(imports(PACKAGE)).static_order())


def test_every_file_has_a_floor():
    rooms = {name.split(".")[0] for name in imports(PACKAGE)}
    assert rooms - {"", "__main__"} == set(FLOOR)


def test_a_climb_and_a_circle_are_seen(tmp_path):
    package = tmp_path / "jaxstem"
    for name, text in {
        "files/cube.py": "def late():\n    from jaxstem.detection.plan import make_plan\n",
        "detection/plan.py": "from jaxstem.files import cube\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
        (package / name).with_name("__init__.py").touch()
    arrows = imports(package)
    assert climbs(arrows) == ["files.cube -> detection.plan"]
    with pytest.raises(CycleError):
        list(TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: module_name(p, PACKAGE)
)
def test_files_are_short_and_say_what_they_are_for(path):
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: GPL-3.0-or-later\n")
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text))


ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "app"])
def test_a_room_hands_out_its_public_functions_and_classes(room):
    door = importlib.import_module(f"jaxstem.{room}")
    modules = [path.stem for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"]
    public = {
        node.name
        for name in modules
        for node in ast.parse((PACKAGE / room / f"{name}.py").read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    handed = set(door.__all__)
    assert public <= handed
    # a name that is also a module's would be one or the other, as the imports happen to come
    assert not handed & set(modules)
    for name in handed:
        assert getattr(door, name) is not None
