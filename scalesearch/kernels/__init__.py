"""A training step in fewer passes over memory, on a CPU: kernels in C, where there is a compiler and where they pay.

A block's chain of convolution, batch norm and activation is computed as one function: only raw outputs of convolutions
are written, and norms and activations are applied where the next convolution reads. Numbers are torch's within the
tolerance of float32, as between two processors. `library` compiles and loads the C files; `chain` is the function;
`choice` times both forms, unless SCALESEARCH_KERNELS in the environment says which is taken (`mode`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scalesearch.kernels.chain import Fused, program_of
from scalesearch.kernels.choice import faster
from scalesearch.kernels.library import library, mode
from scalesearch.model import Block, Model

__all__ = ["Accelerated", "accelerate", "mode"]


class Accelerated:
    """The forward pass of a model in training mode, its blocks by the library where that was faster.

    used: which way each block takes, once images have gone through: "c9de0647 0111", with a 1 for the library's.
    """

    def __init__(self, model: nn.Module, layout: torch.memory_format) -> None:
        self._model, self._layout, self._library = model, layout, library()
        self._forms: list[Callable[[Tensor], Tensor]] | None = None
        self._shape: tuple[torch.Size, torch.dtype] | None = None
        self.used = f"off: {self._library.why}" if self._library.loaded is None else "off: no block has a chain"
        blocks = list(model.blocks) if isinstance(model, Model) and self._library.loaded is not None else []
        self._programs = [program_of(block) if isinstance(block, Block) else None for block in blocks]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in float32, as the model gives them."""
        model = self._model
        if not any(self._programs) or not isinstance(model, Model):
            return model(x)  # type: ignore[no-any-return]
        if self._shape != (x.shape, x.dtype):
            self._shape, self._forms = (x.shape, x.dtype), None
        chosen: list[Callable[[Tensor], Tensor]] = []
        for index, block in enumerate(model.blocks):
            form = self._forms[index] if self._forms is not None else self._form(index, block, x)
            # What the library gives is channels_last; torch must get the layout that it was chosen.
            x = form(x if isinstance(form, Fused) else self._in_layout(x))
            chosen.append(form)
        if self._forms is None:
            self._forms = chosen
            ways = "".join("1" if isinstance(form, Fused) else "0" for form in chosen)
            self.used = f"{self._library.digest[:8]} {ways}"
        return model.classify(self._in_layout(x))

    def _in_layout(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self._layout) if x.ndim == 4 else x  # tokens have no such layout

    def _form(self, index: int, block: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
        program = self._programs[index]
        if program is None or not isinstance(block, Block) or x.dtype != torch.float32 or len(x) < 2:
            return block
        if not faster(block, program, self._library, x, learned=x.requires_grad):
            return block
        return Fused(program, self._library)


def accelerate(model: nn.Module, layout: torch.memory_format) -> Accelerated:
    """`model` in training mode on the CPU, faster where it can be; `layout` is that of its weights and images.

    Parameters, state dict and numbers stay the model's own. Timing takes some milliseconds a block, once for a machine.
    """
    return Accelerated(model, layout)
