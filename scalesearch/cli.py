"""argv in, exit code out: finds the command, has its configuration composed, and turns every error into one message.

Only the standard library is imported here, so that `--help` is quick; a command imports what it needs.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scalesearch.signals import KEPT, Listener, Stopped

if TYPE_CHECKING:
    from omegaconf import DictConfig

LISTENER = Listener()

# In this order in the help; a command that is not among them comes last.
_ORDER = (
    "run",
    "plan",
    "status",
    "report",
    "retry",
    "variants",
    "cost",
    "train",
    "reproduce",
    "fidelity",
    "export",
    "init",
)
# Exit codes, as in scalesearch.workspace, which takes longer to import.
_DONE, _USAGE, _ENVIRONMENT, _INTERRUPTED, _TERMINATED = 0, 2, 7, 130, 143


def commands() -> dict[str, str]:
    """Each command with what it does: the modules of `scalesearch.commands`, and the first line of their docstrings.

    They are read, and not imported, which would take longer.
    """
    files = {path.stem: path for path in Path(__file__).with_name("commands").glob("[a-z]*.py")}
    names = sorted(files, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: files[name].read_text().split('"""', 2)[1].strip() for name in names}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command line and exit with its code; see docs/architecture.md for what each means."""
    with LISTENER.listening():
        for stream in (sys.stdout, sys.stderr):  # a name on disk may have bytes that no encoding knows
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            code = _main(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has read enough
            _discard_output()
            code = _DONE
        except (Stopped, KeyboardInterrupt) as stop:
            code = _fail(str(stop) or f"interrupted; {KEPT}", getattr(stop, "code", _INTERRUPTED))
        if argv is None:  # the process itself, and no test of it
            LISTENER.done(code)
            if LISTENER.stopped:  # nothing is left to do, and an exit handler may wait for what was stopped
                sys.stderr.flush()
                os._exit(code)
    sys.exit(code)


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return _DONE if arguments else _USAGE
    if "--version" in arguments:
        from scalesearch import __version__

        print(f"scalesearch {__version__}")
        return _DONE
    if arguments[0] == "-sc":
        return _complete(arguments)
    try:
        command, words = _understood(*_shortened(arguments))
    except ValueError as error:
        return _fail(str(error), _USAGE)
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    if as_json and not getattr(importlib.import_module(f"scalesearch.commands.{command}"), "JSON", True):
        return _fail(f"{command} has no --json: it has no answer to print", _USAGE)
    return _hydra(command, words, lambda composed: _run(command, composed, as_json))


def _shortened(arguments: list[str]) -> tuple[str, list[str]]:
    """(command, words) with what may be left out: `init NAME`, baseline=factory, recipe.metric, the older group."""
    command, *words = arguments
    words = [
        word.replace("experiments=", "experiment=", 1) if word.startswith("experiments=") else word for word in words
    ]
    if "fidelity" not in (command, *words[:1]):  # which has no recipe of its own
        words = [f"recipe.{word}" if word.startswith("metric=") else word for word in words]
    if command == "init" and words and "=" not in words[0] and not words[0].startswith("-"):
        words[0] = f"name={words[0]}"
    words = [word for given in words for word in _of_timm(given)]
    named = any(word.startswith("baseline=") for word in words)
    functions = [word.partition("=")[2] for word in words if word.startswith("baseline.factory=")]
    if functions and not named:
        from scalesearch.workspace import is_timm

        words.append("baseline=timm" if is_timm(functions[-1]) else "baseline=factory")
    return command, words


def _of_timm(word: str) -> list[str]:
    """`baseline=timm:convnext_atto`, which is no choice of the group but a network of its choice `timm`."""
    if not word.startswith("baseline="):
        return [word]
    from scalesearch.workspace import is_timm

    names = word.partition("=")[2].split(",")
    of_timm = [is_timm(name) for name in names]
    if not any(of_timm):
        return [word]
    if not all(of_timm):
        raise ValueError(f"{word!r} has networks of timm beside others; give these in a command of their own")
    return ["baseline=timm", f"baseline.factory={','.join(names)}"]


def _understood(command: str, words: list[str]) -> tuple[str, list[str]]:
    """(command, words) where an experiment is named: `reproduce NAME`, and `plan NAME`, its dry run.

    Raises: ValueError where the command is not known, where the name is missing, or is that of a search.
    """
    if command not in commands():
        from scalesearch.text import near

        raise ValueError(f"{command!r} is not a command{near(command, commands())}")
    if command not in ("run", "plan", "retry", "reproduce"):
        return command, words
    from scalesearch.workspace import experiments, searches

    others, known = list(experiments()), searches()
    first = words[0] if words and words[0].isidentifier() else None
    named = first is not None and (command in ("plan", "reproduce") or first in (*known, *others))
    given = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    name = first if named else given[-1] if given else None
    dry = ["dry_run=true"] if command == "plan" else []
    if name == "fidelity":
        return "fidelity", [*words[1:], *dry]
    if command == "reproduce":
        if name is None and not any(word.startswith("-") and word != "--json" for word in words):
            raise ValueError(f"a name is missing: scalesearch reproduce {' or '.join([*others, 'fidelity'])}")
        if name in known:
            raise ValueError(f"{name} is a search: scalesearch run experiment={name}")
    elif name in known and named:
        return command, [*words[1:], f"experiment={name}"]
    elif name not in others and not named:
        return command, words
    elif command != "plan":
        raise ValueError(f"{name} is no search: scalesearch reproduce {name}")
    rest = [word for word in words[named:] if not word.startswith("experiment=")]
    return "reproduce", [*rest, *([] if name is None else [f"experiment={name}"]), *dry]


def _usage() -> str:
    about = commands()
    width = max(map(len, about))
    lines = [f"  {name:<{width}}  {words}" for name, words in about.items()]
    return "\n".join(
        [
            "scalesearch: how to split k times the compute between depth, width and resolution",
            "",
            "usage: scalesearch COMMAND [group=choice ...] [key=value ...] [--json]",
            "",
            *lines,
            "",
            "scalesearch COMMAND --help lists groups, keys and their values.",
            "example: scalesearch run baseline=mobilenetv2",
        ]
    )


def _complete(arguments: list[str]) -> int:
    """Shell completion: the command is completed here, and by Hydra what stands after it."""
    program, *words = os.environ.get("COMP_LINE", "").split(" ", 2)
    known = commands()
    if len(words) == 1:
        print(" ".join(name for name in known if name.startswith(words[0])))
        return _DONE
    command = words[0] if words and words[0] in known else "run"
    if words:
        name, space, after = words[1].partition(" ")
        rest = words[1]
        if command == "reproduce" and not space:
            from scalesearch.workspace import experiments

            names = (*experiments(), "fidelity")
            print(" ".join(one for one in names if one.startswith(name)))
            return _DONE
        if command == "reproduce" and "=" not in name:
            command = "fidelity" if name == "fidelity" else command
            rest = after if name == "fidelity" else f"experiment={name} {after}"
        elif command == "init" and space and "=" not in name:  # the name, which Hydra does not know
            rest = after
        os.environ["COMP_LINE"] = f"{program} {rest}"
    sys.argv = ["scalesearch", *arguments]
    return _compose(command, lambda composed: _DONE)


def _hydra(command: str, arguments: list[str], task: Callable[[DictConfig], int]) -> int:
    """Compose the configuration with a real `hydra.main` and run the task: the highest code of its jobs."""
    from hydra._internal.utils import get_args_parser

    from scalesearch.compose import cannot_read

    parser: Any = get_args_parser()

    def refuse(message: str) -> NoReturn:  # argparse would print its usage as well
        raise ValueError(f"{message}; see: scalesearch {command} --help")

    parser.error = refuse
    try:
        overrides: list[str] = parser.parse_intermixed_args(arguments).overrides
        options = _without(arguments, overrides)
        parsed = parser.parse_args([*options, *overrides])  # Hydra itself wants the options together
    except ValueError as error:
        return _fail(str(error), _USAGE)
    if nameless := [word for word in overrides if word.startswith("=")]:
        return _fail(cannot_read(nameless[0]), _USAGE)
    if parsed.experimental_rerun is not None:
        return _fail("--experimental-rerun is not offered: it would unpickle a file", _USAGE)
    if parsed.shell_completion:
        return _fail('shell completion is set up by: eval "$(scalesearch -sc install=bash)"', _USAGE)
    with tempfile.TemporaryDirectory() as scratch:  # Hydra keeps a copy of a sweep's settings, which nobody needs
        sweep = [f"hydra.sweep.dir='{scratch}'"] if parsed.multirun else []
        sys.argv = [f"scalesearch {command}", *options, *sweep, *overrides]
        return _compose(command, task, overrides)


def _without(arguments: list[str], overrides: list[str]) -> list[str]:
    """The arguments but the overrides; of equal words the later is the override, as in `--config-dir a a`."""
    left = arguments[::-1]
    for word in overrides:
        left.remove(word)
    return left[::-1]


def _compose(command: str, task: Callable[[DictConfig], int], overrides: Sequence[str] = ()) -> int:
    from hydra.errors import HydraException

    from scalesearch import compose

    codes = [_DONE]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and we print one message

    def job(composed: DictConfig) -> None:
        codes.append(task(composed))
        if codes[-1] in (_INTERRUPTED, _TERMINATED):
            raise SystemExit(codes[-1])  # the other jobs of a sweep as well

    try:
        compose.run(command, job)
    except BrokenPipeError:
        raise
    except HydraException as error:  # first: one of them is an OSError as well
        return _fail(compose.sentence(error, command, overrides), _USAGE)
    except OSError as error:  # a name that is too long is the user's, and no trouble of the disk's
        return _fail(_words(error), _USAGE if error.errno == errno.ENAMETOOLONG else _ENVIRONMENT)
    except Exception as error:  # a job lets none out: Hydra's refusals, which are of many types, YAML's among them
        return _fail(compose.sentence(error, command, overrides), _USAGE)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else _USAGE
    return max(codes)


def _run(command: str, composed: DictConfig, as_json: bool) -> int:
    """One job: every error becomes one message and the documented exit code."""
    first = "torch" not in sys.modules
    if first:  # what is imported stays: searching it for garbage again and again takes a fifth of `plan`
        gc.disable()
    from scalesearch import workspace
    from scalesearch.config import request
    from scalesearch.ledger import StudyLocked
    from scalesearch.screen import Screen
    from scalesearch.text import one_line

    module = importlib.import_module(f"scalesearch.commands.{command}")
    try:
        if first:
            gc.freeze()
            gc.enable()
        screen = Screen(as_json=as_json)
        # A user's network may print.
        with redirect_stdout(sys.stderr) if as_json else nullcontext(), screen.warnings():
            arguments, groups = request(module, composed)
            with LISTENER.working():
                return int(module.run(arguments, groups, screen))
    except workspace.Infeasible as error:
        return _fail(str(error), workspace.INFEASIBLE)
    except workspace.AllAlike as error:
        return _fail(str(error), workspace.ALL_FAILED)
    except StudyLocked as error:
        return _fail(str(error), workspace.LOCKED)
    except ValueError as error:
        return _fail(str(error), _USAGE)
    except (BrokenPipeError, SystemExit):  # rich makes the one into the other
        _discard_output()
        if "executor" in module.GROUPS and command != "plan":
            words = "standard output was closed; what is finished is kept, and the same command goes on"
            return _fail(words, _ENVIRONMENT)
        return _DONE
    except (OSError, RuntimeError, MemoryError) as error:
        return _fail(_words(error), _ENVIRONMENT)
    except (Stopped, KeyboardInterrupt) as stop:
        return _fail(str(stop) or f"interrupted; {KEPT}", getattr(stop, "code", _INTERRUPTED))
    except Exception as error:  # a library's own kind of error, or a fault of ours: where it was is given as well
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        return _fail(f"{type(error).__name__} in {where}: {one_line(error)}", _ENVIRONMENT)


def _discard_output() -> None:
    """Standard output to nowhere: the interpreter flushes it at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _words(error: BaseException) -> str:
    """An error of the environment: "/disk/full: No space left on device" without its number."""
    from scalesearch.text import shown
    from scalesearch.workspace import FULL

    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    words = error.strerror if error.filename is None else f"{shown(error.filename)}: {error.strerror}"
    remedy = "what is finished is kept; put the disk right, and the same command goes on"
    return f"{words}; {remedy}" if error.errno in FULL else words


def _fail(message: str, code: int) -> int:
    from scalesearch.text import brief, printable

    print(f"scalesearch: {brief(printable(message))}", file=sys.stderr)
    return code
