"""The notebooks and what is made from them agree."""
import filecmp, re, shutil, subprocess, sys
from pathlib import Path

import nbformat
import pytest

from weldsynth.report.pages import CASES, CHAPTERS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))


def read(path): return nbformat.read(path, 4)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the project in which `nbdev_clean` and `nbdev_export` have been run."
    to = tmp_path_factory.mktemp('copy')
    for name in ('nbs', 'weldsynth', 'assets'):
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, to/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', '_quarto.yml', 'README.md'): shutil.copy(ROOT/name, to)
    for command in ('nbdev_clean', 'nbdev_export'): subprocess.run([Path(sys.executable).parent/command], cwd=to, check=True, capture_output=True)
    return to


@pytest.mark.parametrize('folder, pattern', [('nbs', '*.ipynb'), ('weldsynth', '*.py')])
def test_clean_and_export_leave_no_diff(copy, folder, pattern):
    names = sorted(p.name for p in (copy/folder).glob(pattern))
    assert names == sorted(p.name for p in (ROOT/folder).glob(pattern))
    assert filecmp.cmpfiles(copy/folder, ROOT/folder, names, shallow=False) == (names, [], [])


def test_readme_is_the_index():
    made = subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'markdown', '--no-input', '--stdout', ROOT/'nbs'/'index.ipynb'], check=True, capture_output=True, text=True).stdout
    assert re.sub(r'\]\(([0-9a-z_]*\.ipynb)\)', r'](nbs/\1)', made).strip() == (ROOT/'README.md').read_text().strip()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_have_ids_and_prose_comes_first(path):
    notebook = read(path)
    ids = [c.id for c in notebook.cells]
    assert len(set(ids)) == len(ids) and notebook.cells[0].cell_type == 'markdown' and notebook.cells[0].source.startswith('# ')


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_chapters_carry_the_outputs_of_a_reference_run(chapter):
    notebook = read(ROOT/'nbs'/f'{chapter}.ipynb')
    outputs = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]
    assert any('image/png' in o.get('data', {}) for o in outputs) and not [o for o in outputs if o.output_type == 'error' or o.get('name') == 'stderr']
    assert (ROOT/'nbs'/f'{chapter}.ipynb').stat().st_size < 1_500_000
    shown = ' '.join(o.get('data', {}).get('text/markdown', '') for o in outputs)
    assert re.search(r'(demo|thorough|full)', shown), 'the run is stated'


def test_the_case_shows_no_pixel_of_the_films():
    for name in CASES:
        code = '\n'.join(c.source for c in read(ROOT/'nbs'/f'{name}.ipynb').cells if c.cell_type == 'code')
        assert not re.search(r'patch_rows|imshow|Image\b|matshow|\.images\b(?!, reconstruct|\)|\.astype)', code)
    assert {p.suffix for p in (ROOT/'nbs'/'case_gdxray').rglob('*') if p.is_file()} <= {'.csv', '.json'}


def test_images_are_packed_with_the_notebooks_only():
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [f for f in tracked if f.lower().endswith(('.png', '.tif', '.tiff', '.jpg', '.jpeg', '.safetensors'))]
