"""Fair arms, and a test fold that opens once."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from weldsynth.core.config import StudyError
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
from weldsynth.data.simulate import simulate
from weldsynth.stages.arms import (
    ARMS,
    Pool,
    _fit_plan,
    _training_sets,
    claim_test_fold,
    fit_arms,
    free_arms,
    freeze,
    open_test,
    study_arms,
    test_predictions as predictions_of,
    times_opened,
)
from weldsynth.stages.data import prepare, study_patches, training_fold
from weldsynth.stages.instrument import check_instrument
from weldsynth.stages.ldm import load_pipeline
from weldsynth.stages.sweep import draw_study_samples, learning_curve, selected

@pytest.fixture(scope='module')
def pool(study): return Pool(study, 0)


@pytest.fixture(scope='module')
def sets(study, pool): return {arm: ARMS[arm].make(pool) for arm in study_arms(study)}


def events(study): return [e['event'] for e in study.test_log()]


# --- what an arm consists of ---

def test_nothing_real_comes_from_outside_the_training_fold(study, sets):
    known = set(study_patches(study).fold('train').table.id)
    for arm, made in sets.items():
        real = made.table.id[made.table.origin == 'real']
        assert set(real) <= known, arm


def test_synthetic_images_and_free_controls_add_the_same_number(study, pool, sets):
    added = {arm: len(sets[arm]) - len(pool.real) for arm in ('real+synthetic', *free_arms(study))}
    assert len(added) == 4
    assert set(added.values()) == {pool.added}
    assert pool.added > 0


def test_an_arm_without_real_images_has_none(sets):
    assert set(sets['synthetic-all'].table.origin) == {'synthetic'}


def test_the_real_images_of_the_synthetic_arm_are_clean(sets):
    table = sets['synthetic'].table
    assert set(table.label[table.origin == 'real']) == {'clean'}


def test_repeated_images_come_after_the_real_ones(pool, sets):
    assert torch.equal(sets['real-repeated'].images[:len(pool.real)], pool.real.images)


def test_autoencoded_images_replace_the_real_ones(pool, sets):
    assert len(sets['real-autoencoded']) == len(pool.real)
    assert not torch.equal(sets['real-autoencoded'].images, pool.real.images)


# --- generators ---

def test_generators_draw_different_images(study):
    first, second = (Pool(study, g).synthetic.images for g in (0, 1))
    assert not torch.equal(first[:5], second[:5])


def test_generators_have_different_weights(study):
    nets = [load_pipeline(study, g).transformer for g in (0, 1)]
    first, second = (torch.cat([w.flatten() for w in net.parameters()]) for net in nets)
    assert not torch.equal(first, second)


def test_a_training_set_is_made_once_for_all_seeds(study, monkeypatch):
    made = []
    def counted(arm, make): return lambda pool: made.append((arm, pool.generator)) or make(pool)
    for arm, member in ARMS.items(): monkeypatch.setitem(ARMS, arm, member._replace(make=counted(arm, member.make)))
    jobs = _fit_plan(study)
    sets = _training_sets(jobs, {g: Pool(study, g) for g in range(study.config.sampler.generators)})
    assert len(made) == len(set(made)) == len(sets)
    assert len(jobs) == study.config.classifier.seeds*len(study_arms(study))


def test_generators_share_the_fits(study):
    test = study_patches(study).fold('test')
    for predictions in predictions_of(study).values():
        assert predictions.generators.tolist() == [0, 1]
        assert predictions.probs.shape[:2] == (2, len(test))


# --- the learning curve ---

def test_half_of_the_defects_is_a_part_of_the_whole(study):
    half, whole = training_fold(study, .5), training_fold(study)
    assert set(half.table.id) < set(whole.table.id)


def test_a_generator_of_a_fraction_has_seen_no_more(study):
    info = draw_study_samples(study, fraction=.5).info
    models = [json.loads(file.read_text()) for file in study.path.glob('ldm/*/artefact.json')]
    by_key = {model['key']: model for model in models}
    denoiser = by_key[info['inputs'][0]]
    autoencoder = by_key[denoiser['inputs'][0]]
    assert denoiser['args']['fraction'] == .5
    assert autoencoder['args'] == {'fraction': .5}


def test_the_learning_curve_has_controls_where_there_is_a_generator(study):
    curve = learning_curve(study)
    controls = {'real-repeated', 'real-augmented', 'cut-paste'}
    assert set(curve.arm[curve.fraction == .5]) == {'real', 'real+synthetic', *controls}
    assert set(curve.arm[curve.fraction == .1]) == {'real'}


def test_validation_selects_from_the_configuration(study):
    chosen = selected(study)
    assert chosen['guidance'] in study.config.sweep.guidances
    assert chosen['share'] in study.config.sweep.shares


# --- the test fold ---

def test_the_plan_is_frozen_before_the_test_fold_is_opened(study):
    plan = json.loads((open_test(study).path/'plan.json').read_text())
    assert plan == json.loads(json.dumps(freeze(study)))
    assert plan['parts'] == [dict(selected=selected(study), fits=fit_arms(study).key)]
    assert plan['best_control'] in free_arms(study)
    assert plan['instrument'] == check_instrument(study).key
    assert plan['config']['rule']['least_gain'] == study.config.rule.least_gain
    assert study.test_log()[0]['plan'] == plan['hash']


def test_reading_the_result_again_is_not_an_opening(study):
    before = events(study)
    assert before == ['opened', 'done']
    assert open_test(study).path == open_test(study).path
    assert events(study) == before
    assert times_opened(study) == 1


def test_the_test_fold_opens_once(study_copy):
    plan = study_copy.test_log()[0]['plan']
    with pytest.raises(StudyError, match='is not used again'): claim_test_fold(study_copy, plan)
    with pytest.raises(StudyError, match='under another plan'): claim_test_fold(study_copy, 'another')
    assert events(study_copy) == ['opened', 'done', 'refused', 'refused']
    assert times_opened(study_copy) == 1


def test_a_changed_plan_does_not_open_the_test_fold_again(study_copy):
    changed = replace(study_copy.config, classifier=replace(study_copy.config.classifier, steps=21))
    with pytest.raises(StudyError, match='used under another plan'): open_test(replace(study_copy, config=changed))
    assert events(study_copy) == ['opened', 'done', 'refused']
    assert not list(study_copy.path.glob('eval/.part*'))


def test_an_interrupted_opening_may_be_finished(tmp_path):
    study = Study('cut', tmp_path, choose_profile('fixture'))
    (tmp_path/'eval').mkdir()
    claim_test_fold(study, 'plan')
    claim_test_fold(study, 'plan')
    with pytest.raises(StudyError): claim_test_fold(study, 'other')
    assert events(study) == ['opened', 'opened', 'refused']
    assert times_opened(study) == 1


def test_opening_the_test_leaves_predictions_and_the_plan(study):
    files = {file.name for file in open_test(study).path.iterdir()}
    assert files == {'artefact.json', 'plan.json', 'predicted.safetensors', 'probabilities.safetensors'}


def test_false_calls_are_counted_before_and_after_the_autoencoder(study):
    counted = pd.read_csv(fit_arms(study).path/'false_calls.csv')
    clean = study_patches(study).fold('validation').of('clean').table
    assert len(counted) == 2*len(study_arms(study))*clean.group.nunique()
    assert (counted.groupby(['arm', 'seed']).cleans.sum() == len(clean)).all()
    assert (counted.original <= counted.cleans).all()
    assert (counted.autoencoded <= counted.cleans).all()


# --- a planted duplicate ---

@pytest.fixture
def exposures(tmp_path, monkeypatch):
    "A folder of 180 exposures with a manifest."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))
    shots = simulate(90, 90, 12, 64, seed=5)
    rows = []
    for i, (image, label, plate) in enumerate(zip(shots.images, shots.labels, shots.plates, strict=True)):
        scaled = 255*(image - image.min().astype(float))/np.ptp(image)
        Image.fromarray(np.uint8(scaled)).save(tmp_path/f'{i}.png')
        rows.append((f'{i}.png', 'clean' if label == 'clean' else 'flaw', plate))
    manifest = pd.DataFrame(rows, columns=['image', 'label', 'group'])
    manifest.to_csv(tmp_path/'manifest.csv', index=False)
    return tmp_path, manifest


def test_a_planted_duplicate_across_folds_stops_the_study(exposures):
    "One exposure under two welds, as PNG and as a brightened JPEG: no fold is made, and both files are named."
    folder, manifest = exposures
    data = str(folder/'manifest.csv')
    folds = study_patches(open_study('whole', data, 'fixture')).table.set_index('id').fold
    source, other = folds[folds == 'train'].index[0], folds[folds == 'test'].index[0]
    brighter = np.uint8(np.asarray(Image.open(folder/source))*.7 + 40)
    Image.fromarray(brighter).save(folder/'copy.jpg', quality=95)
    label = manifest.set_index('image').label[source]
    twin = manifest[manifest.image == other].assign(image='copy.jpg', label=label)
    pd.concat([manifest, twin]).to_csv(data, index=False)
    with pytest.raises(StudyError, match='one exposure, saved twice') as refused:
        for seed in range(20): prepare(open_study(f'seed-{seed}', data, 'fixture', seed=seed))
    assert 'copy.jpg' in str(refused.value)
    assert source in str(refused.value)
