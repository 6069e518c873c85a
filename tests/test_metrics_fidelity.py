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
    nan_to_none,
    nearest_distance,
    nearest_training_image,
    prdc,
    principal_projection,
    thumbnails,
    whitening_matrix,
)
from weldsynth.metrics.fingerprint import (
    Separation,
    _scaled_changes,
    false_call_rise,
    grid_features,
    mean_separation,
    octave_power,
    probe_auc,
    probe_features,
    probe_halves,
    radial_power,
    radial_spectrum,
    separate,
    separation_interval,
)
from weldsynth.models.autoencoder import make_autoencoder, reconstruct
from weldsynth.models.film_noise import add_film_noise, measure_film_noise

AUDIT = AuditConfig()
FEW = replace(AUDIT, fidelity_min_images=8)


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


def compared(real, other, n): return compare_features(real, other, 0, FEW, n).set_index('metric')


def test_an_interval_of_fidelity_contains_its_value_and_shrinks_with_more_images():
    real, other = np.random.default_rng(0).normal(size=(2, 800, 4))
    few, many = (compared(real, other, n) for n in (50, 400))
    assert (few.low <= few.value).all()
    assert (few.value <= few.high).all()
    narrower = (many.high - many.low)/(few.high - few.low)
    assert (narrower[['kid', 'density']] < .7).all()


def test_no_figure_of_realism_is_given_under_fifty_images_a_side():
    real = np.random.default_rng(0).normal(size=(300, 4))
    config = replace(AUDIT, fidelity_resamples=4)
    under = compare_features(real[:49], real[100:], 0, config)
    enough = compare_features(real[:50], real[100:], 0, config)
    assert (under.n == 49).all()
    assert under[['value', 'low', 'high']].isna().all(axis=None)
    assert (enough.n == 50).all()
    assert enough[['value', 'low', 'high']].notna().all(axis=None)


def test_projected_features_keep_the_distances_that_matter():
    "Of 300 features, of which 3 vary: three components keep all distances."
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(300, 3)))[0].T
    real, other = rng.normal(size=(2, 60, 3)) @ mixing
    project = principal_projection(real, 3)
    assert frechet_distance(project(real), project(other)) == pytest.approx(frechet_distance(real, other))
    assert prdc(project(real), project(other), 5) == pytest.approx(prdc(real, other, 5))


def test_there_are_no_more_components_than_images():
    real = np.random.default_rng(0).normal(size=(10, 300))
    assert principal_projection(real, 64)(real).shape == (10, 10)


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
    config = replace(FEW, neighbours=2, fidelity_resamples=3)
    table = compare_features(real, other, 0, config).set_index('metric')
    assert table.value['coverage'] == pytest.approx(prdc(real, other, 2)['coverage'])
    assert table.value['coverage'] != prdc(real, other, 5)['coverage']


def test_undefined_is_none_in_json():
    assert nan_to_none(dict(a=float('nan'), b=[1., np.float64('nan')], c=2)) == dict(a=None, b=[1., None], c=2)


# --- traces of a generator ---

def with_faint_grid(x):
    "Every fourth column and row is brighter by 3 grey levels of 255."
    grid = torch.zeros(x.shape[-2:])
    grid[::4] = grid[:, ::4] = 3
    return (x.float() + grid).clamp(0, 255).byte()


def test_a_planted_fingerprint_is_caught_and_none_is_not(plates):
    "Over eight halvings of the plates: chance halves differ, so the floor is an average."
    images, names = (x[::10] for x in plates)
    changes = dict(none=torch.clone, grid=with_faint_grid,
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
    assert table[['offset', 'smooth', 'grid']].min().min() > .95


def by_grid_alone(images, other, names):
    "AUC of the probe on the columns of the grid alone: each half of the plates against the other half of `other`."
    found = []
    for i in range(8):
        rng = np.random.default_rng(i)
        half = np.isin(names, rng.permutation(np.unique(names))[:20])
        found.append(separate(images[half], other[~half], names[half], names[~half], 4, rng).auc)
    return np.mean(found)


def test_the_grid_alone_gives_the_decoder_away_and_does_not_tell_real_welds_apart(plates):
    "Blocks of 4 x 4 pixels, each decoded by itself, with and without the film noise that samples get."
    images, names = (x[::4] for x in plates)
    decoded = reconstruct(make_autoencoder(images, 8), images)
    grained = add_film_noise(decoded, measure_film_noise(images), range(len(images)), .29)
    seen = grid_features(images)
    found = {title: by_grid_alone(seen, grid_features(x), names)
             for title, x in dict(decoded=decoded, grained=grained, real=images).items()}
    print(found)
    assert min(found['decoded'], found['grained']) > .98
    assert found['real'] == pytest.approx(.5, abs=.08)


@pytest.mark.parametrize('period', [2, 4, 8])
def test_a_grid_is_found_at_its_period_and_on_its_axis(period):
    noise = torch.randint(100, 110, (200, 1, 32, 32), generator=torch.manual_seed(0))
    columns = torch.randint(0, 20, (200, 1, 1, 32//period), generator=torch.manual_seed(1)).repeat_interleave(period, 3)
    at_corner = grid_features((noise + columns).byte()).mean(0).reshape(2, 3, 2)
    shifted = grid_features((noise + columns).roll(1, 3).byte()).mean(0).reshape(2, 3, 2)
    column = [2, 4, 8].index(period)
    assert at_corner[0, :, 0].argmax() == column
    assert np.abs(at_corner[1, :, 0]).max() < .05, 'nothing along y'
    assert shifted[0, column, 0] < at_corner[0, column, 0]/2, 'phase 0 is off the grid'
    assert shifted[0, column, 1] == pytest.approx(at_corner[0, column, 1], rel=.2), 'the strongest phase finds it'


# --- the error of the probe ---

def welds_and_samples(welds, bias, rng, per_weld=10, generators=0, between=.7):
    "Four features of real images, the weld of each, those of as many samples, and the generator of each."
    number = np.repeat(np.arange(welds), per_weld)
    real = between*rng.normal(size=(welds, 4))[number] + rng.normal(size=(len(number), 4))
    samples = (1 + between**2)**.5*rng.normal(size=real.shape) + [bias, 0, 0, 0]
    names = rng.integers(0, generators, len(samples)) if generators else np.arange(len(samples))
    if generators: samples += rng.normal(size=(generators, 4))[names]
    return real, number, samples, names


def intervals(sets, rng, halvings=3):
    "(synthetic, floor), each (auc, low, high)."
    found = [probe_halves(*sets, 4, 8, rng) for _ in range(halvings)]
    return separation_interval([f[1] for f in found], .95), separation_interval([f[2] for f in found], .95)


def test_the_probe_of_two_sets_that_are_apart():
    "Where every pair is in the right order, no weld changes that; one weld on a side cannot be cross-validated."
    a, b = np.array([[0.], [0.], [1.], [1.]]), np.array([[2.], [2.], [3.], [3.]])
    found = separate(a, b, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 4, np.random.default_rng(0))
    assert found.auc == 1
    assert found.welds.tolist() == [0, 0]
    assert found.generators.tolist() == [0, 0]
    assert separate(a, b, np.zeros(4), np.arange(4), 4, np.random.default_rng(0)) is None


def test_the_changes_without_a_weld_by_hand():
    "Wins of 3 in 4, 1 in 4 and 0 in 2 pairs: 4/10 with all welds; 1/6, 3/6 and 4/8 without each."
    changes = _scaled_changes(np.array([2, 1, 1, 0]), np.array([2, 2, 4, 2]), np.array(['a', 'a', 'b', 'c']))
    assert changes.to_dict() == pytest.approx({k: (x - .4)*(2/3)**.5 for k, x in dict(a=1/6, b=.5, c=.5).items()})


def test_clusters_that_parts_share_add_up_and_others_do_not():
    one = Separation(.6, pd.Series([.1, .2], ['a', 'b']), pd.Series([.1], ['g']))
    two = Separation(.8, pd.Series([.3], ['b']), pd.Series([.3], ['g']))
    both = mean_separation([one, two])
    assert both.auc == pytest.approx(.7)
    assert both.welds.to_dict() == pytest.approx(dict(a=.05, b=.25))
    assert both.generators.to_dict() == pytest.approx(dict(g=.2))


def test_the_interval_of_the_probe_by_hand():
    "Three welds (one degree of freedom) and no error of the generators."
    halving = Separation(.7, pd.Series([.03, .0, -.04]), pd.Series([0., 0.]))
    low, high = .7 - 12.706*.05, .7 + 12.706*.05
    assert separation_interval([halving], .95) == pytest.approx((.7, low, min(high, 1)), abs=1e-4)


@pytest.mark.parametrize('welds', [6, 16])
def test_the_interval_of_the_probe_covers(welds):
    "On 60 made-up studies; the truth is their mean. With these numbers 3 standard errors are 8 %."
    studies = []
    for i in range(60):
        rng = np.random.default_rng(i)
        studies.append(intervals(welds_and_samples(welds, 1.5, rng), rng, halvings=2))
    (auc, low, high), (floor, floor_low, floor_high) = np.moveaxis(studies, 0, -1)
    truth = auc.mean()
    coverage = np.mean((low <= truth) & (truth <= high)), np.mean((floor_low <= .5) & (.5 <= floor_high))
    print(f'{welds} welds, AUC {truth:.3f}: coverage {coverage[0]:.3f}; floor {floor.mean():.3f}: {coverage[1]:.3f}')
    assert min(coverage) > .87
    assert floor.mean() == pytest.approx(.5, abs=.06)
    assert truth > .7


def test_more_images_of_the_same_welds_do_not_narrow_the_interval_as_more_welds_do():
    def width(welds, per_weld):
        rng = np.random.default_rng(0)
        found = [intervals(welds_and_samples(welds, 1., rng, per_weld, between=1.5), rng)[0] for _ in range(5)]
        return np.mean([high - low for _, low, high in found])

    few, more_images, more_welds = width(8, 10), width(8, 40), width(32, 10)
    print(few, more_images, more_welds)
    assert more_welds < .7*few
    assert more_images > 1.3*more_welds


def test_generators_that_differ_widen_the_interval():
    def width(generators):
        rng = np.random.default_rng(0)
        found = [intervals(welds_and_samples(16, 1., rng, generators=generators), rng)[0] for _ in range(5)]
        return np.mean([high - low for _, low, high in found])

    assert width(3) > 1.5*width(0)


def test_a_half_with_too_few_images_is_not_probed():
    rng = np.random.default_rng(0)
    assert probe_halves(*welds_and_samples(4, 0., rng, per_weld=3), 4, 8, rng) is None
    assert probe_halves(*welds_and_samples(4, 0., rng, per_weld=4), 4, 8, rng)[0] == 8


def test_the_rise_of_false_calls_is_paired_by_fit_and_weld():
    real = np.array([[[10, 1, 1], [10, 3, 4], [10, 2, 2], [10, 0, 1]],
                     [[10, 0, 2], [10, 1, 1], [10, 5, 5], [10, 2, 1]]])
    assert false_call_rise(real, real + [0, 0, 2], .95, 4) == pytest.approx((.2, .2, .2))
    change, low, high = false_call_rise(real[:, :3], real[:, :3] + [0, 0, 2], .95, 4)
    assert change == pytest.approx(.2)
    assert np.isnan([low, high]).all(), 'three welds have no interval'


def test_a_trace_that_one_weld_in_five_shows_is_not_proven_harmless():
    "More fits on the same welds do not make the welds more."
    rng, holds = np.random.default_rng(0), 0
    for _ in range(200):
        rise = .15*(rng.random(9) < .2)
        counts = np.stack([np.full((6, 9), 100), rng.binomial(100, .02, (6, 9)), rng.binomial(100, .02, (6, 9))], -1)
        with_trace = counts + np.stack([np.zeros((6, 9)), np.zeros((6, 9)), rng.binomial(100, rise, (6, 9))], -1)
        holds += false_call_rise(counts, with_trace.astype(int), .95, 4)[2] <= .02
    assert holds <= 30, 'the true rise is 3 points, over the limit of 2'


# --- spectra ---

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
    assert np.isnan(auc(x[:15], x[15:], np.zeros(15), np.arange(15), 0))


def test_features_of_a_black_image_are_finite():
    assert np.isfinite(probe_features(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))).all()
