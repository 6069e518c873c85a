"""What names an artefact and what does not, and studies that stay open whatever becomes of the code."""
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from weldsynth.core import store
from weldsynth.core.config import DataConfig, StudyError
from weldsynth.core.files import file_hash
from weldsynth.core.opening import find_study, open_study
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import STAGES, Study, artefact_key, outdated, stage
from weldsynth.data.patches import PatchSet, save_patches
from weldsynth.data.sources import open_source
from weldsynth.models.autoencoder import BlockAutoencoder, save_weights
from weldsynth.stages.data import prepare
from weldsynth.stages.ldm import train_denoiser
from weldsynth.stages.sweep import learning_curve
from weldsynth.stages.verdict import recommend

@pytest.fixture
def study_dir(tmp_path): return Study('small', tmp_path/'small', choose_profile('fixture'))


@pytest.fixture
def declare(monkeypatch):
    "Declares a stage whose build function writes `text`."
    monkeypatch.setattr(store, 'STAGES', dict(STAGES))
    def declare(text='42', name='room/answer', version=1, **facts):
        @stage(name, version, **facts)
        def answer(study, folder, times=1): (folder/'answer.txt').write_text(text*times)
        return answer
    return declare


def changed(study, section, **fields):
    "The study with other fields in a section of its configuration."
    part = replace(getattr(study.config, section), **fields)
    return replace(study, config=replace(study.config, **{section: part}))


def test_the_seconds_of_a_stage_are_its_own(study_dir, monkeypatch):
    "What another stage takes that is made meanwhile is recorded with that one alone."
    clock = SimpleNamespace(now=0.)
    monkeypatch.setattr(store, 'time', SimpleNamespace(perf_counter=lambda: clock.now, strftime=store.time.strftime))
    monkeypatch.setattr(store, 'STAGES', dict(STAGES))

    @stage('room/inner', version=1)
    def inner(study, folder): clock.now += 3

    @stage('room/outer', version=1)
    def outer(study, folder):
        clock.now += 1
        inner(study)
        clock.now += 1
    assert outer(study_dir).info['seconds'] == 2
    assert inner(study_dir).info['seconds'] == 3


# --- keys ---

def test_a_key_is_a_function_of_what_it_names():
    "The same on every machine, with every version of Python, and whatever the code looks like."
    key = artefact_key('ldm/denoiser', 3, dict(generator=0), dict(denoiser=dict(steps=9, lr=2e-3)), ['ab', 'cd'])
    assert key == 'd38a28e3cae4cb0d4ebcd57505c1a76b'


@pytest.mark.parametrize('other', [
    ('ldm/autoencoder', 3, {'a': 1}, {'b': 2}, ['c']),
    ('ldm/denoiser', 4, {'a': 1}, {'b': 2}, ['c']),
    ('ldm/denoiser', 3, {'a': 2}, {'b': 2}, ['c']),
    ('ldm/denoiser', 3, {'a': 1}, {'b': 3}, ['c']),
    ('ldm/denoiser', 3, {'a': 1}, {'b': 2}, ['d'])], ids=['name', 'version', 'argument', 'configuration', 'input'])
def test_each_of_its_parts_changes_a_key(other):
    assert artefact_key(*other) != artefact_key('ldm/denoiser', 3, {'a': 1}, {'b': 2}, ['c'])


def test_other_code_does_not_change_a_key(study_dir, declare):
    first = declare('42')(study_dir)
    @stage('room/answer', version=1)
    def moved_and_reworded(study, folder, times=1):
        "Says the same in other words."
        raise ValueError('and fails with another message')
    assert moved_and_reworded(study_dir) == first


def test_a_newer_version_changes_a_key(study_dir, declare):
    assert declare(version=1)(study_dir).key != declare(version=2)(study_dir).key


def test_an_argument_changes_a_key_and_its_default_does_not(study_dir, declare):
    answer = declare()
    assert answer(study_dir, times=2).key != answer(study_dir).key
    assert answer(study_dir, times=1).key == answer(study_dir).key


def test_a_field_of_a_section_that_is_read_changes_a_key(study_dir, declare):
    answer = declare(reads=('denoiser',))
    assert answer(changed(study_dir, 'denoiser', steps=21)).key != answer(study_dir).key


def test_a_single_field_that_is_read_changes_a_key(study_dir, declare):
    answer = declare(reads=('denoiser.steps',))
    assert answer(changed(study_dir, 'denoiser', steps=21)).key != answer(study_dir).key
    assert answer(changed(study_dir, 'denoiser', batch=8)).key == answer(study_dir).key


def test_a_section_that_is_not_read_does_not_change_a_key(study_dir, declare):
    answer = declare(reads=('denoiser',))
    assert answer(changed(study_dir, 'rule', least_gain=.02)).key == answer(study_dir).key


def test_an_input_changes_a_key(study_dir, declare):
    first, second = (declare(version=v, name='room/input') for v in (1, 2))
    of_first, of_second = (declare(needs=lambda study, times, i=i: [i(study)]) for i in (first, second))
    assert of_first(study_dir).key != of_second(study_dir).key


def test_a_further_fact_changes_a_key(study_dir, declare):
    plain, further = declare(), declare(also=lambda study, times: dict(arms=['real']))
    assert plain(study_dir).key != further(study_dir).key


def test_an_artefact_records_what_its_key_is_made_of(study_dir, declare):
    made = declare(reads=('denoiser.steps',), version=2)(study_dir, times=3)
    info = made.info
    assert artefact_key(*(info[part] for part in ('stage', 'version', 'args', 'config', 'inputs'))) == made.key
    assert info['args'] == dict(times=3)
    assert info['config'] == {'denoiser.steps': 20}


def test_patches_and_weights_are_written_with_the_same_bytes_each_time(tmp_path):
    "The header of a safetensors file has several entries in any order, so that each of ours has one."
    table = pd.DataFrame(dict(id=['a'], label=['clean']))
    patches = PatchSet(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), table, ('clean', 'crack'), size_unit='mm')
    patch_files, weight_files = set(), set()
    for _ in range(8):
        save_patches(patches, tmp_path)
        save_weights(BlockAutoencoder(2), tmp_path/'autoencoder.safetensors')
        patch_files.add(file_hash(tmp_path/'images.safetensors'))
        weight_files.add(file_hash(tmp_path/'autoencoder.safetensors'))
    assert len(patch_files) == 1
    assert len(weight_files) == 1


# --- fingerprints of sources ---

def class_folder(root):
    "Four images in class folders."
    for i, label in enumerate(('clean', 'crack', 'clean', 'crack')):
        (root/label).mkdir(parents=True, exist_ok=True)
        Image.new('L', (8, 8), 40*i).save(root/label/f'{i}.png')
    return root


def with_manifest(root):
    "The same images, named by a manifest."
    files = sorted(class_folder(root).rglob('*.png'))
    rows = [(str(f.relative_to(root)), f.parent.name, 'weld') for f in files]
    pd.DataFrame(rows, columns=['image', 'label', 'group']).to_csv(root/'manifest.csv', index=False)
    return root


def fingerprint(root): return open_source(str(root), DataConfig()).fingerprint()


@pytest.mark.parametrize('make', [class_folder, with_manifest])
def test_touched_or_moved_files_do_not_change_the_fingerprint(make, tmp_path):
    before = fingerprint(make(tmp_path/'welds'))
    for file in (tmp_path/'welds').rglob('*.*'): os.utime(file, (0, 0))
    assert fingerprint(tmp_path/'welds') == before
    shutil.move(tmp_path/'welds', tmp_path/'elsewhere')
    assert fingerprint(tmp_path/'elsewhere') == before


@pytest.mark.parametrize('make', [class_folder, with_manifest])
def test_other_contents_change_the_fingerprint(make, tmp_path):
    before = fingerprint(make(tmp_path/'welds'))
    Image.new('L', (8, 8), 255).save(tmp_path/'welds'/'clean'/'0.png')
    assert fingerprint(tmp_path/'welds') != before


def test_another_name_changes_the_fingerprint(tmp_path):
    before = fingerprint(class_folder(tmp_path/'welds'))
    (tmp_path/'welds'/'clean'/'0.png').rename(tmp_path/'welds'/'clean'/'9.png')
    assert fingerprint(tmp_path/'welds') != before


# --- versions ---

@pytest.fixture
def newer():
    "Raises the versions of stages by one for the time of a test."
    before = {name: declared.version for name, declared in STAGES.items()}
    def raise_versions(*names):
        for name in names: object.__setattr__(STAGES[name], 'version', before[name] + 1)
    yield raise_versions
    for name, version in before.items(): object.__setattr__(STAGES[name], 'version', version)


@pytest.fixture
def frozen(monkeypatch):
    "From now on a stage that would be made fails the test."
    def build(study, path, *_): pytest.fail(f'{path.name} is made anew')
    monkeypatch.setattr(store, '_build', build)


def test_a_finished_study_opens_whatever_the_versions(study_copy, newer, frozen):
    sentence, curve = recommend(study_copy)['sentence'], learning_curve(study_copy)
    newer(*STAGES)
    again = find_study('fixture')
    assert recommend(again)['sentence'] == sentence
    assert learning_curve(again).equals(curve)


def test_one_line_names_the_stages_that_a_newer_version_would_make_anew(study_copy, newer, frozen, capsys):
    version = STAGES['eval/fits'].version
    newer('eval/fits')
    capsys.readouterr()
    recommend(study_copy)
    [line] = capsys.readouterr().err.splitlines()
    assert f'eval/fits (version {version}, now {version + 1})' in line
    assert "study 'fixture' has used its test images and is not changed" in line


def test_what_is_outdated_is_listed(study_copy, newer):
    assert outdated(study_copy) == {}
    version = STAGES['ldm/denoiser'].version
    newer('ldm/denoiser')
    assert outdated(study_copy) == {'ldm/denoiser': (version, version + 1)}


def test_an_unfinished_study_makes_a_stage_with_a_newer_version_anew(study_dir, newer):
    first = prepare(study_dir)
    newer('data/patches')
    second = prepare(study_dir)
    assert second.path != first.path
    assert second.info['version'] == first.info['version'] + 1
    assert outdated(study_dir) == {}, 'the newest artefact of a stage counts'


# --- another configuration ---

def test_a_study_that_was_opened_under_another_configuration_is_refused(study_copy, frozen):
    "Before anything is trained; what does not depend on the change is still read."
    other = changed(study_copy, 'denoiser', steps=21)
    assert prepare(other) == prepare(study_copy)
    message = r"test images of study 'fixture' were used under another plan \(denoiser.steps\) and cannot be used again"
    with pytest.raises(StudyError, match=message) as refused: train_denoiser(other)
    assert '\n' not in str(refused.value)
    assert study_copy.test_log()[-1]['event'] == 'refused'


def test_a_study_is_not_opened_with_another_configuration(study_copy):
    with pytest.raises(StudyError, match=r"was started with other settings \(sampler.generators, sweep.fractions"):
        open_study('fixture', profile='fixture')


def test_a_recorded_plan_is_read_back_as_it_was(study_copy):
    assert find_study('fixture') == study_copy
    assert json.loads((study_copy.path/'study.json').read_text())['plan'] == study_copy.plan()


# --- a verdict that has more to go on ---

def test_a_new_input_makes_a_stage_of_a_finished_study_anew(study_copy, declare):
    "Such as a verdict, once people have reviewed the images."
    first = declare()(study_copy)
    more = declare(needs=lambda study, times: [prepare(study)])(study_copy)
    assert more.path != first.path
    assert more.info['inputs'] == [prepare(study_copy).key]
