"""Masks of flaws that nobody has drawn."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.core.config import InserterConfig
from weldsynth.data.patches import PatchSet
from weldsynth.models.autoencoder import make_autoencoder, whiten
from weldsynth.models.insertion import insertion_pairs, mask_bank
from weldsynth.models.weak_masks import completed_masks, differences, weak_masks

PX, CONFIG = 32, InserterConfig()


@pytest.fixture(scope='module')
def cleans():
    "160 bands of some density, contrast and height, with grain."
    rng = torch.manual_seed(0)
    y = torch.arange(PX).view(1, 1, PX, 1)
    middle, depth, density = torch.rand(3, 160, 1, 1, 1, generator=rng)
    band = torch.exp(-((y - 10 - 12*middle)/6)**2)*(40 + 60*depth) + 60 + 60*density
    return (band + 4*torch.randn(160, 1, PX, PX, generator=rng)).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope='module')
def spotted(cleans):
    "20 of them with a dark spot, and its place."
    images, places = cleans[:20].clone(), torch.zeros(20, 1, PX, PX, dtype=torch.bool)
    for i in range(20): places[i, :, 8 + i % 9:13 + i % 9, 4 + i:9 + i] = True
    return torch.where(places, images - images//3, images), places


def test_a_spot_is_found_where_it_is(cleans, spotted):
    images, places = spotted
    found = weak_masks(images, cleans[20:], CONFIG) > 0
    assert found.flatten(1).any(1).float().mean() > .9
    on_spot = (found & places).flatten(1).sum(1)/found.flatten(1).sum(1).clamp(min=1)
    assert on_spot[found.flatten(1).any(1)].median() > .6


def test_most_clean_patches_get_no_mask(cleans):
    found = weak_masks(cleans[:20], cleans[20:], CONFIG)
    assert (found.flatten(1).amax(1) > 0).float().mean() <= .3


def test_neither_density_nor_contrast_makes_a_difference(cleans, spotted):
    images, _ = spotted
    lower = (images.float()*.5 + 20).round().to(torch.uint8)
    one, other = (differences(x, cleans[20:], 4) for x in (images, lower))
    assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > .95


def test_no_patch_is_its_own_twin(cleans):
    own = differences(cleans, cleans, 1, own=True)
    assert own.abs().mean() > .5, 'with itself it would have nothing in difference'
    assert differences(cleans, cleans, 1).abs().max() < 1e-3


def fold_of(cleans, spotted, masks):
    "The spotted ones, half of them dots and half of them blots, and cleans."
    images, _ = spotted
    labels = ['dot']*10 + ['blot']*10 + ['clean']*40
    table = pd.DataFrame(dict(id=[f'{i}' for i in range(60)], label=labels, group='w', low=0., high=255.))
    return PatchSet(torch.cat([images, cleans[20:60]]), table, ('clean', 'blot', 'dot'), masks)


def with_weak(fold):
    masks, weak = completed_masks(fold, fold.of('clean').images, CONFIG)
    return replace(fold, masks=masks, table=fold.table.assign(weak=weak.numpy()))


def test_masks_that_were_drawn_stay_and_cleans_get_none(cleans, spotted):
    drawn = torch.zeros(60, 1, PX, PX, dtype=torch.uint8)
    drawn[:10] = spotted[1][:10]*255
    fold = with_weak(fold_of(cleans, spotted, drawn))
    assert torch.equal(fold.masks[:10], drawn[:10])
    assert not fold.table.weak[:10].any()
    assert fold.table.weak[10:20].mean() > .8
    assert (fold.masks[20:] == 0).all()
    assert not fold.table.weak[20:].any()


def test_new_flaws_get_weak_masks_only_where_the_class_has_no_others(cleans, spotted):
    drawn = torch.zeros(60, 1, PX, PX, dtype=torch.uint8)
    drawn[:6] = spotted[1][:6]*255
    flaws, masks = mask_bank(with_weak(fold_of(cleans, spotted, drawn)))
    dots = flaws.table[flaws.table.label == 'dot']
    assert len(dots) == 6
    assert not dots.weak.any()
    assert flaws.table.weak[flaws.table.label == 'blot'].all()
    assert len(masks) == len(flaws)


def test_a_flaw_with_a_weak_mask_weighs_less_in_the_loss(cleans, spotted):
    drawn = torch.zeros(60, 1, PX, PX, dtype=torch.uint8)
    drawn[:10] = spotted[1][:10]*255
    fold = with_weak(fold_of(cleans, spotted, drawn))
    autoencoder = make_autoencoder(fold.images, 4)
    whiten(autoencoder, fold.images)
    pairs = insertion_pairs(autoencoder, fold, np.random.default_rng(0), .25)
    assert set(pairs.weight[pairs.labels == 2].tolist()) == {1.}
    assert set(pairs.weight[pairs.labels == 1].tolist()) == {.25}
    assert set(pairs.weight[pairs.labels == 0].tolist()) == {1.}
