"""Networks as files that need no scalesearch, and the way back: after step 2, when a variant is to be used."""

from scalesearch.export.counterpart import Counterpart, counterpart
from scalesearch.export.files import TOLERANCE, Written, comment, filled, load, load_call, write

__all__ = ["TOLERANCE", "Counterpart", "Written", "comment", "counterpart", "filled", "load", "load_call", "write"]
