"""The statistics keep their promises where the truth is known."""
import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import f1_score

from weldsynth.metrics.classification import (
    at_prevalence,
    brier,
    calibration,
    calibration_error,
    choose_threshold,
    decide,
    macro_f1,
    pod_fit,
    ranking,
)

def test_a90_95_covers_a90():
    "a90/95 is above the true a90 in at least 93 of 100 sets of 300 flaws, and a50 and a90 are right on average."
    rng = np.random.default_rng(1)
    true = np.exp((np.log(9) - 1)/3)
    fits = []
    for _ in range(500):
        size = np.exp(rng.normal(0, .7, 300))
        fits.append(pod_fit(size, rng.random((1, 300)) < expit(1 + 3*np.log(size))))
    a50, a90, bound = (np.array([fit[key] for fit in fits]) for key in ('a50', 'a90', 'a90_95'))
    print(f'a90/95 covers a90 in {(bound >= true).mean():.3f}')
    assert abs(np.median(a50)/np.exp(-1/3) - 1) < .03
    assert abs(np.median(a90)/true - 1) < .05
    assert .93 <= (bound >= true).mean() < .99


def test_the_likeliest_defect_class_is_decided_at_the_threshold_itself():
    assert decide(torch.tensor([[.5, .125, .375]]), .5).tolist() == [2]


def test_macro_f1_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 200))
    want = f1_score(truth, predicted, labels=[1, 2, 3], average='macro')
    assert macro_f1(torch.from_numpy(truth), torch.from_numpy(predicted), 4) == pytest.approx(want, abs=1e-6)


def test_the_threshold_of_separable_probabilities_is_the_middle_of_the_gap():
    probs = torch.tensor([[.905, .095], [.095, .905]])
    assert choose_threshold(probs, torch.tensor([0, 1])) == pytest.approx(.5)


def test_confident_and_right_is_calibrated_with_a_brier_score_of_zero():
    probs = np.eye(2)[[0, 1, 0, 1]]
    truth = np.array([0, 1, 0, 1])
    assert brier(probs, truth).tolist() == [0]*4
    assert calibration_error(calibration(probs, truth, bins=2)) == 0
    assert ranking(probs, truth) == dict(average_precision=1, recall_at_false_calls=1)


def test_cost_at_a_plant_counts_missed_flaws_and_false_calls():
    "Of 1,000 patches 100 are flawed: 20 missed at 10 each, and 9 false calls of 900 at 1 each."
    assert at_prevalence(.8, .01, .1, 10, 1)['cost'] == pytest.approx(209)
