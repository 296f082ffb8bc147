"""argv in, exit code out: takes the command off and hands the rest to Hydra.

Only the standard library is imported here, so that `--help` is quick; a command imports what it needs.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "run": "search coefficients for a baseline: plan, train, choose, scale; or go on where it stopped",
    "plan": "what run would do, and what it would cost, before anything is trained",
    "status": "how far a study is",
    "retry": "as run, and the failed evaluations once more",
    "variants": "the family of scaled networks for coefficients, given or of a study",
    "cost": "multiply-adds, params and activations of a network, by stage",
    "ui": "MLflow's interface on this machine, with links to the study",
    "sync": "bring into MLflow what has not arrived there",
}
JSON_COMMANDS = ("run", "plan", "status", "retry", "variants", "cost")

DONE, USAGE, SOME_FAILED, ALL_FAILED, INFEASIBLE, LOCKED, ENVIRONMENT = 0, 2, 3, 4, 5, 6, 7
INTERRUPTED, TERMINATED = 130, 143


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command line and exit with its code; see docs/architecture.md for what each means."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(DONE if arguments else USAGE)
    if arguments[0] == "--version":
        from scalesearch import __version__

        print(f"scalesearch {__version__}")
        sys.exit(DONE)
    if arguments[0] == "-sc":  # shell completion: Hydra completes what stands after the command
        line = os.environ.get("COMP_LINE", "").split(" ", 2)
        command = line[1] if len(line) > 2 and line[1] in COMMANDS else "run"
        if len(line) > 2:
            os.environ["COMP_LINE"] = f"{line[0]} {line[2]}"
        sys.exit(_hydra(command, arguments, lambda composed: DONE))
    command, *rest = arguments
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        sys.exit(_fail(f"{command!r} is not a command{hint} (known: {', '.join(COMMANDS)})", USAGE))
    as_json = "--json" in rest
    rest = [word for word in rest if word != "--json"]
    if as_json and command not in JSON_COMMANDS:
        sys.exit(_fail(f"{command} has no --json; these have: {', '.join(JSON_COMMANDS)}", USAGE))
    sys.exit(_hydra(command, rest, lambda composed: _carry_out(command, composed, as_json)))


def conf_dir() -> Path:
    """The configuration directory: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / "conf", package.parent / "conf") if (path / "run.yaml").exists())


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {words}" for name, words in COMMANDS.items()]
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


def _hydra(command: str, arguments: list[str], task: Callable[[DictConfig], int]) -> int:
    """Compose the configuration with a real `hydra.main` and carry out the task: the highest code of its jobs."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    codes = [DONE]
    primary = {"plan": "run", "retry": "run"}.get(command, command)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and we say it in one message
    sys.argv = [f"scalesearch {command}", *arguments]

    def job(composed: DictConfig) -> None:
        codes.append(task(composed))

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=primary)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(_said_plainly(error, primary), USAGE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:  # Hydra's argument parser
        return error.code if isinstance(error.code, int) else USAGE
    return max(codes)


def _carry_out(command: str, composed: DictConfig, as_json: bool) -> int:
    """One job: every error becomes one message and the documented exit code."""
    from scalesearch import run
    from scalesearch.ledger import StudyLocked

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        return run.COMMANDS[command](composed, as_json)
    except run.Infeasible as error:
        return _fail(str(error), INFEASIBLE)
    except StudyLocked as error:
        return _fail(str(error), LOCKED)
    except ValueError as error:
        return _fail(str(error), USAGE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return DONE
    except (OSError, RuntimeError) as error:
        return _fail(str(error) or type(error).__name__, ENVIRONMENT)
    except KeyboardInterrupt:
        return _fail("interrupted; what is finished is kept, and the same command goes on from there", INTERRUPTED)
    except _Terminated:
        return _fail("terminated; what is finished is kept, and the same command goes on from there", TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Terminated(BaseException):
    """SIGTERM, as something that `finally` and `with` blocks see."""


def _fail(message: str, code: int) -> int:
    print(f"scalesearch: {message}", file=sys.stderr)
    return code


def _said_plainly(error: Exception, primary: str) -> str:
    """Hydra's complaint in one message, with the nearest known word."""
    import re

    text = str(error)
    if missing := re.search(
        r"Could not (?:override|append to config\. An item is already at|delete from config\.) ?'?([^'\s]+)'?", text
    ):
        key = missing[1].rstrip(".")
        if "append" in text.split(".")[0]:
            return f"{key!r} is there already; leave the '+' away: {key}=VALUE"
        return f"{key!r} is not a known key{_near(key, _keys(primary))}"
    if choice := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = choice.groups()
        known = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
        names = [line.strip() for line in known[1].splitlines()] if known else []
        return f"{group}={name}: there is no {group} {name!r}{_near(name, names)}"
    if "Ambiguous value" in text:
        first = re.search(r"argument '([^']+)'", text)
        return f"{first[1] if first else 'an override'}: several values need --multirun (a list is written [1,2,3])"
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and "full_key" not in line)


def _keys(primary: str) -> list[str]:
    """Every dotted key, and every group, of a command's configuration."""
    import hydra
    from omegaconf import OmegaConf

    def walk(values: Any, prefix: str) -> list[str]:
        if not isinstance(values, dict):
            return []
        return [key for name, value in values.items() for key in (prefix + name, *walk(value, f"{prefix}{name}."))]

    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return walk(OmegaConf.to_container(hydra.compose(primary)), "")


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" (known: {', '.join(name for name in known if '.' not in name)})" if known else ""
