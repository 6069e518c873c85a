"""kill -9 and a full disk, at many moments of a study: what is made after it is made again is the same, byte for byte."""
import os, shutil, time
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from faults import child, record, state
from nbformat import v4

from weldsynth.stages.arms import fit_arms, open_test
from weldsynth.core.config import choose_profile
from weldsynth.core.store import Study
from weldsynth.stages.data import prepare
from weldsynth.stages.ldm import train_autoencoder, train_denoiser
from weldsynth.stages.audit import train_judges
from weldsynth.report.pages import execute, render
from weldsynth.stages.sweep import draw_study_samples, sweep_guidance
from weldsynth.stages.verdict import recommend

TINY = replace(choose_profile('fixture'), defects=200, cleans=200, plates=12, ae_steps=12, ldm_steps=16, synthetics=30, sample_batch=6, sweep_samples=20, fit_steps=8, seeds=1, resamples=50)
PAGE = [v4.new_markdown_cell('# Ship it?'), v4.new_code_cell("from IPython.display import Markdown, display\ndisplay(Markdown('<div class=\"verdict\"><p>No.</p></div>'))", id='verdict')]
CHAPTERS = ('04_eval', '02_ldm')


def pages(study):
    "Two small chapters, executed and rendered."
    execute(study, study.path.parent/'nbs', CHAPTERS)
    render(study, CHAPTERS)


def with_chapters(folder):
    (folder/'nbs').mkdir(parents=True)
    for c in CHAPTERS: nbformat.write(v4.new_notebook(cells=PAGE), folder/'nbs'/f'{c}.ipynb')
    return folder


def verdict(study): open_test(study), recommend(study)


# what is done in a stage, and the folders that it makes
STAGES = {'autoencoder': (train_autoencoder, 'ldm/autoencoder-*'), 'denoiser': (train_denoiser, 'ldm/denoiser-*'), 'sampling': (draw_study_samples, 'samples/defects-*'),
          'fits': (fit_arms, 'eval/fits-*'), 'verdict': (verdict, 'eval/*'), 'rendering': (pages, 'report')}
BEFORE = {'autoencoder': prepare, 'denoiser': train_autoencoder, 'sampling': sweep_guidance, 'fits': lambda s: (draw_study_samples(s), train_judges(s)), 'verdict': fit_arms, 'rendering': lambda s: None}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Makes a study that was never interrupted, stage by stage, each in a process of its own; stage -> the folder before it, what there is after it, its seconds, and how often it wrote: kind of call -> count."
    root, made = with_chapters(tmp_path_factory.mktemp('whole')), {}
    os.environ['OMP_NUM_THREADS'] = '1'
    def upto(stage):
        for s in [*STAGES][len(made):[*STAGES].index(stage) + 1]:
            study, before = Study('one', root/'one', TINY), root/f'before-{s}'/'one'
            run = child(lambda: (BEFORE[s](study)), root)
            assert run['end'] == 'done', run
            shutil.copytree(study.path, before) if study.path.exists() else before.mkdir(parents=True)
            start = time.perf_counter()
            run = child(lambda: STAGES[s][0](study), root)
            assert run['end'] == 'done', run
            made[s] = dict(before=before, after=state(study.path), seconds=time.perf_counter() - start, calls=run['calls'])
        return made[stage]
    return upto


def survives(whole, tmp_path, stage, **fault):
    "A fault in `stage`, then the same command again: returns how the first ended, and whether what is there afterwards is that of the study that was never interrupted."
    told, study = whole(stage), Study('one', tmp_path/stage/'one', TINY)
    shutil.rmtree(tmp_path/stage, ignore_errors=True)
    with_chapters(study.path.parent)
    shutil.copytree(told['before'], study.path)
    earlier = state(study.path)
    work = lambda: STAGES[stage][0](study)
    first = child(work, tmp_path, **fault)
    kept = {k: v for k, v in state(study.path).items() if k in earlier}
    assert kept == earlier or stage == 'rendering', f'{stage}: a fault has changed what was finished before'
    again = child(work, tmp_path)
    assert again['end'] == 'done', again['end']
    now = state(study.path)
    differ = sorted(k for k in {*now, *told['after']} if now.get(k) != told['after'].get(k))
    assert not differ, f'{stage}, {fault}: {differ[:5]}'
    assert not [p for p in study.path.rglob('.part-*')] or stage == 'rendering', 'swept'
    return first


def one_line(end): return end.startswith('no room to write') and 'make room and run the same command again' in end and '\n' not in end


@pytest.mark.parametrize('stage', ['autoencoder', 'denoiser', 'sampling', 'fits'])
def test_killed_while_something_is_kept(whole, tmp_path, stage):
    n = whole(stage)['calls']['kill, kept']
    assert n > 10 and survives(whole, tmp_path, stage, kind='kill', at=n//2 + 1, kept_only=True) == dict(began=True, kept=True, end='killed')


@pytest.mark.parametrize('stage', ['autoencoder', 'sampling', 'fits'])
def test_a_full_disk_while_something_is_written(whole, tmp_path, stage):
    first = survives(whole, tmp_path, stage, kind='full', at=5)
    assert one_line(first['end']), first


# --- the long ones ---

def moments(whole, stage, rng):
    "Faults to try in a stage: killed at 5 random times and at 5 random calls that write, in the first stages those that keep a checkpoint."
    told, kept_only = whole(stage), stage in ('autoencoder', 'denoiser')
    n = told['calls']['kill, kept' if kept_only else 'kill']
    for _ in range(5): yield 'at a random time', dict(kill_after=float(rng.random()*told['seconds']))
    for at in rng.choice(np.arange(1, n + 1), 5, replace=False): yield 'at a write', dict(kind='kill', at=int(at), kept_only=kept_only)


@pytest.mark.soak
def test_killed_at_many_moments(whole, tmp_path):
    rng, tally, keeping = np.random.default_rng(0), {}, 0
    for stage in STAGES:
        for how, fault in moments(whole, stage, rng):
            first = survives(whole, tmp_path, stage, **fault)
            while first['end'] != 'killed':  # it was done before
                fault |= dict(kill_after=fault['kill_after']*.6) if 'kill_after' in fault else dict(at=fault['at'] - 1)
                first = survives(whole, tmp_path, stage, **fault)
            keeping += first.get('kept', False)
            counts = tally.setdefault(stage, {}).setdefault(how, dict(tried=0, identical=0))
            counts['tried'] += 1
            counts['identical'] += 1  # `survives` asserts it
    tried = sum(c['tried'] for kinds in tally.values() for c in kinds.values())
    assert tried >= 50 and keeping >= 10
    record('killed (kill -9)', tried=tried, survived=tried, while_something_was_kept=keeping, stages=tally)


@pytest.mark.soak
def test_a_study_that_is_killed_again_and_again(whole, tmp_path):
    "One study from its data to its pages, killed at random moments of its whole course, resumed each time; then compared."
    [*_, last] = STAGES
    told, study, rng, kills = whole(last), Study('one', with_chapters(tmp_path/'chain')/'one', TINY), np.random.default_rng(1), 0
    work = lambda: (recommend(study), pages(study))
    while (end := child(work, tmp_path, kill_after=.5 + 6*float(rng.random()))['end']) == 'killed' and kills < 200: kills += 1
    assert end == 'done' and kills >= 5, (end, kills)
    now = state(study.path)
    assert now == told['after'], sorted(k for k in {*now, *told['after']} if now.get(k) != told['after'].get(k))[:5]
    record('one study, killed again and again', tried=kills, survived=kills)


@pytest.mark.soak
def test_a_disk_that_is_full_at_many_writes(whole, tmp_path):
    tally = {}
    for stage in STAGES:
        n = whole(stage)['calls']['full']
        tally[stage] = dict(tried=0, one_line=0, identical=0)
        for at in sorted({1 + round(share*(n - 1)) for share in (0, .3, .6, 1)}):
            first = survives(whole, tmp_path, stage, kind='full', at=at)
            assert one_line(first['end']), (stage, at, first)
            for k in tally[stage]: tally[stage][k] += 1
    tried = sum(c['tried'] for c in tally.values())
    assert tried >= 20
    record('disk full', tried=tried, survived=tried, stages=tally)
