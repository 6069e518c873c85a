"""The free controls: more defect images without a generator."""
from dataclasses import replace

import pandas as pd
import pytest
import torch

from weldsynth.core.config import ControlsConfig
from weldsynth.data.patches import PatchSet, n_grey_levels
from weldsynth.models.controls import augmented, best_control, cut_paste, flaw_layers, repeated, strong_augmentation

CLASSES = ('clean', 'crack', 'porosity')


@pytest.fixture
def real():
    "Six cleans, three cracks with masks, two porosities without."
    labels = ['clean']*6 + ['crack']*3 + ['porosity']*2
    images = torch.randint(90, 110, (11, 1, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    masks = torch.zeros_like(images)
    images[6:9, :, 14:18, 14:18] = 0
    masks[6:9, :, 14:18, 14:18] = 255
    return PatchSet(images, pd.DataFrame(dict(id=range(11), label=labels)), CLASSES, masks)


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


def test_a_flat_image_has_no_flaw_layer():
    flat = torch.full((1, 1, 32, 32), 100, dtype=torch.uint8)
    mask = torch.zeros_like(flat)
    mask[..., 10:14, 10:14] = 255
    assert flaw_layers(flat, mask).abs().max() < 1e-3


def test_a_class_without_masks_is_repeated(real):
    made = cut_paste(real, 8, 0)
    porosity = made.table.label == 'porosity'
    originals = real.images[made.table.id[porosity].tolist()]
    assert torch.equal(made.images[torch.tensor(porosity.to_numpy())], originals)


def test_a_pasted_flaw_is_dark_on_a_clean_patch(real):
    made = cut_paste(real, 8, 0)
    cracks = made.of('crack').images.float()
    assert (cracks[..., 14:18, 14:18].mean((1, 2, 3)) < cracks.mean((1, 2, 3)) - 50).all()


def test_cut_and_paste_without_masks_is_refused(real):
    with pytest.raises(ValueError, match='needs masks'): cut_paste(replace(real, masks=None), 4, 0)


def test_the_best_control_is_free():
    means = {'real+synthetic': .9, 'real-repeated': .7, 'cut-paste': .6}
    assert best_control(means, ['real-repeated', 'real-augmented', 'cut-paste']) == 'real-repeated'
