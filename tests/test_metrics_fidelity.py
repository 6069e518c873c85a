"""Measures of realism, copies and traces: what is planted is found, what is not is left alone."""
import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.metrics import pairwise_distances
from torch.nn.functional import avg_pool2d, interpolate, normalize

from weldsynth.core.config import AuditConfig
from weldsynth.data.images import window
from weldsynth.data.patches import mirror_images
from weldsynth.data.simulate import simulate
from weldsynth.metrics.fidelity import (
    METRICS,
    Metric,
    compare_features,
    copy_monitor,
    copy_threshold,
    flag_copies,
    frechet_distance,
    kid,
    mean_and_quantiles,
    nan_to_none,
    nearest_distance,
    nearest_training_image,
    prdc,
    thumbnails,
    whitening_matrix,
)
from weldsynth.metrics.fingerprint import octave_power, probe_auc, probe_features, radial_power, radial_spectrum

AUDIT = AuditConfig()


def nearest(query, base): return nearest_training_image(query, base, AUDIT.copy_neighbourhoods)


def threshold_from(distances): return copy_threshold(distances, AUDIT.copy_share, AUDIT.copy_margin)


def auc(a, b, groups_a, groups_b, seed): return probe_auc(a, b, groups_a, groups_b, seed, AUDIT.probe_folds)


@pytest.fixture(scope='module')
def plates():
    "Defects of 64 px on 40 plates: images, plates."
    shots = simulate(3000, 0, 40, 64, seed=7)
    images = torch.from_numpy(shots.images)[:, None]
    return torch.cat([window(x.float()) for x in images.split(512)]), shots.plates


def noisy(x):
    noise = 5*torch.randn(x.shape, generator=torch.manual_seed(0))
    return (x.float() + noise).clamp(0, 255).byte()


def jpeg(x):
    def compressed(image):
        file = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(file, 'JPEG', quality=85)
        return torch.from_numpy(np.asarray(Image.open(file)).copy())[None]
    return torch.stack([compressed(image) for image in x])


def softened(x):
    "What a decoder does to film noise."
    return interpolate(avg_pool2d(x.float(), 2), scale_factor=2, mode='bilinear').byte()


CHANGES = {
    'none': lambda x: x,
    'mirrored': lambda x: x.flip(-1),
    'turned': lambda x: x.flip(-1, -2),
    'brighter': lambda x: (x.float()*.8 + 30).byte(),
    'noise': noisy,
    'JPEG': jpeg,
    'film curve': lambda x: ((x.float()/255)**.7*255).byte(),
    'softened': softened,
    'softened, mirrored': lambda x: softened(x.flip(-2)),
}


# --- copies ---

def test_planted_copies_are_caught_and_held_out_reals_are_not(plates):
    "5 % copies among held-out reals, changed in nine ways: all are caught, and at most 1 % of the reals are flagged."
    images, names = plates
    order = np.unique(names)
    train, first, rest = (images[np.isin(names, order[i:j])] for i, j in ((0, 20), (20, 30), (30, 40)))
    threshold = threshold_from(nearest(first, train).distance)
    flagged = flag_copies(nearest(rest, train), threshold).near.mean()
    n = len(rest)//20
    caught = {}
    for i, (name, change) in enumerate(CHANGES.items()):
        rows = np.arange(i*n, (i + 1)*n)
        found = nearest(change(train[rows]), train)
        caught[name] = flag_copies(found, threshold).near.mean()
        assert found.exact.all() == (name in ('none', 'mirrored', 'turned')), name
        assert (found.row == rows).mean() > .99
    print(f'caught {caught}; {100*flagged:.2f} % of {len(rest)} held-out reals flagged')
    assert set(caught.values()) == {1.}
    assert flagged <= .01


def test_the_search_in_neighbourhoods_misses_no_near_image(plates):
    "Against a comparison with all: the nearest twentieth is found, and the rest is at most a little farther."
    images, _ = plates
    base, query = images[:2400], images[2400:]
    small = thumbnails(base)
    matrix = whitening_matrix(small)

    def project(x): return normalize(x.flatten(1) @ matrix)

    similarity = [project(x) @ project(small).T for x in mirror_images(thumbnails(query))]
    true = 1 - torch.stack(similarity).amax((0, 2)).numpy()
    excess = nearest(query, base).distance.to_numpy() - true
    print(f'{100*(excess > 1e-4).mean():.1f} % of the nearest are missed, by {excess.max():.3f} at most, '
          f'of a median distance of {np.median(true):.3f}')
    assert excess.min() > -1e-4
    assert (excess > 1e-4).mean() < .1
    assert excess[true < np.quantile(true, .05)].max() < 1e-4


def test_an_exact_copy_is_known_also_beside_its_paler_double(plates):
    images = plates[0][:20]
    base = torch.cat([images[:1]//2 + 60, images])
    assert nearest(images[:1].flip(-2), base).exact.all()
    assert not nearest(images[:1]//2, base).exact.any()


def test_a_black_image_is_neither_a_copy_nor_nan(plates):
    found = nearest(torch.zeros(1, 1, 64, 64, dtype=torch.uint8), plates[0][:20])
    assert found.distance[0] == pytest.approx(1)
    assert not found.exact[0]


def test_the_threshold_is_a_low_quantile_with_a_margin():
    assert copy_threshold(np.arange(201.)/200, share=.005, margin=.8) == pytest.approx(.8*.005)


def test_the_nearest_distance_of_many_is_that_of_each():
    x, base = torch.randn(600, 3, generator=torch.manual_seed(0)).split([500, 100])
    assert torch.allclose(nearest_distance(x, base), torch.cdist(x, base).amin(1))


def test_the_copy_monitor_allows_for_chance():
    "Three standard errors above 10 % of 100 samples are 19 %."
    train = torch.zeros(1, 1)
    held_out = torch.arange(1., 12)[:, None]  # one of eleven is nearer than the threshold of 2
    monitor = copy_monitor(train, held_out, share=.1, errors=3.)
    samples = torch.full((100, 1), 5.)
    samples[:18] = 1.
    assert monitor(samples)[0] == pytest.approx(.18)
    assert not monitor(samples)[1]
    samples[:20] = 1.
    assert monitor(samples)[1]


# --- realism ---

def test_kid_is_zero_on_average_between_equal_sets_and_frechet_is_not():
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 100, 8)) for _ in range(50)]
    kids = [kid(*pair) for pair in pairs]
    assert abs(np.mean(kids)) < 3*np.std(kids)/50**.5, 'unbiased'
    assert np.mean([frechet_distance(*pair) for pair in pairs]) > .3, 'biased by few images'


def test_kid_by_hand():
    a, b = np.array([[0.], [1.]]), np.array([[1.], [2.]])  # kernel (xy + 1)^3: within a 1, within b 27
    assert kid(a, b) == pytest.approx(1 + 27 - 2*(1 + 1 + 8 + 27)/4)


def test_frechet_of_normals_has_a_closed_form():
    one, two = np.array([[-1.], [0.], [1.]]), np.array([[1.], [4.], [7.]])  # means 0 and 4, standard deviations 1 and 3
    assert frechet_distance(one, two) == pytest.approx(4**2 + (3 - 1)**2)
    assert frechet_distance(two, two) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(('n', 'm'), [(400, 300), (7, 9)], ids=['many', 'fewer images than features'])
def test_frechet_agrees_with_the_matrix_root(n, m):
    rng = np.random.default_rng(1)
    a = rng.normal(0, 1, (n, 12))
    b = rng.normal(.3, 1, (m, 12)) @ rng.normal(size=(12, 12))
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = sqrtm(sqrtm(ca).real @ cb @ sqrtm(ca).real).real
    want = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2*root)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-4)


def test_prdc_against_a_loop():
    rng = np.random.default_rng(0)
    real, fake, k = rng.normal(size=(40, 3)), rng.normal(.5, 1, (30, 3)), 4
    between = pairwise_distances(real, fake)
    real_radii = [sorted(row)[k] for row in pairwise_distances(real)]
    fake_radii = [sorted(row)[k] for row in pairwise_distances(fake)]
    inside = [[between[i, j] < real_radii[i] for i in range(40)] for j in range(30)]
    want = dict(
        precision=np.mean([any(balls) for balls in inside]),
        recall=np.mean([any(between[i, j] < fake_radii[j] for j in range(30)) for i in range(40)]),
        density=np.sum(inside)/k/30,
        coverage=np.mean([min(between[i]) < real_radii[i] for i in range(40)]))
    assert prdc(real, fake, k) == pytest.approx(want)


def test_prdc_on_a_line():
    real = np.arange(6.)[:, None]  # balls of radius 1 about reals; of 2.5, 2.5, 1 and 1 about fakes
    fake = np.array([[.2], [2.7], [50.], [51.]])
    want = dict(precision=.5, recall=1., density=1., coverage=pytest.approx(4/6))
    assert prdc(real, fake, k=1) == want
    assert list(prdc(real, real + 1000, k=2).values()) == [0, 0, 0, 0]


def compared(real, other, n): return compare_features(real, other, 0, AUDIT, n).set_index('metric')


def test_an_interval_of_fidelity_contains_its_value_and_shrinks_with_more_images():
    real, other = np.random.default_rng(0).normal(size=(2, 800, 4))
    few, many = (compared(real, other, n) for n in (50, 400))
    assert (few.low <= few.value).all()
    assert (few.value <= few.high).all()
    narrower = (many.high - many.low)/(few.high - few.low)
    assert (narrower[['kid', 'density']] < .7).all()


def test_fidelity_of_very_few_images_is_undefined():
    real = np.random.default_rng(0).normal(size=(5, 4))
    assert compare_features(real, real, 0, AUDIT).value.isna().all()


def test_an_interval_of_fidelity_stays_within_the_range_of_its_metric():
    real = np.random.default_rng(0).normal(size=(800, 4))
    table = compared(real[:20], real[20:400], 20)
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    assert table.loc[['precision', 'recall', 'coverage'], ['low', 'high']].stack().between(0, 1).all()


def test_one_more_line_adds_a_metric(monkeypatch):
    "It is computed, bounded and reported."
    shift = Metric(lambda real, other, neighbours: float(abs(real.mean() - other.mean())), 0, math.inf, 'lower')
    monkeypatch.setitem(METRICS, 'shift', shift)
    real, other = np.random.default_rng(0).normal(size=(2, 40, 4))
    table = compared(real, other, 40)
    assert table.index[-1] == 'shift'
    assert table.value['shift'] == pytest.approx(abs(real.mean() - other.mean()))
    assert table.low['shift'] >= 0


def test_neighbours_and_resamples_come_from_the_config():
    real, other = np.random.default_rng(0).normal(size=(2, 40, 4))
    config = replace(AUDIT, neighbours=2, fidelity_resamples=3)
    table = compare_features(real, other, 0, config).set_index('metric')
    assert table.value['coverage'] == pytest.approx(prdc(real, other, 2)['coverage'])
    assert table.value['coverage'] != prdc(real, other, 5)['coverage']


def test_undefined_is_none_in_json():
    assert nan_to_none(dict(a=float('nan'), b=[1., np.float64('nan')], c=2)) == dict(a=None, b=[1., None], c=2)
    assert mean_and_quantiles([np.nan, np.nan]) is None
    assert mean_and_quantiles([1, 2, 3, np.nan])[0] == 2


# --- traces of a generator ---

def test_a_planted_fingerprint_is_caught_and_none_is_not(plates):
    "Over eight halvings of the plates: chance halves differ, so the floor is an average."
    images, names = (x[::10] for x in plates)
    changes = dict(none=torch.clone,
                   offset=lambda x: (x.int() + 4).clamp(0, 255).byte(),
                   smooth=lambda x: avg_pool2d(x.float(), 3, 1, 1).byte())
    rows = []
    for i in range(8):
        half = np.isin(names, np.random.default_rng(i).permutation(np.unique(names))[:20])
        rows.append({name: auc(images[half], change(images[~half]), names[half], names[~half], i)
                     for name, change in changes.items()})
    table = pd.DataFrame(rows)
    print(table.describe().round(3))
    assert abs(table.none.mean() - .5) < .08
    assert table[['offset', 'smooth']].min().min() > .95


def test_the_spectrum_finds_the_frequency():
    def wave(cycles):
        row = np.uint8(128 + 60*np.sin(2*np.pi*cycles*np.arange(64)/64))
        return torch.from_numpy(row)[None].expand(64, 64)[None, None]
    assert [radial_spectrum(wave(cycles)).argmax() for cycles in (2, 10, 20, 31)] == [0, 3, 7, 11]
    assert [octave_power(wave(cycles)).argmax() for cycles in (1, 5, 20)] == [0, 2, 4]


def test_radial_power_adds_up_to_the_variance():
    "Parseval: the mean power over all frequencies, weighted by their number, is the sum of squares."
    x = torch.randn(1, 1, 16, 16, generator=torch.manual_seed(0))
    power = torch.fft.fft2(x[0, 0] - x.mean()).abs().square()
    radius = (torch.fft.fftfreq(16)[:, None].square() + torch.fft.fftfreq(16).square()).sqrt()
    sizes = (radius*12).long().clamp(max=5).flatten().bincount(minlength=6)
    assert (radial_power(x)[0]*sizes).sum() == pytest.approx(power.sum().item(), rel=1e-4)


def test_the_probe_is_undefined_for_few_images_or_groups(plates):
    x = plates[0][:30]
    assert np.isnan(auc(x[:7], x[7:], np.arange(7), np.arange(23), 0))
    assert np.isnan(auc(x[:15], x[15:], np.arange(15) % 3, np.arange(15), 0))


def test_features_of_a_black_image_are_finite():
    assert np.isfinite(probe_features(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))).all()
