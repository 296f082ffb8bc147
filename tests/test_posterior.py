"""The estimate of all accuracies at once: against the same model written out, and against truths that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from scalesearch import posterior as model
from scalesearch.posterior import Posterior, image_covariance, posterior

GRID = [size for size in itertools.product((0.0, 0.5, 1.0), repeat=3) if sum(size) == 1.0]


def drawn(
    generator: np.random.Generator, *, images: int = 0
) -> tuple[list[model.Size], list[dict[int, float]], object]:
    """(sizes, scores, covariance of the images' part) of a few networks, some of them without a training."""
    sizes = [tuple(generator.uniform(0, 1, 3)) for _ in range(generator.integers(3, 8))]
    seeds = [0, 1, 2, 5]
    scores = [{seed: float(generator.normal(0.8, 0.01)) for seed in seeds if generator.random() < 0.6} for _ in sizes]
    scores[0], scores[1] = {0: 0.79, 1: 0.81}, {0: 0.80}
    if not images:
        return sizes, scores, None
    root = generator.normal(0, 0.003, (len(sizes), len(sizes)))
    return sizes, scores, root @ root.T


def written_out(
    sizes: list[model.Size], scores: list[dict[int, float]], images: np.ndarray | None
) -> tuple[np.ndarray, ...]:
    """(weights, means, scale matrices) of the model by its covariance over trainings, from the priors' own points."""
    quantiles = stats.qmc.Sobol(5, scramble=True, seed=0).random(256)
    points = np.exp(stats.norm.ppf(quantiles) * [1, 1, 1, 1, 0.5])
    trained = [(network, seed, score) for network, of in enumerate(scores) for seed, score in of.items()]
    networks, seeds, values = (np.array(column) for column in zip(*trained, strict=True))
    size = np.array(sizes)
    size = size - size.mean(0)
    distance = ((size[:, None] - size[None]) ** 2).sum(-1)
    unit = max(model._noise(scores) ** 2, 1e-12)
    log_weights, means, scales = [], [], []
    for plane, smooth, own, shift, length in points:
        true = plane**2 * size @ size.T + smooth**2 * np.exp(-distance / 2 / length**2) + own**2 * np.eye(len(size))
        across = true[:, networks]
        of_scores = across[networks] + shift**2 * (seeds[:, None] == seeds) + np.eye(len(values))
        if images is not None:
            of_scores = of_scores + images[np.ix_(networks, networks)] / unit
        inverse, one = np.linalg.inv(of_scores), np.ones(len(values))
        mean = one @ inverse @ values / (one @ inverse @ one)
        rest = (values - mean) @ inverse @ (values - mean)
        freedom = len(values) - 1
        log_weights.append(
            -0.5 * (np.linalg.slogdet(of_scores)[1] + np.log(one @ inverse @ one) + freedom * np.log(rest))
        )
        means.append(mean + across @ inverse @ (values - mean))
        along = 1 - across @ inverse @ one
        scales.append(
            (true - across @ inverse @ across.T + np.outer(along, along) / (one @ inverse @ one)) * rest / freedom
        )
    weights = np.exp(np.array(log_weights) - max(log_weights))
    return weights / weights.sum(), np.array(means), np.array(scales)


@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("number", range(6))
def test_it_is_the_model_written_out_over_trainings(number: int, images: int) -> None:
    sizes, scores, covariance = drawn(np.random.default_rng(number), images=images)
    found = posterior(sizes, scores, covariance)
    assert found is not None
    weights, means, scales = written_out(sizes, scores, covariance)
    np.testing.assert_allclose(found.weights, weights, atol=1e-9)
    np.testing.assert_allclose(found.means, means, atol=1e-10)
    np.testing.assert_allclose(found.roots @ np.swapaxes(found.roots, 1, 2), scales, atol=1e-11)


@pytest.mark.parametrize("number", range(3))
def test_over_costs_it_is_the_model_written_out_over_trainings(number: int) -> None:
    """Points without an own part and bent planes, by the covariance over trainings; none of it shares the code."""
    sizes, scores, _ = drawn(np.random.default_rng(number))
    points = [tuple(np.random.default_rng(number + 10).uniform(0, 3, 3)) for _ in range(4)]
    found = posterior(sizes, scores, points=points, across_costs=True)
    assert found is not None
    parameters = np.exp(stats.norm.ppf(stats.qmc.Sobol(7, scramble=True, seed=0).random(512)) * [1, 1, 1, 0.5, 1, 1, 1])
    trained = [(network, seed, score) for network, of in enumerate(scores) for seed, score in of.items()]
    networks, seeds, values = (np.array(column) for column in zip(*trained, strict=True))
    size = np.array([*sizes, *points])
    has_own = np.arange(len(size)) < len(sizes)
    log_weights, means = [], []
    for smooth, own, shift, length, *exponents in parameters:
        bent = np.column_stack(
            [(1 - 2 ** (-size[:, k] * exponents[k] / 2)) / (exponents[k] / 2 * math.log(2)) for k in range(3)]
        )
        distance = ((size[:, None] - size[None]) ** 2).sum(-1)
        true = 100 * (bent @ bent.T + np.outer(bent.sum(1), bent.sum(1)))
        true += smooth**2 * np.exp(-distance / 2 / length**2) + np.diag(own**2 * has_own)
        across = true[:, networks]
        inverse = np.linalg.inv(across[networks] + shift**2 * (seeds[:, None] == seeds) + np.eye(len(values)))
        one = np.ones(len(values))
        mean = one @ inverse @ values / (one @ inverse @ one)
        rest = (values - mean) @ inverse @ (values - mean)
        log_determinant = -np.linalg.slogdet(inverse)[1]
        log_weights.append(-0.5 * (log_determinant + np.log(one @ inverse @ one) + (len(values) - 1) * np.log(rest)))
        means.append(mean + across @ inverse @ (values - mean))
    weights = np.exp(np.array(log_weights) - max(log_weights))
    np.testing.assert_allclose(found.weights, weights / weights.sum(), atol=1e-6)
    np.testing.assert_allclose(found.means, np.array(means), atol=1e-6)


def test_too_few_trainings_say_nothing() -> None:
    sizes = GRID[:3]
    assert posterior(sizes, [{}, {}, {}]) is None
    assert posterior(sizes, [{0: 0.5}, {0: 0.6}, {}]) is None
    assert posterior(sizes, [{0: 0.5, 1: 0.6, 2: 0.4}, {}, {}]) is None
    assert posterior(sizes, [{0: 0.5}, {0: 0.6}, {0: 0.4}]) is not None


def truths(number: int) -> tuple[np.ndarray, list[dict[int, float]]]:
    """(true accuracies, scores with four seeds) from the model's own prior: what intervals promise can then be seen."""
    generator = np.random.default_rng(number)
    plane, smooth, own, shift = np.exp(generator.standard_normal(4))
    length = np.exp(0.5 * generator.standard_normal())
    size = np.array(GRID) - np.mean(GRID, axis=0)
    distance = ((size[:, None] - size[None]) ** 2).sum(-1)
    covariance = plane**2 * size @ size.T + smooth**2 * np.exp(-distance / 2 / length**2) + own**2 * np.eye(len(size))
    true = 0.8 + 0.004 * generator.multivariate_normal(np.zeros(len(size)), covariance)
    seeds = 0.004 * shift * generator.standard_normal(4)
    noise = 0.004 * generator.standard_normal((len(size), 4))
    return true, [dict(enumerate(row)) for row in true[:, None] + seeds + noise]


def test_intervals_sets_probabilities_and_regret_keep_what_they_promise() -> None:
    """On 400 truths drawn from the prior: each is as often right as it says, within three standard errors or so."""
    everyone = list(range(len(GRID)))
    inside, named, stated, true_regret, probable, was_best, bounded = [], [], [], [], [], [], []
    for number in range(400):
        true, scores = truths(number)
        found = posterior(GRID, scores)
        assert found is not None
        difference = found.draws[:, 1] - found.draws[:, 0]  # the mean over all seeds is not known by four of them
        low, high = np.quantile(difference, [0.05, 0.95])
        inside.append(low < true[1] - true[0] < high)
        named.append(int(true.argmax()) in found.best_set(everyone, 0.9))
        chosen = int(found.mean.argmax())
        stated.append(float(found.regret(everyone)[chosen]))
        true_regret.append(float(true.max() - true[chosen]))
        bounded.append(true_regret[-1] <= found.regret_bound(everyone, 0.9)[chosen])
        probable.append(float(found.probability_best(everyone)[chosen]))
        was_best.append(true.argmax() == chosen)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.045)
    assert 0.87 < np.mean(named) < 0.99  # a set of whole networks includes the best one somewhat more often
    error = 3 * np.std(np.subtract(stated, true_regret)) / 20
    assert np.mean(stated) == pytest.approx(np.mean(true_regret), abs=error)
    assert np.mean(bounded) == pytest.approx(0.9, abs=0.045)
    assert np.mean(probable) == pytest.approx(np.mean(was_best), abs=0.075)


def test_pooling_chooses_better_than_the_means() -> None:
    """Where accuracy lies in a plane, one training of each network tells of the others, too."""
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    sizes = [size for size in itertools.product(quarters, repeat=3) if sum(size) == 1.0]
    by_model, by_mean = [], []
    for number in range(300):
        generator = np.random.default_rng(number)
        true = np.array(sizes) @ generator.normal(0, 0.004, 3)
        seen = true + generator.normal(0, 0.004, len(sizes))
        found = posterior(sizes, [{0: float(score)} for score in seen])
        assert found is not None
        by_model.append(true.max() - true[found.mean.argmax()])
        by_mean.append(true.max() - true[seen.argmax()])
    assert np.mean(by_model) < 0.8 * np.mean(by_mean)


def fitted(number: int = 0) -> Posterior:
    found = posterior(GRID, truths(number)[1])
    assert found is not None
    return found


def test_units_do_not_matter() -> None:
    """Scores in percent, or from another mean, give the same estimate in these units."""
    scores = truths(3)[1]
    one, other = posterior(GRID, scores), posterior(GRID, [{s: 100 * v - 7 for s, v in of.items()} for of in scores])
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(100 * one.mean - 7, other.mean, atol=1e-6)
    np.testing.assert_allclose(100 * one.regret(range(6)), other.regret(range(6)), atol=1e-6)
    assert list(one.probability_best(range(6))) == list(other.probability_best(range(6)))


def test_a_gain_is_less_where_more_is_known_and_where_it_cannot_win() -> None:
    everyone = list(range(len(GRID)))
    sizes, scores = GRID, [{seed: 0.8 + 0.002 * ((7 * n + 3 * seed) % 5) for seed in range(3)} for n in everyone]
    scores[0] = {seed: 0.3 + 0.001 * seed for seed in range(3)}  # far behind
    scores[1] = {seed: 0.8045 + 0.002 * (seed % 3) for seed in range(30)}  # well known
    found = posterior(sizes, scores)
    assert found is not None
    gains = [found.gain(network, everyone) for network in everyone]
    assert gains[0] < 0.05 * max(gains)
    assert all(gain >= 0 for gain in gains)
    assert gains[1] < max(gains[2:])


def test_expected_regret_falls_with_more_trainings_to_none() -> None:
    found, everyone = fitted(1), list(range(len(GRID)))
    chosen = int(found.mean.argmax())
    after = [found.regret_after(dict.fromkeys(everyone, number), everyone) for number in (0, 1, 4, 16, 10**6)]
    assert after == sorted(after, reverse=True)
    assert after[0] == pytest.approx(found.regret(everyone)[chosen], rel=0.15)
    assert after[-1] < 0.02 * after[0]


def test_equal_scores_are_no_division_by_zero() -> None:
    found = posterior(GRID, [{0: 0.5, 1: 0.5} for _ in GRID])
    assert found is not None
    np.testing.assert_allclose(found.mean, 0.5)
    assert found.probability_best(range(6)).sum() == pytest.approx(1)
    assert found.regret(range(6)).max() < 1e-4
    nothing = posterior(GRID, [{0: 0.5, 1: 0.5} for _ in GRID], np.zeros((6, 6)))
    assert nothing is not None
    assert np.isfinite(nothing.draws).all()


def test_images_add_their_part() -> None:
    generator = np.random.default_rng(0)
    skill = generator.normal(1.0, 1.0, 500)  # how easy each image is
    own = generator.normal(0, 0.7, (6, 500))  # for a network
    correct = [{seed: (skill + own[n] + generator.normal(0, 0.5, 500)) > 0 for seed in range(3)} for n in range(6)]
    covariance = image_covariance(correct)
    apart = [np.mean([correct[0][s] for s in range(3)], axis=0) - np.mean([correct[1][s] for s in range(3)], axis=0)][0]
    difference = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert difference == pytest.approx(apart.var(ddof=1) / 500, rel=0.35)  # less what the seeds leave in it
    assert difference < apart.var(ddof=1) / 500
    assert np.linalg.eigvalsh(covariance).min() > -1e-15
    scores = [{seed: float(c.mean()) for seed, c in of.items()} for of in correct]
    without, with_images = posterior(GRID, scores), posterior(GRID, scores, covariance)
    assert without is not None
    assert with_images is not None
    assert np.diag(with_images.covariance).mean() > np.diag(without.covariance).mean()
    assert image_covariance([{}, {0: np.ones(5, dtype=bool)}, {}]).tolist() == np.zeros((3, 3)).tolist()
