"""Audits of a study that catch what is planted and leave alone what is not."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import inception_v3

from weldsynth.core.config import StudyError
from weldsynth.models.classifier import Inception, features, probabilities
from weldsynth.stages import audit
from weldsynth.stages.audit import (
    audit_samples,
    filter_samples,
    filter_table,
    filter_thresholds,
    find_copies,
    group_halves,
    judge_probabilities,
    load_judge,
    train_judges,
    unseen_defects,
    unseen_probabilities,
    usable_patches,
)
from weldsynth.stages.data import study_patches, training_fold
from weldsynth.stages.sweep import load_study_samples

# --- judges ---

def test_halves_keep_groups_whole(study):
    fold = training_fold(study)
    half = group_halves(fold, 0)
    assert fold.table.assign(half=half).groupby('group').half.nunique().eq(1).all()
    assert abs(half.mean() - .5) < .2


def test_a_single_group_is_halved_all_the_same(study):
    fold = training_fold(study)
    one_weld = replace(fold, table=fold.table.assign(group='one weld'))
    assert set(group_halves(one_weld, 0)) == {0, 1}


def test_the_halves_are_kept_beside_the_judges(study):
    saved = load_file(train_judges(study).path/'unseen.safetensors')
    assert torch.equal(saved['half'], torch.from_numpy(group_halves(training_fold(study), study.seed)))


@pytest.mark.parametrize('k', [0, 1])
def test_no_judge_has_seen_what_it_judges(study, k):
    fold = training_fold(study)
    unseen = group_halves(fold, study.seed) == k
    own = probabilities(load_judge(study, k), fold.images[unseen])
    assert torch.allclose(own, unseen_probabilities(study)[unseen], atol=1e-4)


def test_unseen_defects_are_those_of_the_first_half(study):
    fold = training_fold(study)
    expected = fold.table.id[(group_halves(fold, study.seed) == 0) & (fold.table.label != 'clean')]
    assert unseen_defects(study).table.id.tolist() == expected.tolist()


# --- copies ---

@pytest.fixture
def stolen(study_copy, monkeypatch):
    "A training image that the second generator gives out, mirrored, as its third sample: its id."
    fold = training_fold(study_copy)
    row = int(np.flatnonzero(fold.table.label != 'clean')[3])
    def thief(study, generator=0):
        drawn = load_study_samples(study, generator)
        if generator == 1: drawn.images[2] = fold.images[row].flip(-1)
        return drawn
    monkeypatch.setattr(audit, 'load_study_samples', thief)
    shutil.rmtree(find_copies(study_copy).path)
    return fold.table.id[row]


def test_a_stolen_training_image_is_counted_and_named(study_copy, stolen):
    rows = pd.read_csv(find_copies(study_copy).path/'copies.csv')
    found = rows.loc[rows.exact, ['generator', 'nearest', 'near']]
    assert found.values.tolist() == [[1, stolen, True]]


def test_copies_stay_in_quarantine(study_copy, stolen):
    rows = pd.read_csv(find_copies(study_copy).path/'copies.csv')
    left = usable_patches(study_copy, 1)
    assert rows.image[rows.exact].iloc[0] not in set(left.table.id)
    assert len(left) == (~rows.near[rows.generator == 1]).sum()


# --- the filter ---

def test_the_filter_is_fitted_on_real_training_defects(study):
    fold, unseen = training_fold(study), unseen_probabilities(study)
    for k, c in enumerate(fold.classes[1:], 1):
        real = unseen[fold.labels == k, k].numpy()
        expected = np.quantile(real, study.config.audit.filter_quantile)
        assert filter_thresholds(study)[c] == pytest.approx(expected, abs=1e-5)


def test_the_filter_keeps_what_passes_and_the_best_of_a_class_with_few(study):
    drawn, least = usable_patches(study), study.config.audit.filter_min_kept
    thresholds = filter_thresholds(study)
    of_intended_class = judge_probabilities(study, drawn.images).gather(1, drawn.labels[:, None])[:, 0]
    score = pd.Series(of_intended_class.numpy(), index=drawn.table.id)
    kept, table = filter_samples(study), filter_table(study).set_index('class')
    for c in drawn.classes[1:]:
        ranked = score[drawn.table.id[drawn.table.label == c]].sort_values(ascending=False)
        passed = int((ranked >= thresholds[c]).sum())
        best = set(ranked.index[:max(least, passed)])
        assert set(kept.of(c).table.id) == best
        assert table.loc[c, ['drawn', 'passed', 'kept']].tolist() == [len(ranked), passed, len(best)]


# --- the whole audit ---

@pytest.fixture(scope='module')
def figures(study):
    def refuse(name): pytest.fail(f'{name} in JSON')
    return json.loads((audit_samples(study).path/'audit.json').read_text(), parse_constant=refuse)


def audit_table(study, name): return pd.read_csv(audit_samples(study).path/f'{name}.csv')


def test_the_audit_has_all_figures_that_the_safeguards_need(figures):
    assert set(figures) == {'exact_copies', 'near_copies', 'heldout_near', 'probe', 'probe_floor', 'gate',
                            'filter_kept', 'label_agreement'}


def test_shares_of_the_audit_are_shares(figures):
    assert figures['exact_copies'] == 0
    assert 0 <= figures['near_copies'] <= 1
    assert 0 < figures['filter_kept'] <= 1


def test_the_gate_has_no_interval_with_so_few_validation_welds(study, figures):
    assert study_patches(study).fold('validation').table.group.nunique() < study.config.rule.least_welds
    assert figures['gate'] is None
    assert audit_table(study, 'gate').ratio.iloc[-1] > 0


def test_macro_f1_of_the_gate_is_the_mean_over_all_classes(study):
    gate = audit_table(study, 'gate')
    by_class = gate[gate['class'] != 'macro']
    assert set(by_class['class']) == set(study_patches(study).classes[1:])
    assert by_class.original.mean() == pytest.approx(gate.original.iloc[-1])


def test_realism_is_measured_for_each_class_and_for_all(study):
    classes = set(study_patches(study).classes[1:])
    assert set(audit_table(study, 'fidelity')['class']) == classes | {'all'}


def test_every_generator_is_filtered_in_every_class(study):
    table = audit_table(study, 'filter')
    classes = study_patches(study).classes[1:]
    assert set(zip(table.generator, table['class'], strict=True)) == {(g, c) for g in (0, 1) for c in classes}


def test_near_copies_are_counted_over_all_generators(study, figures):
    copies = pd.read_csv(find_copies(study).path/'copies.csv')
    assert figures['near_copies'] == pytest.approx(copies.near.mean())
    assert set(copies.generator) == {0, 1}
    assert set(copies.nearest) <= set(training_fold(study).table.id)


# --- Inception ---

@pytest.fixture(scope='module')
def inception_weights(tmp_path_factory):
    file = tmp_path_factory.mktemp('inception')/'inception.safetensors'
    weights = inception_v3(weights=None, init_weights=False).state_dict()
    save_file({name: w.contiguous() for name, w in weights.items()}, file)
    return file


def test_features_of_inception_where_its_weights_are_named(inception_weights):
    images = torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(0))
    seen = features(Inception(inception_weights), images)
    assert seen.shape == (2, 2048)
    assert not np.allclose(seen[0], seen[1], atol=0)


def test_missing_weights_of_inception_are_named(tmp_path):
    with pytest.raises(StudyError, match='does not exist'): Inception(tmp_path/'none.safetensors')


def test_a_file_without_the_weights_of_inception_is_refused(tmp_path):
    (tmp_path/'text.safetensors').write_bytes(b'no weights')
    with pytest.raises(StudyError, match='does not hold the weights'): Inception(tmp_path/'text.safetensors')
