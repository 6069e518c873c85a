"""The supervised contrastive loss: by hand, against four mistakes known from published code, and in arms."""
import math
from dataclasses import replace
from itertools import combinations

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from weldsynth.core.config import with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.models.classifier import load_classifier, probabilities
from weldsynth.models.contrastive import fit_contrastive, head_weights, supervised_contrastive, train_contrastive
from weldsynth.stages.arms import fit_arms, study_arms
from weldsynth.stages.contrastive import training_values
from weldsynth.stages.data import training_fold
from weldsynth.stages.ood import measure_ood, ood_arms

TEMPERATURE = .5


def points(n, seed=0):
    return normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)))


def loss(z, labels): return supervised_contrastive(z, torch.tensor(labels), TEMPERATURE).item()


def test_three_images_by_hand():
    "Two of a class at a right angle, and a third that lies opposite the first."
    z = torch.tensor([[1., 0.], [0., 1.], [-1., 0.]])
    first = math.log(1 + math.exp(-1/TEMPERATURE))  # -log(e^0 / (e^0 + e^(-1/T)))
    second = math.log(2)
    assert loss(z, [0, 0, 1]) == pytest.approx((first + second)/2, rel=1e-5)


def test_labels_belong_to_their_images():
    z, labels = points(8), [0, 0, 0, 1, 1, 2, 2, -1]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1)).tolist()
    assert loss(z[order], [labels[i] for i in order]) == pytest.approx(loss(z, labels), rel=1e-5)
    assert abs(loss(z[order], labels) - loss(z, labels)) > .01, 'labels of other images are noticed'


def test_bad_images_are_no_positives_of_each_other():
    z = points(6)
    assert loss(z, [0, 1, 2, -1, -1, -1]) == 0, 'no image has another of its class'
    near, far = z.clone(), z.clone()
    near[5], far[5] = z[4], -z[4]
    def pull(x): return loss(x[3:], [-1, -1, -1])
    assert pull(near) == pull(far) == 0
    with_bad, without = loss(z, [0, 0, 1, 1, -1, -1]), loss(z[:4], [0, 0, 1, 1])
    assert with_bad > without, 'they are among those that each image must differ from'


def test_two_views_of_one_image_are_a_pair():
    "An image that is alone in its class is pulled towards its second view."
    z = points(5)
    apart, together = z.clone(), z.clone()
    apart[1], together[1] = -z[0], z[0]
    labels = [0, 0, 1, 2, 3]
    assert loss(together, labels) < loss(z, labels) < loss(apart, labels)


def test_pairs_left_out_are_nothing_in_the_sum():
    "Of two images alone each has all of the sum; were the pair with itself e^0 instead of nothing, it would not."
    assert loss(points(2), [0, 0]) == pytest.approx(0, abs=1e-6)


# --- as arms of a study ---

ARMS_OF_IT = ('real-contrastive', 'real+synthetic-contrastive', 'real+bad-negatives', 'real+bad-class')
SMALL = {'classifier.kind': 'features', 'classifier.backbone_px': 32, 'classifier.steps': 20, 'classifier.seeds': 1,
         'classifier.hidden': 16, 'autoencoder.steps': 2, 'denoiser.steps': 2, 'sampler.steps': 2,
         'sampler.synthetics': 40, 'sweep.guidances': (2.,), 'sweep.shares': (.2,), 'contrastive.arms': True}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('WELDSYNTH_CORES', '1')
        yield Study('contrastive', tmp_path_factory.mktemp('contrastive'), with_overrides(PROFILES['fixture'], SMALL))


def test_a_study_has_these_arms_only_if_it_asks_for_them(study):
    assert study_arms(study)[-4:] == ARMS_OF_IT
    def arms(**fields): return study_arms(replace(study, config=with_overrides(study.config, fields)))
    assert not set(ARMS_OF_IT) & set(arms(**{'contrastive.arms': False}))
    assert not set(ARMS_OF_IT) & set(arms(**{'classifier.kind': 'small'})), 'they are heads on frozen features'


def test_each_of_these_arms_has_a_classifier_of_its_own(study):
    fits = fit_arms(study).path
    probs = load_file(fits/'validation.safetensors')
    real = [probs[f'{arm}/0'] for arm in ('real', *ARMS_OF_IT) if arm != 'real+synthetic-contrastive']
    assert all(torch.allclose(p.sum(1), torch.ones(len(p)), atol=1e-5) for p in real)
    assert all((a - b).abs().max() > 1e-3 for a, b in combinations(real, 2)), 'the same images, trained in four ways'
    shapes = [{k: v.shape for k, v in load_file(fits/'weights'/f'{arm}-0.safetensors').items()}
              for arm in ('real', *ARMS_OF_IT)]
    assert all(shape == shapes[0] for shape in shapes), 'without what compares, and without a class of bad images'


def test_a_classifier_without_the_class_of_bad_images_names_images_as_that_with_it(study):
    fold, config = training_fold(study), study.config
    values, labels = training_values(fold, config.classifier)
    arguments = (values, labels, values[-20:], len(fold.classes), config.classifier,
                 replace(config.contrastive, weight=0.), config.optimiser, 0, True)
    net = train_contrastive(*arguments)
    weights = head_weights(net, len(fold.classes))
    plain = load_classifier(config.classifier, len(fold.classes), weights)
    assert torch.allclose(probabilities(plain, values), fit_contrastive(*arguments)(values), atol=1e-5)


def test_scores_of_what_is_not_known_are_of_the_other_arms(study):
    measured = pd.read_csv(measure_ood(study).path/'ood.csv')
    assert list(dict.fromkeys(measured.arm)) == ood_arms(study)
    assert set(ood_arms(study)) == set(study_arms(study)) - set(ARMS_OF_IT)
