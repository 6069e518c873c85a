"""The notebooks and what is made from them agree."""
import filecmp
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from weldsynth.report.chapters import CASES, CHAPTERS

ROOT = Path(__file__).parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
LINK = re.compile(r'\]\(([^)\s#]+\.ipynb)(?:#[^)\s]*)?\)')

NO_RUN = {'12_reliability', '13_lab_notes', 'glossary'}  # these show no run


def read(path): return nbformat.read(path, 4)


def title(path): return str(path.relative_to(NBS).with_suffix(''))


def files(folder, pattern):
    "Paths below `folder`, relative to it."
    found = (p.relative_to(folder) for p in folder.rglob(pattern))
    return sorted(str(p) for p in found if not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts))


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the project in which `nbdev_clean` and `nbdev_export` have been run."
    to = tmp_path_factory.mktemp('copy')
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'weldsynth'): shutil.copytree(ROOT/name, to/name, ignore=ignore)
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', '_quarto.yml', 'README.md'): shutil.copy(ROOT/name, to)
    for command in ('nbdev_clean', 'nbdev_export'):
        subprocess.run([Path(sys.executable).parent/command], cwd=to, check=True, capture_output=True)
    return to


@pytest.mark.parametrize(('folder', 'pattern'), [('nbs', '*.ipynb'), ('weldsynth', '*.py')])
def test_clean_and_export_leave_no_diff(copy, folder, pattern):
    names = files(copy/folder, pattern)
    assert names == files(ROOT/folder, pattern)
    same, different, missing = filecmp.cmpfiles(copy/folder, ROOT/folder, names, shallow=False)
    assert different == []
    assert missing == []
    assert same == names


def test_readme_is_the_index():
    command = [sys.executable, '-m', 'nbconvert', '--to', 'markdown', '--no-input', '--stdout', NBS/'index.ipynb']
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    made = re.sub(r'\]\(([0-9a-z_/]*\.(ipynb|png))\)', r'](nbs/\1)', made)
    assert made.strip() == (ROOT/'README.md').read_text().strip()


@pytest.mark.parametrize('link', sorted(set(LINK.findall((ROOT/'README.md').read_text()))))
def test_links_of_the_readme_lead_to_notebooks(link):
    assert (ROOT/link).is_file()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=title)
def test_links_between_notebooks_lead_somewhere(path):
    text = '\n'.join(c.source for c in read(path).cells if c.cell_type == 'markdown')
    broken = [link for link in LINK.findall(text) if '://' not in link and not (path.parent/link).is_file()]
    assert broken == []


@pytest.mark.parametrize('path', NOTEBOOKS, ids=title)
def test_cells_have_ids_of_their_own(path):
    ids = [c.id for c in read(path).cells]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=title)
def test_prose_comes_first(path):
    first = read(path).cells[0]
    assert first.cell_type == 'markdown'
    assert first.source.startswith('# ')


def outputs_of(chapter):
    "All outputs of a committed chapter."
    return [o for c in read(NBS/f'{chapter}.ipynb').cells if c.cell_type == 'code' for o in c.outputs]


def size_of(chapter): return (NBS/f'{chapter}.ipynb').stat().st_size


@pytest.mark.parametrize('chapter', [c for c in CHAPTERS if c not in NO_RUN])
def test_chapters_carry_the_outputs_of_a_reference_run(chapter):
    outputs = outputs_of(chapter)
    assert any('image/png' in o.get('data', {}) for o in outputs)
    shown = ' '.join(o.get('data', {}).get('text/markdown', '') for o in outputs)
    assert re.search(r'(demo|thorough|full)', shown), 'the run is stated'


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_chapters_show_no_errors_and_are_not_large(chapter):
    assert not [o for o in outputs_of(chapter) if o.output_type == 'error' or o.get('name') == 'stderr']
    assert size_of(chapter) < 1_500_000


def test_the_record_of_faults_states_its_dates_and_machines():
    shown = ' '.join(o.get('data', {}).get('text/markdown', '') for o in outputs_of('12_reliability'))
    rows = re.findall(r'^\| .+ \| (\d{4}-\d\d-\d\d) \| (.+? cores) \|', shown, re.M)
    assert len(rows) == len(json.loads((NBS/'records'/'reliability.json').read_text()))


def test_the_lab_notes_state_their_dates():
    text = '\n'.join(c.source for c in read(NBS/'13_lab_notes.ipynb').cells)
    sections = re.findall(r'^## (.+)', text, re.M)
    assert sections
    assert re.search(r'\d+ November 2026', text)


@pytest.mark.parametrize('name', sorted(CASES))
def test_a_case_shows_no_pixel_of_the_films(name):
    code = '\n'.join(c.source for c in read(NBS/f'{name}.ipynb').cells if c.cell_type == 'code')
    assert not re.search(r'patch_rows|imshow|Image\b|matshow|\.images\b(?!, reconstruct|\)|\.astype)', code)


def test_the_record_of_a_case_holds_tables_only():
    suffixes = {p.suffix for p in (NBS/'records'/'gdxray').rglob('*') if p.is_file()}
    assert suffixes == {'.csv', '.json'}


def test_images_are_tracked_in_notebooks_in_the_example_and_in_the_readme_only():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    images = ('.png', '.tif', '.tiff', '.jpg', '.jpeg', '.safetensors')
    simulated = ('examples/own_folder/images/', 'nbs/images/inserted.png')
    elsewhere = [f for f in tracked if not f.startswith(simulated)]
    assert not [f for f in elsewhere if f.lower().endswith(images)]
