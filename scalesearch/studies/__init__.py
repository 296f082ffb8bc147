"""Experiments about a search and about the paper, each a list of evaluations: `scalesearch reproduce NAME`.

Every training is an evaluation of the shared ledger, so an experiment goes on where it stopped, and what a search has
trained is not trained again.
"""

from __future__ import annotations

from scalesearch.studies.b_series import BSeries
from scalesearch.studies.experiment import Study, carry_out
from scalesearch.studies.fidelity import fidelity
from scalesearch.studies.figure3 import Figure3
from scalesearch.studies.figure4 import Figure4
from scalesearch.studies.figure8 import Figure8
from scalesearch.studies.latency_study import LatencyStudy
from scalesearch.studies.phi_check import PhiCheck
from scalesearch.studies.proxy_study import ProxyStudy
from scalesearch.studies.table3 import Table3
from scalesearch.studies.table7 import Table7
from scalesearch.studies.transfer import Transfer

__all__ = ["EXPERIMENTS", "Study", "carry_out", "fidelity"]

EXPERIMENTS: dict[str, type[Study]] = {
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
