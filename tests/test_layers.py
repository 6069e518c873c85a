"""Flaw layers: lifted from one film, laid on another."""
import pandas as pd
import pytest
import torch

from weldsynth.data.patches import PatchSet
from weldsynth.models.layers import (
    background_profiles,
    contrasts,
    draw_backgrounds,
    feathers,
    fill_holes,
    flaw_layers,
    holes,
    lay,
    rim_width,
)

def a_mask(px=64, side=6):
    mask = torch.zeros(1, 1, px, px, dtype=torch.uint8)
    mask[..., px//2:px//2 + side, px//2:px//2 + side] = 255
    return mask


def cleans(n=4, low=100., high=200.):
    images = torch.randint(0, 256, (n, 1, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(0))
    return PatchSet(images, pd.DataFrame(dict(id=range(n), label='clean', low=low, high=high)), ('clean', 'crack'))


@pytest.mark.parametrize('px', [32, 64, 96])
def test_a_feather_is_1_on_the_mask_and_0_outside_the_hole(px):
    mask = a_mask(px, 2)
    weight = feathers(mask)
    assert (weight[mask > 0] == 1).all()
    assert torch.equal(weight > 0, holes(mask) > 0)
    assert holes(mask).sum() == (2 + 2*rim_width(px))**2


def test_outside_the_hole_nothing_is_filled():
    x, hole = torch.rand(3, 1, 64, 64), holes(a_mask().expand(3, -1, -1, -1))
    filled = fill_holes(x, hole)
    assert torch.equal(filled[hole == 0], x[hole == 0])
    assert not torch.equal(filled, x)


def test_what_is_in_the_hole_does_not_matter():
    x, hole = torch.rand(1, 1, 64, 64), holes(a_mask())
    assert torch.equal(fill_holes(x, hole), fill_holes(x + 50*hole, hole))


def test_a_hole_that_is_the_whole_image_or_none_is_survived():
    x = torch.rand(1, 1, 64, 64)
    assert torch.equal(fill_holes(x, torch.zeros_like(x)), x)
    assert fill_holes(x, torch.ones_like(x)).isfinite().all()


def test_a_layer_laid_back_gives_the_flaw_back():
    x = 100 + 10*torch.rand(1, 1, 64, 64)
    mask = a_mask()
    x[mask > 0] -= 40
    layers, filled = flaw_layers(x, mask)
    assert torch.allclose((filled + layers)[mask > 0], x[mask > 0], atol=1e-4)
    assert -45 < contrasts(layers, mask).item() < -35
    assert (layers[holes(mask) == 0] == 0).all()


def test_a_flat_image_has_no_layer():
    assert flaw_layers(torch.full((1, 1, 64, 64), 100.), a_mask())[0].abs().max() < 1e-3


def test_outside_the_hole_a_laid_patch_is_the_clean_one_up_to_its_stretch():
    clean, mask = cleans(1), a_mask()
    layers = -30.*feathers(mask)
    images, low, high = lay(clean, layers)
    greys = low.view(-1, 1, 1, 1) + images/255*(high - low).view(-1, 1, 1, 1)
    outside = (holes(mask) == 0) & (clean.images > 4) & (clean.images < 251)  # the ends may be cut off elsewhere
    assert (greys - clean.greys)[outside].abs().max() < .5


def test_the_nearest_background_is_drawn_and_never_another():
    dark, bright = torch.full((2, 64), 50.), torch.full((3, 64), 150.)
    luck = torch.rand(100, generator=torch.manual_seed(0))
    drawn = draw_backgrounds(dark.repeat(50, 1), torch.cat([bright, dark]), 2, luck)
    assert set(drawn.tolist()) == {3, 4}
    anywhere = draw_backgrounds(dark.repeat(50, 1), torch.cat([bright, dark]), 0, luck)
    assert set(anywhere.tolist()) == set(range(5))


def test_more_neighbours_than_cleans_are_all_cleans():
    drawn = draw_backgrounds(torch.zeros(60, 64), torch.rand(3, 64), 9, torch.rand(60))
    assert set(drawn.tolist()) == {0, 1, 2}


def test_blocks_of_a_profile_are_means_of_greys():
    greys = torch.arange(8.).repeat_interleave(8).expand(1, 1, 64, 64)
    assert torch.allclose(background_profiles(greys).view(8, 8), torch.arange(8.).expand(8, 8))
