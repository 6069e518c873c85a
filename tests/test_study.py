"""The whole study at fixture size: the command, the report, and papermill on the last notebook alone."""
import json
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import environment
from PIL import Image

from weldsynth.core.opening import open_study
from weldsynth.core.runtime import checkout
from weldsynth.data.simulate import simulate
from weldsynth.report.chapters import CHAPTERS, execute
from weldsynth.report.pages import page_issues, render
from weldsynth.stages.arms import ARMS
from weldsynth.stages.verdict import recommend

DECISIONS = ('SHIP', 'DO NOT SHIP', 'INCONCLUSIVE')


def run(home, *command, **options):
    "Run a command with its studies under `home`."
    env = environment(bars=True, WELDSYNTH_HOME=home)
    return subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, **options)


def papermill(home, *parameters):
    "Run the chapter with the answer by papermill alone."
    notebook = checkout()/'nbs'/'04_eval.ipynb'
    return run(home, sys.executable, '-m', 'papermill', notebook, '-p', *parameters, cwd=home)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "The home folder of a finished fixture study, and what the command printed."
    home = tmp_path_factory.mktemp('home')
    done = run(home, sys.executable, '-m', 'weldsynth', 'report', '--profile', 'fixture')
    assert done.returncode == 0, done.stderr[-2000:]
    return home, done.stdout, done.stderr


@pytest.fixture(scope='module')
def study(finished): return finished[0]/'studies'/'simulated-fixture'


def shown(page):
    "The text of a page without its folded code."
    soup = BeautifulSoup(page.read_text(), 'html.parser')
    for code in soup('details', 'code'): code.decompose()
    return ' '.join(soup.get_text(' ').split())


def artefacts(study):
    "folder -> when it was recorded."
    return {str(p.parent.relative_to(study)): p.stat().st_mtime_ns for p in study.rglob('artefact.json')}


@pytest.mark.slow
def test_the_command_ends_with_the_recommendation(finished, study):
    _, out, err = finished
    assert out.strip().startswith(DECISIONS)
    assert 'simulated radiographs, which say nothing about real welds' in out
    assert 'macro F1 at 2 % false calls, real+synthetic' in out
    assert out.strip().endswith(str(study/'report'/'index.html'))
    for label in ('training autoencoder', 'training denoiser', 'sampling', 'fitting classifiers', 'notebooks'):
        assert label in err, f'no progress bar for {label}'


@pytest.mark.slow
def test_the_report_is_whole(study):
    assert page_issues(study/'report') == []
    assert {p.stem for p in (study/'report').glob('*.html')} == {'index', *CHAPTERS[1:], 'model_card', 'data_card'}
    assert {'verdict.json', 'effects.csv', 'tidy.csv'} <= {p.name for p in (study/'report'/'files').iterdir()}
    first = shown(study/'report'/'index.html')
    verdict = json.loads(next((study/'eval').glob('verdict-*/verdict.json')).read_text())
    assert verdict['decision'] in first
    assert 'demonstration on simulated radiographs' in first
    assert 'Not a basis for a decision' in first
    assert 'What to do now' in first
    assert 'not reviewed' in first
    for chapter in ('Risk register', 'Integration path', 'macro F1'): assert chapter in first
    review = shown(study/'report'/'08_review.html')
    assert 'not reviewed' in review
    assert 'No page has been exported yet' in review
    assert 'saw the intended flaw' not in review


@pytest.mark.slow
def test_every_synthetic_image_is_in_the_manifest(study):
    manifests = {folder: pd.read_csv(folder/'manifest.csv') for folder in (study/'samples').iterdir()}
    for folder, rows in manifests.items():
        assert set(rows.image) == {str(p.relative_to(folder)) for p in folder.rglob('*.png')}
        assert rows.seed.is_unique
    sizes = sorted(len(rows) for rows in manifests.values())
    assert sizes == [20, 20, 20, 40], 'cleans, two guidance scales, the whole set'
    folder, rows = next((f, r) for f, r in manifests.items() if len(r) == 40)
    assert {'image', 'label', 'seed', 'checkpoint', 'guidance', 'steps', 'solver'} <= set(rows)
    with Image.open(folder/rows.image[0]) as image: assert (image.size, image.mode) == ((32, 32), 'L')


@pytest.mark.slow
def test_results_are_tidy_and_the_test_was_opened_once(study):
    rows = pd.read_csv(next((study/'eval').glob('verdict-*/tidy.csv')))
    assert list(rows) == ['arm', 'generator_seed', 'classifier_seed', 'fold', 'class', 'metric', 'value']
    f1 = rows[rows.metric == 'macro_f1']
    arms = {name for name, arm in ARMS.items() if arm.needs not in ('inserter', 'contrastive')}
    assert len(f1) == 2*len(arms)
    assert f1.value.between(0, 1).all()
    assert set(f1.arm) == arms
    per_class = rows[rows.metric == 'f1'].groupby(['arm', 'classifier_seed']).value.mean()
    assert (per_class - f1.set_index(['arm', 'classifier_seed']).value).abs().max() < 1e-9
    log = (study/'eval'/'test-opened.jsonl').read_text().splitlines()
    assert [json.loads(line)['event'] for line in log] == ['opened', 'done']


@pytest.mark.slow
def test_papermill_on_the_last_notebook_reuses_what_is_there(finished, study):
    before = artefacts(study)
    done = papermill(finished[0], 'profile', 'fixture')
    assert done.returncode == 0, done.stderr[-2000:]
    assert artefacts(study) == before, 'nothing is made twice'
    notebook = nbformat.reads(done.stdout[done.stdout.index('{'):], 4)
    outputs = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs if 'data' in o]
    texts = ' '.join(o.data.get('text/markdown', '') for o in outputs)
    assert 'class="verdict' in texts
    assert any(f'<p class="decision">{d}' in texts for d in DECISIONS)


@pytest.mark.slow
def test_papermill_alone_makes_what_is_missing(tmp_path):
    done = papermill(tmp_path, 'profile', 'fixture')
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'class=\\"verdict' in done.stdout
    made = {p.name for p in (tmp_path/'studies'/'simulated-fixture').iterdir()}
    assert {'data', 'eval', 'ldm', 'samples'} <= made


@pytest.mark.slow
def test_papermill_fails_when_the_study_fails(tmp_path):
    done = papermill(tmp_path, 'data', 'nowhere')
    assert done.returncode == 1
    assert "StudyError: data 'nowhere' does not exist" in done.stderr


@pytest.mark.slow
def test_a_folder_of_ones_own_images(tmp_path, monkeypatch):
    "200 images in two folders: a first page, and no answer better than inconclusive, since nobody named the welds."
    shots, mine = simulate(500, 100, 20, 48, seed=3), tmp_path/'mine'
    for label, folder in (('clean', mine/'clean'), ('porosity', mine/'pores')):
        folder.mkdir(parents=True)
        images = shots.images[shots.labels == label][:100]
        for i, image in enumerate(images): Image.fromarray(image).save(folder/f'{i}.png')
    before = sorted(p.stat().st_mtime_ns for p in mine.rglob('*'))
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    study = open_study('', str(mine), 'fixture')
    advice = recommend(study)
    assert advice['decision'] in ('INCONCLUSIVE', 'DO NOT SHIP')
    assert not advice['groups_known']
    assert ', on mine: ' in advice['sentence']
    execute(study, chapters=('04_eval',))
    first = render(study, ('04_eval',))
    assert page_issues(first.parent) == []
    assert 'The data do not name welds' in shown(first)
    assert 'simulated' not in shown(first)
    assert before == sorted(p.stat().st_mtime_ns for p in mine.rglob('*')), 'the source is never written to'
