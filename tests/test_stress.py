"""Disturbances of test images, an adversary, and images that are not welds."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from weldsynth.core.config import StressConfig
from weldsynth.data.patches import PatchSet
from weldsynth.models.stress import (
    CORRUPTIONS,
    add_noise,
    all_corruptions,
    blur,
    corrupted,
    darken,
    energy,
    fgsm,
    ood_auroc,
    ood_images,
    scale_contrast,
    stress,
)

@pytest.fixture
def images(): return torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))


class Threshold(nn.Module):
    "Class 1 where the mean of an image is positive."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.))

    def forward(self, x): return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)*self.scale


def test_contrast_and_density_by_hand():
    x = torch.tensor([28., 128., 228.])
    assert scale_contrast(x, .5, torch.Generator()).tolist() == [78, 128, 178]
    assert darken(x, 20., torch.Generator()).tolist() == [8, 108, 208]


def test_grey_values_stay_within_their_range():
    dark = torch.full((1, 1, 16, 16), 30, dtype=torch.uint8)
    assert (corrupted(dark, 'density', 3, 0, StressConfig()) == 0).all()


def test_no_noise_and_no_blur_only_apply_the_window(images):
    x = images[:1].float()
    quiet = add_noise(x, 0., torch.Generator())
    assert torch.equal(quiet, blur(x, 1e-3, torch.Generator()))


def test_amounts_come_from_the_config(images):
    gentle = StressConfig(density=(1., 2.))
    assert torch.equal(corrupted(images, 'density', 2, 0, gentle), (images.float() - 2).clamp(min=0).byte())
    assert [s for kind, s in all_corruptions(images, 0, gentle) if kind == 'density'] == [1, 2]


def test_each_kind_has_three_strengths(images):
    assert set(all_corruptions(images, 0, StressConfig())) == {(kind, s) for kind in CORRUPTIONS for s in (1, 2, 3)}


def test_the_adversary_moves_each_pixel_by_its_step_at_most(images):
    less, moved = fgsm(Threshold(), images, torch.ones(6, dtype=torch.int64), (1, 4))
    assert (less.int() - images.int()).abs().max() == 1
    assert (moved.int() - images.int()).abs().max() == 4
    assert (moved <= images).all(), 'class 1 is bright'


def test_shuffled_images_keep_their_grey_values(images):
    shuffled = ood_images(images, 0)['shuffled']
    assert torch.equal(shuffled.flatten(1).sort().values, images.flatten(1).sort().values)


def test_energy_is_minus_the_logarithm_of_the_sum_of_exponentials():
    grey = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    assert energy(Threshold(), grey)[0] == pytest.approx(-math.log(math.exp(10) + math.exp(-10)))


def test_negatives_of_bright_images_stand_out_where_energy_is_darkness():
    class Brightness(Threshold):
        def forward(self, x): return x.mean((1, 2, 3))[:, None].expand(-1, 2)*self.scale
    bright = torch.full((3, 1, 16, 16), 250, dtype=torch.uint8)
    assert ood_auroc(Brightness(), bright, 0)['negative'] == 1
    assert ood_auroc(Brightness(), 255 - bright, 0)['negative'] == 0


def test_stress_lists_every_version_with_its_scores():
    bright = torch.full((4, 1, 16, 16), 255, dtype=torch.uint8)
    images = torch.cat([bright, 255 - bright])
    table = pd.DataFrame(dict(label=['crack']*4 + ['clean']*4))
    test = PatchSet(images, table, ('clean', 'crack'))
    disturbed = {('density', 3): images.float().sub(200).clamp(min=0).byte()}
    rows = {row[:2]: row[2:] for row in stress(Threshold(), test, disturbed, .5, StressConfig(adversary=(1.,)))}
    assert list(rows) == [('none', 0), ('density', 3), ('adversary', 1)]
    assert rows['none', 0] == (1., 1., 0.), 'macro F1, flaws found, false calls'
    assert rows['density', 3] == (0., 0., 0.), 'no flaw is bright any more'
    assert np.isfinite(rows['adversary', 1]).all()
