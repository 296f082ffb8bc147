"""What a network is trained for: one class of each image, or, with labels (N, K) of 0 and 1, each label for itself."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from scalesearch.text import plural
from scalesearch.training.recipe import Recipe


def loss_function(recipe: Recipe, labels: Tensor, num_classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits, labels) -> mean loss of a batch: cross entropy, or of several labels the binary one.

    labels: of the training images, by which class weights are balanced.
    """
    weight = class_weights(recipe, labels, num_classes)
    if labels.ndim == 1:
        return functools.partial(F.cross_entropy, weight=weight, label_smoothing=recipe.label_smoothing)
    smoothing = recipe.label_smoothing

    def binary(logits: Tensor, given: Tensor) -> Tensor:
        targets = given.float() * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)

    return binary


def class_weights(recipe: Recipe, labels: Tensor, num_classes: int) -> Tensor | None:
    """(K,) what a class counts in the loss; "balanced": as much as every other, however many images it has.

    Of several labels it is what a label that is there counts, against one where a label is not there.
    Raises: ValueError: there are not as many weights as classes.
    """
    given = recipe.class_weights
    if given is None:
        return None
    if given == "balanced" and labels.ndim == 2:
        there = labels.sum(0, dtype=torch.float32)
        return (len(labels) - there).clamp(min=1) / there.clamp(min=1)
    if given == "balanced":
        numbers = torch.bincount(labels, minlength=num_classes).clamp(min=1).float()
        return len(labels) / (num_classes * numbers)
    if len(given) != num_classes:
        raise ValueError(
            f"recipe.class_weights has {plural(len(given), 'number')}; the data have {num_classes} classes"
        )
    return torch.tensor(given, dtype=torch.float32, device=labels.device)


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(sum over images of the loss, whether each image is right (B,)); of several labels all of them must be."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="sum"), logits.argmax(1) == labels
    loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / labels.shape[1]
    return loss, ((logits > 0) == (labels > 0)).all(1)


def probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, K) float64: of the classes, which sum to 1, or of each label."""
    return logits.double().softmax(1) if labels.ndim == 1 else logits.double().sigmoid()
