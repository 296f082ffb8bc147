from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import block_networks, case
from tiny import RECIPE, TINY, changed, fit, numbers
from torch import Tensor, nn

from scalesearch.kernels import accelerate, choice
from scalesearch.kernels.chain import Fused, program_of
from scalesearch.kernels.library import Library, library
from scalesearch.model import BLOCKS, Block, Chain, build
from scalesearch.model.blocks import ACTIVATIONS
from scalesearch.network import Network, Place, Stage
from scalesearch.training import Diverged


@pytest.fixture(scope="module")
def compiled() -> Library:
    found = library()
    if found.loaded is None:
        pytest.skip(f"nothing compiles the kernels here: {found.why}")
    return found


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no choice that this process knows."""
    monkeypatch.setenv("SCALESEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "_known", {})
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def fresh(empty: Path, compiled: Library) -> Path:
    """The same, with the library, which takes seconds to compile."""
    assert compiled.loaded is not None
    empty.mkdir(parents=True)
    shutil.copy(compiled.loaded._name, empty)
    return empty


def gradients(module: nn.Module, form: Any, x: Tensor, seed: int) -> dict[str, Tensor]:
    """The output, every gradient and every buffer after one forward and one backward pass."""
    given = x.clone().requires_grad_()
    out = form(given)
    out.backward(torch.randn(out.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed)))
    found = {"output": out.detach(), "input": given.grad}
    found |= {name: parameter.grad for name, parameter in module.named_parameters()}
    return found | {name: buffer.double() for name, buffer in module.named_buffers()}


def assert_equal(block: Block, library: Library, x: Tensor) -> None:
    """Torch's form and the library's agree, relative to the largest number of each tensor."""
    # Torch's hard sigmoid has a sixth in float32 in its gradient, whatever the type of the numbers.
    tolerance = 1e-7 if getattr(block, "hard", False) else 1e-9
    with torch.no_grad():
        for parameter in block.parameters():  # a norm's weight of zero would hide what comes before it
            parameter.add_(0.3 * torch.randn_like(parameter))
    twin = copy.deepcopy(block)
    program = program_of(twin)
    assert program is not None
    expected, found = gradients(block, block, x, 1), gradients(twin, Fused(program, library), x, 1)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        difference = (found[name] - value).abs().max().item()
        assert difference <= tolerance * max(1.0, value.abs().max().item()), f"{name}: {difference}"


def images(place: Place, count: int, layout: torch.memory_format = torch.channels_last) -> Tensor:
    side = place.in_resolution
    drawn = torch.randn(count, place.in_channels, side, side, dtype=torch.float64) * 2 + 0.5
    return drawn.contiguous(memory_format=layout)


def test_every_block_with_a_chain_computes_what_torch_does(compiled: Library) -> None:
    torch.manual_seed(0)
    with_chain = set()
    for name, network in block_networks().items():
        model = build(network).double().to(memory_format=torch.channels_last).train()
        for block, place in zip(model.blocks, network.places(), strict=True):  # type: ignore[arg-type]
            if program_of(block) is not None:
                with case(name, place.row):
                    assert_equal(block, compiled, images(place, 3))
                    with_chain.add(place.stage.block)
    assert with_chain >= {"mbconv", "uib", "bneck", "fused_mbconv", "conv_norm", "depthwise_separable"}
    assert with_chain >= {"basic", "bottleneck", "regnet", "preact_basic", "preact_bottleneck"}


def random_place(chance: random.Random, block: str) -> Place:
    stride, side = chance.choice((1, 1, 2)), chance.randint(1, 9)
    channels = chance.choice((1, 3, 8, 15, 16, 17, 24, 33, 40))
    entering = channels if chance.random() < 0.4 else chance.choice((1, 4, 7, 16, 20))
    stage = Stage(
        block=block,
        channels=channels,
        kernel=chance.choice((1, 3, 3, 5, 7)),
        stride=stride,
        expand=chance.choice((0.5, 1, 2, 3.3)),
        first_kernel=chance.choice((0, 3, 5)) if block == "uib" else 0,
        squeeze_excite=chance.choice((0, 0.25, 0.6)),
    )
    return Place(
        name="random",
        row="stages.0",
        stage=stage,
        in_channels=entering,
        channels=channels,
        stride=stride,
        in_resolution=side,
        resolution=math.ceil(side / stride),
        activation=chance.choice(list(ACTIVATIONS)),
        norm_epsilon=chance.choice((1e-5, 1e-3)),
    )


def test_random_chains_compute_what_torch_does(compiled: Library) -> None:
    chance, tried, blocks = random.Random(0), 0, sorted(BLOCKS)
    torch.manual_seed(0)
    while tried < 200:
        place = random_place(chance, chance.choice(blocks))
        if BLOCKS[place.stage.block].takes != "image":
            continue
        try:
            block = BLOCKS[place.stage.block](place).double().train()
        except ValueError:  # such as a uib with a stride and no kernel
            continue
        count, layout = chance.randint(2, 40), chance.choice((torch.channels_last, torch.contiguous_format))
        if program_of(block) is None:
            continue
        tried += 1
        with case(place, count, layout):
            x = images(place, count, layout)
            assert_equal(block.to(memory_format=layout), compiled, x)  # type: ignore[call-overload]


def test_in_float32_it_is_as_near_to_float64_as_torch_is(compiled: Library) -> None:
    """With a smooth activation: at the kink of a ReLU both may be on either side."""
    for name, network in block_networks().items():
        for block, place in zip(build(network).train().blocks, network.places(), strict=True):  # type: ignore[arg-type]
            if type(block.activation) is not nn.SiLU or program_of(block) is None:
                continue
            torch.manual_seed(0)
            with torch.no_grad():
                for parameter in block.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
            exact, plain, twin = copy.deepcopy(block).double(), copy.deepcopy(block), copy.deepcopy(block)
            x = images(place, 32)
            expected = gradients(exact, exact, x, 1)
            by_torch = gradients(plain, plain, x.float(), 1)
            program = program_of(twin)
            assert program is not None
            found = gradients(twin, Fused(program, compiled), x.float(), 1)
            for key, value in expected.items():
                with case(name, place.row, key):
                    scale = value.abs().max().item() + 1e-3
                    error, usual = ((given[key].double() - value).abs().max().item() for given in (found, by_torch))
                    assert error <= 4 * usual + 4e-6 * scale


def test_a_mean_far_from_zero_costs_no_precision(compiled: Library) -> None:
    """Moments as plain sums of squares would lose all digits of a variance of 1 beside a mean of 3,000."""
    place = next(iter(block_networks()["conv_norm-as it is"].places()))
    block = BLOCKS["conv_norm"](place._replace(stage=Stage(block="conv_norm", channels=8, kernel=1)))
    with torch.no_grad():
        block.get_parameter("conv.weight").fill_(1 / place.in_channels)
    x = images(place, 32).float() + 3_000
    program = program_of(copy.deepcopy(block))
    assert program is not None
    expected = block.double().train()(x.double())
    assert (Fused(program, compiled)(x) - expected).abs().max() < 0.01


def test_nan_goes_through(compiled: Library) -> None:
    for activation in ("relu", "relu6", "silu", "hardswish"):
        place = random_place(random.Random(1), "conv_norm")._replace(activation=activation)
        block = BLOCKS["conv_norm"](place).train()
        program = program_of(block)
        assert program is not None
        x = images(place, 4).float()
        x[0, 0, 0, 0] = math.nan
        assert Fused(program, compiled)(x).isnan().any(), activation
    with pytest.raises(Diverged):
        fit(TINY, changed(learning_rate=100.0, epochs=4))


def test_a_block_of_others_that_inherits_a_chain_has_none() -> None:
    class Doubled(BLOCKS["mbconv"]):  # type: ignore[misc,name-defined]
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Stated(Doubled):
        def chain(self) -> Chain | None:
            return super().chain()

    place = random_place(random.Random(1), "mbconv")
    assert program_of(Doubled(place)) is None
    assert program_of(Stated(place)) is not None


def test_a_second_order_gradient_is_refused(compiled: Library) -> None:
    place = random_place(random.Random(1), "conv_norm")
    program = program_of(BLOCKS["conv_norm"](place).double())
    assert program is not None
    with pytest.raises(TypeError, match=r"the images are torch.float32, and a parameter is not"):
        Fused(program, compiled)(images(place, 4).float())
    x = images(place, 4).requires_grad_()
    (first,) = torch.autograd.grad(Fused(program, compiled)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


def without(monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """What a training comes to with torch alone."""
    with monkeypatch.context() as patched:
        patched.setenv("SCALESEARCH_KERNELS", "off")
        result = fit(TINY, RECIPE)
        assert result.kernels == "off: SCALESEARCH_KERNELS is off"
    return numbers(result)


def test_where_nothing_can_be_compiled_torch_does_the_work(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = without(monkeypatch)
    (tmp_path / "file").touch()
    for name, value, why in (
        ("CC", "no-such-compiler", "off: there is no C compiler 'no-such-compiler'"),
        ("CC", "false", "off: .*false ended with 1"),
        ("CC", "true", "off: .*"),  # writes an empty file
        ("SCALESEARCH_CACHE", str(tmp_path / "file"), "off: .*Not a directory"),
    ):
        with monkeypatch.context() as patched, case(name, value):
            patched.setenv(name, value)
            result = fit(TINY, RECIPE)
            assert numbers(result) == expected
            assert result.kernels is not None
            assert re.match(why, result.kernels), result.kernels
    assert not list(empty.glob("*")), "what cannot be loaded is not kept"


def test_what_is_possible_is_done_without_a_timing_where_that_is_asked_for(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALESEARCH_KERNELS", "on")
    result = fit(TINY, RECIPE)
    assert result.kernels is not None
    assert re.fullmatch("[0-9a-f]{8} 1+", result.kernels), "a 1 for each block"
    assert not list(empty.glob("choices*")), "nothing was timed"
    monkeypatch.setenv("SCALESEARCH_KERNELS", "perhaps")
    with pytest.raises(ValueError, match="SCALESEARCH_KERNELS is 'perhaps' in the environment; it must be auto, on or"):
        fit(TINY, RECIPE)


def test_a_damaged_library_is_compiled_again(compiled: Library, empty: Path) -> None:
    empty.mkdir(parents=True)
    path = empty / f"{compiled.digest}.so"
    path.write_bytes(b"\x7fELF torn")
    assert library().loaded is not None
    assert path.stat().st_size > 10_000


def test_a_training_is_the_same_when_it_is_repeated(fresh: Path) -> None:
    first = fit(TINY, RECIPE)
    lines = (fresh / "choices.jsonl").read_text()
    choice._known.clear()
    again = fit(TINY, RECIPE)
    assert numbers(again) == numbers(first)
    assert again.kernels == first.kernels
    assert (fresh / "choices.jsonl").read_text() == lines


def test_the_first_choice_of_the_file_is_taken_and_torn_lines_are_not(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(TINY, RECIPE)
    path = fresh / "choices.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    for fused in (False, True):
        torn = json.dumps(rows[0] | {"fused": not fused})
        lines = [torn[:-1], "[]", "{}", json.dumps(rows[0] | {"fused": None}), json.dumps(rows[0]["key"])]
        lines += [json.dumps(row | {"fused": fused}) for row in rows]
        lines += [json.dumps(row | {"fused": not fused}) for row in rows]
        path.write_text("\n".join(lines) + "\n" + torn[: len(torn) // 2])
        choice._known.clear()
        result = fit(TINY, RECIPE)
        assert result.kernels == f"{library().digest[:8]} {'111' if fused else '000'}"
        assert fused or numbers(result) == without(monkeypatch)


def test_a_choice_that_cannot_be_kept_holds_for_the_process(fresh: Path) -> None:
    (fresh / "choices.jsonl").mkdir()
    first, again = fit(TINY, RECIPE), fit(TINY, RECIPE)
    assert numbers(again) == numbers(first)
    assert again.kernels == first.kernels


def test_what_is_appended_behind_a_torn_line_is_read(empty: Path) -> None:
    empty.mkdir(parents=True)
    path = empty / "choices.jsonl"
    path.write_text('{"key": "a", "fus')
    assert choice._keep(path, "a", {"key": "a", "fused": False}, True) is False
    assert choice._keep(path, "a", {"key": "a", "fused": True}, True) is False, "the first holds"


def test_timing_a_block_leaves_it_and_torch_s_chance_alone(compiled: Library, fresh: Path) -> None:
    model = build(TINY).train()
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    program = program_of(model.blocks[1])  # type: ignore[index]
    assert program is not None
    choice.faster(model.blocks[1], program, compiled, torch.zeros(8, 8, 8, 8), learned=True)  # type: ignore[index]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(chance, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.usefixtures("compiled")
def test_two_processes_that_compile_at_once_both_have_the_library(tmp_path: Path) -> None:
    program = "from scalesearch.kernels.library import library; found = library(); print(found.loaded, found.digest)"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | {"SCALESEARCH_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [one.communicate()[0].split() for one in started]
    assert all(one.returncode == 0 for one in started)
    assert answers[0][-1] == answers[1][-1] == library().digest
    assert all(answer[0] != "None" for answer in answers)
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == [f"{library().digest}.so"]


def test_a_model_of_another_kind_is_its_own_form() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    accelerated = accelerate(plain, torch.contiguous_format)
    x = torch.randn(3, 1, 2, 2)
    assert torch.equal(accelerated(x), plain(x))
    assert accelerated.used.startswith("off: ")


def test_tokens_pass_by(compiled: Library) -> None:
    """A network whose convolutions have a chain and whose other blocks take tokens."""
    network = Network(
        name="mixed",
        resolution=8,
        in_channels=1,
        num_classes=10,
        activation="relu",
        stem=(Stage(block="conv_norm", channels=8),),
        stages=(Stage(block="patch_embed", channels=16, stride=4), Stage(block="transformer", channels=16, heads=2)),
        head=(Stage(block="class_token"),),
    )
    model = build(network).train()
    accelerated = accelerate(copy.deepcopy(model), torch.channels_last)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(accelerated(x), model(x), rtol=1e-4, atol=1e-4)
