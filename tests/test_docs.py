"""The site of all notebooks: what `quarto render` in a checkout reads, and the filter that it runs on each notebook."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent
NAMES = sorted(f.relative_to(ROOT).as_posix() for f in (ROOT/'nbs').rglob('*.ipynb')
               if '.ipynb_checkpoints' not in f.parts)
PROJECT = yaml.safe_load((ROOT/'_quarto.yml').read_text())


def matched(*patterns):
    "The notebooks that globs of the project match, in order."
    return [f.relative_to(ROOT).as_posix() for p in patterns for f in sorted(ROOT.glob(p))]


def shown(name):
    "A notebook as it comes out of the filter, run as Quarto runs it."
    command = [sys.executable, ROOT/'docs'/'page.py']
    given = (ROOT/name).read_text(encoding='utf-8')
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, cwd=(ROOT/name).parent)
    return json.loads(done.stdout)


def test_every_notebook_has_a_page_and_the_index_comes_first():
    rendered = matched(*PROJECT['project']['render'])
    assert sorted(set(rendered)) == NAMES
    assert rendered[0] == 'nbs/index.ipynb'


def test_the_sidebar_lists_every_page_once():
    first, *sections = PROJECT['website']['sidebar']['contents']
    assert sorted([first, *matched(*(s['contents'] for s in sections))]) == NAMES
    assert len({s['section'] for s in sections}) == len(sections)


def test_the_project_names_only_files_that_are_there():
    style = PROJECT['format']['html']
    files = [f for theme in style['theme'].values() for f in theme if '.' in f]
    for file in (*files, style['css'], PROJECT['bibliography'], *PROJECT['ipynb-filters']): assert (ROOT/file).is_file()


def test_formulas_of_the_site_need_no_script_from_elsewhere():
    assert PROJECT['format']['html']['html-math-method'] == 'mathml'


@pytest.mark.parametrize('name', NAMES)
def test_pages_have_a_title_and_no_directives(name):
    notebook = shown(name)
    nbformat.validate(nbformat.from_dict(notebook))
    assert all(isinstance(c['source'], list) for c in notebook['cells']), 'Quarto joins the lines of a source'
    title = yaml.safe_load(''.join(notebook['cells'][0]['source']).strip('-\n'))['title']
    assert title
    text = [''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'markdown']
    assert not re.search(r'^# ', re.sub(r'```.*?```', '', '\n'.join(text), flags=re.S), re.M)
    code = [c for c in notebook['cells'] if c['cell_type'] == 'code']
    directive = re.compile(r'\s*#\|(?!\s*(echo|label|fig-cap|fig-alt|tbl-cap):)')
    assert not [line for c in code for line in c['source'] if directive.match(line)]
    links = re.findall(r'(?<!!)\]\(([^)#:\s]+)[)#]', '\n'.join(text))
    assert not [link for link in links if not ((ROOT/name).parent/link).is_file()], 'Quarto warns of a dead link'
    outputs = [o for c in code for o in c['outputs']]
    assert not [o for o in outputs if 'text/html' in o.get('data', {}) and len(o['data']) > 1]
    assert not [o for o in outputs if o.get('name') == 'stderr']
    written = [*text, *(''.join(o.get('data', {}).get('text/markdown', '')) for o in outputs)]
    fences = [re.findall(r'^:::+ *(.*)$', cell, re.M) for cell in written]
    assert all(f.count('') == len(f) - f.count('') for f in fences), 'a fence without its other end is shown as text'


@pytest.mark.parametrize('name', ['nbs/05_sweep.ipynb', 'nbs/09_verdict.ipynb'])
def test_figures_and_tables_are_numbered_by_quarto_and_referred_to(name):
    cells = shown(name)['cells']
    options = [yaml.safe_load(''.join(c['source']).replace('#| ', '')) for c in cells
               if c['cell_type'] == 'code' and '#| label' in ''.join(c['source'])]
    labels = [o['label'] for o in options]
    assert len(labels) == len(set(labels)) > 3
    assert all(o['fig-cap'] and o['fig-alt'] if o['label'].startswith('fig') else o['tbl-cap'] for o in options)
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    used = re.findall(r'@((?:fig|tbl)-[\w-]*\w)', text)
    assert used
    assert set(used) <= set(labels), 'Quarto warns of the others'
    assert 'class=\\"caption' not in json.dumps([c.get('outputs', []) for c in cells])


# --- make ---

def make(folder, *words, **tools):
    "Run `make` on the project's Makefile in `folder`, whose environment has stand-ins for these tools; what was said."
    (folder/'.venv'/'bin').mkdir(parents=True)
    shutil.copy(ROOT/'Makefile', folder)
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', '.venv/.ready'): (folder/name).touch()
    for name, script in tools.items():
        file = folder/'.venv'/'bin'/name
        file.write_text(f'#!/bin/sh\n{script}\n')
        file.chmod(0o755)
    without = os.pathsep.join(p for p in os.environ['PATH'].split(os.pathsep) if not (Path(p)/'quarto').exists())
    return subprocess.run(['make', *words], cwd=folder, capture_output=True, text=True, env={'PATH': without})


needs_make = pytest.mark.skipif(not shutil.which('make'), reason='make is not on PATH')


@needs_make
@pytest.mark.parametrize(('target', 'said'), [('docs', 'quarto render'), ('report', 'quarto by weldsynth')])
def test_make_finds_the_quarto_of_the_environment(tmp_path, target, said):
    done = make(tmp_path/'a b', target, quarto='echo "quarto $*"', weldsynth='quarto by weldsynth')
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@needs_make
def test_make_docs_says_how_to_get_quarto(tmp_path):
    done = make(tmp_path/'a', 'docs')
    assert done.returncode != 0
    assert '.venv/bin/pip install quarto-cli' in done.stdout


@needs_make
def test_make_case_can_repeat_the_recorded_runs(tmp_path):
    done = make(tmp_path/'a', 'case', 'GDXRAY=films', 'PROFILE=demo', 'SPLITS=film',
                'SET=sampler.generator=ldm,insert,insert-1step,vary classifier.seeds=5',
                weldsynth='echo "$*"', nbdev_clean='')
    assert done.stdout.startswith("gdxray films --profile demo --splits film --set "
                                  'sampler.generator=ldm,insert,insert-1step,vary --set classifier.seeds=5\n')
