"""The simulated source: as hard as a study needs it to be."""
import joblib
import numpy as np
import pytest
import torch

from weldsynth.core.config import classifier_of_kind
from weldsynth.core.profiles import PROFILES
from weldsynth.data.flaws import CLASSES
from weldsynth.data.images import window
from weldsynth.data.simulate import simulate
from weldsynth.metrics.classification import decide, macro_f1
from weldsynth.models.fits import fit_job

@pytest.fixture(scope='module')
def shots():
    "Images, class numbers, and which of them are for the test: plates that are not trained on."
    made = simulate(2_100, 3_000, 60, 64, seed=1)
    greys = torch.from_numpy(made.images)[:, None]
    images = torch.cat([window(chunk.float()) for chunk in greys.split(512)]).numpy()
    labels = np.array([CLASSES.index(label) for label in made.labels])
    return images, labels, made.plates >= 'plate-40'


def training_rows(labels, test, n):
    "All cleans, and `n` defects of each class."
    rows = [np.flatnonzero(~test & (labels == c))[:n] for c in range(1, len(CLASSES))]
    assert all(len(r) == n for r in rows)
    return np.concatenate([np.flatnonzero(~test & (labels == 0)), *rows])


def score(images, labels, test, n):
    "Macro F1 of a classifier trained with `n` defects per class."
    config = PROFILES['demo']
    rows = torch.from_numpy(training_rows(labels, test, n))
    small = classifier_of_kind('small', config.classifier)
    images, truth = torch.from_numpy(images), torch.from_numpy(labels)
    [(_, probs, _)] = fit_job(images, [(rows, truth[rows])], len(CLASSES), small, config.optimiser, 0, images[test])
    return macro_f1(torch.from_numpy(labels[test]), decide(probs, .5), len(CLASSES))


@pytest.mark.slow
def test_two_hundred_defects_per_class_are_hard_but_not_hopeless(shots):
    "Real-only macro F1 lies between 0.6 and 0.85 with 200 defects per class, and is lower with 50."
    few, many = joblib.Parallel(2)(joblib.delayed(score)(*shots, n) for n in (50, 200))
    print(f'macro F1: {few:.3f} with 50 per class, {many:.3f} with 200')
    assert .6 < many < .85
    assert few < many - .03
