# SPDX-License-Identifier: GPL-3.0-or-later
"""Which code a result measured: a hash of the script and of all that it imports.

Imports are followed in the text, without running it (`closure`): those within functions too, names
that a room's table hands out to the module that has them, and modules that are run by their names
(`-m jaxstem`, `"speed.py4dstem_speed"` for `run_elsewhere`). A room that is imported as such stands
for all that it hands out. Only jaxstem and experiments count. Of each module the syntax tree is
hashed, without what decides no number: comments, layout, docstrings, tables of contents, imports
for type checkers, and `to_markdown`, which words what was measured. So are the bytes of the models,
samples and tables that ship with jaxstem, and those of experiments/data for who reads there.

What is not seen: other packages (their versions stand in the stamp), files that arguments name,
and modules whose names are put together when the program runs.
"""

import ast
import datetime
import hashlib
import importlib.util
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SINCE = "2026-11-28"
"""Results from before have no stamp."""
UNKNOWN: dict[str, Any] = {"code": None}
"""The stamp of results that have none."""

UNCOUNTED = {
    *(f"experiments.common.{name}" for name in ("figures", "markdown", "provenance", "results")),
    "jaxstem.version",
}
"""Modules that measure nothing: they keep, word and draw what others did."""
READ_BY_PEOPLE = {".md", ".html"}
"""Files beside the data that decide no number."""
OWN_DATA = "experiments.common.results.DATA"


class Module(NamedTuple):
    """mentions: dotted names that are imported or run; table: which module of this room has a name
    that it hands out; tree: what is hashed.
    """

    mentions: frozenset[str]
    table: dict[str, str]
    tree: str


def package_folder(name: str) -> Path:
    """Where a package's modules are: the checkout's experiments, jaxstem as it is installed."""
    if name == "experiments":
        return ROOT / name
    spec = importlib.util.find_spec(name)
    assert spec and spec.origin, name
    return Path(spec.origin).resolve().parent


@cache
def sources() -> dict[str, str]:
    """The texts of all modules by their dotted names, as they are when first asked for."""
    texts = {}
    for package in ("jaxstem", "experiments"):
        folder = package_folder(package)
        for path in folder.rglob("*.py"):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            texts[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return texts


class _Bare(ast.NodeTransformer):
    """Takes away what decides no number; `table` is that of the room whose `__init__` it is."""

    def __init__(self) -> None:
        self.table: dict[str, str] = {}

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        return None if node.name == "to_markdown" else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list | None:
        name = getattr(node.test, "id", None)
        return self.generic_visit(node) if name != "TYPE_CHECKING" else None

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        names = {x.id for target in node.targets for x in ast.walk(target) if hasattr(x, "id")}
        if "__all__" not in names and "__getattr__" not in names:
            return self.generic_visit(node)
        if isinstance(node.value, ast.Call):  # lazy_loader.attach(name, modules, {module: names})
            named = (k.value for k in node.value.keywords if k.arg == "submod_attrs")
            for table in (*node.value.args[2:3], *named):
                for module, own in ast.literal_eval(table).items():
                    self.table |= dict.fromkeys(own, module)
        return None


def _shape(node: Any) -> str:
    """As `ast.dump`, without fields that are empty, which differ between versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(_shape, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (f"{k}={_shape(v)}" for k, v in ast.iter_fields(node) if v is not None and v != [])
    return f"{type(node).__name__}({','.join(fields)})"


def _mentions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=0):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                raise ValueError(f"from {'.' * node.level}{node.module or ''}: name the whole path")
            case ast.Constant(value=str(text)) if re.fullmatch(r"\w+(\.\w+)+", text):
                yield from (f"run {text}", f"run experiments.{text}")
            case ast.List(elts=words) | ast.Tuple(elts=words):
                said = [getattr(word, "value", None) for word in words]
                if "-m" in said[:-1]:
                    yield f"run {said[said.index('-m') + 1]}.__main__"


@cache
def _module(text: str) -> Module:
    bare = _Bare()
    tree = bare.visit(ast.parse(text))
    return Module(frozenset(_mentions(tree)), bare.table, _shape(tree))


def _modules(name: str, texts: Mapping[str, str]) -> set[str]:
    """The modules behind a dotted name, packages on the way included; none of other packages."""
    here, *rest = name.split(".")
    found = {here} if here in texts else set()
    for part in rest if found else ():
        inner = f"{here}.{part}"
        if inner not in texts:
            module = _module(texts[here]).table.get(part)
            return found | (_modules(f"{here}.{module}", texts) if module else set())
        here = inner
        found.add(here)
    handed_out = set(_module(texts[here]).table.values()) if found else ()
    return found.union(*(_modules(f"{here}.{module}", texts) for module in handed_out))


def closure(script: str, texts: Mapping[str, str]) -> set[str]:
    """The modules that a module imports or runs, it and theirs included, by their dotted names.

    Raises KeyError where `texts` has no such script.
    """
    found: set[str] = set()
    waiting = {script, *_modules(script, texts)}
    while waiting:
        name = waiting.pop()
        found.add(name)
        for mentioned in _module(texts[name]).mentions:
            run = mentioned.removeprefix("run ")
            if run == mentioned or run in texts:
                waiting |= _modules(run, texts) - found - UNCOUNTED
    return found


@cache
def packaged_data() -> tuple[Path, ...]:
    """The files that ship with jaxstem and decide numbers."""
    package = package_folder("jaxstem")
    folders = (package / name for name in ("data", "models", "samples"))
    return tuple(_files(folders))


def _files(folders: Iterable[Path]) -> list[Path]:
    files = (path for folder in folders for path in folder.rglob("*"))
    return sorted(x for x in files if x.is_file() and x.suffix not in READ_BY_PEOPLE)


@cache
def _bytes_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_hash(script: str, texts: Mapping[str, str], data: Iterable[Path] = ()) -> str:
    """sha256 of what a script (its dotted name) runs, of the modules `texts`, and of files."""
    names = closure(script, texts)
    trees = {name: _module(texts[name]) for name in sorted(names)}
    files = list(data)
    if any(OWN_DATA in module.mentions for module in trees.values()):
        files += [
            *_files([ROOT / "experiments" / "data"]),
            ROOT / "experiments/results/py4dstem.npz",
        ]
    parts = [f"{name} {module.tree}" for name, module in trees.items()]
    parts += [f"{path.parent.name}/{path.name} {_bytes_hash(path)}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def code_of(script: str) -> str | None:
    """The hash of a script of the checkout, with the packaged data; None where there is no such."""
    texts = sources()
    return code_hash(script, texts, packaged_data()) if script in texts else None


def stamp(file: str | Path) -> dict[str, Any]:
    """What a result of the script in `file` is stamped with: code, date and versions."""
    path = Path(file).resolve().with_suffix("")
    script = ".".join(path.relative_to(ROOT).parts) if path.is_relative_to(ROOT) else path.stem
    return {
        "code": code_of(script),
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("jax", "numpy")},
    }


def onto(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """The stamp of results that were added to those of `before`, whose other code is not forgotten:
    they count as measured by `now["code"]` alone only where all of them were.
    """
    if before is None:
        return dict(now)
    alone = {key: value for key, value in before.items() if key != "older"}
    older = [x for x in (alone, *before.get("older", ())) if x["code"] != now["code"]]
    return dict(now) | ({"older": older} if older else {})


def state(measured: Mapping[str, Any], code: str | None) -> str:
    """`fresh`, `stale` or `no stamp`: how a stamp stands to the code of now."""
    if measured["code"] is None:
        return "no stamp"
    return "fresh" if measured["code"] == code and not measured.get("older") else "stale"


def told(measured: Mapping[str, Any], code: str | None) -> str:
    """The same in a sentence, with the date."""
    match state(measured, code):
        case "fresh":
            return f"Measured {measured['date']}."
        case "no stamp":
            return f"Measured by code of before {SINCE}: to be measured again."
    parts = ", parts of it by other code" if measured.get("older") else ", by other code than now's"
    return f"Measured {measured['date']}{parts}: to be measured again."
