"""The classifiers, their batches, and fits side by side."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from weldsynth.core.config import ClassifierConfig, OptimiserConfig, StudyError
from weldsynth.data.patches import PatchSet, to_unit
from weldsynth.models import fits
from weldsynth.models.classifier import (
    CLASSIFIERS,
    FrozenClassifier,
    classifier_batch,
    fit,
    load_classifier,
    logits,
    make_classifier,
    mirrored_flaws,
    penultimate,
    probabilities,
)
from weldsynth.models.fits import distinct_images, fit_all, fit_groups, fit_job, fit_parallel, training_table

QUICK = ClassifierConfig('small', steps=4, batch=8)
FROZEN = ClassifierConfig(steps=4, batch=8, backbone_px=32)


@pytest.fixture
def patches():
    images = torch.randint(0, 256, (12, 1, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))
    table = pd.DataFrame(dict(label=np.array(['clean', 'crack'])[np.arange(12) % 2]))
    return PatchSet(images, table, ('clean', 'crack'))


class Line(nn.Sequential):
    "A classifier from outside the package."
    def __init__(self, classes, config): super().__init__(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(1, classes))


def fits_of(patches, folder, config=QUICK, seeds=(0, 1)):
    jobs = [('real', seed) for seed in seeds]
    return [*fit_all(dict(real=patches), jobs, config, OptimiserConfig(), patches, 'fits', folder)]


@pytest.mark.parametrize('kind', list(CLASSIFIERS))
def test_one_channel_gives_one_logit_per_class(kind):
    assert make_classifier(5, replace(FROZEN, kind=kind))(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_an_unknown_classifier_is_refused_with_the_known_ones():
    with pytest.raises(StudyError, match=r"classifier.kind='big' is unknown: choose one of features, finetune, small"):
        make_classifier(2, ClassifierConfig('big'))


@pytest.mark.parametrize('config', [QUICK, FROZEN], ids=['small', 'features'])
def test_a_loaded_classifier_predicts_as_the_trained_one(config, patches):
    values, members = training_table(dict(real=patches), config)
    [(weights, probs, _)] = fit_job(values, [members['real']], 2, config, OptimiserConfig(), 0, values[:12])
    again = probabilities(load_classifier(config, 2, weights), patches.images)
    assert torch.allclose(probs, again, atol=1e-4)


def test_the_softmax_of_logits_by_hand():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad(): net[1].weight.copy_(torch.tensor([[0.], [np.log(3.)]]))
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert torch.allclose(logits(net, white), torch.tensor([[0., np.log(3.)]], dtype=torch.float32))
    assert torch.allclose(probabilities(net, white), torch.tensor([[.25, .75]]))


@pytest.mark.parametrize('kind', ['small', 'resnet18', 'finetune'])
def test_the_input_of_the_last_layer_gives_the_logits(kind, patches):
    net = make_classifier(4, replace(FROZEN, kind=kind)).eval()
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    outputs = last(torch.from_numpy(penultimate(net, patches.images)))
    assert torch.allclose(outputs, net(to_unit(patches.images)), atol=1e-5)


def test_without_augmentation_a_batch_holds_the_images_mirrored_at_most(patches):
    plain = ClassifierConfig('small', batch=8, contrast=0., density=0., noise=0.)
    x, labels = classifier_batch(patches.images, torch.arange(12), patches.labels, plain, 0)(1)
    known = {tuple(image.flatten().sort().values.tolist()): label.item()
             for image, label in zip(to_unit(patches.images), patches.labels, strict=True)}
    assert [known[tuple(image.flatten().sort().values.tolist())] for image in x] == labels.tolist()


def test_contrast_and_density_stay_within_their_limits():
    images = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    config = ClassifierConfig(batch=512, contrast=.1, density=.3, noise=0.)
    x, _ = classifier_batch(images, torch.arange(2), torch.tensor([0, 1]), config, 0)(1)
    assert x.min() >= 1 - .1 - .3 - 1e-5
    assert x.max() <= 1 + .1 + .3 + 1e-5
    assert x.max() > 1.3, 'both changes happen'


def test_a_batch_depends_on_seed_and_step_alone(patches):
    first, second = (classifier_batch(patches.images, torch.arange(12), patches.labels, QUICK, 0) for _ in range(2))
    first(1)
    assert torch.equal(first(2)[0], second(2)[0])
    assert not torch.equal(first(1)[0], first(2)[0])


def test_a_frozen_classifier_learns_from_features_as_from_images(patches):
    net = make_classifier(2, FROZEN).eval()
    values, _ = training_table(dict(real=patches), replace(FROZEN, views=1))
    assert torch.allclose(logits(net, patches.images), logits(net, values), atol=1e-3)


def test_training_a_head_leaves_the_backbone_as_it_is(patches):
    values, members = training_table(dict(real=patches), FROZEN)
    [net] = fit(values, [members['real']], 2, FROZEN, OptimiserConfig(), 0)
    assert isinstance(net, FrozenClassifier)
    assert all(name.startswith('head.') for name in net.state_dict())


def test_dropout_and_noise_follow_the_seed_and_nothing_else(patches):
    values, members = training_table(dict(real=patches), FROZEN)
    def weights(seed): return fit(values, [members['real']], 2, FROZEN, OptimiserConfig(), seed)[0].head.hidden.weight
    before = torch.random.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's own random numbers go on as they were"
    torch.rand(5)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_a_head_trained_beside_others_is_the_one_trained_alone(patches):
    sets = dict(real=patches, fewer=patches.take([0, 1, 2, 3]))
    values, members = training_table(sets, FROZEN)
    together = fit(values, list(members.values()), 2, FROZEN, OptimiserConfig(), 0)
    for net, member in zip(together, members.values(), strict=True):
        [alone] = fit(values, [member], 2, FROZEN, OptimiserConfig(), 0)
        for name, weight in alone.state_dict().items(): assert torch.equal(net.state_dict()[name], weight), name
    assert not torch.equal(together[0].head.hidden.weight, together[1].head.hidden.weight)


@pytest.mark.parametrize(('cores', 'sizes'), [(1, [9]*3), (2, [5, 4]*3), (16, [1]*27)])
def test_groups_of_fits_hold_each_once_and_leave_no_core_idle(cores, sizes, monkeypatch):
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: cores)
    jobs = [(f'arm-{i}', seed) for seed in range(3) for i in range(9)]
    groups = fit_groups(jobs)
    assert sorted((name, seed) for (_, seed), names in groups.items() for name in names) == sorted(jobs)
    assert [len(names) for names in groups.values()] == sizes


def test_flaws_count_with_their_mirror_images_and_cleans_once(patches):
    views = mirrored_flaws(patches, 4)
    assert views.labels.bincount().tolist() == [6, 24]
    assert torch.equal(views.images[12:18], patches.images[1::2].flip(-1))


def test_an_image_in_many_sets_stands_once_in_the_table(patches):
    sets = dict(all=patches, odd=patches.take(range(1, 12, 2)), twice=patches.take([3, 3]))
    images, rows = distinct_images(sets)
    assert len(images) == 12
    for name, s in sets.items(): assert torch.equal(images[rows[name]], s.images)


@pytest.mark.parametrize('config', [QUICK, FROZEN], ids=['small', 'features'])
def test_fits_are_the_same_on_one_core_and_on_two(patches, tmp_path, monkeypatch, config):
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 1)
    one = fits_of(patches, tmp_path/'one', config)
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 2)
    two = fits_of(patches, tmp_path/'two', config)
    assert [seed for _, seed, *_ in two] == [0, 1], 'in the order of the jobs'
    for (*_, probs), (*_, others) in zip(one, two, strict=True): assert torch.equal(probs, others)


def test_a_classifier_added_from_outside_reaches_the_workers(patches, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSIFIERS, 'line', Line)
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 2)
    done = fits_of(patches, tmp_path, ClassifierConfig('line', steps=2, batch=8))
    assert [weights['2.weight'].shape for _, _, weights, _ in done] == [(2, 1)]*2


def test_a_saved_fit_is_not_made_again(patches, tmp_path, monkeypatch):
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 1)
    [(*_, probs)] = fits_of(patches, tmp_path, seeds=(0,))
    seeds = []

    def counted(*args, real=fits.fit_job):
        seeds.append(args[5])
        return real(*args)
    monkeypatch.setattr(fits, 'fit_job', counted)
    again = fits_of(patches, tmp_path)
    assert seeds == [1]
    assert torch.equal(again[0][3], probs)


def test_an_error_of_a_fit_names_arm_and_seed(monkeypatch):
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 1)

    def fails(name, seed): raise StudyError('the loss is not finite')
    with pytest.raises(StudyError, match='^fit real, seed 3: the loss is not finite'):
        [*fit_parallel(fails, [('real', 3)])]


def test_no_jobs_give_no_results():
    assert [*fit_parallel(lambda name, seed: seed, [])] == []
