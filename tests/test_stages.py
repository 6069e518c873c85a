"""What the stages compute for a finished study of fixture size, checked against simpler ways to the same figures."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from weldsynth.core.config import AutoencoderConfig, SnapshotConfig, StudyConfig, SweepConfig
from weldsynth.core.store import STAGES, Artefact, Stage
from weldsynth.data.sources import Source
from weldsynth.metrics.classification import macro_f1
from weldsynth.metrics.intervals import jackknife
from weldsynth.metrics.rule import GUARDS, assess_guards, is_clear
from weldsynth.metrics.tables import Predictions, brier_sums, calibrations, detection, fold_counts
from weldsynth.models.film_noise import FilmNoise
from weldsynth.stages.arms import draw_study_cleans, study_arms, test_predictions as predictions_of
from weldsynth.stages.audit import autoencoder_gate, feature_extractors
from weldsynth.stages.data import study_patches, study_source, training_fold
from weldsynth.stages.ldm import load_film_noise
from weldsynth.stages.sample import GENERATORS, LatentDiffusion, draw_cleans, load_samples
from weldsynth.stages.sweep import fit_learning_curve, fraction_sets, selected, selected_guidance, sweep_guidance
from weldsynth.stages.verdict import autoencoded_change, brier_ratio, film_gain, study_evidence

@pytest.fixture(scope='module')
def predictions(study): return predictions_of(study)


@pytest.fixture(scope='module')
def fold(study): return study_patches(study).fold('test')


@pytest.fixture(scope='module')
def results(fold, predictions): return jackknife(fold_counts(fold, predictions), predictions['real'].generators)


# --- configuration and stages ---

def test_each_section_of_the_configuration_has_its_class(study):
    assert isinstance(study.config, StudyConfig)
    assert isinstance(study.config.autoencoder, AutoencoderConfig)
    assert isinstance(study.config.snapshots, SnapshotConfig)
    assert isinstance(study.config.sweep, SweepConfig)


def test_every_artefact_of_a_study_was_made_by_a_declared_stage(study):
    made = {Artefact(f.parent, '').info['stage'] for f in study.path.glob('*/*/artefact.json')}
    assert made <= set(STAGES)
    assert all(isinstance(s, Stage) for s in STAGES.values())


def test_the_simulator_is_a_source(study):
    source: Source = study_source(study)
    assert source.is_simulated
    assert source.files() == []


# --- samples ---

def test_synthetic_cleans_are_those_of_the_selected_guidance(study):
    cleans = draw_study_cleans(study)
    wanted = draw_cleans(study, selected(study)['guidance'], study.config.sampler.synthetic_cleans)
    assert cleans == wanted
    patches = load_samples(cleans, study_patches(study).classes)
    assert set(patches.table.label) == {'clean'}
    assert len(patches) == study.config.sampler.synthetic_cleans


def test_the_latent_diffusion_model_is_a_generator():
    assert isinstance(GENERATORS['ldm'], LatentDiffusion)


def test_film_noise_has_a_row_for_each_measured_image(study):
    noise = load_film_noise(study)
    assert isinstance(noise, FilmNoise)
    assert len(noise.power) == len(noise.greys)


# --- sweeps ---

def test_the_selected_guidance_was_tried(study):
    tried = pd.read_csv(sweep_guidance(study).path/'scores.csv').set.unique()
    assert selected_guidance(study) in tried
    assert selected(study)['guidance'] == selected_guidance(study)


def test_without_a_generator_a_point_of_the_learning_curve_has_real_images_alone(study):
    sets = fraction_sets(study, .25, {})
    assert set(sets) == {(.25, 'real')}
    assert len(sets[.25, 'real']) == len(training_fold(study, .25))


def test_the_learning_curve_has_a_point_for_each_fraction(study):
    curve = pd.read_csv(fit_learning_curve(study).path/'curve.csv')
    assert sorted(curve[curve.arm == 'real'].fraction.unique()) == sorted(study.config.sweep.curve_fractions)


# --- audit ---

def test_realism_is_measured_in_the_features_of_judge_0(study, monkeypatch):
    monkeypatch.delenv('WELDSYNTH_INCEPTION', raising=False)
    assert list(feature_extractors(study)) == ['judge']


def test_the_gate_is_the_ratio_of_the_two_scores(study):
    table, ratio = autoencoder_gate(study)
    macro = table[table['class'] == 'macro'].iloc[0]
    assert ratio[0] == pytest.approx(macro.autoencoded/macro.original)
    assert list(table['class']) == [*study_patches(study).classes[1:], 'macro']


# --- verdict ---

def test_counts_by_weld_add_up_to_the_scores_of_the_fold(fold, predictions):
    counts = fold_counts(fold, predictions)['real']
    p = predictions['real']
    assert isinstance(p, Predictions)
    right, predicted, true, _ = np.moveaxis(counts[0].sum(0), -1, 0)
    by_hand = np.mean(2*right[1:]/(predicted + true)[1:])
    from torch import from_numpy
    assert by_hand == pytest.approx(macro_f1(fold.labels, from_numpy(p.predicted[0]), len(fold.classes)))


def test_cleans_are_weighted_to_the_stated_share_of_flaws(fold, predictions):
    true = fold_counts(fold, predictions, .1)['real'][0, ..., 2].sum(0)
    assert true[1:].sum()/true.sum() == pytest.approx(.1)


def test_brier_sums_divide_into_the_mean_brier_score(fold, predictions):
    sums = brier_sums(fold, predictions['real'])
    truth = np.eye(len(fold.classes))[fold.labels.numpy()]
    by_hand = np.square(predictions['real'].probs - truth).sum(-1).mean(1)
    assert sums[..., 0].sum(1)/sums[..., 1].sum(1) == pytest.approx(by_hand)


def test_the_brier_ratio_of_an_arm_with_itself_is_one(study, fold, predictions):
    same = dict(predictions, **{'real+synthetic': predictions['real']})
    assert brier_ratio(study, fold, same) == pytest.approx((1, 1, 1))


def test_without_held_out_films_nothing_speaks_for_them(study):
    assert film_gain(study) == (None, 'films kept out of all training')


def test_the_autoencoded_change_has_an_interval_where_there_are_welds_enough(study):
    mean, low, high = autoencoded_change(study)
    few = replace(study.config.rule, least_welds=2)
    mean_too, low_too, high_too = autoencoded_change(replace(study, config=replace(study.config, rule=few)))
    assert np.isnan([low, high]).all(), 'three validation welds'
    assert low_too <= mean == mean_too <= high_too


def test_the_evidence_covers_every_class_and_every_guard(study, fold, predictions, results):
    evidence = study_evidence(study, results, fold, predictions)
    assert list(evidence.found_changes) == list(fold.classes[1:])
    assert evidence.found_changes['crack'][1] == len(fold.of('crack'))
    assert len(assess_guards(evidence)) >= len(GUARDS)


def test_detection_and_calibration_have_every_arm(study, fold, predictions):
    found = detection(fold, predictions)
    assert list(found.arm) == list(study_arms(study))
    cleans = predictions['real'].predicted[:, (fold.labels == 0).numpy()]
    assert found.false_call_rate[0] == pytest.approx((cleans > 0).mean())
    table = calibrations(fold, predictions)
    assert set(table.arm) == set(study_arms(study))
    assert table.groupby('arm')['items'].sum().eq(len(fold)*study.config.classifier.seeds).all()


GAINS = [((.02, .001, .04), True), ((.02, -.001, .04), False), ((.009, .001, .02), False)]

@pytest.mark.parametrize('gain, clear', GAINS)
def test_a_gain_is_clear_from_a_point_on_and_above_nothing(gain, clear):
    assert is_clear(gain, StudyConfig().rule) == clear
