# SPDX-License-Identifier: GPL-3.0-or-later
"""What commands are told by files, and what they tell: --config, --quiet, --json.

A settings file is TOML whose keys are a command's long options. `expanded` puts them on the command
line, so that everything after it (checks, messages, the command that a map stores) is the same as
if they had been typed.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import shlex
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxstem.errors import InputError


def command_text() -> str:
    """The command line as a shell takes it."""
    return shlex.join(["jaxstem", *command_line.get().words])


Flag = tyro.conf.FlagCreatePairsOff[bool]

_CONFIG = "--config"


@dataclass(frozen=True)
class CommandLine:
    """The command that runs: its words, settings files expanded, and `time.perf_counter()` at its
    start.
    """

    words: tuple[str, ...] = ()
    start: float = dataclasses.field(default_factory=time.perf_counter)


command_line: ContextVar[CommandLine] = ContextVar("command_line")


@dataclass(frozen=True)
class Output:
    """Settings from a file, and what is said.

    Attributes:
        config: Options of this command from a TOML file; those typed win.
        quiet: Say nothing but warnings and errors.
        json: Print one JSON object on stdout, and nothing else there.
    """

    # `expanded` has taken it from the command line before this is made
    config: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE.toml", help_behavior_hint="(default: none)")
    ] = None
    quiet: Flag = False
    json: Flag = False

    @property
    def progress(self) -> bool | None:
        """Whether to show bars: never, or (None) on a terminal."""
        return False if self.quiet else None

    def say(self, *lines: str) -> None:
        """Say something to people before the command ends."""
        if not (self.json or self.quiet):
            print("\n".join(lines), flush=True)

    def tell(self, summary: Mapping[str, Any], *lines: str) -> None:
        """Say how the command ended: `lines` to people, `summary` to programs.

        The object starts with the command's name and the seconds it took.
        """
        if self.json:
            told = command_line.get()
            seconds = round(time.perf_counter() - told.start, 3)
            print(_to_json({"command": told.words[0], "seconds": seconds, **summary}))
        elif not self.quiet:
            print("\n".join(lines))


OutputOptions = Annotated[Output, tyro.conf.arg(name="")]

USUAL = Output()


class Stages:
    """How long the stages of a command took, in order; the first ends when this is made."""

    def __init__(self, first: str):
        self.seconds: dict[str, float] = {}
        self._since = command_line.get().start
        self.end(first)

    def end(self, name: str) -> None:
        """The stage of this name is over."""
        now = time.perf_counter()
        self.seconds[name], self._since = round(now - self._since, 3), now

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


def _to_json(value: Any) -> str:
    """JSON without NaN: what is not known is null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code; what is for developers is not told."""
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning):
        print(f"jaxstem: {message}", file=sys.stderr)


def complain(sentence: str, code: int) -> int:
    """The sentence on stderr; the exit code back."""
    print(f"jaxstem: {sentence}", file=sys.stderr)
    return code


def expanded(words: Sequence[str], commands: Mapping[str, Callable]) -> list[str]:
    """The command line with the options of its settings files in the place of --config.

    Options that are there already, and those of later files, win. Raises InputError for a file that
    cannot be read, and for keys that are no options of the command.
    """
    words, files = list(words), []
    for place in reversed(range(1, len(words))):
        name, equals, value = words[place].partition("=")
        if name == _CONFIG and (equals or place + 1 < len(words)):
            files.insert(0, Path(value if equals else words[place + 1]))
            del words[place : place + (1 if equals else 2)]
    if not files or words[0] not in commands:
        return words
    options = option_defaults(commands[words[0]])
    settings: dict[str, Any] = {}
    for path in files:
        settings |= _read_settings(path, options, words[0])
    typed = {_option(word) for word in words if word.startswith("--")}
    typed |= {name.removeprefix("no-") for name in typed}
    # after all else, because an option of several values takes all words that follow it
    for name, value in settings.items():
        if name not in typed:
            words += _words(name, value, options[name])
    return words


def _read_settings(path: Path, options: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Long options, without their dashes, and their values from a TOML file.

    `options`: those that there are, with their defaults. Raises InputError as `expanded` does.
    """
    import tomllib

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise InputError(f"{path} cannot be read ({reason}); give a settings file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problem = str(error).rstrip(".")
        raise InputError(
            f"{path} is not TOML ({problem}); write lines of OPTION = VALUE."
        ) from None
    settings = {}
    for key, value in found.items():
        name = _option(key)
        if name not in options:
            nearest = max(options, key=lambda known: SequenceMatcher(None, known, name).ratio())
            raise InputError(
                f"{path}: '{key}' is no option of 'jaxstem {command}'; the nearest is '{nearest}'."
            )
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            raise InputError(f"{path}: '{key}' is no value; give a number, text or a list of them.")
        if isinstance(options[name], bool) != isinstance(value, bool):
            wanted = "true or false" if isinstance(options[name], bool) else "a value"
            raise InputError(f"{path}: '{key}' is {_shown(value)}; give {wanted}.")
        settings[name] = value
    return settings


def option_defaults(command: Callable) -> dict[str, Any]:
    """The long options of a command, without their dashes, and their defaults."""
    hints = typing.get_type_hints(command, include_extras=True)
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            group = dataclasses.fields(parameter.default)
            options |= {field.name: field.default for field in group}
        elif tyro.conf.Positional not in getattr(hints[name], "__metadata__", ()):
            options[name] = parameter.default
    return {_option(name): value for name, value in options.items() if name != "config"}


def _option(word: str) -> str:
    return word.removeprefix("--").partition("=")[0].replace("_", "-")


def _words(name: str, value: Any, default: Any) -> list[str]:
    """An option and its value as they are typed; nothing for a flag that is off."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else [f"--no-{name}"] if default else []
    items = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(str, items)]


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | str) else str(value)
