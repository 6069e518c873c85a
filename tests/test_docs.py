"""The notebooks laid out as a site."""
import runpy
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent
NAMES = sorted(f.relative_to(ROOT/'nbs').as_posix() for f in (ROOT/'nbs').rglob('*.ipynb')
               if '.ipynb_checkpoints' not in f.parts)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    runpy.run_path(str(ROOT/'docs'/'lay_out.py'))['lay_out'](folder)
    return folder


def test_every_notebook_has_a_page(site):
    assert sorted(f.relative_to(site).as_posix() for f in site.rglob('*.ipynb')) == NAMES


def test_the_sidebar_lists_every_page_once(site):
    contents = yaml.safe_load((site/'_quarto.yml').read_text())['website']['sidebar']['contents']
    listed = [n for item in contents for n in (item['contents'] if isinstance(item, dict) else [item])]
    assert contents[0] == 'index.ipynb'
    assert sorted(listed) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_pages_have_a_title_and_no_directives(site, name):
    notebook = nbformat.read(site/name, 4)
    code = [line for c in notebook.cells if c.cell_type == 'code' for line in c.source.splitlines()]
    assert notebook.cells[0].source.startswith('---\ntitle: "')
    assert not [line for line in code if line.startswith('#|')]
