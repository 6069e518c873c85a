"""Worst errors, scores by segment, curves with intervals, and labels to doubt."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from weldsynth.core.config import StudyError
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import PROFILES
from weldsynth.metrics.errors import (
    RATES,
    curve_bands,
    plant_wrong_labels,
    segment_labels,
    segment_scores,
    suspect_labels,
    worst_false_calls,
    worst_misses,
)
from weldsynth.stages.arms import fit_arms, study_arms, test_predictions as predictions_of, tested_patches as patches_of
from weldsynth.stages.data import study_patches, training_fold
from weldsynth.stages.errors import cross_validated, error_figure, error_table, find_suspects, suspect_table, weld_folds

ARM = 'real+synthetic'


@pytest.fixture(scope='module')
def fold(study): return patches_of(study)


@pytest.fixture(scope='module')
def predictions(study): return predictions_of(study)



# --- the worst errors ---

def test_the_worst_miss_is_the_missed_flaw_that_looks_cleanest(fold, predictions):
    p = predictions[ARM]
    misses = worst_misses(fold, p, len(fold))
    missed = (fold.labels.numpy() > 0) & ((p.predicted > 0).mean(0) < .5)
    assert set(misses.row) == set(np.flatnonzero(missed))
    assert misses.flaw_probability.is_monotonic_increasing
    assert misses.flaw_probability[0] == pytest.approx(1 - p.probs.mean(0)[missed, 0].max())
    assert (fold.table.label.to_numpy()[misses.row] == misses.label).all()


def test_false_calls_are_clean_patches_that_most_classifiers_call(fold, predictions):
    calls = worst_false_calls(fold, predictions[ARM], len(fold))
    assert (calls.label == 'clean').all()
    assert (calls.called_by > .5*len(predictions[ARM].predicted)).all()
    assert calls.flaw_probability.is_monotonic_decreasing


def test_no_more_errors_are_listed_than_asked_for(fold, predictions):
    assert len(worst_misses(fold, predictions[ARM], 2)) == 2


def test_each_picture_has_its_number_and_class(fold, predictions):
    misses = worst_misses(fold, predictions[ARM], 4)
    titles = [ax.get_title() for ax in error_figure(fold, misses).axes][:4]
    assert titles == [f'{i}. {label.replace("_", " ")}' for i, label in enumerate(misses.label, 1)]


def test_the_table_of_errors_has_units_and_the_number_of_calls(fold, predictions):
    table = error_table(worst_misses(fold, predictions[ARM], 3), 'mm', 2)
    assert list(table) == ['no.', 'class', 'size, mm', 'score, %', 'called flawed by', 'weld', 'patch']
    assert set(table['called flawed by']) <= {'0 of 2'}, 'at half of two, most do not miss it'


# --- by segment ---

def test_the_flaws_of_all_welds_and_of_all_thirds_are_those_of_the_fold(study, fold, predictions):
    table = segment_scores(fold, {ARM: predictions[ARM]}, study.config.rule)
    flaws = table[table.metric == 'found_any'].groupby('by').flaws.sum()
    assert set(flaws) == {int((fold.labels > 0).sum())}
    assert set(flaws.index) == set(segment_labels(fold))


def test_a_weld_has_the_share_of_its_own_flaws_found_and_no_interval(study, fold, predictions):
    table = segment_scores(fold, {ARM: predictions[ARM]}, study.config.rule)
    weld = fold.table.group[0]
    own = (fold.table.group == weld).to_numpy() & (fold.labels > 0).numpy()
    row = table[(table.segment == weld) & (table.metric == 'found_any')].iloc[0]
    assert row['mean'] == pytest.approx((predictions[ARM].predicted[:, own] > 0).mean())
    assert np.isnan(row.low)


# --- curves ---

def test_curves_are_those_of_scikit_learn(study, fold, predictions):
    p = predictions['real']
    bands = curve_bands(fold, {'real': p}, study.config.rule)
    each = []
    for probs in p.probs:
        false_call_rate, found, _ = roc_curve(fold.labels > 0, 1 - probs[:, 0])
        each.append([found[false_call_rate <= rate + 1e-9].max() for rate in RATES])
    assert np.allclose(bands.found, np.mean(each, 0))


def test_with_every_flaw_called_precision_is_the_prevalence(study, fold, predictions):
    bands = curve_bands(fold, {'real': predictions['real']}, study.config.rule)
    assert bands.precision.iloc[-1] == pytest.approx(study.config.rule.prevalence)


# --- curves of training ---

def test_every_fit_has_a_curve_that_ends_at_its_last_step(study):
    training = pd.read_csv(fit_arms(study).path/'training.csv')
    last = training.groupby(['arm', 'seed']).step.max()
    assert set(training.arm) == set(study_arms(study))
    assert set(last) == {study.config.classifier.steps}
    assert len(last) == len(study_arms(study))*study.config.classifier.seeds


# --- labels to doubt ---

def test_a_label_that_no_class_outdoes_is_not_doubted():
    probs = np.array([[.9, .1], [.6, .4], [.2, .8]])
    assert suspect_labels(probs, np.array([0, 0, 1])).empty


def test_a_class_without_images_is_never_suggested():
    probs = np.array([[.1, .1, .8], [.1, .2, .7]])
    assert 2 not in set(suspect_labels(probs, np.array([0, 1])).suggested)


def test_no_weld_is_split_by_the_cross_validation(study):
    train = training_fold(study)
    number = weld_folds(train, 4)
    assert pd.Series(number).groupby(train.table.group.to_numpy()).nunique().max() == 1
    assert set(number) == {0, 1, 2, 3}


def test_labels_of_a_single_weld_cannot_be_checked(study):
    train = training_fold(study)
    one = train.take((train.table.group == train.table.group[0]).to_numpy())
    with pytest.raises(StudyError, match='there is one weld'): weld_folds(one, 4)


def test_a_class_of_one_fold_is_not_judged(study, tmp_path):
    train = training_fold(study)
    rare = train.table.label.eq('crack') & train.table.group.ne(train.table.group[train.table.label == 'crack'].iloc[0])
    train = train.take((~rare).to_numpy())
    config = replace(study.config.classifier, steps=2)
    probs, known = cross_validated(train, config, study.config.optimiser, 2, 0, tmp_path)
    assert set(train.table.label[~known]) == {'crack'}
    assert 'crack' not in set(suspect_table(train, probs, known).label)


def test_only_training_images_are_doubted(study_copy):
    suspects = pd.read_csv(find_suspects(study_copy).path/'suspects.csv')
    outside = study_patches(study_copy).table.query("fold != 'train'").id
    assert not set(suspects.id) & set(outside)


@pytest.mark.slow
def test_planted_wrong_labels_are_found_far_above_chance(tmp_path):
    "5 % of the labels of simulated patches are made wrong: of as many most doubted ones, at least a quarter are."
    demo = PROFILES['demo']
    small = {'data.px': 32, 'data.defects': 800, 'data.cleans': 800, 'data.plates': 24, 'classifier.backbone_px': 64,
             'classifier.views': 1}
    train = training_fold(open_study('planted', profile='demo', overrides=small))
    planted = plant_wrong_labels(train.labels.numpy(), .05, len(train.classes), np.random.default_rng(0))
    labels = [train.classes[k] for k in planted.labels]
    wrong = replace(train, table=train.table.assign(label=labels))
    config = replace(demo.classifier, backbone_px=64, views=1, steps=300)
    probs, known = cross_validated(wrong, config, demo.optimiser, demo.suspects.folds, 0, tmp_path)
    suspects = suspect_table(wrong, probs, known)
    top = suspects.row[:planted.wrong.sum()]
    precision, recall = planted.wrong[top].mean(), planted.wrong[suspects.row].mean()
    print(f'precision {precision:.2f} of the first {len(top)}, {recall:.2f} of all {len(suspects)}, chance .05')
    assert precision > .25
