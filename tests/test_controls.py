"""The no-cost controls: more defect images without a generator."""
from dataclasses import replace

import pandas as pd
import pytest
import torch

from weldsynth.core.config import ControlsConfig
from weldsynth.data.patches import PatchSet, n_grey_levels
from weldsynth.models.controls import augmented, best_control, cut_paste, repeated, strong_augmentation

CLASSES = ('clean', 'crack', 'porosity')


@pytest.fixture
def real():
    "Six cleans, three cracks with masks, two porosities without."
    labels = ['clean']*6 + ['crack']*3 + ['porosity']*2
    images = torch.randint(90, 110, (11, 1, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    masks = torch.zeros_like(images)
    images[6:9, :, 14:18, 14:18] = 0
    masks[6:9, :, 14:18, 14:18] = 255
    return PatchSet(images, pd.DataFrame(dict(id=range(11), label=labels, low=100., high=355.)), CLASSES, masks)


def test_repeats_are_even_over_the_defect_classes(real):
    again = repeated(real, 7, seed=0)
    assert again.table.label.value_counts().to_dict() == dict(crack=4, porosity=3)
    assert torch.equal(again.images, real.images[again.table.id.tolist()])


def test_augmented_images_have_as_many_grey_levels_at_most(real):
    few = replace(real, images=real.images//32*32)
    changed = augmented(few, 10, 0, ControlsConfig())
    assert (n_grey_levels(changed.images) <= n_grey_levels(repeated(few, 10, 0).images)).all()


def test_augmentation_of_no_strength_only_crops(real):
    nothing = ControlsConfig(rotation=0., shift=0., scale=(1., 1.), chance=0., brightness=0., contrast=0.)
    wide = torch.rand(1, 64, 64, generator=torch.manual_seed(0))
    transform = strong_augmentation(32, nothing)
    assert transform(wide).shape == (1, 32, 32)


def test_a_class_without_masks_is_repeated(real):
    made = cut_paste(real, 8, 0)
    porosity = made.table.label == 'porosity'
    originals = real.images[made.table.id[porosity].tolist()]
    assert torch.equal(made.images[torch.tensor(porosity.to_numpy())], originals)


def test_a_pasted_flaw_is_dark_on_a_clean_patch(real):
    made = cut_paste(real, 8, 0)
    cracks = made.of('crack').images.float()
    assert (cracks[..., 14:18, 14:18].mean((1, 2, 3)) < cracks.mean((1, 2, 3)) - 50).all()


def test_a_pasted_flaw_keeps_its_contrast_in_the_greys_of_the_file(real):
    "On a film of a tenth of the contrast the same difference of greys fills the whole stretch."
    clean = real.table.label == 'clean'
    flat = replace(real, table=real.table.assign(high=real.table.high.where(~clean, 125.5)))
    cracks = cut_paste(flat, 8, 0).of('crack')
    on_flaw, beside = (cracks.greys[..., rows, 14:18].mean((1, 2, 3)) for rows in (slice(14, 18), slice(2, 10)))
    assert (on_flaw - beside < -60).all(), 'the source has 100 grey levels between them'
    assert (cracks.table.high < 200).all()


def test_neighbours_decide_what_a_flaw_is_laid_on(real):
    bright = real.table.index < 3  # of six cleans: brighter than what the cracks lie on
    table = real.table.assign(low=real.table.low + 200*bright, high=real.table.high + 200*bright)
    made = cut_paste(replace(real, table=table), 40, 0, neighbours=3).of('crack')
    assert (made.greys.mean((1, 2, 3)) < 300).all()
    by_chance = cut_paste(replace(real, table=table), 40, 0).of('crack')
    assert .2 < (by_chance.greys.mean((1, 2, 3)) < 300).float().mean() < .8


def test_cut_and_paste_without_masks_is_refused(real):
    with pytest.raises(ValueError, match='needs masks'): cut_paste(replace(real, masks=None), 4, 0)


def test_the_best_control_is_free():
    means = {'real+synthetic': .9, 'real-repeated': .7, 'cut-paste': .6}
    assert best_control(means, ['real-repeated', 'real-augmented', 'cut-paste']) == 'real-repeated'
