"""Audits of a study that catch what is planted and leave alone what is not."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import inception_v3

from weldsynth.core.config import ClassifierConfig, OptimiserConfig, RuleConfig, StudyError
from weldsynth.data.patches import PatchSet
from weldsynth.data.simulate import CLASSES, simulate
from weldsynth.data.split import group_halves
from weldsynth.metrics.fingerprint import false_call_rise
from weldsynth.metrics.rule import guard_autoencoded
from weldsynth.models.backbone import Inception
from weldsynth.models.classifier import penultimate, probabilities
from weldsynth.models.fits import fit_all
from weldsynth.stages import audit
from weldsynth.stages.audit import (
    FIDELITY_COLUMNS,
    PROBE_COLUMNS,
    _figure,
    audit_samples,
    feature_extractors,
    filter_samples,
    filter_table,
    filter_thresholds,
    fingerprint,
    judge_probabilities,
    load_judge,
    study_copies,
    train_judges,
    unseen_defects,
    unseen_probabilities,
)
from weldsynth.stages.data import study_patches, training_fold
from weldsynth.stages.sweep import usable_patches

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
    assert set(figures) == {'exact_copies', 'near_copies', 'heldout_near', 'near_added', 'near_added_df', 'probe',
                            'probe_floor', 'gate', 'gate_df',
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


def test_realism_names_its_number_of_images_and_gives_no_figure_under_the_limit(study):
    table = audit_table(study, 'fidelity')
    assert list(table.columns) == FIDELITY_COLUMNS
    limit = study.config.audit.fidelity_min_images
    few, enough = table[table.n < limit], table[table.n >= limit]
    assert few[['value', 'floor']].isna().all(axis=None)
    assert enough[['value', 'floor']].notna().all(axis=None)
    assert len(enough)


def test_a_feature_extractor_is_a_function_of_images(study):
    images = training_fold(study).images[:3]
    for extract in feature_extractors(study).values():
        values = extract(images)
        assert values.ndim == 2
        assert len(values) == 3


# --- the probe ---

def test_the_probe_has_a_row_for_each_class_and_for_all(study, figures):
    table = audit_table(study, 'probe').set_index('class')
    assert list(table.index) == [*study_patches(study).classes[1:], 'all']
    assert table.columns.tolist() == PROBE_COLUMNS[1:]
    measured = table.drop('all')
    assert table.auc['all'] == pytest.approx(measured.auc.mean())
    assert table.floor['all'] == pytest.approx(measured.floor.mean())
    assert table.n['all'] == measured.n.sum()
    assert figures['probe'] == pytest.approx(table.loc['all', ['auc', 'low', 'high']].tolist())
    assert figures['probe_floor'] == pytest.approx(table.loc['all', ['floor', 'floor_low', 'floor_high']].tolist())


def on_welds(fold, welds):
    "`fold` as if its cracks came from so many welds."
    table = fold.table.copy()
    cracks = np.flatnonzero(table.label == 'crack')
    table.loc[table.index[cracks], 'group'] = [f'weld {i % welds}' for i in range(len(cracks))]
    return replace(fold, table=table)


@pytest.mark.parametrize(('welds', 'has_figure'), [(3, False), (4, True)])
def test_a_class_on_too_few_welds_gets_no_figure_of_the_probe(study, monkeypatch, welds, has_figure):
    fold = on_welds(training_fold(study), welds)
    monkeypatch.setattr(audit, 'training_fold', lambda study: fold)
    table = fingerprint(study).set_index('class')
    figures = table[['auc', 'low', 'high', 'floor', 'floor_low', 'floor_high']]
    assert table.welds['crack'] == welds
    assert figures.loc['crack'].notna().all() == has_figure
    assert figures.drop('crack').notna().all(axis=None)


def test_without_welds_there_is_no_figure_at_all(study, monkeypatch):
    fold = training_fold(study)
    one_weld = replace(fold, table=fold.table.assign(group='one weld'))
    monkeypatch.setattr(audit, 'training_fold', lambda study: one_weld)
    table = fingerprint(study)
    assert table.drop(columns=['class', 'n', 'welds']).isna().all(axis=None)
    assert _figure(table.loc[0, ['auc', 'low', 'high']]) is None


def test_a_class_without_samples_gets_no_figure_of_the_probe(study, monkeypatch):
    "All may have been near copies."
    drawn = usable_patches(study)
    monkeypatch.setattr(audit, 'usable_patches', lambda study, g=0: drawn.take(drawn.table.label != 'crack'))
    table = fingerprint(study).set_index('class')
    assert table.loc['crack', ['auc', 'low', 'high', 'floor', 'floor_low', 'floor_high']].isna().all()
    assert table.drop('crack').auc.notna().all()


def simulated(defects, cleans, seed):
    "Patches of 32 px on 12 plates."
    shots = simulate(defects, cleans, 12, 32, seed=seed)
    names = [f'{seed}/{i}' for i in range(len(shots.labels))]
    table = pd.DataFrame(dict(id=names, label=shots.labels, group=shots.plates, film=shots.plates, size=np.nan))
    return PatchSet(torch.from_numpy(shots.images)[:, None], table.assign(origin='real'), CLASSES)


def with_grid(patches, level):
    "Every fourth row and column is brighter by `level` grey levels."
    lines = torch.zeros(32, 32)
    lines[::4] = lines[:, ::4] = level
    return replace(patches, images=(patches.images + lines).round().clamp(0, 255).byte())


@pytest.fixture
def probed(study, monkeypatch):
    "Grid, grey levels -> the probe's row of all classes, where samples are real images of other welds with that grid."
    def row(level):
        monkeypatch.setattr(audit, 'training_fold', lambda study: simulated(400, 0, seed=1))
        monkeypatch.setattr(audit, 'usable_patches', lambda study, g=0: with_grid(simulated(200, 0, seed=2 + g), level))
        return fingerprint(study).set_index('class').loc['all']

    return row


def test_real_images_with_a_faint_grid_are_told_from_real_ones(probed):
    all_classes = probed(4)
    assert all_classes.auc > .95
    assert all_classes.low > all_classes.floor_high


def test_real_images_of_other_welds_are_not_told_from_real_ones(probed):
    all_classes = probed(0)
    assert all_classes.low < .5 < all_classes.high
    assert all_classes.floor_low < .5 < all_classes.floor_high


# --- does a classifier use the trace? ---

def made_welds(defects, cleans, seed):
    "Simulated patches, clean or flawed."
    patches = simulated(defects, cleans, seed)
    labels = np.where(patches.table.label == 'clean', 'clean', 'flaw')
    return replace(patches, table=patches.table.assign(label=labels), classes=('clean', 'flaw'))


def with_trace(patches, level):
    "Each block of 4 x 4 pixels is brighter or darker, with a standard deviation of `level` grey levels."
    blocks = level*torch.randn(len(patches), 1, 8, 8, generator=torch.manual_seed(0))
    images = patches.images + blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    return replace(patches, images=images.round().clamp(0, 255).byte())


@pytest.fixture(scope='module')
def false_calls(tmp_path_factory):
    """Training set -> counts of three fits by weld: fits x welds x 4.

    They are of clean patches, and of those called flawed as they are, with the clear trace and with the faint one."""
    real, unseen = made_welds(300, 500, seed=1), made_welds(0, 400, seed=2)
    defects, cleans = made_welds(300, 0, seed=3), made_welds(0, 300, seed=4)
    sets = {'real': real, 'trace on defects': real + with_trace(defects, 5), 'faint': real + with_trace(defects, 1),
            'trace on all': real + with_trace(defects, 5) + with_trace(cleans, 5)}
    shown = unseen + with_trace(unseen, 5) + with_trace(unseen, 1)
    config = ClassifierConfig(kind='small', steps=200, batch=32, lr=5e-3)
    counts, welds = {name: [] for name in sets}, pd.factorize(unseen.table.group)[0]
    jobs = [(name, s) for name in sets for s in range(3)]
    resume = tmp_path_factory.mktemp('fits')
    for name, _, _, probs in fit_all(sets, jobs, config, OptimiserConfig(), shown, 'fits', resume):
        called = (probs.argmax(1) > 0).numpy().reshape(3, -1)
        counts[name].append(np.stack([np.bincount(welds, x) for x in (np.ones(len(welds)), *called)], -1))
    return {name: np.stack(c) for name, c in counts.items()}


def short_cut(false_calls, name, trace):
    "The safeguard's outcome and the rise of false calls through that trace."
    columns = [0, 1, 1 + trace]
    change = false_call_rise(false_calls['real'][..., columns], false_calls[name][..., columns], .95, 4)
    return guard_autoencoded(change, RuleConfig()).outcome, change[0]


def test_a_trace_on_synthetic_defects_alone_is_learnt_as_a_flaw(false_calls):
    outcome, rise = short_cut(false_calls, 'trace on defects', 1)
    assert outcome == 'fails'
    assert rise > .5


def test_a_faint_trace_does_no_harm(false_calls):
    outcome, rise = short_cut(false_calls, 'faint', 2)
    assert outcome != 'fails'
    assert rise < RuleConfig().most_autoencoded_added


def test_a_trace_on_synthetic_cleans_too_is_not_learnt_as_a_flaw(false_calls):
    "Three fits leave an error of some points, so the rise is compared with that of the harmful set."
    outcome, rise = short_cut(false_calls, 'trace on all', 1)
    assert outcome != 'fails'
    assert rise < short_cut(false_calls, 'trace on defects', 1)[1]/5


# --- the filter, over all generators ---

def test_every_generator_is_filtered_in_every_class(study):
    table = audit_table(study, 'filter')
    classes = study_patches(study).classes[1:]
    assert set(zip(table.generator, table['class'], strict=True)) == {(g, c) for g in (0, 1) for c in classes}


def test_near_copies_are_counted_over_all_generators(study, figures):
    found, _ = study_copies(study)
    assert figures['near_copies'] == pytest.approx(found.near.mean())
    assert set(found.generator) == {0, 1}
    assert set(found.nearest) <= set(training_fold(study).table.id)


# --- Inception ---

@pytest.fixture(scope='module')
def inception_weights(tmp_path_factory):
    file = tmp_path_factory.mktemp('inception')/'inception.safetensors'
    weights = inception_v3(weights=None, init_weights=False).state_dict()
    save_file({name: w.contiguous() for name, w in weights.items()}, file)
    return file


def test_features_of_inception_where_its_weights_are_named(inception_weights):
    images = torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(0))
    seen = penultimate(Inception(inception_weights), images)
    assert seen.shape == (2, 2048)
    assert not np.allclose(seen[0], seen[1], atol=0)


def test_missing_weights_of_inception_are_named(tmp_path):
    with pytest.raises(StudyError, match='does not exist'): Inception(tmp_path/'none.safetensors')


def test_a_file_without_the_weights_of_inception_is_refused(tmp_path):
    (tmp_path/'text.safetensors').write_bytes(b'no weights')
    with pytest.raises(StudyError, match='does not hold the weights'): Inception(tmp_path/'text.safetensors')
