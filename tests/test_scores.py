"""Scores, thresholds and the probability of detection, against figures worked out by hand."""
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import f1_score

from weldsynth.core.config import RuleConfig
from weldsynth.metrics.classification import (
    at_prevalence,
    brier,
    calibration,
    calibration_error,
    choose_threshold,
    clean_weight,
    decide,
    group_counts,
    macro_f1,
    plant_measure,
    ranking,
    scores,
    terciles,
    threshold_at_false_calls,
    trivial_scores,
)
from weldsynth.metrics.pod import pod_curve, pod_fit, pod_points

def of_confidence(*confidence):
    "Probabilities of two classes, as a tensor."
    confidence = torch.tensor(confidence)
    return torch.stack([1 - confidence, confidence], 1)


# --- counts and scores ---

def test_macro_f1_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 200))
    want = f1_score(truth, predicted, labels=[1, 2, 3], average='macro')
    assert macro_f1(torch.from_numpy(truth), torch.from_numpy(predicted), 4) == pytest.approx(want, abs=1e-6)


def test_a_weight_of_three_is_three_copies_of_each_clean_patch():
    rng = np.random.default_rng(0)
    truth, groups = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    predicted = rng.integers(0, 4, (2, 60))
    copies = np.repeat(np.arange(60), np.where(truth == 0, 3, 1))
    weighted = group_counts(truth, predicted, groups, 4, clean_weight=3)
    assert np.array_equal(weighted, group_counts(truth[copies], predicted[:, copies], groups[copies], 4))
    copied = macro_f1(torch.tensor(truth[copies]), torch.tensor(predicted[0, copies]), 4)
    assert macro_f1(torch.tensor(truth), torch.tensor(predicted[0]), 4, clean_weight=3) == pytest.approx(copied)


def test_weighted_cleans_leave_flaws_the_stated_share():
    truth = np.repeat([0, 1, 2], [30, 12, 8])
    weight = clean_weight(truth, .1)
    assert weight == pytest.approx(6)
    counts = group_counts(truth, truth[None], np.zeros(50, int), 3, weight)[0, 0]
    assert counts[1:, 2].sum()/counts[:, 2].sum() == pytest.approx(.1)
    assert clean_weight(torch.tensor(truth), .4) == pytest.approx(1), 'the share at hand'


@pytest.mark.parametrize('labels', [[0, 0], [1, 2]], ids=['no flaws', 'no cleans'])
def test_one_kind_of_patch_alone_is_not_weighted(labels): assert clean_weight(np.array(labels), .1) == 1


def test_a_class_missing_from_a_weld_has_no_f1_and_does_not_count():
    "Weld 0 lacks class 2, which is called there once; weld 1 has both."
    truth = np.array([0, 1, 1, 0, 1, 2])
    predicted = np.array([[2, 1, 0, 0, 1, 1]])
    first, second = group_counts(truth, predicted, np.array([0, 0, 0, 1, 1, 1]), 3)[0]
    assert scores(first)['f1'] == pytest.approx([2/3, np.nan], nan_ok=True)
    assert scores(first)['macro_f1'] == pytest.approx(2/3), 'not 1/3'
    assert scores(first)['found'] == pytest.approx([.5, np.nan], nan_ok=True)
    assert scores(second)['macro_f1'] == pytest.approx((2/3 + 0)/2), 'a class that is present and never named has 0'
    assert macro_f1(torch.tensor(truth[:3]), torch.tensor(predicted[0, :3]), 3) == pytest.approx(2/3)


def test_without_a_flaw_nothing_about_flaws_is_defined():
    only_clean = scores(np.array([[3., 3, 4, 1], [0, 1, 0, 0]]))
    assert only_clean['false_call_rate'] == .25
    assert np.isnan([only_clean[score] for score in ('macro_f1', 'binary_f1', 'found_any')]).all()


def test_found_and_named_are_different_figures():
    "Of four cracks three are called flaws and one is called a crack; one of two cleans is called a flaw."
    truth, predicted = np.array([1, 1, 1, 1, 0, 0]), np.array([[1, 2, 2, 0, 2, 0]])
    result = scores(group_counts(truth, predicted, np.zeros(6, int), 3)[0, 0])
    assert (result['found'][0], result['named'][0], result['found_any']) == (.75, .25, .75)
    assert result['false_call_rate'] == .5
    assert result['binary_f1'] == pytest.approx(2*3/(4 + 4))


# --- thresholds ---

def test_the_likeliest_defect_class_is_decided_at_the_threshold_itself():
    assert decide(torch.tensor([[.5, .125, .375]]), .5).tolist() == [2]


def test_the_threshold_of_separable_probabilities_is_the_middle_of_the_gap():
    probs = torch.tensor([[.905, .095], [.095, .905]])
    assert choose_threshold(probs, torch.tensor([0, 1])) == pytest.approx(.5)


def test_more_cleans_ask_for_a_stricter_threshold():
    "Two flaws at .3 and .9 with a clean patch at .5: while it counts 1 both are worth a false call, while 9 not."
    probs, truth = of_confidence(.9, .3, .5), torch.tensor([1, 1, 0])
    assert choose_threshold(probs, truth) <= .3
    assert .5 < choose_threshold(probs, truth, clean_weight=9) <= .9


@pytest.mark.parametrize(('rate', 'called'), [(0, 0), (.09, 0), (.1, 1), (.2, 2), (.39, 2), (.5, 5), (1, 10)])
def test_the_false_call_rate_is_never_exceeded(rate, called):
    "Ten cleans; three of them tie at .5, and are called together or not at all."
    confidence = (.9, .8, .5, .5, .5, .4, .3, .2, .1, .1)
    probs, truth = of_confidence(*confidence, .45), torch.tensor([0]*10 + [1])
    threshold = threshold_at_false_calls(probs, truth, rate)
    assert (decide(probs, threshold)[:10] > 0).sum() == called


def test_the_threshold_is_the_lowest_that_keeps_the_rate():
    rng = np.random.default_rng(0)
    probs, truth = of_confidence(*rng.random(500)), torch.tensor(rng.integers(0, 2, 500))
    cleans = probs[truth == 0]
    threshold = threshold_at_false_calls(probs, truth, .02)
    allowed = int(.02*len(cleans))
    assert (decide(cleans, threshold) > 0).sum() == allowed
    just_below = np.nextafter(np.float32(threshold), np.float32(0))
    assert (decide(cleans, float(just_below)) > 0).sum() == allowed + 1


def test_a_classifier_that_is_sure_of_every_clean_patch_gets_a_threshold_out_of_reach():
    probs = of_confidence(1., 1., 1.)
    threshold = threshold_at_false_calls(probs, torch.tensor([0, 0, 1]), .02)
    assert threshold > 1
    assert decide(probs, threshold).sum() == 0


# --- what scores nothing ---

def test_everything_flawed_by_hand():
    "Four cleans, four of class 1, two of class 2; all ten are called class 1: F1 of 2 x 4/(10 + 4), and 0."
    truth = np.repeat([0, 1, 2], [4, 4, 2])
    trivial = trivial_scores(truth, 3)
    assert trivial['everything flawed, most frequent class'] == pytest.approx(8/14/2)
    by_count = macro_f1(torch.tensor(truth), torch.ones(10, dtype=torch.int64), 3)
    assert trivial['everything flawed, most frequent class'] == pytest.approx(by_count)
    guessed = (2*4*2/3/(10*2/3 + 4) + 2*2/3/(10/3 + 2))/2
    assert trivial['everything flawed, class guessed'] == pytest.approx(guessed)
    assert trivial['guessing'] == pytest.approx((.4 + .2)/2)


def test_guessing_scores_what_random_predictions_score():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [4000, 3000, 1000])
    trivial = trivial_scores(truth, 3, clean_weight(truth, .2))
    weight = clean_weight(truth, .2)
    def score(predicted): return scores(group_counts(truth, predicted, truth*0, 3, weight)[:, 0])['macro_f1'].mean()
    by_share = rng.choice(3, (50, 8000), p=[.8, .15, .05])
    flaws_only = rng.choice([1, 2], (50, 8000), p=[.75, .25])
    assert score(by_share) == pytest.approx(trivial['guessing'], abs=.002)
    assert score(flaws_only) == pytest.approx(trivial['everything flawed, class guessed'], abs=.002)


def test_a_classifier_that_only_names_is_the_hardest_to_beat():
    "All flaws are named right, all cleans are called: F1 of 2 x 3/(3 + 9) and 2 x 1/(1 + 1)."
    truth = np.repeat([0, 1, 2], [6, 3, 1])
    named = np.array([[1]*9 + [2]])
    trivial = trivial_scores(truth, 3, named=named)
    assert trivial['everything flawed, class as predicted'] == pytest.approx((.5 + 1)/2)
    assert max(trivial, key=lambda name: trivial[name]) == 'everything flawed, class as predicted'


def test_the_rarer_flaws_are_the_less_they_score_by_chance():
    truth = np.repeat([0, 1, 2], [40, 30, 30])
    natural, stated = trivial_scores(truth, 3), trivial_scores(truth, 3, clean_weight(truth, RuleConfig().prevalence))
    assert all(stated[name] < natural[name]/2 for name in natural)


# --- probabilities ---

def test_confident_and_right_is_calibrated_with_a_brier_score_of_zero():
    probs = np.eye(2)[[0, 1, 0, 1]]
    truth = np.array([0, 1, 0, 1])
    assert brier(probs, truth).tolist() == [0]*4
    assert calibration_error(calibration(probs, truth, bins=2)) == 0
    assert ranking(probs, truth) == dict(average_precision=1, auroc=1, recall_at_false_calls=1)


@pytest.fixture
def ranked():
    "Probabilities and classes of 300 patches that are told apart in part."
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    confidence = expit(rng.normal(0, 1, 300) + 1.5*(truth > 0))
    return np.stack([1 - confidence, confidence/2, confidence/2], 1), truth


def test_scores_of_weighted_cleans_are_those_of_copies(ranked):
    probs, truth = ranked
    copies = np.repeat(np.arange(len(truth)), np.where(truth == 0, 4, 1))
    assert ranking(probs, truth, clean_weight=4) == pytest.approx(ranking(probs[copies], truth[copies]))


# --- segments ---

def test_thirds_are_equal_in_number_and_in_order():
    thirds = terciles(np.random.default_rng(0).permutation(np.arange(30.)))
    assert pd.Series(thirds.codes).value_counts().tolist() == [10, 10, 10]
    assert [c.split(',')[0] for c in thirds.categories] == ['lowest third', 'middle third', 'highest third']
    assert thirds.ordered


# --- cost ---

def test_cost_at_a_plant_counts_missed_flaws_and_false_calls():
    "Of 1,000 patches 100 are flawed: 20 missed at 10 each, and 9 false calls of 900 at 1 each."
    assert at_prevalence(.8, .01, .1, 10, 1)['cost'] == pytest.approx(209)


def test_the_cost_of_counts_has_their_leading_shape_and_is_that_of_their_rates():
    truth, groups = np.tile([0, 0, 0, 1, 2], 20), np.repeat(np.arange(10), 10)
    predicted = np.random.default_rng(0).integers(0, 3, (2, 100))
    measure = plant_measure(prevalence=.1, missed_cost=10, false_cost=1)
    counts = group_counts(truth, predicted, groups, 3)
    found, false_calls = (predicted[:, truth > 0] > 0).mean(1), (predicted[:, truth == 0] > 0).mean(1)
    assert measure(counts.sum(1))['cost'] == pytest.approx(1000*(.1*(1 - found)*10 + .9*false_calls))
    assert measure(counts)['cost'].shape == (2, 10)
    weighted = group_counts(truth, predicted, groups, 3, clean_weight=7)
    assert measure(weighted.sum(1))['cost'] == pytest.approx(measure(counts.sum(1))['cost']), 'rates have no weights'


# --- probability of detection ---

def flaws_of(rng, n, intercept=1., slope=3.):
    "Sizes of n flaws, and whether each is found."
    size = np.exp(rng.normal(0, .7, n))
    return size, rng.random((1, n)) < expit(intercept + slope*np.log(size))


@pytest.fixture(scope='module')
def fits():
    "The curves of 500 sets of 300 flaws."
    rng = np.random.default_rng(1)
    return [pod_fit(*flaws_of(rng, 300)) for _ in range(500)]


def test_a90_95_covers_a90(fits):
    "a90/95 is above the true a90 in at least 93 of 100 sets of 300 flaws, and a50 and a90 are right on average."
    true = np.exp((np.log(9) - 1)/3)
    a50, a90, bound = (np.array([fit[key] for fit in fits]) for key in ('a50', 'a90', 'a90_95'))
    print(f'a90/95 covers a90 in {(bound >= true)[np.isfinite(bound)].mean():.3f}')
    given = np.isfinite(bound)
    assert .92 <= given.mean() < .98, 'a curve that is true is rejected in about 5 of 100 sets'
    assert abs(np.median(a50[given])/np.exp(-1/3) - 1) < .03
    assert abs(np.median(a90[given])/true - 1) < .05
    assert .93 <= (bound[given] >= true).mean() < .99


def test_the_band_covers_the_curve(fits):
    sizes = np.array([.4, .8, 1.5])
    true = expit(1 + 3*np.log(sizes))
    bands = [pod_curve(fit, sizes) for fit in fits]
    covered = np.mean([(band.low <= true) & (true <= band.high) for band in bands], 0)
    print(covered)
    assert ((covered >= .92) & (covered <= .98)).all()


def test_the_fit_check_sees_a_plateau_and_seldom_a_fault_where_there_is_none(fits):
    rng = np.random.default_rng(3)
    right = [fit['fit_p'] < .05 for fit in fits]
    def plateau():
        size, hit = flaws_of(rng, 300)
        return size, np.where(size > 1.2, rng.random((1, 300)) < .6, hit)
    wrong = [pod_fit(*plateau())['fit_p'] < .05 for _ in range(50)]
    print(np.mean(right), np.mean(wrong))
    assert np.mean(right) < .1
    assert np.mean(wrong) > .8


def test_the_fit_check_holds_for_means_over_fits():
    "Ten fits that agree in part: shares vary less than hits, and the check is neither blind nor nervous."
    rng = np.random.default_rng(4)
    rejected = []
    for _ in range(200):
        size = np.exp(rng.normal(0, .7, 300))
        luck = np.where(rng.random(300) < .5, rng.random((1, 300)), rng.random((10, 300)))
        rejected.append(pod_fit(size, luck < expit(1 + 2*np.log(size)))['fit_p'] < .05)
    assert .01 < np.mean(rejected) < .1


def test_a90_beyond_the_sizes_tested_is_not_reached():
    rng = np.random.default_rng(5)
    fit = pod_fit(*flaws_of(rng, 400, intercept=-1, slope=1))
    assert fit['why'].startswith('a90 not reached: even the largest flaws tested')
    assert np.isnan([fit['a90'], fit['a90_95']]).all()
    assert fit['smallest'] < fit['a50'] < fit['largest']


def test_a90_below_the_sizes_tested_is_not_given():
    size = np.exp(np.random.default_rng(6).uniform(0, 2, 2000))
    hit = np.random.default_rng(7).random((1, 2000)) < expit(2.5 + np.log(size))
    fit = pod_fit(size, hit)
    assert fit['why'] == 'a90 lies below the smallest size tested (1)'
    assert np.isnan([fit['a50'], fit['a90']]).all()


def test_the_points_hold_every_flaw_of_known_size():
    size, hit = flaws_of(np.random.default_rng(8), 83)
    size[:3] = np.nan, 0, np.nan
    points = pod_points(size, hit)
    assert points.n.sum() == 80
    assert (points.n == 10).all()
    assert points['size'].is_monotonic_increasing
    assert (points.found*points.n).sum() == hit[0, 3:].sum()


def test_no_known_size_gives_no_points_and_says_why():
    assert len(pod_points(np.full(30, np.nan), np.ones((1, 30)))) == 0
    assert pod_fit(np.full(30, np.nan), np.ones((1, 30)))['why'] == 'fewer than 20 flaws of known size'
