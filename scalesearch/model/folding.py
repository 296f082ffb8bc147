"""A network for inference: batch norms folded into the convolutions before them."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scalesearch.model.blocks import Block


def folded(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with the same outputs within float32's tolerance; `model` itself if nothing folds.

    Each batch norm that a block's `chain` has right behind a convolution becomes that convolution's weights and bias.
    """
    pairs = [
        (name, before, after)
        for name, block in model.named_modules()
        if isinstance(block, Block)
        for before, after in _pairs(block)
    ]
    if not pairs:
        return model
    copied = copy.deepcopy(model).eval()
    for name, before, after in pairs:
        block = copied.get_submodule(name)
        convolution, norm = block.get_submodule(before), block.get_submodule(after)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        setattr(block, before, fuse_conv_bn_eval(convolution, norm))
        setattr(block, after, nn.Identity())
    return copied


def _pairs(block: Block) -> list[tuple[str, str]]:
    """The names of a convolution and of the batch norm behind it."""
    chain = block.chain()
    if chain is None:
        return []
    # A convolution whose raw output the shortcut takes as well keeps its norm apart.
    parts = (chain.layers[: chain.shared], chain.layers[chain.shared :], chain.shortcut or ())
    return [
        (before, after)
        for names in parts
        for before, after in pairwise(names)
        if isinstance(getattr(block, before, None), nn.Conv2d)
        and isinstance(getattr(block, after, None), nn.BatchNorm2d)
    ]
