"""Audits that catch what is planted and leave alone what is not."""
import io, json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from sklearn.metrics import pairwise_distances
from torchvision.models import inception_v3

from weldsynth import quality
from weldsynth.models.classifier import make_classifier, probabilities
from weldsynth.core.config import PROFILES, StudyError
from weldsynth.core.store import Study
from weldsynth.data.images import window
from weldsynth.stages.data import study_patches, training_fold
from weldsynth.data.patches import mirror_images, to_unit
from weldsynth.metrics.fidelity import compare_features, copy_threshold, flag_copies, frechet_distance, kid, mean_and_quantiles, nan_to_none, nearest_training_image, prdc, thumbnails, whitening_matrix
from weldsynth.metrics.fingerprint import probe_auc, probe_features, radial_spectrum
from weldsynth.models.classifier import Inception, features
from weldsynth.stages.audit import MIN_KEPT, audit_samples, filter_samples, filter_table, filter_thresholds, find_copies, group_halves, judge_probabilities, load_judge, train_judges, unseen_probabilities, usable_patches
from weldsynth.data.simulate import simulate
from weldsynth.stages.sweep import load_study_samples


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


def softened(x):
    "What a decoder does to grain."
    return torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x.float(), 2), scale_factor=2, mode='bilinear').byte()


CHANGES = {'none': lambda x: x, 'mirrored': lambda x: x.flip(-1), 'turned': lambda x: x.flip(-1, -2), 'brighter': lambda x: (x.float()*.8 + 30).byte(), 'noise': lambda x: noisy(x, 5), 'JPEG': jpeg,
           'film curve': lambda x: ((x.float()/255)**.7*255).byte(), 'softened': softened, 'softened, mirrored': lambda x: softened(x.flip(-2))}


def test_planted_copies_are_caught_and_held_out_reals_are_not(plates):
    "5 % copies among held-out reals, changed in nine ways: all are caught, and at most 1 % of the reals that set no threshold are flagged."
    images, names = plates
    train, first, rest = (images[np.isin(names, np.unique(names)[some])] for some in (slice(0, 20), slice(20, 30), slice(30, 40)))
    threshold = copy_threshold(nearest(first, train).distance)
    flagged = flag_copies(nearest(rest, train), threshold).near.mean()
    n = len(rest)//20
    caught = {}
    for i, (what, change) in enumerate(CHANGES.items()):
        found = nearest(change(train[i*n:(i + 1)*n]), train)
        caught[what] = flag_copies(found, threshold).near.mean()
        assert found.exact.all() == (what in ('none', 'mirrored', 'turned')), what
        assert (found.row == np.arange(i*n, (i + 1)*n)).mean() > .99
    print(f'caught {caught}; {100*flagged:.2f} % of {len(rest)} held-out reals flagged')
    assert set(caught.values()) == {1.} and flagged <= .01


def test_the_search_in_neighbourhoods_misses_no_near_one(plates):
    "Against a comparison with all: the nearest twentieth is found as it is, and the rest is at most a little farther."
    images, _ = plates
    base, query = images[:2400], images[2400:]
    small = reduced(base)
    project = lambda x: torch.nn.functional.normalize(x.flatten(1) @ whitening(small))
    true = 1 - torch.stack([project(x) @ project(small).T for x in mirror_images(reduced(query))]).amax((0, 2)).numpy()
    missed = nearest(query, base).distance.to_numpy() - true
    print(f'{100*(missed > 1e-4).mean():.1f} % of the nearest are missed, by {missed.max():.3f} at most, of a median distance of {np.median(true):.3f}')
    assert missed.min() > -1e-4 and (missed > 1e-4).mean() < .1
    assert missed[true < np.quantile(true, .05)].max() < 1e-4


def test_a_planted_fingerprint_is_caught_and_none_is_not(plates):
    "Over eight halvings of the plates: chance halves differ, so the floor is an average."
    images, names = (x[::10] for x in plates)
    changes = dict(none=torch.clone, offset=lambda x: (x.int() + 4).clamp(0, 255).byte(), smooth=lambda x: torch.nn.functional.avg_pool2d(x.float(), 3, 1, 1).byte())
    auc = {what: [] for what in changes}
    for i in range(8):
        half = np.isin(names, np.random.default_rng(i).permutation(np.unique(names))[:20])
        for what, change in changes.items(): auc[what].append(probe_auc(images[half], change(images[~half]), names[half], names[~half], i))
    print({what: np.round([np.mean(x), np.min(x), np.max(x)], 3) for what, x in auc.items()})
    assert abs(np.mean(auc['none']) - .5) < .08 and min(auc['offset'] + auc['smooth']) > .95


def test_kid_is_zero_on_average_between_equal_sets_and_frechet_is_not():
    rng = np.random.default_rng(0)
    kids, distances = zip(*((kid(*x), frechet_distance(*x)) for x in (rng.normal(size=(2, 100, 8)) for _ in range(50))))
    assert abs(np.mean(kids)) < 3*np.std(kids)/50**.5 and np.mean(distances) > .3, 'unbiased, and biased by few images'


def test_prdc_against_a_loop():
    rng = np.random.default_rng(0)
    real, fake, k = rng.normal(size=(40, 3)), rng.normal(.5, 1, (30, 3)), 4
    rr, ff, rf = (pairwise_distances(*p) for p in ((real, real), (fake, fake), (real, fake)))
    r, f = [sorted(row)[k] for row in rr], [sorted(row)[k] for row in ff]
    inside = [[rf[i, j] < r[i] for i in range(40)] for j in range(30)]
    want = dict(precision=np.mean([any(x) for x in inside]), recall=np.mean([any(rf[i, j] < f[j] for j in range(30)) for i in range(40)]),
                density=np.sum(inside)/k/30, coverage=np.mean([min(rf[i]) < r[i] for i in range(40)]))
    assert prdc(real, fake, k) == pytest.approx(want)


def test_an_interval_of_fidelity_holds_its_value_and_shrinks_with_more_images():
    rng = np.random.default_rng(0)
    real, other = rng.normal(size=(2, 800, 4))
    few, many = (compare_features(real, other, 0, n).set_index('metric') for n in (50, 400))
    assert (few.low <= few.value).all() and (few.value <= few.high).all()
    assert ((many.high - many.low)[['kid', 'density']] < .7*(few.high - few.low)[['kid', 'density']]).all()
    assert compare_features(real[:5], other[:5], 0).value.isna().all()
    edge = compare_features(real[:20], real[20:400], 0, 20)
    assert (edge.low <= edge.value).all() and (edge.value <= edge.high).all() and edge[edge.metric.isin(['precision', 'recall', 'coverage'])][['low', 'high']].stack().between(0, 1).all()


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A study of fixture size with two generators."
    return Study('quality', tmp_path_factory.mktemp('quality'), replace(PROFILES['fixture'], generators=2))


def test_frechet_of_normals_has_a_closed_form():
    one, two = np.array([[-1.], [0.], [1.]]), np.array([[1.], [4.], [7.]])  # means 0 and 4, standard deviations 1 and 3
    assert frechet_distance(one, two) == pytest.approx(4**2 + (3 - 1)**2)
    assert frechet_distance(two, two) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize('n, m', [(400, 300), (7, 9)], ids=['many', 'fewer images than features'])
def test_frechet_agrees_with_the_matrix_root(n, m):
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (n, 12)), rng.normal(.3, 1, (m, 12)) @ rng.normal(size=(12, 12))
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = sqrtm(sqrtm(ca).real @ cb @ sqrtm(ca).real).real
    assert frechet_distance(a, b) == pytest.approx(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2*root), rel=1e-4)


def test_kid_by_hand():
    a, b = np.array([[0.], [1.]]), np.array([[1.], [2.]])  # kernel (xy + 1)^3: within a 1, within b 27, across 1, 1, 8, 27
    assert kid(a, b) == pytest.approx(1 + 27 - 2*(1 + 1 + 8 + 27)/4)


def test_prdc_on_a_line():
    real = np.arange(6.)[:, None]  # balls of radius 1 about reals; of 2.5, 2.5, 1 and 1 about fakes
    assert prdc(real, np.array([[.2], [2.7], [50.], [51.]]), k=1) == dict(precision=.5, recall=1., density=1., coverage=pytest.approx(4/6))
    assert list(prdc(real, real + 1000, k=2).values()) == [0, 0, 0, 0]


@pytest.mark.parametrize('kind', ['small', 'resnet18'])
def test_features_are_what_the_last_layer_sees(kind):
    net, images = make_classifier(kind, 4).eval(), torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert torch.allclose(last(torch.from_numpy(features(net, images))), net(to_unit(images)), atol=1e-5)


def test_an_exact_copy_is_known_also_beside_its_paler_double(plates):
    images = plates[0][:20]
    base = torch.cat([images[:1]//2 + 60, images])
    assert nearest(images[:1].flip(-2), base).exact.all() and not nearest(images[:1]//2, base).exact.any()


def test_a_black_image_is_no_copy_and_no_nan(plates):
    found = nearest(torch.zeros(1, 1, 64, 64, dtype=torch.uint8), plates[0][:20])
    assert found.distance[0] == pytest.approx(1) and not found.exact[0]


def test_the_threshold_is_a_low_quantile_with_a_margin():
    assert copy_threshold(np.arange(201.)/200, share=.005, margin=.8) == pytest.approx(.8*.005)


def test_the_spectrum_finds_the_frequency():
    wave = lambda cycles: torch.from_numpy(np.uint8(128 + 60*np.sin(2*np.pi*cycles*np.arange(64)/64)))[None].expand(64, 64)[None, None]
    assert [radial_spectrum(wave(c)).argmax() for c in (2, 10, 20, 31)] == [0, 3, 7, 11]


def test_the_probe_is_undefined_for_few_images_or_groups(plates):
    x = plates[0][:30]
    assert np.isnan(probe_auc(x[:7], x[7:], np.arange(7), np.arange(23), 0)) and np.isnan(probe_auc(x[:15], x[15:], np.arange(15) % 3, np.arange(15), 0))
    assert np.isfinite(probe_features(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))).all()


def test_what_is_undefined_is_none_in_json():
    assert no_nan(dict(a=float('nan'), b=[1., np.float64('nan')], c=2)) == dict(a=None, b=[1., None], c=2)
    assert mean_and_range([np.nan, np.nan]) is None and mean_and_range([1, 2, 3, np.nan])[0] == 2


def test_halves_keep_groups_whole(study):
    fold = training_fold(study)
    half = group_halves(fold, 0)
    assert (fold.table.assign(half=half).groupby('group').half.nunique() == 1).all() and abs(half.mean() - .5) < .2
    assert set(group_halves(replace(fold, table=fold.table.assign(group='one weld')), 0)) == {0, 1}


def test_no_judge_has_seen_what_it_judges(study):
    fold, kept = training_fold(study), load_file(train_judges(study).path/'unseen.safetensors')
    assert torch.equal(kept['half'], torch.from_numpy(group_halves(fold, study.seed)))
    for k in (0, 1):
        mine = kept['half'].numpy() == k
        assert torch.allclose(probabilities(load_judge(study, k), fold.images[mine]), unseen_probabilities(study)[mine], atol=1e-4)


def test_copies_stay_in_quarantine(study, monkeypatch):
    "A generator that hands out a training image, mirrored: it is counted, named and left out."
    fold, make = training_fold(study), Study.make
    stolen = int(np.flatnonzero(fold.table.label != 'clean')[3])
    def thief(study, generator=0):
        drawn = load_study_samples(study, generator)
        if generator == 1: drawn.images[2] = fold.images[stolen].flip(-1)
        return drawn
    monkeypatch.setattr(quality, 'synthetic_patches', thief)
    monkeypatch.setattr(Study, 'make', lambda self, stage, *args, **config: make(self, stage, *args, **config, **(dict(thief=True) if stage == 'eval/copies' else {})))
    rows = pd.read_csv(find_copies(study).path/'copies.csv')
    caught, left = rows[rows.exact], usable_patches(study, 1)
    assert caught[['generator', 'nearest', 'near']].values.tolist() == [[1, fold.table.id[stolen], True]]
    assert caught.image.iloc[0] not in set(left.table.id) and len(left) == (~rows.near[rows.generator == 1]).sum()


def test_the_filter_is_fitted_on_real_training_defects(study):
    fold, limits = training_fold(study), filter_thresholds(study)
    drawn, kept, table = usable_patches(study), filter_samples(study), filter_table(study).set_index('class')
    score = pd.Series(judged(study, drawn.images).gather(1, drawn.labels[:, None])[:, 0].numpy(), index=drawn.table.id)
    for k, c in enumerate(fold.classes[1:], 1):
        real = unseen_probabilities(study)[fold.labels == k, k].numpy()
        assert limits[c] == pytest.approx(np.quantile(real, .1), abs=1e-5)
        mine = score[drawn.table.id[drawn.table.label == c]].sort_values(ascending=False)
        passed = int((mine >= limits[c]).sum())
        best = set(mine.index[:max(MIN_KEPT, passed)])
        assert set(kept.of(c).table.id) == best and table.loc[c, ['drawn', 'passed', 'kept']].tolist() == [len(mine), passed, len(best)]


def test_the_audit_is_whole_at_fixture_size(study):
    folder = audit_samples(study).path
    found = json.loads((folder/'audit.json').read_text(), parse_constant=lambda name: pytest.fail(f'{name} in JSON'))
    assert set(found) == {'exact_copies', 'near_copies', 'heldout_near', 'probe', 'probe_floor', 'gate', 'filter_kept', 'label_agreement'} and found['exact_copies'] == 0
    assert 0 <= found['near_copies'] <= 1 and 0 < found['filter_kept'] <= 1 and found['gate'][1] < found['gate'][2]
    classes = set(study_patches(study).classes[1:])
    gate, filters, fidelity = (pd.read_csv(folder/f'{t}.csv') for t in ('gate', 'filter', 'fidelity'))
    assert set(gate['class']) == classes | {'macro'} and set(fidelity['class']) == classes | {'all'}
    assert set(zip(filters.generator, filters['class'])) == {(g, c) for g in (0, 1) for c in classes}
    ratio, low, high = found['gate']
    assert ratio == pytest.approx(gate.ratio.iloc[-1]) and low <= ratio <= high
    assert gate.original[gate['class'] != 'macro'].mean() == pytest.approx(gate.original.iloc[-1]), 'every class is there'
    copies = pd.read_csv(find_copies(study).path/'copies.csv')
    assert found['near_copies'] == pytest.approx(copies.near.mean()) and set(copies.generator) == {0, 1} and set(copies.nearest) <= set(training_fold(study).table.id)


def test_features_of_inception_where_its_weights_are_named(tmp_path, monkeypatch):
    save_file({k: v.contiguous() for k, v in inception_v3(weights=None, init_weights=False).state_dict().items()}, tmp_path/'inception.safetensors')
    net = Inception(tmp_path/'inception.safetensors')
    seen = features(net, torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8))
    assert seen.shape == (2, 2048) and not np.allclose(seen[0], seen[1], atol=0)
    with pytest.raises(StudyError, match='does not exist'): Inception(tmp_path/'none.safetensors')
    (tmp_path/'text.safetensors').write_bytes(b'no weights')
    with pytest.raises(StudyError, match='does not hold the weights'): Inception(tmp_path/'text.safetensors')
