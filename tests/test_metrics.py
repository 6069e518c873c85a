"""The statistics keep their promises where the truth is known."""
import numpy as np
import pytest

from weldsynth.metrics.bootstrap import (
    combine_axes,
    group_multiplier,
    interval,
    minimum_detectable,
    power,
    resample,
    resampling_weights,
    simulate_counts,
    standard_error,
)
from weldsynth.metrics.classification import group_counts, scores

STUDIES, GROUPS, FITS = 1000, 16, 4


def gain(replicates): return replicates['new']['macro_f1'] - replicates['real']['macro_f1']


def width(replicates, groups):
    "Of the interval of macro F1 of the real arm."
    _, low, high = interval(replicates['real']['macro_f1'], groups)
    return high - low


def simulated_gain(seed, shifts):
    "Estimate, bounds and standard error of the gain in one simulated study."
    counts = simulate_counts(np.random.default_rng(seed), shifts, GROUPS, FITS)
    replicates = gain(resample(counts, np.zeros(FITS, int), 400, seed))
    return *interval(replicates, GROUPS), standard_error(replicates, GROUPS)


@pytest.fixture(scope='module', params=(.15, .3), ids=('small', 'large'))
def studies(request):
    "The true gain, and what a thousand simulated studies estimate of it."
    shifts = dict(real=0., new=request.param)
    large = simulate_counts(np.random.default_rng(99), shifts, groups=2000, fits=20)
    f1 = {arm: scores(counts.sum(1))['macro_f1'].mean() for arm, counts in large.items()}
    return f1['new'] - f1['real'], np.array([simulated_gain(seed, shifts) for seed in range(STUDIES)])


def test_the_interval_covers_the_truth(studies):
    true, estimates = studies
    coverage = ((estimates[:, 1] <= true) & (true <= estimates[:, 2])).mean()
    print(f'true gain {100*true:.2f} points, coverage {coverage:.3f}')
    assert coverage >= .93


def test_power_is_what_is_stated(studies):
    true, estimates = studies
    stated = power(true, estimates[:, 0].std(), GROUPS)
    observed = (estimates[:, 1] > 0).mean()
    print(f'true gain {100*true:.2f} points: power stated {stated:.3f}, observed {observed:.3f}')
    assert abs(stated - observed) <= .03


def test_the_standard_error_is_that_of_the_estimates(studies):
    _, estimates = studies
    ratio = np.sqrt(np.square(estimates[:, 3]).mean())/estimates[:, 0].std()
    assert 1 <= ratio < 1.2, 'a little on the safe side'


def test_patches_are_not_independent():
    "The interval that takes patches for independent is much too narrow."
    rng = np.random.default_rng(0)
    counts = simulate_counts(rng, dict(real=0.), groups=16, per_group=400, spread=(1.5, .1, .1, .1))
    classes = 5
    class_sizes = counts['real'][0, ..., 2].sum(0).astype(int)
    truth = np.repeat(np.arange(classes), class_sizes)
    predicted = []
    for fit in counts['real'].sum(1):
        correct = np.concatenate([np.arange(n) < k for n, k in zip(class_sizes, fit[:, 0], strict=True)])
        predicted.append(np.where(correct, truth, (truth + 1) % classes))
    groups = np.random.default_rng(0).integers(0, len(truth), len(truth))
    blind = {'real': group_counts(truth, np.array(predicted), groups, classes)}
    by_weld = width(resample(counts, np.zeros(4, int), 1000, 0), 16)
    by_patch = width(resample(blind, np.zeros(4, int), 1000, 0), len(truth))
    assert by_weld > 1.5*by_patch


def test_generators_are_resampled_too():
    "Fits of three generators that differ: the interval widens to contain that."
    counts = simulate_counts(np.random.default_rng(0), dict(real=0.), fits=9, spread=(.1, .01, .01, .01))
    counts['real'][::3, ..., 0] *= .7
    three = width(resample(counts, np.arange(9) % 3, 2000, 0), 16)
    one = width(resample(counts, np.zeros(9, int), 2000, 0), 16)
    assert three > 1.2*one


def test_row_zero_of_the_weights_is_the_sample():
    welds, fits = resampling_weights(7, np.array([0, 1, 0, 1]), 500, 0)
    assert (welds[0] == 1).all()
    assert np.allclose(fits[0], .25)


def test_weights_of_a_resample_sum_to_what_was_drawn():
    welds, fits = resampling_weights(7, np.array([0, 1, 0, 1]), 500, 0)
    assert (welds.sum(1) == 7).all()
    defined = ~np.isnan(fits).any(1)
    assert np.allclose(fits[defined].sum(1), 1)
    assert 0 < (~defined).sum() < 100, 'no fit of the drawn generators may be left'
    only_first = (fits[defined][:, [0, 2]].sum(1) > 1 - 1e-9).mean()
    assert .15 < only_first < .6, 'in about a quarter of the resamples only one of the generators is drawn'


def test_chunks_do_not_change_the_replicates():
    counts = simulate_counts(np.random.default_rng(0), dict(real=0.))
    whole = resample(counts, np.zeros(4, int), 20, 0)['real']['macro_f1']
    chunked = resample(counts, np.zeros(4, int), 20, 0, chunk=7)['real']['macro_f1']
    assert np.allclose(whole, chunked)


def test_a_class_absent_from_a_resample_leaves_macro_f1_defined():
    counts = np.zeros((2, 3, 3, 4))
    counts[..., 0, :] = 5
    counts[:, 0, 1] = [2, 3, 4, 2]
    replicates = resample({'real': counts}, np.zeros(2, int), 300, 0)['real']
    assert np.isnan(replicates['f1'][0, :, 1]).all()
    assert np.isnan(replicates['f1'][0, 1:, 0]).any()
    assert np.isfinite(interval(replicates['macro_f1'], 3)).all()


def test_deviations_of_both_axes_are_added():
    replicates = np.array([[.5, .6, .4], [.5, .45, .55]])
    assert combine_axes(replicates) == pytest.approx([.5, .55, .45])


def test_the_minimum_detectable_effect_grows_with_the_standard_error_and_with_the_level():
    assert minimum_detectable(.04, 20) == pytest.approx(2*minimum_detectable(.02, 20), rel=1e-4)
    assert minimum_detectable(.02, 20, level=.99) > minimum_detectable(.02, 20)


def test_four_times_as_many_welds_halve_the_width():
    wave = np.concatenate([[0], np.tile([-1., 1], 500)])
    replicates = np.stack([.0196 + .02*wave, .0196 + 0*wave])
    assert group_multiplier(replicates, 100_000, least=.01, level=.95) == pytest.approx(4, rel=1e-2)
