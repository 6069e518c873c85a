"""Studies of version 0.1, which had no versions of stages: they open, and nothing is trained again."""
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from weldsynth.core import legacy, store
from weldsynth.core.config import DataConfig, ReviewConfig, RuleConfig, StudyError, config_table
from weldsynth.core.files import file_hash, file_hashes
from weldsynth.core.legacy import FIELDS_0_1, RENAMED_COLUMNS, RENAMED_FILES, RENAMED_KEYS, STAGES_0_1, config_of_plan
from weldsynth.core.random import digest
from weldsynth.core.store import find_study
from weldsynth.data.sources import open_source
from weldsynth.metrics.review_scores import REVIEWERS, answer_table, by_class, by_reviewer, simulated_answers
from weldsynth.models.autoencoder import load_weights, reconstruct, to_diffusers
from weldsynth.models.denoiser import draw
from weldsynth.report.cards import finish
from weldsynth.report.verification import verify
from weldsynth.stages.arms import test_predictions as predictions_of, times_opened
from weldsynth.stages.audit import fidelity, train_judges, training_progress, usable_patches
from weldsynth.stages.data import prepare, study_patches
from weldsynth.stages.ldm import load_autoencoder, load_film_noise, load_pipeline, train_autoencoder, train_denoiser
from weldsynth.stages.review import choose_items, seal
from weldsynth.stages.sweep import curve_gains, learning_curve, load_study_samples, selected
from weldsynth.stages.verdict import evaluate, recommend

# --- a study of today, translated back ---

CODE = dict(ldm='0'*32)  # of version 0.1: the hash of each module's syntax tree


def old_keys(infos):
    "Key of today -> key of version 0.1."
    by_key = {info['key']: info for info in infos}
    @cache
    def old_key(key):
        info = by_key[key]
        return digest(info['stage'], old_config(info), [old_key(k) for k in info['inputs']], *CODE.values())
    return {key: old_key(key) for key in by_key}


def old_plan(study):
    "The plan as version 0.1 wrote it: a flat profile, and the rule."
    fields = config_table(study.config)
    profile = {old: fields[new] for old, new in FIELDS_0_1.items()}
    rule = {k: v for k, v in vars(study.config.rule).items() if k != 'resamples'}
    plan = dict(data=study.data, group=study.group, seed=study.seed, rule=rule,
                profile=dict(profile, name=study.config.profile))
    return json.loads(json.dumps(plan))


def old_config(info, seed=0):
    "What version 0.1 recorded of the arguments of a stage."
    args = dict(info['args'])
    if info['stage'] == 'ldm/autoencoder': return dict(args, seed=seed)
    if info['stage'] == 'ldm/denoiser' or info['stage'].startswith('samples/'):
        generator = args.pop('generator')
        if info['stage'].startswith('samples/'): args.pop('fraction', None)
        return dict(args, seed=[seed, generator])
    return {}


def old_names(folder, stage):
    "Give files, columns and keys their names of version 0.1."
    for old, new in RENAMED_FILES.get(stage, {}).items(): (folder/new).rename(folder/old)
    for file, columns in RENAMED_COLUMNS.get(stage, {}).items():
        before = {new: old for old, new in columns.items()}
        pd.read_csv(folder/file, dtype=str).rename(columns=before).to_csv(folder/file, index=False)
    for file, keys in RENAMED_KEYS.get(stage, {}).items():
        before = {new: old for old, new in keys.items()}
        values = json.loads((folder/file).read_text())
        (folder/file).write_text(json.dumps({before.get(k, k): v for k, v in values.items()}))


def old_autoencoder(folder):
    "The stock autoencoder that version 0.1 saved, and what it had measured."
    net = load_weights(folder/'autoencoder.safetensors')
    to_diffusers(net).save_pretrained(folder/'vae', safe_serialization=True)
    known = dict(load_file(folder/'film_noise.safetensors'), spread=net.std.flatten())
    save_file(known, folder/'known.safetensors')
    (folder/'autoencoder.safetensors').unlink()
    (folder/'film_noise.safetensors').unlink()


def old_artefact(folder, keys):
    "Turn the folder of an artefact into one of version 0.1."
    info = json.loads((folder/'artefact.json').read_text())
    old_names(folder, info['stage'])
    if info['stage'] == 'ldm/autoencoder': old_autoencoder(folder)
    key = keys[info['key']]
    record = dict(stage=info['stage'], key=key, config=old_config(info), inputs=[keys[k] for k in info['inputs']],
                  code=CODE, files=file_hashes(folder), seconds=info['seconds'], processes=1,
                  hardware=info['hardware'], versions=info['versions'], made=info['made'])
    (folder/'artefact.json').write_text(json.dumps(record, indent=1))
    folder.rename(folder.parent/f'{Path(info["stage"]).name}-{key[:10]}')


@pytest.fixture(scope='module')
def old_home(study, tmp_path_factory):
    "A folder whose `studies/fixture` is `study` as version 0.1 would have left it."
    home = tmp_path_factory.mktemp('home-0-1')
    path = home/'studies'/study.name
    shutil.copytree(study.path, path)
    infos = {file.parent: json.loads(file.read_text()) for file in path.glob('*/*/artefact.json')}
    keys = old_keys(infos.values())
    for folder in infos: old_artefact(folder, keys)
    record = json.loads((path/'study.json').read_text())
    (path/'study.json').write_text(json.dumps(dict(record, plan=old_plan(study))))
    [frozen] = path.glob('eval/test-*/plan.json')
    plan = json.loads(frozen.read_text())
    frozen.write_text(json.dumps(dict(old_plan(study), picked=plan['selected'], hash=plan['hash'])))
    info = json.loads((frozen.parent/'artefact.json').read_text())
    (frozen.parent/'artefact.json').write_text(json.dumps(dict(info, files=file_hashes(frozen.parent))))
    return home


@pytest.fixture
def old(old_home, tmp_path, monkeypatch):
    "A study of version 0.1, opened."
    home = shutil.copytree(old_home, tmp_path/'home')
    monkeypatch.setenv('WELDSYNTH_HOME', str(home))
    return find_study('fixture')


@pytest.fixture
def made(monkeypatch):
    "The names of the stages that are made anew, in order."
    names, real = [], store._build
    def build(study, path, build, shared, info):
        names.append(info['stage'])
        return real(study, path, build, shared, info)
    monkeypatch.setattr(store, '_build', build)
    return names


# --- it opens ---

def test_the_miniature_has_every_stage_of_a_study_without_reviews(old):
    stages = {json.loads(f.read_text())['stage'] for f in old.path.glob('*/*/artefact.json')}
    assert stages == STAGES_0_1 - {'review/set', 'review/scores'}


def test_the_plan_is_read(old, study): assert old.config == study.config


def test_the_recommendation_is_the_same_and_nothing_is_made(old, study, made):
    assert recommend(old)['sentence'] == recommend(study)['sentence']
    assert made == []
    assert times_opened(old) == 1


def test_tables_are_the_same(old, study, made):
    ours, theirs = evaluate(study).path, evaluate(old).path
    for name in ('tidy', 'effects', 'guards', 'pod', 'calibration'):
        pd.testing.assert_frame_equal(pd.read_csv(theirs/f'{name}.csv'), pd.read_csv(ours/f'{name}.csv'))
    assert made == []


def test_chapters_read_what_they_show(old, study, made):
    assert learning_curve(old).equals(learning_curve(study))
    assert curve_gains(old).equals(curve_gains(study))
    assert fidelity(old).equals(fidelity(study))
    assert training_progress(old).equals(training_progress(study))
    assert selected(old) == selected(study)
    assert made == []


def test_samples_and_predictions_are_the_same(old, study, made):
    assert torch.equal(load_study_samples(old, 1).images, load_study_samples(study, 1).images)
    theirs = predictions_of(old)
    for arm, predictions in predictions_of(study).items(): assert np.array_equal(theirs[arm].probs, predictions.probs)
    assert made == []


def test_networks_are_loaded(old, study, made):
    images = study_patches(study).images[:8]
    theirs, ours = (reconstruct(load_autoencoder(s), images) for s in (old, study))
    assert (theirs.int() - ours.int()).abs().max() <= 1, 'to within rounding'
    assert torch.equal(load_film_noise(old).power, load_film_noise(study).power)
    theirs, ours = (draw(load_pipeline(s, 1), [1, 2], [5, 6], 2., 4, (0., 1.)) for s in (old, study))
    assert torch.equal(theirs, ours)
    assert made == []


def test_its_hashes_can_be_recorded_and_verified(old, made):
    "Also where a folder is left that is not taken over: the learning curve, until it is read."
    recommend(old)
    finish(old)
    assert [json.loads(f.read_text()) for f in old.path.glob('eval/learning-*/artefact.json')][0]['code'] == CODE
    issues, _ = verify(old.path)
    assert issues.empty, issues
    assert made == []


def test_a_record_keeps_what_it_was_before(old):
    [before] = old.path.glob('data/patches-*/artefact.json')
    old_record = json.loads(before.read_text())
    info = prepare(old).info
    assert info['version'] == 1
    assert info['key_0_1'] == old_record['key']
    assert info['files'] == old_record['files']
    assert not before.exists()


def test_files_keep_their_bytes(old):
    [weights] = old.path.glob('eval/judges-*/judge-0.safetensors')
    before = file_hash(weights)
    recommend(old)
    assert file_hash(train_judges(old).path/'judge-0.safetensors') == before


# --- which folder ---

def test_the_folders_behind_the_test_fold_count_and_not_newer_ones(old, made):
    "Version 0.1 made everything again beside what was there when its code had changed."
    [autoencoder] = [f for f in old.path.glob('ldm/autoencoder-*/artefact.json')
                     if json.loads(f.read_text())['config']['fraction'] == 1]
    newer = shutil.copytree(autoencoder.parent, old.path/'ldm'/'autoencoder-ffffffffff')
    record = json.loads(autoencoder.read_text())
    (newer/'artefact.json').write_text(json.dumps(dict(record, key='f'*32)))
    assert train_autoencoder(old).info['key_0_1'] == record['key']
    recommend(old)
    assert made == []


def test_an_unfinished_study_makes_anew_what_has_a_newer_version(old, made):
    "What has not is taken over."
    (old.path/'eval'/'test-opened.jsonl').unlink()
    train_judges(old)
    assert made == []
    assert store.STAGES['ldm/autoencoder'].version == 2
    train_autoencoder(old)
    assert made == ['ldm/autoencoder']


def test_a_source_is_the_same_if_its_files_are(tmp_path):
    for name in ('clean/a, "b".png', 'crack/c.png'):
        (tmp_path/'welds'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'welds'/name).write_bytes(name.encode())
    source = open_source(str(tmp_path/'welds'), DataConfig())
    rows = [(str(f.relative_to(source.root)), file_hash(f)) for f in source.files()]
    pd.DataFrame(rows, columns=['file', 'sha256']).to_csv(tmp_path/'source.csv', index=False)
    assert legacy._same_source(tmp_path, dict(fingerprint=source.fingerprint()))
    (tmp_path/'welds'/'crack'/'c.png').write_bytes(b'changed')
    assert not legacy._same_source(tmp_path, dict(fingerprint=source.fingerprint()))


# --- faults ---

def test_a_changed_file_is_refused(old):
    [scores] = old.path.glob('eval/share-*/scores.csv')
    scores.write_text(scores.read_text().replace('0.', '1.'))
    with pytest.raises(StudyError, match=r'share-\S+/scores.csv was changed: remove the folder share-'): selected(old)


@pytest.mark.parametrize('moment', ['_rename_contents', 'write_atomic', 'flush_folder'])
def test_a_run_that_is_killed_leaves_the_old_folder(old, study, monkeypatch, made, moment):
    folders = sorted(old.path.glob('*/*/artefact.json'))
    class Killed(BaseException): pass
    def kill(*args): raise Killed
    with monkeypatch.context() as patch:
        patch.setattr(legacy, moment, kill)
        with pytest.raises(Killed): prepare(old)
    assert sorted(old.path.glob('*/*/artefact.json')) == folders
    assert recommend(old)['sentence'] == recommend(study)['sentence']
    assert made == []


def test_a_file_system_without_links_copies(old, monkeypatch):
    def link(*_): raise OSError('links are not supported')
    monkeypatch.setattr(legacy.os, 'link', link)
    assert file_hashes(prepare(old).path) == prepare(old).info['files']


# --- names ---

def test_columns_of_reviews_have_their_names_of_today(study, tmp_path):
    "Headers of version 0.1 on the left, what is written now on the right."
    patches, rng = study_patches(study), np.random.default_rng(0)
    config = ReviewConfig(items_per_source=8, repeats=2, practice=2)
    chosen = choose_items(patches.fold('train'), patches.fold('validation'), usable_patches(study), config, rng)
    data, key = seal(chosen, config, rng, simulated=True)
    table = answer_table([simulated_answers(data, key, r, rng) for r in REVIEWERS], key)
    (tmp_path/'answers.csv').write_text(
        'reviewer,item,part,of,origin,label,id,said,sure,realism,named,artefact,x,y,note,as_labelled\n')
    (tmp_path/'classes.csv').write_text('label,origin,images,called_synthetic,as_labelled,realism,artefacts\n')
    (tmp_path/'reviewers.csv').write_text(
        'reviewer,items,accuracy,low,high,dprime,criterion,auc,as_labelled_real,as_labelled_synthetic,'
        'artefact_real,artefact_synthetic,same_source,same_class,near_realism\n')
    legacy._rename_contents(tmp_path, 'review/scores')
    written = dict(answers=table, classes=by_class(table), reviewers=by_reviewer(table, RuleConfig()))
    for name, now in written.items():
        assert (tmp_path/f'{name}.csv').read_text().strip() == ','.join(now.columns)


def test_a_plan_of_version_0_1_has_the_numbers_it_named(study):
    plan = old_plan(replace(study, config=replace(study.config, rule=RuleConfig(least_gain=.02))))
    assert config_of_plan(plan).rule.least_gain == .02
    assert config_of_plan(plan).data == study.config.data


def test_the_denoiser_has_the_conditions_of_its_classes(old):
    saved = load_file(train_denoiser(old).path/'conditions_by_class.safetensors')
    assert set(saved) == {str(k) for k in range(len(study_patches(old).classes))}
