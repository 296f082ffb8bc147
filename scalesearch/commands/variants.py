"""the family of scaled networks for coefficients, given or of a study"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from scalesearch.checks import Must, between, checked
from scalesearch.text import typed
from scalesearch.workspace import DONE, Directory, Infeasible, Phis, StudyName

if TYPE_CHECKING:
    from scalesearch.budget import Limits, Profiler
    from scalesearch.config import Groups
    from scalesearch.fitting import Fit
    from scalesearch.network import AnyNetwork
    from scalesearch.scaling import Coefficients, Rounding
    from scalesearch.screen import Screen
    from scalesearch.variants import Variant

GROUPS = {"baseline": "mobilenetv2", "rounding": "released"}
EXAMPLE = "scalesearch variants baseline=resnet50 budget.macs=2G budget.memory=150MiB"
_BATCH_SIZE = 64  # of the step that training_memory is of, where no recipe gives one; that of recipe=default
_Number = Annotated[float | None, between(0.1, 10)]


@checked("coefficients")
class GivenCoefficients:
    """All null: the paper's 1.2, 1.1, 1.15."""

    alpha: _Number = None
    beta: _Number = None
    gamma: _Number = None


@checked("budget")
class GivenBudget:
    """Limits as a person writes them."""

    macs: Annotated[Any, Must("a number such as 300M or 1.5G")] = None
    params: Annotated[Any, Must("a number such as 800k or 5.3M")] = None
    memory: Annotated[Any, Must("bytes such as 512MiB or 2GB")] = None
    training_memory: Annotated[Any, Must("bytes such as 512MiB or 2GB")] = None
    latency_ms: Annotated[Any, Must("milliseconds such as 20 or 0.5")] = None


@checked(kw_only=True)
class Arguments:
    coefficients: Annotated[
        GivenCoefficients, Field(description="depth, width, resolution; all null: the paper's 1.2, 1.1, 1.15")
    ] = GivenCoefficients()
    study: Annotated[
        StudyName | None, Field(description="take coefficients, baseline and rounding from this study")
    ] = None
    workspace: Directory = Path("workspace")
    phis: Annotated[
        Phis | None, Field(description="0 is the baseline itself; null: 1, 2 and 3, or the phi that meets a budget")
    ] = None
    budget: Annotated[GivenBudget, Field(description="the one variant that needs at most")] = GivenBudget()
    batch_size: Annotated[
        int | None, between(1, 65_536, "of training_memory's step; null: of the study's recipe, or 64")
    ] = None

    @property
    def limits(self) -> Limits:
        from scalesearch.config import limits_of

        return limits_of(asdict(self.budget))

    def __post_init__(self) -> None:
        given = [name for name, one in asdict(self.coefficients).items() if one is not None]
        if given and len(given) < 3:
            missing = next(name for name in asdict(self.coefficients) if name not in given)
            raise ValueError(f"coefficients.{missing} is missing; all three are given, or none")
        if self.study and given:
            raise ValueError("coefficients and study=NAME each say which coefficients are meant; give one of them")
        if self.phis is not None and (limits := self.limits.given()):
            phis = ", ".join(f"{phi:g}" for phi in self.phis)
            raise ValueError(
                f"phis is [{phis}], and budget.{next(iter(limits))} needs the phi that meets it; give one of them"
            )


@dataclass(frozen=True)
class Family:
    """What the arguments come to: the family, or the one variant that meets the limits."""

    baseline: AnyNetwork
    rounding: Rounding
    coefficients: Coefficients
    directory: Path
    profiler: Profiler
    variants: list[Variant]
    fit: Fit | None


def run(arguments: Arguments, groups: Groups, out: Screen) -> int:
    """The family as a table and as YAML files."""
    from scalesearch import variants
    from scalesearch.commands._family import PAPERS_WORDS, fit_words, show_family
    from scalesearch.planning import grain_words
    from scalesearch.scaling import PAPERS
    from scalesearch.study import point

    family = family_of(arguments, groups, phis=(1, 2, 3))
    measured = variants.measured(variants.apart(family.variants, family.directory), family.profiler)
    how = "" if family.fit is None else fit_words(family.fit, arguments.limits)
    variants.write(measured, family.coefficients, family.directory, rounding=family.rounding, comment=how)
    rows = variants.family_rows(measured, family.coefficients, family.directory)
    if family.coefficients == PAPERS:
        out.say(PAPERS_WORDS)
    show_family(out, family.baseline.name, family.coefficients, family.rounding, rows)
    for line in grain_words(family.baseline, family.rounding):
        out.say(line)
    answer = {"coefficients": point(family.coefficients), "rounding": family.rounding.name, "variants": rows}
    if family.fit is not None:
        answer["budget"] = _fit_values(family.fit, arguments.limits)
        out.say(how)
    again = typed("plan", "--config-dir", str(family.directory), f"baseline={rows[-1]['name']}")
    out.say(f"each loads as a baseline: {again}")
    out.answer(answer)
    return DONE


def family_of(arguments: Arguments, groups: Groups, *, phis: tuple[float, ...]) -> Family:
    """The family at `phis`, if the arguments give none, or the variant that meets the limits.

    Raises: Infeasible where no network meets them.
    """
    from scalesearch import fitting, variants
    from scalesearch.budget import Profiler
    from scalesearch.checks import parse
    from scalesearch.commands._family import unmet_words
    from scalesearch.scaling import PAPERS, Coefficients
    from scalesearch.study import Study

    batch_size, directory = arguments.batch_size, arguments.workspace / "variants"
    if arguments.study is not None:
        study = Study.read(arguments.workspace, arguments.study)
        coefficients, baseline, rounding = study.coefficients, study.baseline, study.rounding
        directory, batch_size = study.directory / "variants", batch_size or study.batch_size
    else:
        baseline, rounding = groups.baseline, groups.rounding
        given = {name: one for name, one in asdict(arguments.coefficients).items() if one is not None}
        coefficients = parse(Coefficients, given, "coefficients") if given else PAPERS
    profiler = Profiler(batch_size=batch_size or _BATCH_SIZE, workspace=arguments.workspace)
    if not arguments.limits.given():
        made, fit = variants.family(baseline, coefficients, arguments.phis or phis, rounding=rounding), None
    else:
        fit = fitting.fit(baseline, coefficients, arguments.limits, rounding=rounding, profiler=profiler)
        made = [fit.variant]
        if fit.share > 1:
            raise Infeasible(unmet_words(fit, arguments.limits))
    return Family(baseline, rounding, coefficients, directory, profiler, made, fit)


def _fit_values(fit: Fit, limits: Limits) -> dict[str, Any]:
    from scalesearch.fitting import ENOUGH

    return {
        "limits": limits.given(),
        "phi": fit.variant.phi,
        "moves": [move._asdict() for move in fit.variant.moves],
        "binding": fit.binding,
        "use": fit.use,
        "used_up": fit.share >= ENOUGH,
    }
