"""Experiments about a search and about the paper, each a list of evaluations: `scalesearch reproduce NAME`.

Every training is an evaluation of the shared ledger, so an experiment goes on where it stopped, and what a search has
trained is not trained again.
"""

from __future__ import annotations

from scalesearch.paper.b_series import BSeries
from scalesearch.paper.experiment import Experiment, carry_out
from scalesearch.paper.figure3 import Figure3
from scalesearch.paper.figure4 import Figure4
from scalesearch.paper.figure8 import Figure8
from scalesearch.paper.latency_study import LatencyStudy
from scalesearch.paper.phi_check import PhiCheck
from scalesearch.paper.proxy_study import ProxyStudy
from scalesearch.paper.table3 import Table3
from scalesearch.paper.table7 import Table7
from scalesearch.paper.transfer import Transfer

__all__ = ["EXPERIMENTS", "Experiment", "carry_out"]

EXPERIMENTS: dict[str, type[Experiment]] = {
    "figure3": Figure3,
    "figure4": Figure4,
    "figure8": Figure8,
    "table3": Table3,
    "table7": Table7,
    "b_series": BSeries,
    "transfer": Transfer,
    "latency": LatencyStudy,
    "proxy_study": ProxyStudy,
    "phi_check": PhiCheck,
}
