from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from conftest import case
from tiny import DATA, RECIPE, TINY, changed, fit, reference

from scalesearch.evaluation import Evaluation
from scalesearch.machine import instructions
from scalesearch.training import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")  # as many as a worker has: sums are added up in the same order

OTHER_VALUES = {
    **{"epochs": 3, "batch_size": 50, "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.05},
    **{"label_smoothing": 0.0, "schedule": "cosine", "warmup": 0.5, "flip": True, "crop_padding": 0.125},
    **{"class_weights": (1.0,) * 9 + (5.0,), "metric": "auroc"},
    **{"mixup": 0.5, "ema": 0.5, "autocast": "bfloat16", "channels_last": False},
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_every_field_of_a_recipe_changes_the_key_and_the_training(field: str) -> None:
    recipe = changed(**{field: OTHER_VALUES[field]})
    assert Evaluation(TINY, recipe, DATA.fingerprint, 0).key != Evaluation(TINY, RECIPE, DATA.fingerprint, 0).key
    if field == "autocast" and "bfloat16" not in instructions():
        return  # emulated it would be slow
    result = fit(TINY, recipe)
    if field == "channels_last":  # another order of additions, the same training
        assert result.val_loss == pytest.approx(reference().val_loss, rel=0.02)
    elif field == "metric":  # the training is the same, and so are its answers
        assert result.curve == reference().curve
        assert result.correct.tobytes() == reference().correct.tobytes()
        assert result.val_accuracy == pytest.approx(float(result.by_image.mean()))
    elif field == "ema":  # the training is the same, its average is evaluated
        assert result.curve == reference().curve
        assert result.val_loss != reference().val_loss
    else:
        assert result.curve != reference().curve


def test_a_wrong_value_is_named() -> None:
    wrong: dict[str, tuple[Any, ...]] = {
        "epochs": (0, 0.001, "1", True),
        "batch_size": (1, 2.5),
        "learning_rate": (0, math.nan, "0.1"),
        **{"momentum": (1,), "warmup": (1,), "ema": (1,), "flip": (1,)},
        **{"schedule": ("step", None), "autocast": ("float8", 16)},
    }
    for name, values in wrong.items():
        for value in values:
            with (
                case(name, value),
                pytest.raises(ValueError, match=rf"recipe\.{name} is .*(must be |did you mean )"),
            ):
                changed(**{name: value})


def test_equal_recipes_have_one_key() -> None:
    whole, decimal = changed(mixup=1, learning_rate=1), changed(mixup=1.0, learning_rate=1.0)
    assert whole == decimal
    assert Evaluation(TINY, whole, "d", 0).key == Evaluation(TINY, decimal, "d", 0).key
    assert json.dumps(dataclasses.asdict(changed(epochs=2.0))) == json.dumps(dataclasses.asdict(changed(epochs=2)))
