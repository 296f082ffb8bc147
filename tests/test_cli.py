from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra._internal.hydra import Hydra

from scalesearch import cli, workspace
from scalesearch.workspace import conf_dir

COEFFICIENTS = ["coefficients.alpha=1.2", "coefficients.beta=1.1", "coefficients.gamma=1.15"]
ENTRY = "from scalesearch.cli import main; main()"


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def scalesearch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], brief_latencies: None
) -> Command:
    """Call the command line in this process, from an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # Hydra reads it, so main writes it
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def call(*arguments: str) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        message = capfd.readouterr()
        return Answer(ended.value.code, message.out, message.err)

    return call


def in_a_process(arguments: Sequence[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# What is refused: one message on standard error, nothing on standard output, nothing on disk.

REFUSED = [
    ("pln", "did you mean 'plan'"),
    ("--json", "is not a command"),
    ("plan budgt.tolerance=1", "did you mean 'budget.tolerance'"),
    ("plan budget.tolerence=1", "did you mean 'budget.tolerance'"),
    ("run recipe.epoch=3", "did you mean 'recipe.epochs'"),
    ("run epochs=3", "did you mean 'recipe.epochs'"),
    ("run basline=mobilenetv2", "did you mean 'baseline'"),
    ("run baseline=mobilenetv", "did you mean 'mobilenetv2'"),
    ("run baseline=unheard_of", "known: .*preresnet29"),
    ("run experiments=unheard_of", "there is no experiment 'unheard_of'"),
    ("run data=folder data.rot=x", "did you mean 'data.root'"),
    ("run data.root=/x", "known: .*data.cache"),
    ("run +key=1", "key is not a known key"),
    ("run +budget.tolerance=1", "leave the '\\+' away"),
    ("run +baseline=mobilenetv2", "leave the '\\+' away"),
    ("run +baseline.foo=1", "foo is not a known"),
    ("run ++budget.tolerence=1", "did you mean 'tolerance'"),
    ("run ~recipe.epochs", "recipe.epochs is missing"),
    ("run ~baseline", "baseline is"),
    ("run ~study", "'study' is needed"),
    ("run ~nonsense", "'nonsense' is not a known key"),
    ("cost ~depth", "depth is missing"),
    ("run recipe.epochs=abc", "recipe.epochs is 'abc'; it must be a number"),
    ("run recipe.epochs=null", "recipe.epochs is None; it must be a number"),
    ("run recipe.epochs=1" + 4400 * "0", "4300 digits"),
    ("run budget.tolerance=nan", "budget.tolerance is nan"),
    ("run study=../x", "study is '../x'"),
    ("run phis=3", "phis is 3"),
    ("run baseline=mobilenetv2,preresnet29", "need --multirun"),
    ("run recipe.epochs==3", "cannot read 'recipe.epochs==3'"),
    ("run recipe.epochs", "cannot read 'recipe.epochs'"),
    ("run [", "cannot read '\\['"),
    ("run =3", "cannot read '=3'"),
    ("run study='abc", 'cannot read "study=\'abc"'),
    ("run baseline=ünïcode", "cannot read 'baseline=ünïcode'"),
    ("run --nonsense", "unrecognized arguments: --nonsense"),
    ("run --config-dir", "expected one argument"),
    ("run --config-dir /nonexistent", "'/nonexistent' not found"),
    ("run --config-name nope", "'nope'"),
    ("run --experimental-rerun config.pickle", "unpickle"),
    ("run --shell-completion", "scalesearch -sc"),
    ("run budget=3", "the name of a choice"),
    ("run grid=null", "the name of a choice"),
    ("run recipe=[]", "recipe is missing"),
    ("run grid.alpha=1", "grid.alpha is 1; it must be"),
    ("run data=folder", "needs data.root"),
    ("run data=folder data.root=/nonexistent", "data.root .* does not exist"),
    ("run data.num_val=60000", "data.num_val 60000"),
    ("run executor.devices=[gpu]", "executor.devices.0. is 'gpu'"),
    ("run workspace=/etc/passwd", "/etc/passwd is a file"),
    ("run workspace=/etc/passwd/deep/er", "; /etc/passwd is a file"),
    ("run study=${nope}", "'nope' not found"),
    ("run study=???", "study"),
    ("run +_target_=os.getcwd", "_target_ is not a known key"),
    ("run --multirun baseline=mobilenetv2,nosuch", "there is no baseline 'nosuch'"),
    ("variants phis=[]", "phis is \\[\\]; it must be a list of numbers"),
    (" ".join(["variants", *COEFFICIENTS, "study=x"]), "give one of them"),
    ("run budget.memory=64M", "budget.memory is '64M'; it must be bytes such as 512MiB"),
    ("variants coefficients.alpha=1.2", "coefficients.beta is missing"),
    ("variants study=nosuch", "there is no study"),
    ("status", "there is no study in workspace"),
    ("sync", "there is no study in workspace"),
    ("sync rebuild=3", "rebuild is 3"),
    ("ui port=80", "port is 80"),
    ("ui --json", "ui has no --json"),
    ("cost depth=1e99", "depth is 1e\\+99"),
    ("cost resolution=1", "resolution is 1 px"),
    ("cost baseline.stem.stride=3", "stem.stride is 3"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=[line[:50] for line, _ in REFUSED])
def test_bad_usage_is_one_message_and_leaves_nothing_behind(
    scalesearch: Command, tmp_path: Path, line: str, words: str
) -> None:
    code, out, err = scalesearch(*line.split(" "))
    assert code == workspace.USAGE, err
    assert out == ""
    assert err.startswith("scalesearch: ")
    assert err.count("\n") == 1
    assert re.search(words, err), err
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_cannot_be_written_is_a_matter_of_the_environment(scalesearch: Command) -> None:
    tiny = ("data=digits", "data.num_train=200", "data.num_val=200", "tracking=none")
    code, _, err = scalesearch("run", "workspace=/proc/x", *tiny)
    assert (code, err) == (workspace.ENVIRONMENT, "scalesearch: /proc/x: No such file or directory\n")


# A user's own baseline.

GOOD = """
name: mine
resolution: 32
in_channels: 3
num_classes: 10
activation: relu
stem: {block: conv_norm, kernel: 3, stride: 2, channels: 16}
stages:
  - {block: mbconv, repeats: 1, kernel: 3, stride: 1, expand: 1, channels: 16}
  - {block: mbconv, repeats: 2, kernel: 3, stride: 2, expand: 6, channels: 24}
head: {block: conv_norm, kernel: 1, channels: 64}
"""


def own_baseline(directory: Path, text: str) -> list[str]:
    (directory / "baseline").mkdir(parents=True)
    (directory / "baseline" / "mine.yaml").write_text(text)
    return [f"--config-dir={directory}", "baseline=mine"]


def test_a_baseline_of_ones_own_is_a_choice_like_any_other(scalesearch: Command, tmp_path: Path) -> None:
    code, out, _ = scalesearch("cost", *own_baseline(tmp_path / "conf", GOOD), "--json")
    assert code == workspace.DONE
    assert json.loads(out)["name"] == "mine"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("stride: 2, expand", "stride: 3, expand", "stages[1].stride is 3"),
        ("mbconv, repeats: 2", "mbconvv, repeats: 2", "'mbconv'"),
        ("repeats: 2", "repeats: 0", "stages[1].repeats is 0"),
        ("channels: 24", "channels: 1000000000", "stages[1].channels is 1000000000"),
        ("resolution: 32", "resolution: 3", "resolution is 3 px"),
        ("channels: 24", "channels: 24, heads: 3", "stages[1].heads is 3; a mbconv has none"),
        (
            "{block: conv_norm, kernel: 1, channels: 64}",
            "{block: class_token}",
            "head.block is 'class_token', which takes",
        ),
        ("{block: conv_norm, kernel: 1, channels: 64}", "[{block: max_pool, stride: 3}]", "head.stride is 3"),
        ("kernel: 1,", "kernl: 1,", "did you mean 'kernel'"),
        ("activation: relu", "activation: ${oc.env:NOT_THERE}", "NOT_THERE"),
        ("name: mine", "name: ../mine", "name is '../mine'"),
    ],
)
def test_a_wrong_row_of_a_baseline_is_named(
    scalesearch: Command, tmp_path: Path, old: str, new: str, words: str
) -> None:
    code, out, err = scalesearch("cost", *own_baseline(tmp_path / "conf", GOOD.replace(old, new)))
    assert (code, out) == (workspace.USAGE, "")
    assert err.startswith("scalesearch: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize("text", ["a: [", "\t", "a: !!python/object/apply:os.getcwd []"])
def test_a_baseline_that_is_no_yaml_is_one_message(scalesearch: Command, tmp_path: Path, text: str) -> None:
    code, _, err = scalesearch("cost", *own_baseline(tmp_path / "conf", text))
    assert (code, err.count("\n")) == (workspace.USAGE, 1)
    assert err.startswith("scalesearch: ")


# JSON.


def test_plan_without_a_candidate_prints_its_json_and_says_why(scalesearch: Command) -> None:
    code, out, err = scalesearch("plan", "--json", "budget.tolerance=0.0001")
    assert code == workspace.INFEASIBLE
    plan = json.loads(out)
    assert plan["candidates"] == []
    assert plan["evaluations"] == 0
    assert plan["nearest"]
    assert "scalesearch: no candidate is within 0.01 % of 2 x" in err


def test_variants_prints_one_json_object_and_writes_only_its_files(scalesearch: Command, tmp_path: Path) -> None:
    code, out, _ = scalesearch("variants", "--json", *COEFFICIENTS, "phis=[1]", "workspace=here")
    assert code == workspace.DONE
    names = [row["name"] for row in json.loads(out)["variants"]]
    assert names == ["mobilenetv2_phi1"]
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {f"{name}.yaml" for name in names} | {"latency.json"}


def test_a_sweep_prints_a_json_object_a_job_and_leaves_nothing_behind(scalesearch: Command, tmp_path: Path) -> None:
    code, out, _ = scalesearch("cost", "depth=1.1", "--multirun", "baseline=mobilenetv2,preresnet29", "--json")
    assert code == workspace.DONE
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["mobilenetv2", "preresnet29"]
    assert list(tmp_path.iterdir()) == []


def test_the_worst_job_of_a_sweep_decides_the_code(scalesearch: Command) -> None:
    code, out, err = scalesearch("cost", "baseline=preresnet20", "--multirun", "depth=1,-1,2", "--json")
    assert code == workspace.USAGE, err
    assert len(out.splitlines()) == 2
    assert "scalesearch: depth is -1" in err


@pytest.mark.usefixtures("in_this_process")
def test_a_search_prints_one_json_object_and_its_study_can_be_asked(scalesearch: Command, tmp_path: Path) -> None:
    """The one real search of this file, of three tiny trainings."""
    search = [
        *("baseline=preresnet20", "recipe.autocast=off"),
        *("data=digits", "data.num_train=640", "data.num_val=100", "recipe.seeds=1", "recipe.epochs=2"),
        "recipe.batch_size=16",
        *(
            "grid.alpha.stop=1",
            "grid.beta.stop=1.4",
            "grid.beta.step=0.4",
            "grid.gamma.stop=1.4",
            "grid.gamma.step=0.4",
        ),
        *("budget.tolerance=0.5", "tracking=none", "executor.workers=1", "study=tiny", "phis=[1]"),
    ]
    code, out, err = scalesearch("run", "--json", *search)
    assert code == workspace.DONE, err
    answer = json.loads(out)
    assert answer["study"] == "tiny"
    assert answer["evaluations"]["failed"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"workspace"}

    code, out, _ = scalesearch("status", "--json")
    assert (code, json.loads(out)["state"]) == (workspace.DONE, "finished")
    code, out, _ = scalesearch("variants", "--json", "study=tiny", "phis=[2]")
    assert (code, [row["phi"] for row in json.loads(out)["variants"]]) == (workspace.DONE, [2])

    study = tmp_path / "workspace" / "studies" / "tiny"
    assert scalesearch("status", "study=tny").err.count("did you mean 'tiny'") == 1
    wrong = ("a: [", "- 1", "", "a: 1", "a: !!python/object/apply:os.getcwd []", "baseline: ${oc.env:HOME}")
    damaged = (
        *(("coefficients.yaml", "variants", garbage) for garbage in wrong),
        *(("settings.yaml", "variants", garbage) for garbage in wrong[:2]),
        *(("settings.yaml", "report", garbage) for garbage in wrong),
        *(("settings.yaml", "run", garbage) for garbage in wrong[2:4]),
    )
    for name, command, garbage in damaged:
        whole = (study / name).read_text()
        (study / name).write_text(garbage)
        code, out, err = scalesearch(command, *(search if command == "run" else ["study=tiny"]))
        assert (code, err.count("\n")) == (workspace.USAGE, 1), (name, command, garbage, err)
        assert err.startswith("scalesearch: ")
        (study / name).write_text(whole)
    assert scalesearch("variants", "study=tiny", "phis=[1]").code == workspace.DONE
    (study / "result.json").write_text("[1, 2]")
    code, out, err = scalesearch("report", "study=tiny")
    assert (code, out, err.count("\n")) == (workspace.USAGE, "", 1)
    assert "give its `scalesearch run` command again" in err


# Help, versions, completion.


def test_help_names_every_command(scalesearch: Command) -> None:
    code, out, err = scalesearch("--help")
    assert (code, err) == (workspace.DONE, "")
    for command in cli.commands():
        assert f"  {command} " in out
    assert scalesearch() == Answer(workspace.USAGE, "", out)


@pytest.mark.parametrize("command", cli.commands())
def test_the_help_of_a_command_is_ours(scalesearch: Command, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if command != "run":  # the groups of conf/ are the same for every command, and slow to list
        monkeypatch.setattr(Hydra, "list_all_config_groups", lambda self, parent="": [])
    code, out, err = scalesearch(command, "--help")
    assert (code, err) == (workspace.DONE, "")
    assert out.startswith("scalesearch ")
    assert f"scalesearch {command}:" in out
    assert "Powered by Hydra" not in out


def test_the_version_is_ours_behind_a_command_too(scalesearch: Command) -> None:
    assert scalesearch("--version").out.startswith("scalesearch ")
    assert scalesearch("cost", "--version") == scalesearch("--version")


def test_options_of_hydra_stand_anywhere(scalesearch: Command, tmp_path: Path) -> None:
    code, out, _ = scalesearch("run", "recipe.epochs=7", "--cfg", "job", "study=x")
    assert code == workspace.DONE
    assert "epochs: 7" in out
    assert "study: x" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("scalesearch run baseline=", "baseline=mobilenetv2"),
        ("scalesearch cost rounding=rel", "rounding=released"),
        ("scalesearch plan budget.tol", "budget.tolerance="),
        ("scalesearch sta", "status"),
        ("scalesearch ", "variants"),
    ],
)
def test_the_shell_completes(scalesearch: Command, monkeypatch: pytest.MonkeyPatch, line: str, offered: str) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, err = scalesearch("-sc", "query=bash")
    assert (code, err) == (workspace.DONE, "")
    assert offered in out.split()


def test_completion_is_registered_for_the_program_alone(scalesearch: Command) -> None:
    code, out, _ = scalesearch("-sc", "install=bash")
    assert code == workspace.DONE
    assert out.rstrip().endswith("hydra_bash_completion scalesearch")


# Real processes.


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from scalesearch import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'pandas', 'numpy', 'mlflow', 'optuna', 'rich', 'pydantic'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"


def test_the_search_path_can_be_asked_for(tmp_path: Path) -> None:
    done = in_a_process(["cost", "--info", "searchpath"], tmp_path)
    assert (done.returncode, done.stderr) == (workspace.DONE, "")
    assert conf_dir().as_uri() in done.stdout


def test_a_real_process_says_one_message_and_exits_with_the_code(tmp_path: Path) -> None:
    done = in_a_process(["run", "budgt.tolerance=1"], tmp_path)
    assert done.returncode == workspace.USAGE
    assert done.stdout == ""
    assert done.stderr == "scalesearch: 'budgt.tolerance' is not a known key; did you mean 'budget.tolerance'?\n"
    assert list(tmp_path.iterdir()) == []


COST_TWICE = """
import os, sys
from scalesearch.cli import main
closed = os.dup(1)  # what main leaves behind may no longer be the pipe
try: main(["cost", "baseline=preresnet20", "--json"])
except SystemExit as ended: assert ended.code == 0, ended.code
os.dup2(closed, 1)
main(["cost", "baseline=preresnet20"])
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("from scalesearch.cli import main; main(['--help'])", id="help"),
        pytest.param("from scalesearch.cli import main; main(['cost', '--cfg', 'job'])", id="configuration"),
        pytest.param(COST_TWICE, id="json and table"),
    ],
)
def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, program: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, timeout=120
        )
    assert done.returncode == workspace.DONE, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
