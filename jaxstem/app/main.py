# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: which commands there are, and how the process ends.

One function for each command (`app/commands/`); tyro makes the options from its signature and the
help from its docstring. Whatever imports jax is imported inside the commands, so that `--help` and
a mistyped option answer at once. `main` turns an InputError into one sentence and exit code 2
(docs/command-line.md has all exit codes).
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

import tyro

from jaxstem.app.commands.calibrate import calibrate
from jaxstem.app.commands.convert import convert
from jaxstem.app.commands.demo import demo
from jaxstem.app.commands.detect import detect
from jaxstem.app.commands.doctor import doctor
from jaxstem.app.commands.evaluate import evaluate
from jaxstem.app.commands.export import export
from jaxstem.app.commands.map import map_command
from jaxstem.app.commands.models import models
from jaxstem.app.commands.report import report
from jaxstem.app.commands.train import train
from jaxstem.app.console import CommandLine, command_line, complain, expanded, warn
from jaxstem.errors import InputError
from jaxstem.runtime.cache import bound, default_cache, jax_folder
from jaxstem.runtime.signals import IMPORTS, Ended, signals_put_off, signals_unwind
from jaxstem.version import __version__

_DESCRIPTION = "4D-STEM orientation maps. Example: jaxstem map scan.h5 --cif Cu.cif"

_SELDOM = 100_000
"""Python objects that are made between two looks for cycles among them."""

CUT_OFF = 141
"""Exit code when nobody reads what is printed any more: 128 + 13, as of SIGPIPE."""

COMMANDS = {
    "train": train,
    "detect": detect,
    "convert": convert,
    "calibrate": calibrate,
    "map": map_command,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "demo": demo,
    "models": models,
    "doctor": doctor,
}


def run() -> None:
    """The `jaxstem` command: ends the process with `main`'s exit code.

    Python would look through all that is alive for cycles at its end, for most of a second, and
    again and again while jax is loaded, nearly all of which lives to the end.
    """
    gc.set_threshold(_SELDOM)
    code = main()
    gc.freeze()
    if code > 128 and code != CUT_OFF:  # threads that still compile do not survive Python's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own); the exit code, 2 for unusable input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings(), signals_unwind(), signals_put_off(IMPORTS):
        warnings.showwarning = warn
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        settle_jax()
        if arguments == ["--version"]:
            print(f"jaxstem {__version__}", flush=True)
            return 0
        arguments = expanded(arguments, COMMANDS)
        command_line.set(CommandLine(tuple(arguments)))
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jaxstem", description=_DESCRIPTION, args=arguments
        )
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except InputError as error:
        return complain(str(error), 2)
    except BrokenPipeError:
        # Python would try once more to print at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    except OSError as error:
        about = [str(part) for part in (error.filename, error.strerror) if part]
        return complain(f"{': '.join(about) or error}.", 2)
    except MemoryError:
        return complain("there is not enough memory; free some, or work on a part of the scan.", 2)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # jax's word for it
            raise
        return complain("the device's memory does not suffice; give a smaller --batch.", 2)
    except KeyboardInterrupt:
        return complain("interrupted.", 130)
    except Ended as ended:
        (number,) = ended.args
        return complain(f"interrupted by {signal.Signals(number).name}.", 128 + number)
    return 0


def settle_jax() -> None:
    """Choose, before jax is imported, where it keeps compiled programs, and quiet its notices.

    That is within jaxstem's cache (`runtime/cache.py`), which is brought to its size here, since
    jax does not bound its part. The environment variables that jax itself knows
    (JAX_COMPILATION_CACHE_DIR and so on) win, but not over JAXSTEM_CACHE=off.
    """
    folder = default_cache()
    if folder is None:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif compiled := jax_folder():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
        bound(folder)
    # small programs are many, and compiling them anew takes longer than all else at the start
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    # errors of orbax's threads, with tracebacks, which are raised as well, and what it then drops
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
