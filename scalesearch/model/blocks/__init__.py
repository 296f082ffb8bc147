"""The blocks that a table's rows name: one class each, built from the records that its cost is counted on.

To add a block, write its class, with its `name`, into a module of this package: every such class is in `BLOCKS`. Its
`layers(place)` states which layers it has, by attribute name; the constructor makes these and `cost` sums these, so
that the two cannot disagree. Another package offers a subclass of `Block` as entry point of "scalesearch.blocks".
"""

import importlib
import pkgutil

from scalesearch.model.blocks.block import ACTIVATIONS, Block, Chain, GatedBlock, Layer, gate_layers
from scalesearch.registry import Registry

__all__ = ["ACTIVATIONS", "BLOCKS", "Block", "Chain", "GatedBlock", "Layer", "gate_layers"]


def _own_blocks() -> dict[str, type[Block]]:
    """Every class with a `name` of its own, in the order of the modules and of the classes in each."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    return {one.name: one for one in classes if issubclass(one, Block) and "name" in vars(one)}


BLOCKS: Registry[type[Block]] = Registry("blocks", _own_blocks())
