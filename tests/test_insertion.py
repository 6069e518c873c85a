"""Flaws drawn by a network and inserted into clean welds."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.core.config import InserterConfig, MasksConfig, SamplerConfig, StudyError
from weldsynth.core.random import stream_seed
from weldsynth.data.patches import PatchSet
from weldsynth.models.autoencoder import make_autoencoder, whiten
from weldsynth.models.denoiser import noise_schedule
from weldsynth.models.insertion import (
    Inserter,
    Sites,
    bend_flaws,
    bend_masks,
    draw_layers,
    draw_masks,
    flaws_with_masks,
    inserter_batch,
    inserter_loss,
    insertion_pairs,
    make_inserter,
    open_sites,
)
from weldsynth.models.layers import flaw_layers, holes
from weldsynth.models.training import seeded_weights, train
from weldsynth.stages.insertion import plan_insertions, planned_masks

PX, QUICK, MASKS = 32, InserterConfig(heads=2, layers=2, steps=40, batch=16), MasksConfig()


@pytest.fixture(scope='module')
def fold():
    "40 noisy cleans, 24 dots and 24 bars with masks: dark ones and bright ones."
    rng = torch.manual_seed(0)
    images = 120 + 10*torch.randn(88, 1, PX, PX, generator=rng)
    masks = torch.zeros(88, 1, PX, PX, dtype=torch.uint8)
    for i in range(24):
        masks[40 + i, :, 10:14 + i % 4, 12:16] = 255
        masks[64 + i, :, 20:23, 4:16 + i % 9] = 255
    images[40:64] -= 50*(masks[40:64] > 0)
    images[64:] += 50*(masks[64:] > 0)
    labels = ['clean']*40 + ['dot']*24 + ['bar']*24
    table = pd.DataFrame(dict(id=[f'{i}' for i in range(88)], label=labels, group='w', low=100., high=150.))
    return PatchSet(images.clamp(0, 255).to(torch.uint8), table, ('clean', 'bar', 'dot'), masks)


@pytest.fixture(scope='module')
def autoencoder(fold):
    net = make_autoencoder(fold.images, 4)
    whiten(net, fold.images)
    return net


@pytest.fixture(scope='module')
def pairs(fold, autoencoder): return insertion_pairs(autoencoder, fold, np.random.default_rng(0))


@pytest.fixture(scope='module')
def inserter(autoencoder, pairs):
    net = seeded_weights(0, 'test', lambda: make_inserter(PX, 4, 2, 2))
    config = replace(QUICK, steps=250, lr=4e-3)
    net, _ = train(net, inserter_loss, inserter_batch(pairs, config, 0), config.steps, config.lr)
    return Inserter(net, autoencoder, pairs.spread)


def inserted_layers(inserter, fold, label, seeds=range(8), **sampler):
    clean = fold.of('clean').take(range(len(seeds)))
    masks = fold.masks[40:40 + len(seeds)]
    labels = torch.full((len(seeds),), label)
    layers = inserter.layers(clean.greys, masks, labels, list(seeds), 2., SamplerConfig(**dict(steps=6) | sampler))
    return layers, masks


def test_a_site_does_not_know_its_flaw(fold, autoencoder):
    flaws, masks = flaws_with_masks(fold)
    louder = flaws.greys + 500*(masks > 0)
    sites, as_is = open_sites(autoencoder, flaws.greys, masks)
    others, with_flaw = open_sites(autoencoder, louder, masks)
    assert all(torch.equal(a, b) for a, b in zip(sites, others, strict=True))
    assert not torch.allclose(as_is, with_flaw)


def test_the_scale_of_the_film_changes_the_span_alone(fold, autoencoder):
    flaws, masks = flaws_with_masks(fold)
    sites, as_is = open_sites(autoencoder, flaws.greys, masks)
    others, as_is_there = open_sites(autoencoder, 256*flaws.greys, masks)
    assert torch.allclose(sites.background, others.background, atol=1e-3)
    assert torch.allclose(as_is, as_is_there, atol=1e-3)
    assert torch.allclose(256*sites.half_span, others.half_span)


def test_layers_of_flaws_are_white_and_nothing_lies_outside_the_cells(pairs):
    flaws = pairs.labels > 0
    power = pairs.layers[:, flaws].square().sum((0, 1, 3, 4))/pairs.cells[:, flaws].sum()
    assert torch.allclose(power, torch.ones_like(power), atol=1e-4)
    assert (pairs.layers*(1 - pairs.cells) == 0).all()
    of_clean = pairs.layers[:, ~flaws].square().sum()/pairs.cells[:, ~flaws].sum()/len(power)
    assert of_clean < .5, 'plain metal differs from its filling by grain alone'


def test_as_many_cleans_as_flaws_and_the_four_mirror_images(pairs):
    assert pairs.labels.bincount().tolist() == [40, 24, 24]
    assert torch.equal(pairs.cells[0].flip(-1), pairs.cells[1])


def test_the_loss_of_a_perfect_prediction_is_0(pairs):
    layers, background, cells, outline, noise, time, labels, weight = inserter_batch(pairs, QUICK, 0)(1)

    def knows(x, timestep, class_labels):
        class Answer: sample = noise_schedule().get_velocity(layers, noise, timestep)
        return Answer
    assert inserter_loss(knows, layers, background, cells, outline, noise, time, labels, weight) == 0
    outside = noise + 1 - cells
    assert inserter_loss(knows, layers, background, cells, outline, outside, time, labels, weight) < 1e-12, 'no matter'


def test_batches_are_balanced_over_the_classes_and_repeatable(pairs):
    batch = inserter_batch(pairs, replace(QUICK, batch=48), 0)
    assert batch(3)[-2].bincount().tolist() == [16, 16, 16]
    assert all(torch.equal(a, b) for a, b in zip(batch(3), batch(3), strict=True))


def test_the_outline_is_hidden_in_a_share_of_the_training_pairs(pairs):
    def seen(share):
        outlines = inserter_batch(pairs, replace(QUICK, batch=300, outline_hidden=share), 0)(1)[3]
        return outlines.flatten(1).amax(1).float().mean().item()
    assert (seen(0.), seen(1.)) == (1, 0)
    assert .6 < seen(.3) < .8


def test_flaws_without_any_mask_are_refused(fold):
    with pytest.raises(StudyError, match='no flaw of the training fold has a mask.*sampler.generator=ldm'):
        flaws_with_masks(replace(fold, masks=None))
    with pytest.raises(StudyError, match='no flaw'): flaws_with_masks(replace(fold, masks=torch.zeros_like(fold.masks)))


def test_outside_the_hole_nothing_is_added(inserter, fold):
    layers, masks = inserted_layers(inserter, fold, 2)
    assert (layers[holes(masks) == 0] == 0).all()
    assert layers[holes(masks) > 0].abs().max() > 1


def test_the_class_decides_what_is_drawn(inserter, fold):
    "Dots are dark and bars are bright, and the mask is that of a dot for both."
    contrast = {}
    for label in (1, 2):
        layers, masks = inserted_layers(inserter, fold, label)
        contrast[label] = layers[masks > 0].mean().item()
    assert contrast[2] < 0 < contrast[1]


def test_a_hidden_outline_is_not_seen(inserter, fold):
    "Other pixels of the same cells change a layer in its greys by the feather alone, if the outline is hidden."
    masks = fold.masks[40:44]
    sites, _ = open_sites(inserter.autoencoder, fold.of('clean').take(range(4)).greys, masks)
    hidden = sites.hide_outlines(torch.tensor([True, False, True, False]))
    assert hidden.outline.flatten(1).amax(1).tolist() == [0, 1, 0, 1]
    def drawn(sites): return draw_layers(inserter.net, sites, torch.tensor([1]*4), [1]*4, 1., SamplerConfig(steps=2))
    changed = (drawn(sites) - drawn(hidden)).flatten(1).abs().amax(1) > 1e-4
    assert changed.tolist() == [True, False, True, False]


def test_the_mask_decides_where(inserter, fold):
    clean = fold.of('clean').take(range(4))
    dots, bars = fold.masks[40:44], fold.masks[64:68]
    first, second = (inserter.layers(clean.greys, m, torch.tensor([2]*4), [1, 2, 3, 4], 1., SamplerConfig(steps=4))
                     for m in (dots, bars))
    assert first[bars > 0].abs().sum() == 0
    assert second[bars > 0].abs().mean() > 1


def test_a_flaw_does_not_depend_on_its_company(inserter, fold):
    layers, _ = inserted_layers(inserter, fold, 2)
    clean = fold.of('clean').take([5])
    alone = inserter.layers(clean.greys, fold.masks[45:46], torch.tensor([2]), [5], 2., SamplerConfig(steps=6))
    assert torch.allclose(alone[0], layers[5], atol=1e-2)
    again, _ = inserted_layers(inserter, fold, 2, range(8, 16))
    assert not torch.allclose(again, layers, atol=1)


@pytest.mark.parametrize('steps', [1, 2, 8])
def test_the_solver_arrives_at_the_layer_whatever_the_number_of_steps(steps):
    "A network that knows the layer leads to it: no noise is left in the end."
    layer = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(0))
    cells = torch.ones(2, 1, 8, 8)
    sites = Sites(torch.zeros(2, 3, 8, 8), cells, torch.ones(2, 16, 8, 8), torch.ones(2, 1, 32, 32),
                  torch.ones(2, 1, 1, 1))

    class Knows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, timestep, class_labels):
            a = noise_schedule().alphas_cumprod[timestep].view(-1, 1, 1, 1)
            noise = (x[:, :3] - a.sqrt()*layer)/(1 - a).sqrt()
            class Answer: sample = a.sqrt()*noise - (1 - a).sqrt()*layer
            return Answer
    drawn = draw_layers(Knows(), sites, torch.tensor([1, 1]), [1, 2], 1., SamplerConfig(steps=steps))
    assert torch.allclose(drawn, layer, atol=.05)


def test_sizes_of_masks_are_even_over_the_class_not_as_frequent_as_they_are():
    masks = torch.zeros(100, 1, 32, 32, dtype=torch.uint8)
    for i in range(100): masks[i, :, :2 if i < 90 else 20, :2 if i < 90 else 20] = 255
    rows = draw_masks(masks, torch.ones(100, dtype=torch.int64), [1]*400, range(400))
    assert .3 < (rows >= 90).float().mean() < .7


def test_a_class_gets_masks_of_its_own_and_plain_metal_those_of_any(fold):
    flaws, masks = flaws_with_masks(fold)
    assert (flaws.labels[draw_masks(masks, flaws.labels, [1]*30, range(30))] == 1).all()
    assert set(flaws.labels[draw_masks(masks, flaws.labels, [0]*60, range(60))].tolist()) == {1, 2}


def test_a_class_without_any_mask_is_refused_in_one_line(fold):
    flaws, masks = flaws_with_masks(fold)
    with pytest.raises(StudyError, match='1 of the classes have no mask'):
        draw_masks(masks, flaws.labels, [1, 3], [0, 1])


def test_a_bent_mask_follows_its_seed_and_is_never_empty(fold):
    masks = fold.masks[40:]
    bent = bend_masks(masks, range(48), MASKS)
    assert torch.equal(bent[3:5], bend_masks(masks[3:5], [3, 4], MASKS))
    assert (bent.flatten(1).amax(1) == 255).all()
    assert not torch.equal(bent, masks)
    far = bend_masks(masks, range(48), replace(MASKS, shift=3.))
    assert (far.flatten(1).amax(1) == 255).all(), 'what would leave the patch stays as it was'


def test_a_flaw_is_bent_with_its_mask(fold):
    masks = fold.masks[40:]
    greys, bent = bend_flaws(masks.float(), masks, range(48), MASKS)
    assert torch.equal(bent, bend_masks(masks, range(48), MASKS))
    assert ((greys > 127) == (bent > 0)).float().mean() > .98, 'what is flaw in one is flaw in the other'
    far, same = bend_flaws(masks.float(), masks, range(48), replace(MASKS, shift=3.))
    assert torch.equal(far[(same == masks).flatten(1).all(1)], masks[(same == masks).flatten(1).all(1)].float())


def test_a_plan_takes_from_the_fold_alone_and_each_image_by_its_own_seed(fold):
    seeds = [stream_seed('test', i) for i in range(20)]
    plan = plan_insertions(fold, [1, 2]*10, seeds, 5)
    assert (plan.flaws.labels[plan.mask_rows] == torch.tensor([1, 2]*10)).all()
    assert set(plan.cleans.table.label) == {'clean'}
    fewer = plan_insertions(fold, [1, 2]*3, seeds[:6], 5)
    for part in ('mask_rows', 'second_rows', 'mirrors', 'clean_rows'):
        assert torch.equal(getattr(plan, part)[:6], getattr(fewer, part))


def test_some_flaws_are_two_of_a_kind(fold):
    seeds = [stream_seed('test', i) for i in range(200)]
    plan = plan_insertions(fold, [1, 2]*100, seeds, 0, several=.25)
    two = plan.second_rows >= 0
    assert .15 < two.float().mean() < .35
    assert (plan.flaws.labels[plan.second_rows[two]] == torch.tensor([1, 2]*100)[two]).all()
    which = two.nonzero()[:20, 0].tolist()
    both = planned_masks(plan, which, [seeds[i] for i in which], MASKS)
    one = plan._replace(second_rows=torch.full_like(plan.second_rows, -1))
    first = planned_masks(one, which, [seeds[i] for i in which], MASKS)
    assert (both >= first).all()
    assert (both > 0).sum() > (first > 0).sum()


def test_a_patch_of_no_weight_is_not_learnt_from(pairs):
    net = seeded_weights(0, 'test', lambda: make_inserter(PX, 4, 2, 2))
    *batch, weight = inserter_batch(pairs, QUICK, 0)(1)
    half = torch.cat([weight[:8], 0*weight[8:]])
    alone = inserter_loss(net, *(part[:8] for part in batch), weight[:8])
    assert torch.allclose(inserter_loss(net, *batch, half), alone, atol=1e-5)


@pytest.fixture(scope='module')
def sites(inserter, fold): return open_sites(inserter.autoencoder, fold.greys[:6], fold.masks[40:46])[0]


def varied(inserter, sites, strength, source):
    labels, sampler = torch.tensor([2]*6), SamplerConfig(steps=6)
    return draw_layers(inserter.net, sites, labels, list(range(6)), 1.5, sampler, source, strength)


def test_a_variation_of_no_strength_is_the_flaw_itself(inserter, sites):
    source = torch.randn(sites.background.shape, generator=torch.manual_seed(0))*sites.cells
    assert torch.equal(varied(inserter, sites, 0., source), source)


def test_a_variation_moves_away_with_its_strength_and_is_a_new_flaw_in_the_end(inserter, sites):
    new = varied(inserter, sites, 1., None)
    source = torch.randn(sites.background.shape, generator=torch.manual_seed(0))*sites.cells
    moved = [(varied(inserter, sites, s, source) - source).square().mean().item() for s in (.1, .4, .8)]
    assert 0 < moved[0] < moved[1] < moved[2]
    assert torch.allclose(varied(inserter, sites, 1., source), new, atol=.1), 'nothing is left of the source'


def test_what_is_laid_at_no_strength_is_the_real_layer(inserter, fold):
    clean, flaws = fold.of('clean').take(range(4)), fold.take(range(40, 44))
    layers = inserter.variations(clean.greys, flaws.greys, flaws.masks, flaws.labels, [1, 2, 3, 4], 0., 1.5,
                                 SamplerConfig(steps=4))
    assert torch.equal(layers, flaw_layers(flaws.greys, flaws.masks)[0])
