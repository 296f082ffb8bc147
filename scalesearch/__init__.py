"""The compound scaling search of EfficientNet (arXiv:1905.11946), for any baseline, data and budget."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalesearch.export import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # here, since torch comes with it, and `scalesearch --help` is to be quick
        from scalesearch.export import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
