"""What a person sees: tables of the plan, of a search as it goes, of its answer. Nothing here decides anything.

With `--json` all of it goes to standard error, and standard output holds one JSON object.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scalesearch.budget import Footprint, Limits, words, written
from scalesearch.config import StudySettings
from scalesearch.cost import Cost
from scalesearch.data import Description
from scalesearch.evaluation import Outcome
from scalesearch.fitting import ENOUGH, Fit
from scalesearch.network import AnyNetwork, Factory
from scalesearch.scaling import Coefficients, Rounding, uneven_channels
from scalesearch.search import BASELINE, Candidate, Plan, Stopped, TrialResult

if TYPE_CHECKING:
    from scalesearch.selection import Choice

Row = Mapping[str, Any]


class Screen:
    """Where a command writes to: a terminal, a file, or standard error beside the JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=as_json, highlight=False)
        if not self._console.is_terminal:  # a file or a pipe: wide enough for every table
            self._console.width = 200

    def say(self, text: str) -> None:
        """A line of words, printed as it is."""
        self._console.print(text, markup=False, soft_wrap=True)

    def markdown(self, text: str) -> None:
        """Markdown, drawn where there is a terminal, and as it is where there is none."""
        if self._console.is_terminal:
            from rich.markdown import Markdown  # which takes longer to import than all of rich

            self._console.print(Markdown(text))
        else:
            self.say(text)

    def warn(self, text: str) -> None:
        """A line that something is not as it should be, on standard error."""
        print(f"scalesearch: {text}", file=sys.stderr)

    def answer(self, values: Mapping[str, Any]) -> None:
        """The JSON object of the command, where it was asked for."""
        if self._as_json:
            print(json.dumps(values, allow_nan=False), flush=True)

    def table(self, title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
        """Rows as a table, narrow enough for a terminal of 80 columns; cells fold where it is narrower still.

        `columns` maps a row's key to its heading, which breaks at its spaces; values are words already.
        """
        self.say(title)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
        for key, heading in columns.items():
            numeric = all(_is_number(row[key]) for row in rows)
            broken = heading.replace(" ", "\n").replace("(resolution)", "(reso-\nlution)").replace("-adds", "-\nadds")
            table.add_column(broken, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            style = "bold" if row.get("mark") == "chosen" else None
            table.add_row(*(Text(str(row[key])) for key in columns), style=style)
        self._console.print(table)

    @contextmanager
    def progress(self, *, total: int, slots: int) -> Iterator[Progress]:
        """A live table of the search where there is a terminal, plain lines where there is none."""
        progress = Progress(total=total, slots=slots)
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=2, get_renderable=progress.render):
                yield progress
        else:
            progress.on_line = self.say
            yield progress


class Progress:
    """How far a search is: counts, the best mean so far, and the time that is left at the present pace."""

    def __init__(self, *, total: int, slots: int) -> None:
        self._total, self._slots = total, slots
        self._trained = self._reused = self._failed = 0
        self._best = ""
        self._last = "starting workers and loading the data"
        self._started = time.monotonic()
        self.on_line: Callable[[str], None] | None = None

    def update(self, trained: Sequence[TrialResult]) -> None:
        """Count what has come back so far; the last one is the newest."""
        self._failed = sum(one.outcome.result is None for one in trained)
        self._reused = sum(one.outcome.reused and one.outcome.result is not None for one in trained)
        self._trained = len(trained) - self._failed - self._reused
        accuracies: dict[str, list[float]] = {}
        epochs = max(one.outcome.evaluation.recipe.epochs for one in trained)  # shorter schedules are no results
        for one in trained:
            whole = one.outcome.evaluation.recipe.epochs == epochs
            if one.outcome.result is not None and one.candidate.id != BASELINE and whole:
                accuracies.setdefault(one.candidate.id, []).append(one.outcome.result.val_accuracy)
        means = {name: sum(values) / len(values) for name, values in accuracies.items()}
        if means:
            best = max(means, key=lambda name: means[name])
            self._best = f"{best} {100 * means[best]:.2f} %"
        last = trained[-1]
        said = f"{100 * last.outcome.result.val_accuracy:.2f} %" if last.outcome.result else "failed"
        short = last.outcome.evaluation.recipe.epochs
        of = "" if short == epochs else f", {short:g} epochs"
        self._last = f"{last.candidate.id} seed {last.outcome.evaluation.seed}{of}: {said}"
        if self.on_line is not None:
            done = f"[{self._done}/{max(self._done, self._total)}]"
            self.on_line(f"{done} {self._last}; best so far: {self._best or 'none'}; left: {self._left()}")

    def stopped(self, one: Stopped) -> None:
        """Say that a candidate gets no more trainings."""
        self._last = f"{one.candidate.id} stopped: {one.reason}"
        if self.on_line is not None:
            self.on_line(self._last)

    @property
    def _done(self) -> int:
        return self._trained + self._reused + self._failed

    def _left(self) -> str:
        if not self._trained:
            return "unknown"
        pace = (time.monotonic() - self._started) / self._trained
        return duration(pace * max(0, self._total - self._done))

    def render(self) -> Table:
        table = Table(pad_edge=False)
        cells = {
            "done": f"{self._done}/{self._total}",
            "running": str(min(self._slots, max(0, self._total - self._done))),
            "failed": str(self._failed),
            "from the ledger": str(self._reused),
            "best so far": self._best or "none yet",
            "last": self._last,
            "time left": self._left(),
        }
        for heading in cells:
            table.add_column(heading)
        table.add_row(*cells.values())
        return table


def summary(plan: Plan, experiment: StudySettings) -> str:
    """What is searched, what each rule dropped from the grid, and how many networks are left."""
    triples = sum(len(candidate.triples) for candidate in plan.candidates)
    budget, grid = experiment.budget, experiment.grid
    network = plan.baseline.network
    impossible, known = plan.dropped["impossible"], experiment.description
    beyond, limits = plan.dropped["limits"], experiment.limits
    return "\n".join(
        [
            f"study {experiment.study}",
            f"1x network: {experiment.baseline.name} as a proxy of {_depth_words(network)} at {network.resolution} px, "
            f"{count(plan.baseline.cost.macs)} multiply-adds, {count(plan.baseline.cost.params)} params",
            f"{plan.points} points of the grid; dropped: {plan.dropped['product']} whose product is not nearer than "
            f"{grid.product_tolerance} to {grid.product}, {plan.dropped['budget']} whose counted cost is not within "
            f"{100 * budget.tolerance:g} % of {budget.macs_ratio:g} x"
            + (f", {impossible} that no network can have" if impossible else "")
            + (f", {beyond} whose variant at phi = 1 needs more than {_limits_words(limits)}" if beyond else ""),
            f"{triples} triples are left, which are {len(plan.candidates)} different networks",
            f"data: {known.name}, {known.num_train} images for training and {known.num_val} for validation",
            *grain_words(network, experiment.proxy_network[1]),
        ]
    )


def _depth_words(network: AnyNetwork) -> str:
    if isinstance(network, Factory):  # a proxy's total stride cannot reach into a function
        return f"depth {network.depth:g} and width {network.width:g} times {network.function}, its own strides,"
    return f"{network.depth} blocks"


def show_candidates(screen: Screen, plan: Plan) -> None:
    """The candidates and the 1x network as a table, before anything is trained."""
    rows = [_candidate_row(candidate) for candidate in (plan.baseline, *plan.candidates)]
    screen.table("Candidates", rows, _CANDIDATE_COLUMNS)
    screen.table("What they need", rows, {"candidate": "network"} | _NEED_COLUMNS)


def show_answer(screen: Screen, experiment: StudySettings, answer: Mapping[str, Any], choice: Choice) -> None:
    """The table of candidates, the choice, its ties, test accuracies, the family, and where things are."""
    confidence = f"{100 * experiment.search.confidence:g} %"
    ranked = choice.candidates.sort_values("val_accuracy_mean", ascending=False)
    rows = [
        {
            "mark": "chosen"
            if row["chosen"]
            else "best"
            if row["best"]
            else "tied"
            if row["tied"]
            else "stopped"
            if row["stopped"]
            else "",
            "candidate": row["candidate"],
            "alpha": f"{row['alpha']:g}",
            "beta": f"{row['beta']:g}",
            "gamma": f"{row['gamma']:g}",
            "product": f"{row['product']:.3f}",
            "macs_ratio": f"{row['macs_ratio']:.3f}",
            "accuracy": _percent(row["val_accuracy_mean"]),
            "interval": f"±{_percent(row['val_accuracy_high'] - row['val_accuracy_mean'])}",
            "std": _percent(row["val_accuracy_std"]),
            "seeds": str(row["num_seeds"]),
        }
        for row in ranked.to_dict("records")
    ]
    accuracy = {
        "accuracy": "val. accuracy (%)",
        "interval": confidence.replace(" ", "\u00a0"),
        "std": "sd",
        "seeds": "seeds",
    }
    columns = {key: heading for key, heading in _COEFFICIENT_COLUMNS.items() if key != "macs"}  # for 80 columns
    screen.table(f"Candidates, with {confidence} intervals over the seeds", rows, columns | accuracy | {"mark": ""})

    chosen, test = answer["chosen"], answer["test_accuracy"]
    screen.say(
        f"chosen: {chosen['id']}, alpha (depth) = {chosen['alpha']:g}, beta (width) = {chosen['beta']:g}, "
        f"gamma (resolution) = {chosen['gamma']:g}; nominal product {chosen['product']:.3f}, "
        f"counted ratio {chosen['macs_ratio']:.3f}"
    )
    tied = ", ".join(
        f"{row['id']} ({row['alpha']:g}, {row['beta']:g}, {row['gamma']:g})" for row in chosen["tied_with"]
    )
    best, selection = answer["best"], answer["selection"]
    it = "it"
    if best["id"] != chosen["id"]:
        it = "the best"
        screen.say(
            f"best: {best['id']} ({best['alpha']:g}, {best['beta']:g}, {best['gamma']:g}) with "
            f"{_percent(best['val_accuracy_mean'])} %; of it and its ties {chosen['id']} needs the least of "
            f"{selection['metric']} (selection=cheapest_tied)"
        )
        tied = ", ".join(
            f"{row['candidate']} ({row['alpha']:g}, {row['beta']:g}, {row['gamma']:g})"
            for row in ranked[ranked["tied"]].to_dict("records")
        )
    screen.say(
        f"cannot be told from {it} at {confidence}: {tied}" if tied else f"no candidate is tied with it at {confidence}"
    )
    _say_stopped(screen, answer["stopped"], set(ranked["candidate"]))
    screen.say(
        f"test accuracy: {_test_words(test['chosen'])} chosen, {_test_words(test['baseline'])} 1x network "
        f"({count(answer['baseline']['macs'])} multiply-adds)"
    )
    coefficients = Coefficients(chosen["alpha"], chosen["beta"], chosen["gamma"])
    show_family(screen, experiment.baseline.name, coefficients, experiment.rounding, answer["variants"])
    counts = answer["evaluations"]
    screen.say(
        f"{counts['trained']} evaluations trained, {counts['reused']} from the ledger, {counts['failed']} failed"
    )
    if counts["failed"]:
        screen.say("`scalesearch retry` with the same overrides runs the failed ones again; `status` gives the reasons")
    screen.say(f"tables, figures, coefficients.yaml and variants: {experiment.directory}")
    place = f"study={experiment.study} workspace={experiment.workspace}"
    if experiment.tracking.name == "mlflow":
        screen.say(f"MLflow: scalesearch ui {place}")
    else:
        screen.say(f"nothing was sent to MLflow; later: scalesearch sync {place}")


def _say_stopped(screen: Screen, stopped: Mapping[str, str], compared: set[str]) -> None:
    """Who was stopped, by reason; of those that no whole training shows, that nothing is known of them but that."""
    reasons: dict[str, list[str]] = {}
    for name, reason in stopped.items():
        known = "" if name in compared else ", so it was compared with none"
        reasons.setdefault(reason.partition(" by ")[0] + known, []).append(name)
    for reason, names in reasons.items():
        screen.say(f"stopped: {', '.join(names)} ({reason})")


def show_family(
    screen: Screen, name: str, coefficients: Coefficients, rounding: Rounding, family: Sequence[Row]
) -> None:
    """The variants as a table: the nominal cost 2^phi beside the counted one."""
    rows = [
        {
            "name": row["name"],
            "phi": f"{row['phi']:g}",
            "nominal": f"{row['nominal_ratio']:.4g}",
            "counted": f"{row['macs_ratio']:.4g}",
            "macs": count(row["macs"]),
            "params": count(row["params"]),
            "depth": f"{row['depth']:.4g}",
            "resolution": str(row["resolution"]),
            **_needs_words(row),
        }
        for row in family
    ]
    headings = {"name": "variant", "phi": "phi", "nominal": "2^phi", "counted": "counted ratio"}
    costs = {"macs": "multiply-adds", "params": "params", "depth": "blocks", "resolution": "px"}
    title = (
        f"{name} scaled by alpha (depth) = {coefficients.alpha:g}, beta (width) = {coefficients.beta:g}, "
        f"gamma (resolution) = {coefficients.gamma:g}, rounding {rounding.name}"
    )
    screen.table(title, rows, headings | costs)
    if all("memory" in row for row in rows):
        screen.table("What they need", rows, {"name": "variant"} | _NEED_COLUMNS)


PAPERS_WORDS = (
    "coefficients of the EfficientNet paper, found for EfficientNet-B0 on ImageNet; a search for your own baseline and "
    "data, `scalesearch run`, then study=NAME, is better"
)


def grain_words(network: AnyNetwork, rounding: Rounding) -> list[str]:
    """A line that warns of a rounding too coarse for the channels of `network`; none where it suits them."""
    uneven = uneven_channels(network, rounding)
    if not uneven:
        return []
    return [
        f"{', '.join(map(str, uneven))} channels are no multiples of {rounding.divisor}, the divisor of rounding "
        f"{rounding.name}: every scaling moves them to one, whatever it costs; rounding=fine goes in steps of 2"
    ]


def fit_words(fit: Fit, limits: Limits) -> str:
    """How a variant came to meet its limits, how much of each it uses, and why not more; a line each."""
    variant, given = fit.variant, limits.given()
    moves = f"; then, to use the budget up: {', '.join(map(str, variant.moves))}" if variant.moves else ""
    used = {name: f"{100 * share:.2f} % of {_limit_words(name, given[name])}" for name, share in fit.use.items()}
    others = "".join(f"; {said}" for name, said in used.items() if name != fit.binding)
    lines = [f"phi = {variant.phi:g}{moves}", f"it uses {used[fit.binding]}, which binds{others}"]
    if fit.share < ENOUGH and fit.binding == "latency_ms":
        lines.append("the next phi or resolution took longer; measured times vary by some percent")
    elif fit.share < ENOUGH:
        lines.append(
            "the grain allows no more: the next phi, resolution, channels or repeats of a row, in whole steps of the "
            "rounding, go beyond a limit or what a table can hold"
        )
    return "\n".join(lines)


def unmet_words(fit: Fit, limits: Limits) -> str:
    """That even the smallest network exceeds a limit."""
    network, limit = fit.variant.network, limits.given()[fit.binding]
    return (
        f"no network meets budget.{fit.binding}={written(fit.binding, limit)}: the smallest that the rule gives "
        f"(phi = {fit.variant.phi:g}, {network.resolution} px) needs {words(fit.binding, fit.share * limit)}, "
        f"{fit.share:.3g} x as much. Raise the budget, or take a smaller baseline"
    )


def excess_words(plan: Plan, experiment: StudySettings) -> str:
    """That the limits leave no candidate, with the triples that came nearest."""
    nearest = "; ".join(
        f"{share:.3g} x budget.{metric} (alpha={c.alpha:g}, beta={c.beta:g}, gamma={c.gamma:g})"
        for c, share, metric in plan.excess
    )
    return (
        f"no candidate: of all {plan.dropped['limits']} triples that meet the budget of multiply-adds, "
        f"{experiment.baseline.name} at phi = 1 needs more than {_limits_words(experiment.limits)}; the nearest: "
        f"{nearest}. Raise the limit, or lower budget.macs_ratio and grid.product"
    )


def _limits_words(limits: Limits) -> str:
    return " or ".join(_limit_words(name, limit) for name, limit in limits.given().items())


def _limit_words(metric: str, limit: float) -> str:
    return f"budget.{metric}={written(metric, limit)}"


def show_cost(screen: Screen, answer: Mapping[str, Any]) -> None:
    """A network's cost by stage, and its sums."""
    rows = [
        stage
        | {name: f"{stage[name]:,}" for name in ("macs", "params", "activations")}
        | {"share": f"{100 * stage['macs'] / answer['macs']:.1f} %"}
        for stage in answer["stages"]
    ]
    columns = {name: name for name in ("stage", "block", "repeats", "channels")}
    columns |= {"macs": "multiply-adds", "share": "share", "params": "params", "activations": "activations"}
    screen.table(f"{answer['name']} at {answer['resolution']} px", rows, columns)
    screen.say(
        f"{answer['macs']:,} multiply-adds, {answer['params']:,} params, {answer['activations']:,} activations, "
        f"{answer['blocks']} blocks, rounding {answer['rounding']}"
    )
    needs = _needs_words(answer)
    screen.say(
        f"memory {needs['memory']} for one image, {needs['training_memory']} for a training step of "
        f"{answer['batch_size']}; latency {needs['latency_ms']}"
    )


def training_summary(network: AnyNetwork, counted: Cost, data: Description, seeds: int) -> str:
    """What `train` trains, before it does."""
    return (
        f"{network.name} at {network.resolution} px: "
        f"{count(counted.macs)} multiply-adds, {count(counted.params)} params\n"
        f"data: {data.name}, {data.num_train} images for training and {data.num_val} for validation; "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    )


def show_outcome(screen: Screen, outcome: Outcome, number: int, total: int) -> None:
    """A line of one training that has ended, the `number`th of `total`."""
    said = "failed" if outcome.result is None else f"{_percent(outcome.result.val_accuracy)} % on the validation split"
    known = ", from the ledger" if outcome.reused else ""
    screen.say(f"[{number}/{total}] seed {outcome.evaluation.seed}: {said}{known}")


def show_training(screen: Screen, answer: Mapping[str, Any], *, confidence: float) -> None:
    """The accuracy of what `train` trained with its interval, where the weights are, and what has failed."""
    finished = [row for row in answer["seeds"] if row["weights"] is not None]
    for row in answer["seeds"]:
        if row["weights"] is None:
            screen.warn(f"seed {row['seed']} failed: {row['reason']}")
    if answer["val_accuracy_low"] is not None:
        low, high = (_percent(answer[f"val_accuracy_{end}"]) for end in ("low", "high"))
        spread = f" ({100 * confidence:g} % interval over {len(finished)} seeds: {low} to {high})"
    else:
        spread = " (1 seed: no interval)"
    if finished:
        screen.say(f"validation accuracy: {_percent(answer['val_accuracy_mean'])} %{spread}")
    if finished and answer["test_accuracy"] is not None:
        screen.say(f"test accuracy: {_test_words(answer['test_accuracy'])}")
    for row in finished:
        screen.say(f"weights of seed {row['seed']}: {row['weights']}")
    if len(finished) < len(answer["seeds"]):
        screen.say("when the cause is mended: the same command with retry=true")


def show_exports(screen: Screen, exported: Sequence[Row]) -> None:
    """What was written, how far each format's logits are from the network's, and what timm calls the network."""
    rows = [
        {
            "name": row["name"],
            "params": count(row["params"]),
            "resolution": str(row["resolution"]),
            "timm": row["timm"]["name"] or ("by a call" if row["timm"]["code"] else "none"),
            **{kind: _difference(row["largest_difference"].get(kind)) for kind in ("onnx", "torch")},
        }
        for row in exported
    ]
    columns = {"name": "network", "params": "params", "resolution": "px", "onnx": "ONNX differs by"}
    screen.table("Exported networks", rows, columns | {"torch": "torch.export differs by", "timm": "in timm"})
    for row in exported:
        screen.say(f"{row['name']}: weights {row['weights']}")
        screen.say(f"  in timm: {row['timm']['code'] or 'none; ' + row['timm']['reason']}")
        screen.say(f"  {row['load']} gives the torch module")


def _difference(value: float | None) -> str:
    return "-" if value is None else f"{value:.1g}"


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 05 s, 2 h 10 min.

    >>> duration(185)
    '3 min 05 s'
    """
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: float) -> str:
    """A count with its unit: 803 k, 5.29 M, 37.7 G.

    >>> count(5_288_548)
    '5.29 M'
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def _is_number(value: object) -> bool:
    text = str(value)
    return not text or text[0].isdigit() or text[0] in "+-±"


_COEFFICIENT_COLUMNS = {
    "candidate": "network",
    "alpha": "alpha (depth)",
    "beta": "beta (width)",
    "gamma": "gamma (resolution)",
    "product": "nominal product",
    "macs_ratio": "counted ratio",
    "macs": "multiply-adds",
}
_CANDIDATE_COLUMNS = _COEFFICIENT_COLUMNS | {"params": "params", "depth": "blocks", "resolution": "px", "also": "also"}
_NEED_COLUMNS = {"memory": "memory", "training_memory": "training memory", "latency_ms": "latency"}


def _candidate_row(candidate: Candidate) -> dict[str, str]:
    coefficients = candidate.coefficients
    return {
        "candidate": candidate.id,
        "alpha": f"{coefficients.alpha:g}",
        "beta": f"{coefficients.beta:g}",
        "gamma": f"{coefficients.gamma:g}",
        "product": f"{coefficients.product:.3f}",
        "macs_ratio": f"{candidate.ratio:.3f}",
        "macs": count(candidate.cost.macs),
        "params": count(candidate.cost.params),
        "depth": f"{candidate.network.depth:.4g}",
        "resolution": str(candidate.network.resolution),
        **_needs_words(candidate.sizes()),
        "also": "; ".join(f"{t.alpha:g}, {t.beta:g}, {t.gamma:g}" for t in candidate.triples[1:]),
    }


def _needs_words(row: Row) -> dict[str, str]:
    """The needs in a row of a table, as far as it has them."""
    return {name: words(name, row[name]) for name in Footprint._fields if name in row}


def _percent(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else "-"


def _test_words(test: Mapping[str, Any]) -> str:
    if test["mean"] is None:
        return "none (it failed)"
    spread = f" (sd {100 * test['std']:.2f}, {test['seeds']} seeds)" if test["std"] is not None else " (1 seed)"
    return f"{100 * test['mean']:.2f} %{spread}"
