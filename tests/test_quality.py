"""Audits that catch what is planted and leave alone what is not."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import inception_v3

from weldsynth import quality
from weldsynth.models.classifier import make_classifier, probabilities
from weldsynth.core.config import PROFILES, StudyError
from weldsynth.core.store import Study
from weldsynth.stages.data import study_patches, training_fold
from weldsynth.data.patches import to_unit
from weldsynth.models.classifier import Inception, features
from weldsynth.stages.audit import MIN_KEPT, audit_samples, filter_samples, filter_table, filter_thresholds, find_copies, group_halves, judge_probabilities, load_judge, train_judges, unseen_probabilities, usable_patches
from weldsynth.stages.sweep import load_study_samples


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A study of fixture size with two generators."
    return Study('quality', tmp_path_factory.mktemp('quality'), replace(PROFILES['fixture'], generators=2))


@pytest.mark.parametrize('kind', ['small', 'resnet18'])
def test_features_are_what_the_last_layer_sees(kind):
    net, images = make_classifier(kind, 4).eval(), torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))
    last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert torch.allclose(last(torch.from_numpy(features(net, images))), net(to_unit(images)), atol=1e-5)


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
