"""Outer folds: each weld is tested once, by fits that have not seen it, under one frozen plan."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.cli import main
from weldsynth.core.config import DataConfig, StudyError, value_text
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study, artefact_folders
from weldsynth.data.check import set_issues
from weldsynth.data.patches import PatchSet
from weldsynth.data.split import split
from weldsynth.metrics.studies import expected_power
from weldsynth.models.classifier import load_classifier, probabilities
from weldsynth.report.cards import finish
from weldsynth.report.chapters import execute
from weldsynth.report.verification import verify
from weldsynth.stages import arms
from weldsynth.stages.arms import fit_arms, open_test, test_predictions as predictions_of, times_opened
from weldsynth.stages.data import study_patches
from weldsynth.stages.verdict import recommend

pytestmark = pytest.mark.slow

TWO_FOLDS = {
    'data.folds': 2, 'classifier.seeds': 1, 'classifier.steps': 10, 'instrument.seeds': 1, 'sampler.synthetics': 30,
    'sweep.guidances': (2.,), 'sweep.shares': (.2,), 'audit.fidelity_resamples': 4, 'audit.probe_repeats': 2}
FIELDS = [text for name, value in TWO_FOLDS.items() for text in ('--set', f'{name}={value_text(value)}')]


def open_folds(name='folds'): return open_study(name, profile='fixture', overrides=TWO_FOLDS)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A finished study of two outer folds, the second of which was fitted first; for reading only."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WELDSYNTH_HOME', str(tmp_path_factory.mktemp('folds')))
        study = open_folds()
        fit_arms(study.parts()[1])
        recommend(study)
        finish(study)
    return study


@pytest.fixture
def copy(made, tmp_path, monkeypatch):
    "A copy of the finished study, to change."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    shutil.copytree(made.path, tmp_path/'studies'/made.name)
    return replace(made, path=tmp_path/'studies'/made.name)


def reopen(study):
    "Take away all that came after the fits, so that the test is shut."
    for folder in (study, *study.parts()):
        for file in (folder.path/'eval').glob('*'):
            if not file.name.startswith(('fits', 'instrument')): shutil.rmtree(file) if file.is_dir() else file.unlink()


# --- who has seen what ---

def test_every_weld_is_tested_once(made):
    tested = [study_patches(part).fold('test').table for part in made.parts()]
    assert sorted(pd.concat(tested).id) == sorted(study_patches(made).table.id)
    assert set(tested[0].group).isdisjoint(tested[1].group)


def test_no_weld_is_tested_by_fits_that_saw_it(made):
    for part in made.parts():
        welds = {fold: set(study_patches(part).fold(fold).table.group) for fold in ('train', 'validation', 'test')}
        assert welds['test'].isdisjoint(welds['train'] | welds['validation'])


def test_networks_of_a_fold_depend_on_its_own_patches_alone(made):
    first, second = made.parts()
    for stage in ('ldm/autoencoder', 'ldm/denoiser', 'eval/fits'):
        [one], [other] = (list(part.path.glob(f'{stage}-*')) for part in (first, second))
        assert one.name != other.name


def test_pooled_predictions_are_in_the_order_of_the_tested_patches(made):
    pooled, start = predictions_of(made)['real'].probs[0], 0
    for part in made.parts():
        weights = arms.load_file(fit_arms(part).path/'weights'/'real-0.safetensors')
        test = study_patches(part).fold('test')
        net = load_classifier(made.config.classifier, len(test.classes), weights)
        by_hand = probabilities(net, test.images).numpy()
        assert np.allclose(pooled[start:start + len(test)], by_hand, atol=1e-4)
        start += len(test)
    assert start == len(pooled) == len(arms.tested_patches(made))


def test_each_fold_decides_at_thresholds_of_its_own(made):
    predicted, start = predictions_of(made)['real'], 0
    for part in made.parts():
        thresholds = json.loads((fit_arms(part).path/'thresholds.json').read_text())['real/0']
        rows = slice(start, start + len(study_patches(part).fold('test')))
        flawed = 1 - predicted.probs[0, rows, 0] >= thresholds['false calls']
        assert (flawed == (predicted.predicted[0, rows] > 0)).mean() > .99
        start = rows.stop


# --- one plan, opened once ---

def test_the_frozen_plan_names_both_folds(made):
    plans = [json.loads(file.read_text()) for file in made.path.glob('fold-*/eval/test-*/plan.json')]
    assert len(plans) == 2
    assert plans[0] == plans[1] == json.loads((open_test(made).path/'plan.json').read_text())
    assert [part['fits'] for part in plans[0]['parts']] == [fit_arms(part).key for part in made.parts()]


def test_the_log_of_the_test_has_one_plan_and_is_done(made):
    log = made.test_log()
    assert [e['event'] for e in log] == ['opened', 'opened', 'done']
    assert len({e['plan'] for e in log}) == 1
    assert times_opened(made) == 1
    assert made.parts()[0].test_log() == log


def test_the_test_of_one_fold_cannot_be_opened_again(copy):
    part = copy.parts()[1]
    shutil.rmtree(next((part.path/'eval').glob('test-*')))
    shutil.rmtree(next((copy.path/'eval').glob('pooled-*')))
    with pytest.raises(StudyError, match='is not used again'): open_test(copy)
    assert copy.test_log()[-1]['event'] == 'refused'


# --- folds made alone, in any order ---

def test_a_fold_made_alone_has_the_keys_of_the_study(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    assert main(['train', '--name', 'alone', '--profile', 'fixture', '--fold', '2', *FIELDS]) == 0
    alone = open_folds('alone')
    assert not (alone.path/'fold-1').exists()
    assert f"{alone.path/'fold-2'}" in capsys.readouterr().out
    fits = next((alone.path/'fold-2'/'eval').glob('fits-*'))
    assert fits.name == fit_arms(made.parts()[1]).path.name
    hashes = [json.loads((f/'artefact.json').read_text())['files'] for f in (fits, fit_arms(made.parts()[1]).path)]
    assert hashes[0] == hashes[1], 'and the same files'


@pytest.mark.parametrize('fold', [3, -1])
def test_a_fold_that_there_is_not_is_one_line(tmp_path, monkeypatch, capsys, fold):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    assert main(['train', '--profile', 'fixture', '--fold', str(fold), '--set', 'data.folds=2']) == 1
    error = capsys.readouterr().err
    assert error == f'weldsynth: fold {fold} does not exist: the study has 2 (--set data.folds=4 makes four)\n'


def test_all_folds_are_trained_where_none_is_named(copy, capsys):
    assert main(['train', '--name', 'folds', '--profile', 'fixture', *FIELDS]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('Classifiers')]
    assert lines == [f"Classifiers: {fit_arms(part).path/'weights'}, fitted in 1 process(es)." for part in copy.parts()]


def test_a_run_that_was_killed_between_the_tests_of_two_folds_goes_on(copy, monkeypatch):
    before = {arm: p.probs for arm, p in predictions_of(copy).items()}
    reopen(copy)
    predict, calls = arms.predict, []
    def killed_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2: raise KeyboardInterrupt
        return predict(*args)
    monkeypatch.setattr(arms, 'predict', killed_at_the_second)
    with pytest.raises(KeyboardInterrupt): open_test(copy)
    assert [e['event'] for e in copy.test_log()] == ['opened', 'opened']
    recommend(copy)
    assert len(calls) == 3, 'the first fold was not tested again'
    assert [e['event'] for e in copy.test_log()] == ['opened', 'opened', 'opened', 'done']
    assert times_opened(copy) == 1
    assert all(np.array_equal(p.probs, before[arm]) for arm, p in predictions_of(copy).items())


def test_what_a_killed_fold_has_left_survives_a_stage_of_the_whole_study(copy):
    resume = copy.parts()[1].path/'eval'/'.part-fits-of-another-plan'/'resume'
    resume.mkdir(parents=True)
    (resume/'seconds').write_text('3')
    copy.make('eval/another', lambda folder: (folder/'done').touch())
    assert resume.is_dir()
    copy.parts()[1].make('eval/another', lambda folder: (folder/'done').touch())
    assert not resume.exists(), 'the fold itself removes it'


# --- the finished study ---

def test_the_verdict_counts_the_welds_of_both_folds(made):
    advice = recommend(made)
    assert (advice['folds'], advice['test_images']) == (2, len(study_patches(made)))
    assert advice['test_groups'] == study_patches(made).table.group.nunique()


def test_the_cards_show_the_first_fold_and_the_hashes_all_of_them(made):
    card = (made.path/'cards'/'model'/'README.md').read_text()
    assert f"| {next(made.path.glob('fold-1/ldm/denoiser-*')).relative_to(made.path)}/pipeline |" in card
    hashes = json.loads((made.path/'study.json').read_text())['hashes']['artefacts']
    assert set(hashes) == {str(folder.relative_to(made.path)) for folder in artefact_folders(made.path)}
    assert {name.split('/')[0] for name in hashes} >= {'fold-1', 'fold-2', 'data', 'eval'}


def test_verify_looks_into_the_folds(copy):
    issues, counts = verify(copy.path)
    assert issues.empty
    assert counts['artefacts'] == len(artefact_folders(copy.path))
    weights = fit_arms(copy.parts()[1]).path/'weights'/'real-0.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'?')
    [issue] = verify(copy.path)[0].itertuples()
    assert issue.file == str(weights.relative_to(copy.path))
    assert issue.what == 'was changed'


def test_chapters_that_join_the_folds_run(copy):
    execute(copy, chapters=('04_eval', '07_arms', '09_verdict'))
    page = (copy.path/'notebooks'/'04_eval.ipynb').read_text()
    assert f'{len(study_patches(copy)):,} test' in page


# --- data that cannot be spread ---

def patches(labels, groups):
    images = torch.randint(0, 255, (len(labels), 1, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))
    table = pd.DataFrame(dict(id=[f'{i}.png' for i in range(len(labels))], label=labels, group=groups, film=groups,
                              size=np.nan, origin='real'))
    return PatchSet(images, table, ('clean', *sorted({*labels} - {'clean'})))


@pytest.fixture
def twelve_welds():
    "Each of twelve welds has cleans and pores; cracks are on the first three."
    welds = [f'weld-{i:02d}' for i in range(12)]
    rows = [(label, weld) for weld in welds for label in ('clean', 'pore')*5]
    rows += [('crack', weld) for weld in welds[:3] for _ in range(10)]
    return patches(*map(list, zip(*rows, strict=True)))


def test_a_class_on_three_welds_can_be_learnt_and_chosen_on_in_every_fold(twelve_welds):
    for part in split(twelve_welds, DataConfig(folds=4)):
        assert {'crack'} <= set(part.fold('train').table.label) & set(part.fold('validation').table.label)


def test_a_class_on_too_few_welds_for_the_folds_is_one_line(twelve_welds):
    assert split_error(twelve_welds, 2) == (
        "class 'crack': is missing from the validation fold: its welds cannot be spread over the outer folds: "
        'change data.folds, use smaller groups, or add welds')
    few = twelve_welds.take((twelve_welds.table.group > 'weld-00').to_numpy() | (twelve_welds.labels != 1).numpy())
    assert split_error(few, 4) == ("class 'crack': comes from 2 groups, and three folds need three: "
                                   'use smaller groups, or add welds with it')


def split_error(patches, folds):
    with pytest.raises(StudyError) as e: split(patches, DataConfig(folds=folds))
    assert '\n' not in str(e.value)
    return str(e.value)


def test_more_folds_than_welds_are_one_line(twelve_welds):
    assert 'cannot be spread over the folds' in split_error(twelve_welds, 13)


def fixture(folds): return choose_profile('fixture', {'data.folds': folds})


def test_a_check_looks_for_copies_in_every_fold(twelve_welds):
    parts = split(twelve_welds, DataConfig(folds=4))
    together = parts[0].table.groupby('group').fold.first()
    apart = parts[1].table.groupby('group').fold.first()
    first, second = next((a, b) for a in together.index for b in together.index
                         if together[a] == together[b] and apart[a] != apart[b])
    row, other = (int(np.flatnonzero(twelve_welds.table.group == weld)[0]) for weld in (first, second))
    twelve_welds.images[other] = twelve_welds.images[row]
    errors = [i.what for i in set_issues(twelve_welds, fixture(4), 0) if i.error]
    assert f"and '{row}.png' are the same image in two folds" in errors


def test_a_check_counts_every_image_as_tested(twelve_welds):
    def about_cracks(folds):
        issues = set_issues(twelve_welds, fixture(folds), 0)
        return [i.what for i in issues if i.file == "class 'crack'" and 'test image' in i.what]
    assert about_cracks(4) == []
    assert about_cracks(1) == ['has 10 test images']


def test_with_folds_all_welds_are_test_welds(twelve_welds):
    alone, folded = (expected_power(twelve_welds.table, fixture(folds), studies=3) for folds in (1, 4))
    assert (alone['test_welds'], folded['test_welds']) == (3, 12)
    assert folded['detectable'] > 0


def test_a_study_with_one_fold_is_its_own_part(tmp_path):
    study = Study('one', tmp_path, choose_profile('fixture'))
    assert study.parts() == [study]
    assert study.first is study
    assert study.whole is study
