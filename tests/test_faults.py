"""kill -9 and a full disk at many moments of a study: what is then made again is the same, byte for byte."""
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
from faults import child, record, state
from nbformat import v4

from weldsynth.core.config import with_overrides
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
from weldsynth.report.chapters import execute
from weldsynth.report.pages import render
from weldsynth.stages.arms import fit_arms, open_test
from weldsynth.stages.audit import train_judges
from weldsynth.stages.data import prepare
from weldsynth.stages.insertion import train_inserter, train_student
from weldsynth.stages.ldm import train_autoencoder, train_denoiser
from weldsynth.stages.refining import train_refiner
from weldsynth.stages.sample import each_generator
from weldsynth.stages.sweep import draw_study_samples, sweep_guidance
from weldsynth.stages.verdict import recommend

TINY = choose_profile('fixture', {
    'data.defects': 200, 'data.cleans': 200, 'data.plates': 12, 'autoencoder.steps': 12, 'denoiser.steps': 16,
    'inserter.steps': 12, 'student.lessons': 12, 'student.steps': 8, 'refiner.steps': 12,
    'sampler.generator': 'ldm,insert-1step',
    'sampler.synthetics': 30, 'sampler.batch': 6, 'sweep.samples': 20, 'classifier.steps': 8, 'classifier.seeds': 1,
    'rule.resamples': 50})
VERDICT = """from IPython.display import Markdown, display
display(Markdown('<div class="verdict"><p>No.</p></div>'))"""
PAGE = [v4.new_markdown_cell('# Ship it?'), v4.new_code_cell(VERDICT, id='verdict')]
CHAPTERS = ('04_eval', '02_ldm')


def study_in(folder, config=TINY): return Study('one', folder/'one', config)


def pages(study):
    "Two small chapters, executed and rendered."
    execute(study, study.path.parent/'nbs', CHAPTERS)
    render(study, CHAPTERS)


def with_chapters(folder):
    (folder/'nbs').mkdir(parents=True)
    for chapter in CHAPTERS: nbformat.write(v4.new_notebook(cells=PAGE), folder/'nbs'/f'{chapter}.ipynb')
    return folder


def guidance(study):
    for one in each_generator(study).values(): sweep_guidance(one)


def samples(study):
    for one in each_generator(study).values(): draw_study_samples(one)


def samples_and_judges(study):
    samples(study)
    train_judges(study)


def verdict(study):
    open_test(study)
    recommend(study)


def features_and_judges(study):
    "Heads on frozen features, which are kept in `features/` beside the study."
    os.environ['WELDSYNTH_HOME'] = str(study.path.parent)
    config = with_overrides(study.config, {'classifier.kind': 'features', 'classifier.steps': 8})
    train_judges(replace(study, config=config))


class Step(NamedTuple):
    "A part of a study that is struck."
    work: Callable
    before: Callable  # makes what the work needs


STEPS = {
    'features': Step(features_and_judges, prepare),
    'autoencoder': Step(train_autoencoder, prepare),
    'denoiser': Step(train_denoiser, train_autoencoder),
    'inserter': Step(train_inserter, train_autoencoder),
    'student': Step(train_student, train_inserter),
    'refiner': Step(train_refiner, train_denoiser),
    'sampling': Step(samples, guidance),
    'fits': Step(fit_arms, samples_and_judges),
    'verdict': Step(verdict, fit_arms),
    'rendering': Step(pages, lambda study: None)}
TRAININGS = ('autoencoder', 'denoiser', 'inserter', 'student', 'refiner')


def run_undisturbed(work, root):
    run = child(work, root)
    assert run['end'] == 'done', run
    return run


def make_step(step, root):
    "One step undisturbed: the folder before it, what there is after it, its seconds, how often it wrote."
    study, before = study_in(root), root/f'before-{step}'/'one'
    run_undisturbed(lambda: STEPS[step].before(study), root)
    if study.path.exists(): shutil.copytree(study.path, before)
    else: before.mkdir(parents=True)
    start = time.perf_counter()
    run = run_undisturbed(lambda: STEPS[step].work(study), root)
    return dict(before=before, after=state(study.path), seconds=time.perf_counter() - start, calls=run['calls'])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Makes a study that is never interrupted, up to a step, each in a process of its own; returns facts about the step."
    root, made = with_chapters(tmp_path_factory.mktemp('whole')), {}
    os.environ['OMP_NUM_THREADS'] = '1'

    def up_to(step):
        order = list(STEPS)
        for s in order[len(made):order.index(step) + 1]: made[s] = make_step(s, root)
        return made[step]
    return up_to


def differences(now, then): return sorted(k for k in {*now, *then} if now.get(k) != then.get(k))


def survives(whole, tmp_path, step, **fault):
    "A fault in `step`, then the same command again, which makes what was never interrupted; how the first ended."
    facts, study = whole(step), study_in(tmp_path/step)
    shutil.rmtree(tmp_path/step, ignore_errors=True)
    with_chapters(study.path.parent)
    shutil.copytree(facts['before'], study.path)
    earlier = state(study.path)
    first = child(lambda: STEPS[step].work(study), tmp_path, **fault)
    left = {k: v for k, v in state(study.path).items() if k in earlier}
    assert left == earlier or step == 'rendering', f'{step}: a fault has changed what was finished before'
    run_undisturbed(lambda: STEPS[step].work(study), tmp_path)
    differ = differences(state(study.path), facts['after'])
    assert not differ, f'{step}, {fault}: {differ[:5]}'
    assert not [*study.path.rglob('.part-*')] or step == 'rendering', 'parts of the killed run are removed'
    return first


def check_disk_full_line(end):
    assert end.startswith('no room to write'), end
    assert 'free some space and run the same command again' in end
    assert '\n' not in end


@pytest.mark.parametrize('step', ['autoencoder', 'denoiser', 'student', 'sampling', 'fits'])
def test_killed_while_a_state_is_saved(whole, tmp_path, step):
    n = whole(step)['calls']['kill, saving']
    assert n > 10
    first = survives(whole, tmp_path, step, kind='kill', at=n//2 + 1, states_only=True)
    assert first == dict(began=True, saving=True, end='killed')


@pytest.mark.parametrize('step', ['features', 'autoencoder', 'sampling', 'fits'])
def test_a_full_disk_while_something_is_written(whole, tmp_path, step):
    check_disk_full_line(survives(whole, tmp_path, step, kind='full', at=5)['end'])


# --- the long ones ---

def moments(whole, step, rng):
    "Faults to try in a step: killed at 5 random times and at 5 random writes, in trainings those of checkpoints."
    facts, states_only = whole(step), step in TRAININGS
    n = facts['calls']['kill, saving' if states_only else 'kill']
    for _ in range(5): yield 'at a random time', dict(kill_after=float(rng.random()*facts['seconds']))
    for at in rng.choice(np.arange(1, n + 1), 5, replace=False):
        yield 'at a write', dict(kind='kill', at=int(at), states_only=states_only)


def kill_once(whole, tmp_path, step, fault):
    "The fault, earlier if the step was done before; what is known of the killed run."
    first = survives(whole, tmp_path, step, **fault)
    while first['end'] != 'killed':
        fault |= dict(kill_after=fault['kill_after']*.6) if 'kill_after' in fault else dict(at=fault['at'] - 1)
        first = survives(whole, tmp_path, step, **fault)
    return first


@pytest.mark.soak
def test_killed_at_many_moments(whole, tmp_path):
    rng, counts, saving = np.random.default_rng(0), {}, 0
    for step in STEPS:
        for how, fault in moments(whole, step, rng):
            saving += kill_once(whole, tmp_path, step, fault).get('saving', False)
            count = counts.setdefault(step, {}).setdefault(how, dict(tried=0, identical=0))
            count['tried'] += 1
            count['identical'] += 1  # `survives` asserts it
    tried = sum(c['tried'] for kinds in counts.values() for c in kinds.values())
    assert tried >= 50
    assert saving >= 10
    record('killed (kill -9)', tried=tried, survived=tried, while_a_state_was_saved=saving, stages=counts)


@pytest.mark.soak
@pytest.mark.parametrize(('title', 'config'), [
    ('one study, killed again and again', TINY),
    ('one study in two outer folds, killed again and again', with_overrides(TINY, {'data.folds': 2}))])
def test_a_study_that_is_killed_again_and_again(tmp_path, monkeypatch, title, config):
    "One study from its data to its pages, killed at random moments of its whole course, resumed each time."
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    undisturbed, study = (study_in(with_chapters(tmp_path/name), config) for name in ('undisturbed', 'chain'))
    rng, kills, end = np.random.default_rng(1), 0, 'killed'

    def work(study):
        recommend(study)
        pages(study)
    run_undisturbed(lambda: work(undisturbed), tmp_path)
    while end == 'killed' and kills < 200:
        end = child(lambda: work(study), tmp_path, kill_after=.5 + 6*float(rng.random()))['end']
        kills += end == 'killed'
    assert end == 'done'
    assert kills >= 5
    differ = differences(state(study.path), state(undisturbed.path))
    assert not differ, differ[:5]
    record(title, tried=kills, survived=kills)


def fill_once(whole, tmp_path, step, at):
    "The disk is full at that write, or at the last one before that writes anything."
    first = survives(whole, tmp_path, step, kind='full', at=at)
    return first if first['end'] != 'done' else fill_once(whole, tmp_path, step, at - 1)


@pytest.mark.soak
def test_a_disk_that_is_full_at_many_writes(whole, tmp_path):
    counts = {}
    for step in STEPS:
        n = whole(step)['calls']['full']
        counts[step] = dict(tried=0, one_line=0, identical=0)
        for at in sorted({1 + round(share*(n - 1)) for share in (0, .3, .6, 1)}):
            check_disk_full_line(fill_once(whole, tmp_path, step, at)['end'])
            for k in counts[step]: counts[step][k] += 1
    tried = sum(c['tried'] for c in counts.values())
    assert tried >= 20
    record('disk full', tried=tried, survived=tried, stages=counts)
