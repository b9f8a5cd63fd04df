# SPDX-License-Identifier: GPL-3.0-or-later
"""How the rooms stand: files, lines, imports between modules, and how often these climb back up.

    python -m experiments.house.architecture [PACKAGE]

A module's floor is the length of the longest way down from it along the imports (modules of one
circle share a floor), so that a package without rooms can be counted too; an arrow up leads to a
room that stands higher in `FLOORS`. Prints Markdown and writes nothing.
"""

import ast
import sys
from pathlib import Path

import networkx as nx

import jaxstem
from experiments.common.markdown import table


def modules(package: Path) -> dict[str, Path]:
    """Files by the names of their modules, without the package's own."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(files: dict[str, Path], package: str) -> nx.DiGraph:
    """Which module imports which."""
    graph = nx.DiGraph()
    graph.add_nodes_from(name for name in files if name)
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                continue
            for parts in (target.split(".") for target in targets):
                while len(parts) > 1 and ".".join(parts[1:]) not in files:
                    parts.pop()
                target = ".".join(parts[1:])
                if parts[0] == package and target and name and target != name:
                    graph.add_edge(name, target)
    return graph


def levels(graph: nx.DiGraph) -> dict[str, int]:
    """The floor of each module, by the longest way down."""
    circles = nx.condensation(graph)
    floor: dict[int, int] = {}
    for node in reversed(list(nx.topological_sort(circles))):
        floor[node] = 1 + max((floor[below] for below in circles.successors(node)), default=-1)
    return {name: floor[node] for name, node in circles.graph["mapping"].items()}


def main(package: Path) -> None:
    """Count, and print."""
    files = modules(package)
    lines = {name: len(path.read_text().splitlines()) for name, path in files.items()}
    graph = arrows(files, package.name)
    circles = [found for found in nx.strongly_connected_components(graph) if len(found) > 1]
    room = lambda name: name.split(".")[0]  # noqa: E731
    stated = {r: i for i, floor in enumerate(jaxstem.FLOORS) for r in floor}
    between = {(room(a), room(b)) for a, b in graph.edges if room(a) != room(b)}
    floor = levels(graph)
    up = [
        edge
        for edge in graph.edges
        if {room(name) for name in edge} <= stated.keys()
        and stated[room(edge[0])] < stated[room(edge[1])]
    ]
    rows = [
        ("files", len(files)),
        ("lines", sum(lines.values())),
        ("longest file", f"{max(lines.values())} ({max(lines, key=lines.get)})"),
        ("files over 450 lines", sum(n > 450 for n in lines.values())),
        ("rooms", len({room(name) for name in files if name})),
        ("floors of modules", 1 + max(floor.values())),
        ("arrows between modules", graph.number_of_edges()),
        ("arrows between rooms", len(between)),
        ("arrows up", len(up) if set(map(room, graph)) - {"__main__"} <= stated.keys() else "–"),
        ("circles", len(circles)),
    ]
    print(table(("", package.name), rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(jaxstem.__file__).parent)
