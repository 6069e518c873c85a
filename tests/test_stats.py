"""The statistics keep their promises where the truth is known."""
import numpy as np
import pytest
from scipy.special import expit

from weldsynth.metrics.bootstrap import interval, power, resample, resampling_weights, simulate_counts, standard_error

from weldsynth.metrics.classification import group_counts, pod_fit, scores

STUDIES, GROUPS, FITS = 1000, 16, 4


def gain(draws): return draws['new']['macro_f1'] - draws['real']['macro_f1']


@pytest.fixture(scope='module', params=(.15, .3), ids=('small', 'large'))
def studies(request):
    "True gain, and estimate, bounds and standard error of a thousand made-up studies of it."
    shifts = dict(real=0., new=request.param)
    many = simulate_counts(np.random.default_rng(99), shifts, groups=2000, fits=20)
    true = np.subtract(*(scores(many[a].sum(1))['macro_f1'].mean() for a in ('new', 'real')))
    found = []
    for i in range(STUDIES):
        draws = gain(resample(simulate_counts(np.random.default_rng(i), shifts, GROUPS, FITS), np.zeros(FITS, int), 400, i))
        found.append((*interval(draws, GROUPS), standard_error(draws, GROUPS)))
    return true, np.array(found)


def test_the_interval_covers_the_truth(studies):
    true, found = studies
    coverage = ((found[:, 1] <= true) & (true <= found[:, 2])).mean()
    print(f'true gain {100*true:.2f} points, coverage {coverage:.3f}')
    assert coverage >= .93


def test_power_is_what_is_stated(studies):
    true, found = studies
    stated, seen = power(true, found[:, 0].std(), GROUPS), (found[:, 1] > 0).mean()
    print(f'true gain {100*true:.2f} points: power stated {stated:.3f}, seen {seen:.3f}')
    assert abs(stated - seen) <= .03


def test_the_standard_error_is_that_of_the_estimates(studies):
    assert 1 <= np.sqrt(np.square(studies[1][:, 3]).mean())/studies[1][:, 0].std() < 1.2, 'a little on the safe side'


def test_patches_are_not_welds():
    "The interval that takes patches for independent is much too narrow."
    counts = simulate_counts(np.random.default_rng(0), dict(real=0.), groups=16, per_group=400, spread=(1.5, .1, .1, .1))
    shuffled, k = np.random.default_rng(0), 5
    truth = np.repeat(np.arange(k), counts['real'][0, ..., 2].sum(0).astype(int))
    right = [np.concatenate([np.arange(n) < r for n, r in zip(fit[:, :, 2].sum(0).astype(int), fit[:, :, 0].sum(0))]) for fit in counts['real']]
    called = np.array([np.where(r, truth, (truth + 1) % k) for r in right])
    blind = {'real': group_counts(truth, called, shuffled.integers(0, len(truth), len(truth)), k)}
    width = lambda c, g: np.subtract(*interval(resample(c, np.zeros(4, int), 1000, 0)['real']['macro_f1'], g)[:0:-1])
    assert width(counts, 16) > 1.5*width(blind, len(truth))


def test_generators_are_drawn_too():
    "Fits of three generators that differ: the interval widens to hold that."
    counts = simulate_counts(np.random.default_rng(0), dict(real=0.), fits=9, spread=(.1, .01, .01, .01))
    lucky = counts['real'].copy()
    lucky[::3, ..., 0] *= .7
    width = lambda made: np.subtract(*interval(resample({'real': lucky}, made, 2000, 0)['real']['macro_f1'], 16)[:0:-1])
    assert width(np.arange(9) % 3) > 1.2*width(np.zeros(9, int))


def test_weights_of_a_resample():
    welds, fits = resampling_weights(7, np.array([0, 1, 0, 1]), 500, 0)
    assert (welds[0] == 1).all() and (welds.sum(1) == 7).all() and np.allclose(fits[0], .25)
    defined = ~np.isnan(fits).any(1)
    assert np.allclose(fits[defined].sum(1), 1) and 0 < (~defined).sum() < 100, 'no fit of the drawn generators may be left'
    first = (fits[defined][:, [0, 2]].sum(1) > 1 - 1e-9).mean()
    assert .15 < first < .6, 'in about a quarter of the resamples only one of the generators is drawn'


def test_a_class_that_a_resample_has_none_of():
    counts = np.zeros((2, 3, 3, 3))
    counts[..., 0, :] = 5
    counts[:, 0, 1] = [2, 3, 4]
    drawn = resample({'real': counts}, np.zeros(2, int), 300, 0)['real']
    assert np.isnan(drawn['f1'][0, :, 1]).all() and np.isnan(drawn['f1'][0, 1:, 0]).any() and np.isfinite(interval(drawn['macro_f1'], 3)).all()


def test_the_bound_of_a90_covers_it():
    "a90/95 is above the true a90 in at least 93 of 100 sets of 300 flaws, and a50 and a90 are right on average."
    rng, true, found = np.random.default_rng(1), np.exp((np.log(9) - 1)/3), []
    for _ in range(500):
        size = np.exp(rng.normal(0, .7, 300))
        found.append(pod_fit(size, rng.random((1, 300)) < expit(1 + 3*np.log(size))))
    a50, a90, bound = (np.array([f[k] for f in found]) for k in ('a50', 'a90', 'a90_95'))
    assert abs(np.median(a50)/np.exp(-1/3) - 1) < .03 and abs(np.median(a90)/true - 1) < .05
    print(f'a90/95 covers a90 in {(bound >= true).mean():.3f}')
    assert .93 <= (bound >= true).mean() < .99
