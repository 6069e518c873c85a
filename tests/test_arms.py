"""Fair arms, and a test fold that opens once."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from weldsynth.stages.arms import ARMS, Pool, claim_test_fold, fit_arms, freeze, open_test, study_arms, test_log as log_of, test_predictions as predictions_of, times_opened
from weldsynth.models.controls import FREE_CONTROLS
from weldsynth.core.config import PROFILES, StudyError
from weldsynth.core.store import Study, open_study
from weldsynth.stages.data import prepare, study_patches, training_fold
from weldsynth.stages.ldm import load_pipeline
from weldsynth.data.simulate import simulate
from weldsynth.stages.sweep import draw_study_samples, learning_curve, selected


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A study of fixture size with two generators."
    profile = replace(PROFILES['fixture'], generators=2, fractions=(.5,))
    folder = tmp_path_factory.mktemp('arms')
    (folder/'eval').mkdir()
    return Study('arms', folder, profile)


@pytest.fixture(scope='module')
def pool(study): return Pool(study, 0)


def test_nothing_real_comes_from_outside_the_training_fold(study, pool):
    known = set(study_patches(study).fold('train').table.id)
    for arm in study_arms(study):
        table = ARMS[arm].make(pool).table
        assert set(table.id[table.origin == 'real']) <= known, arm


def test_arms_differ_in_what_they_say(study, pool):
    real, made = pool.real.table, {arm: ARMS[arm].make(pool) for arm in study_arms(study)}
    added = {arm: len(made[arm]) - len(real) for arm in ('real+synthetic', *FREE_CONTROLS)}
    assert set(added.values()) == {pool.added} and pool.added > 0
    assert set(made['synthetic-all'].table.origin) == {'synthetic'} and not (made['synthetic'].table.label != 'clean')[made['synthetic'].table.origin == 'real'].any()
    assert torch.equal(made['real-repeated'].images[:len(real)], pool.real.images)
    assert len(made['real-autoencoded']) == len(real) and not torch.equal(made['real-autoencoded'].images, pool.real.images)


def test_generators_differ_and_share_the_fits(study):
    images = [Pool(study, g).synthetic.images for g in (0, 1)]
    assert not torch.equal(images[0][:5], images[1][:5])
    for calls in predictions_of(study).values(): assert calls.generators.tolist() == [0, 1] and calls.probs.shape[:2] == (2, len(study_patches(study).fold('test')))
    assert not torch.equal(*(torch.cat([w.flatten() for w in load_pipeline(study, g).transformer.parameters()]) for g in (0, 1)))


def test_a_generator_of_a_fraction_has_seen_no_more(study):
    half, whole = training_fold(study, .5), training_fold(study)
    assert set(half.table.id) < set(whole.table.id)
    info = draw_study_samples(study, fraction=.5).info
    parent = next(study.path.glob('ldm/denoiser-*')).parent
    models = {json.loads(f.read_text())['key']: json.loads(f.read_text()) for f in parent.glob('*/artefact.json')}
    denoiser = models[info['inputs'][0]]
    assert denoiser['config']['fraction'] == .5 and models[denoiser['inputs'][0]]['config']['fraction'] == .5
    curve = learning_curve(study)
    assert set(curve.arm[curve.fraction == .5]) == {'real', 'real+synthetic', 'real-repeated', 'real-augmented'} and set(curve.arm[curve.fraction == .1]) == {'real'}


def test_picks_come_from_the_profile(study):
    pick = selected(study)
    assert pick['guidance'] in study.profile.guidances and pick['share'] in study.profile.shares


def test_the_test_fold_opens_once(study):
    opened = open_test(study)
    plan = json.loads((opened.path/'plan.json').read_text())
    assert plan == json.loads(json.dumps(freeze(study))) and plan['picked'] == selected(study) and plan['rule'] and times_opened(study) == 1
    assert open_test(study).path == opened.path, 'reading the result again is no opening'
    with pytest.raises(StudyError, match='stays shut'): claim_test_fold(study, plan['hash'])
    with pytest.raises(StudyError, match='under another plan'): claim_test_fold(study, 'another')
    assert [e['event'] for e in log_of(study)] == ['opened', 'done', 'refused', 'refused'] and times_opened(study) == 1


def test_a_changed_plan_does_not_open_the_test_fold_again(study):
    changed = replace(study, profile=replace(study.profile, fit_steps=21))
    with pytest.raises(StudyError, match='opened under another plan'): open_test(changed)
    assert log_of(study)[-1]['event'] == 'refused' and not list(study.path.glob('eval/.part*'))


def test_an_interrupted_opening_may_be_finished(tmp_path):
    study = Study('cut', tmp_path, PROFILES['fixture'])
    (tmp_path/'eval').mkdir()
    claim_test_fold(study, 'plan')
    claim_test_fold(study, 'plan')
    with pytest.raises(StudyError): claim_test_fold(study, 'other')
    assert [e['event'] for e in log_of(study)] == ['opened', 'opened', 'refused'] and times_opened(study) == 1


def test_stress_is_tried_on_every_arm(study):
    stress = pd.read_csv(open_test(study).path/'stress.csv')
    assert set(stress.arm) == set(study_arms(study)) and stress.groupby('arm').size().eq(16).all() and stress.macro_f1.between(0, 1).all()
    strangers = pd.read_csv(open_test(study).path/'strangers.csv')
    assert strangers.auroc.between(0, 1).all() and set(strangers.kind) == {'negative', 'shuffled', 'chessboard'}


def test_false_calls_after_the_autoencoder(study):
    calls = pd.read_csv(fit_arms(study).path/'false_calls.csv')
    assert len(calls) == 2*len(study_arms(study)) and calls[['original', 'autoencoded']].stack().between(0, 1).all()


def test_a_planted_duplicate_across_folds_stops_the_study(tmp_path, monkeypatch):
    "The same exposure under two welds, once as PNG and once as a brightened JPEG: no fold is made, and both files are named."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))
    shots, rows = simulate(90, 90, 12, 64, seed=5), []
    for i, (image, label, plate) in enumerate(zip(shots.images, shots.labels, shots.plates)):
        image = np.uint8(255*(image - image.min().astype(float))/np.ptp(image))
        Image.fromarray(image).save(tmp_path/f'{i}.png')
        rows.append((f'{i}.png', 'clean' if label == 'clean' else 'flaw', plate))
    manifest = pd.DataFrame(rows, columns=['image', 'label', 'group'])
    manifest.to_csv(tmp_path/'manifest.csv', index=False)
    folds = study_patches(open_study('whole', str(tmp_path/'manifest.csv'), 'fixture')).table.set_index('id').fold
    source, other = folds[folds == 'train'].index[0], folds[folds == 'test'].index[0]
    Image.fromarray(np.uint8(np.asarray(Image.open(tmp_path/source))*.7 + 40)).save(tmp_path/'copy.jpg', quality=95)
    twin = manifest[manifest.image == other].assign(image='copy.jpg', label=manifest.set_index('image').label[source])
    pd.concat([manifest, twin]).to_csv(tmp_path/'manifest.csv', index=False)
    with pytest.raises(StudyError, match='one exposure, saved twice') as refused:
        for seed in range(20): prepare(open_study(f'seed-{seed}', str(tmp_path/'manifest.csv'), 'fixture', seed=seed))
    assert 'copy.jpg' in str(refused.value) and source in str(refused.value)
