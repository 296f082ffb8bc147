"""argv in, exit code out: takes the command off and hands the rest to Hydra.

Only the standard library is imported here, so that `--help` is quick; a command imports what it needs.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = {
    "run": "search coefficients for a baseline: plan, train, choose, scale; or go on where it stopped",
    "plan": "what run would do, and what it would cost, before anything is trained",
    "status": "how far a study is",
    "report": "what a finished study says: how sure, how flat, what it did not measure; also as report.md",
    "retry": "as run, and the failed evaluations once more",
    "variants": "the family of scaled networks for coefficients, given or of a study",
    "cost": "multiply-adds, params and activations of a network, by stage",
    "train": "train one network, and say how accurate it is",
    "reproduce": "figures and tables of the paper from trainings of your own, and whether a proxy is to be believed",
    "export": "networks with their weights as YAML and safetensors, ONNX and torch.export programs, each checked",
    "init": "write a network of your own, as a table and as a function, to be changed: init my_net",
    "ui": "MLflow's interface on this machine, with links to the study",
    "sync": "bring into MLflow what has not arrived there",
}
JSON_COMMANDS = ("run", "plan", "status", "report", "retry", "variants", "cost", "train", "reproduce", "export")

DONE, USAGE, SOME_FAILED, ALL_FAILED, INFEASIBLE, LOCKED, ENVIRONMENT = 0, 2, 3, 4, 5, 6, 7
INTERRUPTED, TERMINATED = 130, 143


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command line and exit with its code; see docs/architecture.md for what each means."""
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        _discard_output()
        code = DONE
    except KeyboardInterrupt:
        code = _fail("interrupted", INTERRUPTED)
    sys.exit(code)


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return DONE if arguments else USAGE
    if "--version" in arguments:
        from scalesearch import __version__

        print(f"scalesearch {__version__}")
        return DONE
    if arguments[0] == "-sc":
        return _complete(arguments)
    command, *rest = arguments
    if command == "init" and rest and "=" not in rest[0] and not rest[0].startswith("-"):
        rest[0] = f"name={rest[0]}"
    primary = _primary(command)
    if command in ("run", "plan", "retry", "reproduce"):
        try:
            command, primary, rest = _experiment(command, primary, rest)
        except ValueError as error:
            return _fail(str(error), USAGE)
    if any(word.startswith("baseline.factory=") for word in rest) and not any(w.startswith("baseline=") for w in rest):
        rest.append("baseline=factory")
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return _fail(f"{command!r} is not a command{hint} (known: {', '.join(COMMANDS)})", USAGE)
    as_json = "--json" in rest
    rest = [word for word in rest if word != "--json"]
    if as_json and command not in JSON_COMMANDS:
        return _fail(f"{command} has no --json; these have: {', '.join(JSON_COMMANDS)}", USAGE)
    return _hydra(command, rest, lambda composed: _carry_out(command, composed, as_json), primary)


def _experiment(command: str, primary: str, words: list[str]) -> tuple[str, str, list[str]]:
    """(command, configuration, words) where an experiment is named: `reproduce NAME`, and `plan NAME`, its dry run.

    Errors: ValueError where the name is missing, or is that of a search.
    """
    searches, others = _shipped_experiments()
    first = words[0] if words and words[0].isidentifier() else None
    named = first is not None and (command in ("plan", "reproduce") or first in (*searches, *others))
    given = [word.partition("=")[2] for word in words if word.startswith("experiments=")]
    name = first if named else given[-1] if given else None
    if name == "fidelity":
        return "reproduce", "fidelity", [*words[1:], *(["dry_run=true"] if command == "plan" else [])]
    if command == "reproduce":
        if name is None and not any(word.startswith("-") and word != "--json" for word in words):
            raise ValueError(f"a name is missing: scalesearch reproduce {' or '.join([*others, 'fidelity'])}")
        if name in searches:
            raise ValueError(f"{name} is a search: scalesearch run experiments={name}")
    elif name in searches and named:
        return command, primary, [*words[1:], f"experiments={name}"]
    elif name not in others and not named:
        return command, primary, words
    elif command != "plan":
        raise ValueError(f"{name} is no search: scalesearch reproduce {name}")
    rest = [word for word in words[named:] if not word.startswith("experiments=")]
    if name is not None:
        rest.append(f"experiments={name}")
    return "reproduce", "reproduce", [*rest, *(["dry_run=true"] if command == "plan" else [])]


def _shipped_experiments() -> tuple[list[str], list[str]]:
    """Names in conf/experiments: of searches, and of what `reproduce` carries out."""
    paths = sorted((conf_dir() / "experiments").glob("*.yaml"))
    others = [path.stem for path in paths if "\nexperiment:" in path.read_text()]
    return [path.stem for path in paths if path.stem not in others], others


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


def _complete(arguments: list[str]) -> int:
    """Shell completion: the command is completed here, and by Hydra what stands after it."""
    program, *words = os.environ.get("COMP_LINE", "").split(" ", 2)
    if len(words) == 1:
        print(" ".join(name for name in COMMANDS if name.startswith(words[0])))
        return DONE
    primary = _primary(words[0] if words else "run")
    if words:
        name, space, after = words[1].partition(" ")
        rest = words[1]
        if words[0] == "reproduce" and not space:
            names = (*_shipped_experiments()[1], "fidelity")
            print(" ".join(known for known in names if known.startswith(name)))
            return DONE
        if words[0] == "reproduce" and "=" not in name:
            primary = "fidelity" if name == "fidelity" else primary
            rest = after if name == "fidelity" else f"experiments={name} {after}"
        elif words[0] == "init" and space and "=" not in name:  # the name, which Hydra does not know
            rest = after
        os.environ["COMP_LINE"] = f"{program} {rest}"
    sys.argv = ["scalesearch", *arguments]
    return _compose(primary, lambda composed: DONE)


def _hydra(command: str, arguments: list[str], task: Callable[[DictConfig], int], primary: str) -> int:
    """Compose the configuration with a real `hydra.main` and carry out the task: the highest code of its jobs."""
    from hydra._internal.utils import get_args_parser

    parser: Any = get_args_parser()

    def refuse(message: str) -> NoReturn:  # argparse would print its usage as well
        raise ValueError(f"{message}; see: scalesearch {command} --help")

    parser.error = refuse
    try:
        overrides: list[str] = parser.parse_intermixed_args(arguments).overrides
        options = _without(arguments, overrides)
        parsed = parser.parse_args([*options, *overrides])  # Hydra itself wants the options together
    except ValueError as error:
        return _fail(str(error), USAGE)
    if nameless := [word for word in overrides if word.startswith("=")]:
        return _fail(_cannot_read(nameless[0]), USAGE)
    if parsed.experimental_rerun is not None:
        return _fail("--experimental-rerun is not offered: it would unpickle a file", USAGE)
    if parsed.shell_completion:
        return _fail('shell completion is set up by: eval "$(scalesearch -sc install=bash)"', USAGE)
    with tempfile.TemporaryDirectory() as scratch:  # a sweep keeps a copy of its settings, which nobody asked for
        sweep = [f"hydra.sweep.dir='{scratch}'"] if parsed.multirun else []
        sys.argv = [f"scalesearch {command}", *options, *sweep, *overrides]
        return _compose(primary, task, overrides)


def _without(arguments: list[str], overrides: list[str]) -> list[str]:
    """The arguments but the overrides; of equal words the later is the override, as in `--config-dir a a`."""
    left = arguments[::-1]
    for word in overrides:
        left.remove(word)
    return left[::-1]


def _primary(command: str) -> str:
    return {"plan": "run", "retry": "run"}.get(command, command if command in COMMANDS else "run")


def _compose(primary: str, task: Callable[[DictConfig], int], overrides: Sequence[str] = ()) -> int:
    import hydra
    from hydra.errors import HydraException

    codes = [DONE]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and we say it in one message

    def job(composed: DictConfig) -> None:
        codes.append(task(composed))
        if codes[-1] in (INTERRUPTED, TERMINATED):
            raise SystemExit(codes[-1])  # the other jobs of a sweep as well

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=primary)(job)()
    except BrokenPipeError:
        raise
    except HydraException as error:  # first: one of them is an OSError as well
        return _fail(_said_plainly(error, primary, overrides), USAGE)
    except OSError as error:
        return _fail(_said(error), ENVIRONMENT)
    except Exception as error:  # a job lets none out: Hydra's refusals, which are of many types, YAML's among them
        return _fail(_said_plainly(error, primary, overrides), USAGE)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else USAGE
    return max(codes)


def _carry_out(command: str, composed: DictConfig, as_json: bool) -> int:
    """One job: every error becomes one message and the documented exit code."""
    first = "scalesearch.commands" not in sys.modules
    if first:  # what is imported stays: searching it for garbage again and again takes a fifth of `plan`
        gc.disable()
    from scalesearch import commands
    from scalesearch.ledger import StudyLocked
    from scalesearch.run import Infeasible

    if first:
        gc.freeze()
        gc.enable()

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        return commands.COMMANDS[command](composed, as_json)
    except Infeasible as error:
        return _fail(str(error), INFEASIBLE)
    except StudyLocked as error:
        return _fail(str(error), LOCKED)
    except ValueError as error:
        return _fail(str(error), USAGE)
    except (BrokenPipeError, SystemExit):  # rich makes the one into the other
        _discard_output()
        if command in ("run", "retry", "train", "reproduce"):
            return _fail(
                "standard output was closed; what is finished is kept, and the same command goes on", ENVIRONMENT
            )
        return DONE
    except (OSError, RuntimeError, MemoryError) as error:
        return _fail(_said(error), ENVIRONMENT)
    except KeyboardInterrupt:
        return _fail("interrupted; what is finished is kept, and the same command goes on from there", INTERRUPTED)
    except _Terminated:
        return _fail("terminated; what is finished is kept, and the same command goes on from there", TERMINATED)
    except Exception as error:  # a library's own kind of error, or a fault of ours: where it was is said as well
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        return _fail(f"{type(error).__name__} in {where}: {' '.join(str(error).split())}", ENVIRONMENT)
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Terminated(BaseException):
    """SIGTERM, as something that `finally` and `with` blocks see."""


def _discard_output() -> None:
    """Standard output to nowhere: the interpreter flushes it at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(error: BaseException) -> str:
    """An error of the environment in words: "/disk/full: No space left on device" without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _fail(message: str, code: int) -> int:
    print(f"scalesearch: {message}", file=sys.stderr)
    return code


def _said_plainly(error: Exception, primary: str, overrides: Sequence[str]) -> str:
    """Hydra's complaint in one message, with the nearest known word."""
    import re

    from hydra.errors import OverrideParseException

    text = str(error)
    if isinstance(error, OverrideParseException):
        return _cannot_read(error.override)
    if missing := re.search(
        r"Could not (?:override|append to config\. An item is already at|delete from config\.) ?'?([^'\s]+)'?", text
    ):
        key = missing[1].rstrip(".")
        if "append" in text.split(".")[0]:
            return f"{key!r} is there already; leave the '+' away: {key}=VALUE"
        known = _keys(primary, overrides)
        return f"{key!r} is needed" if key in known else f"{key!r} is not a known key{_near_key(key, known)}"
    if twice := re.match(r"(\S+) appears more than once in the final defaults list", text):
        return f"{twice[1]!r} is there already; leave the '+' away: {twice[1]}=CHOICE"
    if choice := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        group, name = choice.groups()
        listed = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
        names = [line.strip() for line in listed[1].splitlines()] if listed else []
        return f"{group}={name}: there is no {group} {name!r}{_near(name, names)}"
    if "Ambiguous value" in text:
        first = re.search(r"argument '([^']+)'", text)
        return f"{first[1] if first else 'an override'}: several values need --multirun (a list is written [1,2,3])"
    if "Config group override must be a string" in text:
        groups = [word for word in overrides if "." not in word.split("=")[0]]
        return f"a group takes the name of a choice, such as baseline=mobilenetv2; given: {' '.join(groups)}"
    if "Cannot find primary config" in text:
        return text.split(". ")[0]
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and "full_key" not in line)


def _cannot_read(override: str) -> str:
    return f"cannot read {override!r}; write key=value, and quote a value of other signs: \"key='a=b'\""


def _keys(primary: str, overrides: Sequence[str]) -> list[str]:
    """Every dotted key, and every group, of a command's configuration, with the groups' choices of the user."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    def walk(values: Any, prefix: str) -> list[str]:
        if not isinstance(values, dict):
            return []
        return [key for name, value in values.items() for key in (prefix + name, *walk(value, f"{prefix}{name}."))]

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        experiment = [word for word in overrides if word.startswith("experiments=")]  # without it reproduce has nothing
        plain = hydra.compose(primary, overrides=experiment)
        groups = [*experiment, *(word for word in overrides if word.partition("=")[0] in plain)]
        with contextlib.suppress(HydraException, ValueError):  # a choice of the user's own directory, say
            plain = hydra.compose(primary, overrides=groups)
        return walk(OmegaConf.to_container(plain), "")


def _near_key(key: str, known: list[str]) -> str:
    """As `_near`, by the parts of a dotted key: `data.rot` is near to keys of `data`, `epochs` is `recipe.epochs`."""
    group, _, last = key.rpartition(".")
    if group in known:
        return _near(last, [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group], f"{group}.")
    if not group and not difflib.get_close_matches(key, [name for name in known if "." not in name], cutoff=0.5):
        same = [name for name in known if name.rpartition(".")[2] == key]
        return f"; did you mean {same[0]!r}?" if same else _near(key, [name for name in known if "." not in name])
    return _near(key, known)


def _near(word: str, known: list[str], group: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {group + close[0]!r}?"
    return f" (known: {', '.join(group + name for name in known)})" if known else ""
