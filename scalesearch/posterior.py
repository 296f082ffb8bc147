"""Accuracy over depth, width and resolution, estimated from all trainings at once: a Bayesian hierarchical model.

A score is a mean, a plane over the network's size, a smooth departure from the plane, what is the network's own, what
the seed does to all networks, what these validation images do to the network, and noise:

    score = mean + plane(size) + smooth(size) + own + seed + images + noise

Networks of similar size so lend each other strength, as far as the scores say that they are alike (as in Gelman et al.,
Bayesian Data Analysis, ch. 5 and 21). All parts are Gaussian, with standard deviations in units of the noise, so that
the same weak prior serves networks that reach 30 % and such that reach 99 %. The mean (flat) and the noise (Jeffreys)
are integrated out exactly, the other five parameters over 256 points of their prior, weighted by marginal likelihood.

Over networks of several costs (`across_costs`) the plane bends as power laws do: a dimension that brings x doublings of
the cost adds slope * (1 - 2^(-exponent * x)) / (exponent * log 2), less and less of it the larger it is (Figure 3 of
arXiv:1905.11946; Kaplan et al., arXiv:2001.08361). The slopes then have a vague prior, as more compute may gain much
more than noise, and the exponents a weak one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy import linalg, stats

Array = np.ndarray[Any, np.dtype[np.float64]]
Size = tuple[float, float, float]  # log2 of the multiples of depth, width and resolution; the 1x network is (0, 0, 0)

# Medians and standard deviations of the logarithms of the prior (log-normal), in units of the noise of one training:
# slope of the plane per doubling, smooth part, own part, what a seed does to all networks; and the smooth part's length
# in doublings. They are weak on purpose: each of the first four lies, at 95 %, between a seventh and seven times.
_MEDIANS = np.array([1.0, 1.0, 1.0, 1.0, 1.0])
_LOG_DEVIATIONS = np.array([1.0, 1.0, 1.0, 1.0, 0.5])
# Over several costs the slopes have this standard deviation per doubling of the cost, which is vague: what they have in
# common, and what they have not, each. The exponents are as those above: at the median a slope is halved after two
# doublings.
_VAGUE, _EXPONENT, _EXPONENT_LOG_DEVIATION = 10.0, 0.5, 1.0
_POINTS, _POINTS_OVER_COSTS = 256, 512  # of the prior; powers of two, as Sobol's points want it
_DRAWS = 4096
_FLOOR = 1e-6  # of the noise: scores that agree to the last digit leave no variance to estimate


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known of the accuracies of K networks, as they would be over all seeds and all images.

    weights: (P,) of the parameters' points. means: (P, K). roots: (P, K, K), lower triangular, of the scale matrices of
    the Student's t with `freedom` degrees of freedom that each point gives. noises: (P,) variance of one training less
    what it shares with others of its seed; shifts: (P,) variance of what is shared. images: (K, K), see `posterior`.
    """

    weights: Array
    means: Array
    roots: Array
    noises: Array
    shifts: Array
    images: Array
    freedom: int

    @cached_property
    def mean(self) -> Array:
        """(K,) expected accuracies."""
        return np.asarray(self.weights @ self.means)

    @cached_property
    def covariance(self) -> Array:
        """(K, K) of the accuracies, over all that is not known."""
        within = np.einsum("p,pij,pkj->ik", self.weights, self.roots, self.roots)
        apart = self.means - self.mean
        inflation = self.freedom / (self.freedom - 2) if self.freedom > 2 else 3.0
        return np.asarray(within * inflation + np.einsum("p,pi,pk->ik", self.weights, apart, apart))

    @property
    def training_variance(self) -> float:
        """Expected variance of one training's score about the network's accuracy, without the images' part."""
        return float(self.weights @ (self.noises + self.shifts))

    @cached_property
    def draws(self) -> Array:
        """(4096, K) accuracies that are as probable as the model says; the same at each call."""
        generator = np.random.default_rng(0)
        points = np.sort(generator.choice(len(self.weights), size=_DRAWS, p=self.weights))
        normal = generator.standard_normal((_DRAWS, self.means.shape[1]))
        spread = np.sqrt(self.freedom / generator.chisquare(self.freedom, _DRAWS))
        drawn = np.empty_like(normal)
        for point in np.unique(points):
            rows = points == point
            drawn[rows] = self.means[point] + (normal[rows] @ self.roots[point].T) * spread[rows, None]
        return drawn

    def interval(self, network: int, confidence: float) -> tuple[float, float]:
        """The central interval of a network's accuracy."""
        low, high = np.quantile(self.draws[:, network], [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def probability_best(self, among: Sequence[int]) -> Array:
        """That each of these networks is the most accurate one of them."""
        return np.bincount(self.draws[:, list(among)].argmax(1), minlength=len(among)) / _DRAWS

    def regret(self, among: Sequence[int]) -> Array:
        """Expected loss of accuracy of choosing each of these networks instead of the best one of them."""
        drawn = self.draws[:, list(among)]
        return np.asarray((drawn.max(1, keepdims=True) - drawn).mean(0))

    def regret_bound(self, among: Sequence[int], confidence: float) -> Array:
        """The loss of accuracy of choosing each of these networks that is not exceeded with this probability."""
        drawn = self.draws[:, list(among)]
        return np.asarray(np.quantile(drawn.max(1, keepdims=True) - drawn, confidence, axis=0))

    def best_set(self, among: Sequence[int], confidence: float) -> list[int]:
        """The fewest of these networks that include the best one with this probability, the most probable first."""
        return [among[place] for place in most_probable(self.probability_best(among), confidence)]

    def gain(self, network: int, among: Sequence[int], under_way: Mapping[int, int] | None = None) -> float:
        """By how much the best expected accuracy of these is expected to rise by one more training of `network`.

        The knowledge gradient (Frazier, Powell and Dayanik 2008, doi:10.1137/070693424), for correlated beliefs.
        under_way: trainings of each network whose scores will come; what they will tell need not be learnt again.
        """
        covariance = self._after(under_way or {})
        variance = float(covariance[network, network] + self.images[network, network]) + self.training_variance
        if variance <= 0:
            return 0.0
        mean, change = self.mean[list(among)], covariance[network, list(among)] / math.sqrt(variance)
        rise = (mean[:, None] + change[:, None] * _NORMAL).max(0).mean() - mean.max()
        return max(0.0, float(rise))

    def regret_after(self, trainings: Mapping[int, int], among: Sequence[int]) -> float:
        """The expected regret of the best choice after so many more trainings of each network, with seeds of its own.

        Exact for Gaussian beliefs: what will then be expected varies by what the trainings take off the covariance.
        """
        before, after = self.covariance, self._after(trainings)
        learnt = _root(before - after)
        normal = np.random.default_rng(0).standard_normal((_DRAWS, len(before)))
        # The same numbers for both, so that the difference of the two is of the trainings and not of chance.
        will_expect = (self.mean + normal @ learnt.T)[:, list(among)].max(1).mean()
        rest = np.random.default_rng(1).standard_normal((_DRAWS, len(before))) @ _root(after).T
        will_be = (self.mean + normal @ learnt.T + rest)[:, list(among)].max(1).mean()
        return max(0.0, float(will_be - will_expect))

    def _after(self, trainings: Mapping[int, int]) -> Array:
        """The covariance of the accuracies once so many more trainings of each network have ended."""
        before, rows = self.covariance, [network for network, number in trainings.items() if number > 0]
        if not rows:
            return before
        seen = before[np.ix_(rows, rows)] + self.images[np.ix_(rows, rows)]
        seen = seen + np.diag([self.training_variance / trainings[network] for network in rows])
        return np.asarray(before - before[:, rows] @ np.linalg.pinv(seen) @ before[rows])


_NORMAL = stats.norm.ppf((np.arange(256) + 0.5) / 256)  # equally probable values


def most_probable(probability: Array, confidence: float) -> list[int]:
    """The fewest places whose probabilities add up to `confidence`, the most probable first.

    >>> most_probable(np.array([0.1, 0.6, 0.3]), 0.85)
    [1, 2]
    """
    order = np.argsort(-probability, kind="stable")
    needed = int(np.searchsorted(np.cumsum(probability[order]), confidence - 1e-12)) + 1
    return [int(place) for place in order[:needed]]


def doublings(triples: Sequence[tuple[float, float, float]]) -> Size:
    """The size of a network that stands for these (alpha, beta, gamma): the mean of their logarithms.

    >>> doublings([(2.0, 1.0, 1.0), (1.0, 2.0, 1.0)])
    (0.5, 0.5, 0.0)
    """
    depth, width, resolution = (float(value) for value in np.log2(triples).mean(0))
    return depth, width, resolution


def posterior(
    sizes: Sequence[Size],
    scores: Sequence[Mapping[int, float]],
    images: Array | None = None,
    *,
    points: Sequence[Size] = (),
    across_costs: bool = False,
) -> Posterior | None:
    """The model of K networks fitted to all of their trainings; None where these say nothing of the noise.

    Args:
        sizes: of each network; with `across_costs` in doublings of the cost, which is the sum of the three.
        scores: of each network, seed to score; those of none may be empty.
        images: (K, K) covariance of the networks' mean scores, from one set of validation images of this number to
            another (`image_covariance`); None: their part is not modelled.
        points: sizes whose accuracy is asked for without a network's own part, which nothing but its trainings can
            tell; they are the last of the K networks.

    Returns: None with fewer than three trainings or of fewer than two networks.
    """
    trained = [(network, seed, score) for network, of in enumerate(scores) for seed, score in of.items()]
    if len(trained) < 3 or len({network for network, *_ in trained}) < 2:
        return None
    num_networks, seeds = len(sizes) + len(points), sorted({seed for _, seed, _ in trained})
    centre = float(np.mean([score for *_, score in trained]))
    sums = _Sums.of(trained, seeds, num_networks, centre)
    own = np.zeros((num_networks, num_networks))
    if images is not None:
        own[: len(sizes), : len(sizes)] = images
    prior = _prior((*sizes, *points), len(points), len(seeds), across_costs)
    roots = prior.roots
    if images is not None:
        unit = max(_noise(scores) ** 2, 1e-6 * float(np.diag(images).max(initial=0.0)), _FLOOR**2)
        roots = _with_images(roots, _root(own / unit), num_networks)
        sums = sums.with_images(num_networks)
    return _solved(prior, roots, sums, num_networks, centre, own)


def fitted(
    triples: Sequence[Sequence[tuple[float, float, float]]],
    scores: Sequence[Mapping[int, float]],
    correct: Sequence[Mapping[int, Any]],
) -> Posterior | None:
    """The `posterior` of networks by the (alpha, beta, gamma) that are each of them, with the images' part.

    correct: of each network, seed to (N,) what each image contributes; the part is left out where one has none.
    """
    sizes = [doublings(of) for of in triples]
    return posterior(sizes, scores, image_covariance(correct) if all(correct) else None)


def image_covariance(correct: Sequence[Mapping[int, Any]]) -> Array:
    """(K, K) covariance of the networks' mean scores between sets of validation images of this number.

    correct: of each network, seed to (N,) what each image contributes to the score. What all networks share of it is
    left in: it moves them together and decides nothing. What seeds leave in the diagonal is taken off where a network
    has several; networks without a training get zeros.
    """
    present = [place for place, of in enumerate(correct) if of]
    covariance = np.zeros((len(correct), len(correct)))
    if not present:
        return covariance
    stacks = [
        np.stack([np.asarray(of[seed], dtype=np.float64) for seed in sorted(of)])
        for of in (correct[p] for p in present)
    ]
    by_image = np.stack([stack.mean(0) for stack in stacks])  # (K, N)
    number = by_image.shape[1]
    if number < 2:
        return covariance
    found = np.atleast_2d(np.cov(by_image)) / number
    for place, stack in enumerate(stacks):
        if len(stack) > 1:
            noise = float(stack.var(0, ddof=1).mean()) / len(stack) / number
            found[place, place] = max(found[place, place] - noise, 0.0)
    values, vectors = np.linalg.eigh(found)  # the correction may have made it indefinite
    covariance[np.ix_(present, present)] = (vectors * np.clip(values, 0.0, None)) @ vectors.T
    return covariance


@dataclass(frozen=True, eq=False)
class _Sums:
    """All that the model needs of the trainings: sums over the levels of its effects, networks first, then seeds.

    gram: (E, E) of the indicators of the effects. scores: (E,) sums of the centred scores. counts: (E,) of trainings.
    """

    gram: Array
    scores: Array
    counts: Array
    total: float
    squares: float
    number: int

    @staticmethod
    def of(trained: Sequence[tuple[int, int, float]], seeds: Sequence[int], num_networks: int, centre: float) -> _Sums:
        place = {seed: num_networks + index for index, seed in enumerate(seeds)}
        indicators = np.zeros((len(trained), num_networks + len(seeds)))
        for row, (network, seed, _) in enumerate(trained):
            indicators[row, network] = indicators[row, place[seed]] = 1.0
        scores = np.array([score for *_, score in trained]) - centre
        return _Sums(
            indicators.T @ indicators,
            indicators.T @ scores,
            indicators.sum(0),
            float(scores.sum()),
            float(scores @ scores),
            len(trained),
        )

    def with_images(self, num_networks: int) -> _Sums:
        """With effects of the images at the end: each network has one, with the same trainings."""
        order = [*range(len(self.counts)), *range(num_networks)]
        return _Sums(
            self.gram[np.ix_(order, order)],
            self.scores[order],
            self.counts[order],
            self.total,
            self.squares,
            self.number,
        )


@dataclass(frozen=True, eq=False)
class _Prior:
    """(P, E, E) roots of the effects' covariance in units of the noise, and (P,) the variances of the seeds' shift."""

    roots: Array
    shifts: Array


@lru_cache(maxsize=64)
def _prior(sizes: tuple[Size, ...], num_points: int, num_seeds: int, across_costs: bool) -> _Prior:
    """num_points: so many of the last sizes have no own part."""
    medians, deviations, number = _MEDIANS, _LOG_DEVIATIONS, _POINTS
    if across_costs:
        medians = np.concatenate([medians[1:], [_EXPONENT] * 3])
        deviations = np.concatenate([deviations[1:], [_EXPONENT_LOG_DEVIATION] * 3])
        number = _POINTS_OVER_COSTS
    quantiles = stats.qmc.Sobol(len(medians), scramble=True, seed=0).random(number)
    parameters = medians * np.exp(stats.norm.ppf(quantiles) * deviations)
    size = np.array(sizes, dtype=np.float64)
    if across_costs:
        exponents = np.log(2) * parameters[:, None, -3:]
        bent = -np.expm1(-exponents * size) / exponents  # (P, K, 3)
        alike = bent.sum(2, keepdims=True)
        covariance = _VAGUE**2 * (bent @ bent.swapaxes(1, 2) + alike @ alike.swapaxes(1, 2))
        parameters = parameters[:, :-3]
    else:
        centred = size - size.mean(0)
        covariance = parameters[:, 0, None, None] ** 2 * (centred @ centred.T)
        parameters = parameters[:, 1:]
    smooth, own, shift, length = parameters.T[:, :, None, None]
    distance = ((size[:, None] - size[None]) ** 2).sum(-1)
    has_own = np.arange(len(size)) < len(size) - num_points
    covariance = covariance + smooth**2 * np.exp(-distance / (2 * length**2))
    covariance = covariance + own**2 * np.diag(has_own) + _NEGLIGIBLE * np.diag(~has_own)
    roots = np.zeros((number, len(size) + num_seeds, len(size) + num_seeds))
    roots[:, : len(size), : len(size)] = np.linalg.cholesky(covariance)
    roots[:, len(size) :, len(size) :] = shift * np.eye(num_seeds)
    return _Prior(roots, shift[:, 0, 0] ** 2)


_NEGLIGIBLE = 1e-6  # a variance, in that of the noise: points of a smooth surface else have a singular covariance


def _with_images(roots: Array, images: Array, num_networks: int) -> Array:
    size = roots.shape[1]
    grown = np.zeros((len(roots), size + num_networks, size + num_networks))
    grown[:, :size, :size] = roots
    grown[:, size:, size:] = images
    return grown


def _solved(prior: _Prior, roots: Array, sums: _Sums, num_networks: int, centre: float, images: Array) -> Posterior:
    """The posterior at each point of the prior; by effects and not by trainings: (E, E) is the largest matrix."""
    turned = np.swapaxes(roots, 1, 2)
    inner = np.eye(roots.shape[1]) + turned @ sums.gram @ roots
    factor = np.linalg.cholesky(inner)
    spread = np.linalg.solve(factor, turned)  # its square is the effects' covariance given mean and noise
    by_score, by_count = spread @ sums.scores, spread @ sums.counts  # (P, E)
    ones = sums.number - (by_count**2).sum(1)
    across = sums.total - (by_count * by_score).sum(1)
    squares = sums.squares - (by_score**2).sum(1)
    means = across / ones
    freedom = sums.number - 1
    rest = np.maximum(squares - across**2 / ones, sums.number * _FLOOR**2)
    log_determinants = 2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
    log_weights = -0.5 * (log_determinants + np.log(ones) + freedom * np.log(rest))
    weights = np.exp(log_weights - log_weights.max())
    noises = rest / freedom

    networks = spread[:, :, :num_networks]
    effects = np.einsum("pek,pe->pk", networks, by_score - means[:, None] * by_count)
    covariance = np.swapaxes(networks, 1, 2) @ networks
    along = 1.0 - np.einsum("pek,pe->pk", networks, by_count)  # how the accuracies move with the mean
    covariance = covariance + along[:, :, None] * along[:, None, :] / ones[:, None, None]
    scale = noises[:, None, None] * covariance
    jitter = 1e-12 * np.trace(scale, axis1=1, axis2=2)[:, None, None] * np.eye(num_networks) + 1e-30 * np.eye(
        num_networks
    )
    return Posterior(
        weights=weights / weights.sum(),
        means=centre + means[:, None] + effects,
        roots=np.linalg.cholesky(scale + jitter),
        noises=noises,
        shifts=noises * prior.shifts,
        images=images,
        freedom=freedom,
    )


def _noise(scores: Sequence[Mapping[int, float]]) -> float:
    """Standard deviation between the seeds of a network, pooled; between the networks where none has two seeds."""
    several = [np.array(list(of.values())) for of in scores if len(of) > 1]
    if several:
        freedom = sum(len(one) - 1 for one in several)
        return math.sqrt(sum(float(((one - one.mean()) ** 2).sum()) for one in several) / freedom)
    return float(np.std([np.mean(list(of.values())) for of in scores if of], ddof=1))


def _root(covariance: Array) -> Array:
    """A matrix whose square, times its transpose, is this one, which may be singular."""
    values, vectors = linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))
