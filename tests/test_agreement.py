"""Agreement between reviewers, against published examples and values computed by hand."""
import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from weldsynth.metrics.agreement import (
    cliffs_delta,
    exact_share,
    fleiss,
    item_weights,
    krippendorff_alpha,
    percentile_interval,
    signal_detection,
)

GAP = np.nan


def test_alpha_of_the_published_example():
    "Krippendorff 2011, ordinal: .815."
    published = np.array([
        [1, 2, 3, 3, 2, 1, 4, 1, 2, GAP, GAP, GAP],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, GAP, 3],
        [GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, GAP],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, GAP]])
    assert krippendorff_alpha(published) == pytest.approx(.815, abs=5e-4)


@pytest.mark.parametrize(('ratings', 'alpha'), [
    # Values 1 and 2 occur 3 times and once: 1 - (4 - 1)*2/(2*3*1), whatever their distance.
    ([[1, 1], [1, 2]], 0),
    # 1 and 2 twice each, never together with themselves: 1 - (4 - 1)*4/(2*2*2).
    ([[1, 2], [2, 1]], -.5),
    # 1, 2 and 3 occur 2, 3 and 1 times; squared distances are 2.5² (1 to 2), 2² (2 to 3) and 4.5² (1 to 3).
    # Observed 2*2², expected 2*(2*3*2.5² + 3*1*2² + 2*1*4.5²)/(6 - 1).
    ([[1, 2, 2], [1, 2, 3]], 1 - 5*2*4/(2*(6*6.25 + 3*4 + 2*20.25))),
], ids=['chance', 'worse than chance', 'ordinal distances'])
def test_alpha_computed_by_hand(ratings, alpha):
    assert krippendorff_alpha(np.array(ratings, float)) == pytest.approx(alpha, abs=1e-12)


def alpha_from_pairs(ratings):
    "Krippendorff 2011, equation by equation: disagreement observed within items over that of all pairs of ratings."
    items = [column[~np.isnan(column)] for column in ratings.T]
    items = [item for item in items if len(item) > 1]
    values, sizes = np.unique(np.concatenate(items), return_counts=True)

    def distance(a, b):
        first, last = np.searchsorted(values, sorted((a, b)))
        return (sizes[first:last + 1].sum() - (sizes[first] + sizes[last])/2)**2

    observed = sum(distance(a, b)/(len(item) - 1) for item in items for a in item for b in item)
    n = sizes.sum()
    counts = list(zip(values, sizes, strict=True))
    expected = sum(s*t*distance(a, b) for a, s in counts for b, t in counts)/(n - 1)
    return 1 - observed/expected


@pytest.mark.parametrize('seed', range(30))
def test_alpha_agrees_with_its_definition(seed):
    rng = np.random.default_rng(seed)
    ratings = np.clip(rng.normal(3, 1, 40) + rng.normal(0, seed/10, (2 + seed % 3, 40)), 1, 5).round()
    ratings[rng.random(ratings.shape) < .2*(seed % 2)] = GAP
    assert krippendorff_alpha(ratings) == pytest.approx(alpha_from_pairs(ratings), abs=1e-12)


@pytest.mark.parametrize('ratings', [
    np.full((3, 9), 4.),
    np.array([[1., GAP], [GAP, 2]]),
    np.array([[1., 3], [1, GAP]]),
    np.full((2, 3), GAP),
    np.array([[1., 2, 3]]),
], ids=['one value', 'no item rated twice', 'one value in items rated twice', 'nothing rated', 'one rater'])
def test_alpha_is_nan_where_fewer_than_two_values_can_be_compared(ratings):
    assert np.isnan(krippendorff_alpha(ratings))


def test_kappa_of_the_published_example():
    "Fleiss 1971 as in the textbooks: ten subjects, fourteen raters, five categories, kappa .210."
    counts = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
              [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    answers = pd.DataFrame([[str(k) for k, n in enumerate(row) for _ in range(n)] for row in counts])
    assert fleiss(answers) == pytest.approx(.210, abs=5e-4)


@pytest.mark.parametrize(('right', 'n'), [(0, 10), (7, 10), (60, 120), (120, 120)])
def test_exact_intervals_are_those_of_clopper_and_pearson(right, n):
    low = beta.ppf(.025, right, n - right + 1) if right else 0.
    high = beta.ppf(.975, right + 1, n - right) if right < n else 1.
    assert exact_share([True]*right + [False]*(n - right), .95) == pytest.approx((right/n, low, high), abs=1e-9)


def test_the_share_of_nothing_is_nan():
    assert np.isnan(exact_share([], .95)).all()


@pytest.mark.parametrize(('dprime', 'criterion'), [(0, 0), (1, .5), (2, -.3)])
def test_signal_detection_recovers_d_prime_and_criterion(dprime, criterion):
    rng = np.random.default_rng(0)
    synthetic = rng.normal(dprime/2, 1, 200_000) > criterion
    real = rng.normal(-dprime/2, 1, 200_000) > criterion
    ours = signal_detection(synthetic.sum(), len(synthetic), real.sum(), len(real))
    assert ours == pytest.approx((dprime, criterion), abs=.02)


def test_signal_detection_is_finite_for_extreme_answers_and_nan_without_a_source():
    assert np.isfinite([signal_detection(h, 60, f, 60) for h in (0, 60) for f in (0, 60)]).all()
    assert np.isnan(signal_detection(3, 6, 0, 0)).all()


def test_cliffs_delta_by_counting_pairs():
    rng = np.random.default_rng(0)
    real = rng.integers(1, 6, 30).astype(float)
    synthetic = rng.integers(1, 6, 20).astype(float)
    pairs = np.mean([[np.sign(a - b) for b in synthetic] for a in real])
    delta = cliffs_delta(real, synthetic, (np.ones((1, 30)), np.ones((1, 20))))
    assert delta[0] == pytest.approx(pairs)


def test_cliffs_delta_of_an_empty_side_is_nan():
    assert np.isnan(cliffs_delta(np.array([]), np.ones(3), (np.ones((2, 0)), np.ones((2, 3))))).all()


def test_each_source_is_resampled_to_its_own_number():
    synthetic = np.arange(10) < 4
    weights = item_weights(synthetic, 50, 0)
    assert (weights[:, synthetic].sum(1) == 4).all()
    assert (weights[:, ~synthetic].sum(1) == 6).all()


def test_a_percentile_interval_with_an_undefined_replicate_is_nan():
    assert np.isnan(percentile_interval(np.array([.5, .4, np.nan]), .95)).all()
