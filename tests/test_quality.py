"""Audits that catch what is planted and leave alone what is not."""
import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import pairwise_distances

from weldsynth.data import window
from weldsynth.quality import compare, copy_thresholds, flag_copies, frechet_distance, kid, nearest, prdc, probe_auc
from weldsynth.simulate import simulate


@pytest.fixture(scope='module')
def plates():
    "Defects of 64 px on 40 plates: images, plates."
    shots = simulate(3000, 0, 40, 64, seed=7)
    return torch.cat([window(x.float()) for x in torch.from_numpy(shots.images)[:, None].split(512)]), shots.plates


def noisy(x, sd): return (x.float() + sd*torch.randn(x.shape, generator=torch.manual_seed(0))).clamp(0, 255).byte()


def jpeg(x):
    def again(image):
        file = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(file, 'JPEG', quality=85)
        return torch.from_numpy(np.asarray(Image.open(file)).copy())[None]
    return torch.stack([again(i) for i in x])


CHANGES = {'none': lambda x: x, 'mirrored': lambda x: x.flip(-1), 'turned': lambda x: x.flip(-1, -2), 'brighter': lambda x: (x.float()*.8 + 30).byte(), 'noise': lambda x: noisy(x, 5), 'JPEG': jpeg}


def test_planted_copies_are_caught_and_held_out_reals_are_not(plates):
    "5 % copies among held-out reals, changed in six ways: all are caught, and at most 1 % of the reals that set no threshold are flagged."
    images, names = plates
    train, first, rest = (images[np.isin(names, np.unique(names)[some])] for some in (slice(0, 20), slice(20, 30), slice(30, 40)))
    limits = copy_thresholds(nearest(first, train))
    flagged = flag_copies(nearest(rest, train), limits).mean()
    n = len(rest)//20
    caught = {}
    for i, (what, change) in enumerate(CHANGES.items()):
        found = nearest(change(train[i*n:(i + 1)*n]), train)
        caught[what] = flag_copies(found, limits).mean()
        assert found.exact.all() == (what in ('none', 'mirrored', 'turned')), what
        assert (found.row == np.arange(i*n, (i + 1)*n)).mean() > .99
    print(f'caught {caught}; {100*flagged:.2f} % of {len(rest)} held-out reals flagged')
    assert set(caught.values()) == {1.} and flagged <= .01


def test_a_planted_fingerprint_is_caught_and_none_is_not(plates):
    images, names = plates
    half = np.isin(names, np.unique(names)[::2])
    a, b, groups = images[half][:400], images[~half][:400], (names[half][:400], names[~half][:400])
    floor, offset, smooth = probe_auc(a, b, *groups, 0), probe_auc(a, (b.float() + 4).clamp(0, 255).byte(), *groups, 0), probe_auc(a, torch.nn.functional.avg_pool2d(b.float(), 3, 1, 1).byte(), *groups, 0)
    print(f'AUC: floor {floor:.2f}, offset of 4 grey levels {offset:.2f}, smoothed {smooth:.2f}')
    assert floor < .65 < .9 < min(offset, smooth)


def test_kid_is_zero_on_average_between_equal_sets_and_frechet_is_not():
    dice = np.random.default_rng(0)
    kids, distances = zip(*((kid(*x), frechet_distance(*x)) for x in (dice.normal(size=(2, 100, 8)) for _ in range(50))))
    assert abs(np.mean(kids)) < 3*np.std(kids)/50**.5 and np.mean(distances) > .3, 'unbiased, and biased by few images'


def test_prdc_against_a_loop():
    dice = np.random.default_rng(0)
    real, fake, k = dice.normal(size=(40, 3)), dice.normal(.5, 1, (30, 3)), 4
    rr, ff, rf = (pairwise_distances(*p) for p in ((real, real), (fake, fake), (real, fake)))
    r, f = [sorted(row)[k] for row in rr], [sorted(row)[k] for row in ff]
    inside = [[rf[i, j] < r[i] for i in range(40)] for j in range(30)]
    want = dict(precision=np.mean([any(x) for x in inside]), recall=np.mean([any(rf[i, j] < f[j] for j in range(30)) for i in range(40)]),
                density=np.sum(inside)/k/30, coverage=np.mean([min(rf[i]) < r[i] for i in range(40)]))
    assert prdc(real, fake, k) == pytest.approx(want)


def test_an_interval_of_fidelity_holds_its_value_and_shrinks_with_more_images():
    dice = np.random.default_rng(0)
    real, other = dice.normal(size=(2, 800, 4))
    few, many = (compare(real, other, 0, n).set_index('metric') for n in (50, 400))
    assert (few.low <= few.value).all() and (few.value <= few.high).all()
    assert ((many.high - many.low)[['kid', 'density']] < .7*(few.high - few.low)[['kid', 'density']]).all()
    assert compare(real[:5], other[:5], 0).value.isna().all()
