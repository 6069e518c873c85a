"""Nothing that is read can run, nothing that is shown can act, and nothing leaves the machine."""
import ast
import html
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from nbformat import v4
from PIL import Image

import weldsynth
from weldsynth.core.config import StudyError
from weldsynth.core.display import escape, markdown_table
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
from weldsynth.data.images import read_grey
from weldsynth.data.patches import load_patches
from weldsynth.models import backbone
from weldsynth.report.chapters import execute
from weldsynth.report.markup import csp_hash, markdown_html, sanitise
from weldsynth.report.pages import page_issues, render
from weldsynth.report.quarto_pages import POLICY
from weldsynth.stages.ldm import load_pipeline, train_denoiser

PACKAGE = Path(weldsynth.__path__[0])
PAYLOADS = [
    '<script>alert(1)</script>', '<img src=x onerror=alert(2)>', '"><svg onload=alert(3)>',
    "'><iframe src=javascript:alert(4)>", '[click](javascript:alert(5))', '![x](http://evil.example/6.png)',
    '<a href="java\nscript:alert(7)">x</a>', '</title></style></textarea><script src=//evil.example/8.js></script>',
    '<style>@import url(http://evil.example/9.css)</style>',
    '<meta http-equiv="refresh" content="0;url=http://evil.example/10">', '{{ 11 * 11 }}${{<%= 11 %>}}',
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(12)&gt;">']


# --- weights and tables ---

class Bomb:
    "Unpickling this makes a file."
    def __init__(self, file): self.file = str(file)
    def __reduce__(self): return open, (self.file, 'w')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WELDSYNTH_HOME', str(tmp_path_factory.mktemp('trained')))
        study = open_study('trained', profile='fixture')
        train_denoiser(study)
        yield study


WEIGHTS = 'transformer/diffusion_pytorch_model.safetensors'


def custom(part):
    "A pipeline that wants code of its own to be run."
    def plant(pipe, bomb):
        folder = pipe if part == '_class_name' else pipe/part
        (folder/'evil.py').write_text(
            f"open({str(bomb.file)!r}, 'w')\nfrom diffusers import DiTPipeline, DiTTransformer2DModel\n"
            "class Evil(DiTPipeline): pass\n")
        change_index(pipe, **{part: ['evil', 'Evil']})
    return plant


def change_index(pipe, **components):
    "Name other components in the pipeline's index."
    index = json.loads((pipe/'model_index.json').read_text())
    (pipe/'model_index.json').write_text(json.dumps(dict(index, **components)))


def replaced_by_pickle(pipe, bomb):
    (pipe/WEIGHTS).unlink()
    torch.save(bomb, (pipe/WEIGHTS).with_suffix('.bin'))


PLANTED = {
    'a pickle for the safetensors':    replaced_by_pickle,
    'a pickle beside the safetensors': lambda p, bomb: torch.save(bomb, (p/WEIGHTS).with_suffix('.bin')),
    'a pickle named safetensors':      lambda p, bomb: (p/WEIGHTS).write_bytes(pickle.dumps(bomb)),
    'a torch file named safetensors':  lambda p, bomb: torch.save(bomb, p/WEIGHTS),
    'a checkpoint of another kind':    lambda p, bomb: torch.save(bomb, p/'model.ckpt'),
    'code for the pipeline':           custom('_class_name'),
    'code for the denoiser':           custom('transformer'),
    'a component from the library':    lambda p, bomb: change_index(p, transformer=['os', 'system']),
}


@pytest.mark.parametrize('what', PLANTED)
def test_a_malicious_checkpoint_is_refused_unread(what, trained, tmp_path):
    "By the artefact's hashes, before anything is opened; without hashes by the loader, before anything is run."
    made, fired = train_denoiser(trained), tmp_path/'fired'
    study = Study('copy', Path(shutil.copytree(trained.path, tmp_path/'copy')), trained.config)
    folder = study.path/made.path.relative_to(trained.path)
    PLANTED[what](folder/'pipeline', Bomb(fired))
    refused = rf'pipeline/.*(is missing|was changed|was not made by the study): remove the folder {folder.name}'
    with pytest.raises(StudyError, match=refused): load_pipeline(study)
    assert not fired.exists()
    info = folder/'artefact.json'
    info.write_text(json.dumps({k: v for k, v in json.loads(info.read_text()).items() if k != 'files'}))
    try: load_pipeline(study)
    except Exception: pass
    else: assert (folder/'pipeline'/WEIGHTS).exists(), 'only the true weights were loaded'
    assert not fired.exists()


def test_the_bomb_is_a_live_one(tmp_path):
    torch.save(Bomb(tmp_path/'fired'), tmp_path/'b')
    pickled = pickle.dumps(Bomb(tmp_path/'fired'))
    for load in (lambda: pickle.loads(pickled), lambda: torch.load(tmp_path/'b', weights_only=False)):
        load()
        assert (tmp_path/'fired').exists()
        (tmp_path/'fired').unlink()


def test_pickled_patches_and_images_are_not_read(tmp_path):
    fired = tmp_path/'fired'
    (tmp_path/'images.safetensors').write_bytes(pickle.dumps(Bomb(fired)))
    (tmp_path/'table.parquet').write_bytes(pickle.dumps(Bomb(fired)))
    (tmp_path/'a.png').write_bytes(pickle.dumps(Bomb(fired)))
    np.save(tmp_path/'b.npy', np.array([Bomb(fired)]), allow_pickle=True)
    with pytest.raises(Exception): load_patches(tmp_path)  # noqa: B017  whatever the libraries raise
    with pytest.raises(Exception): pd.read_parquet(tmp_path/'table.parquet')  # noqa: B017
    for name in ('a.png', 'b.npy'):
        with pytest.raises(StudyError, match='cannot be read as an image'): read_grey(tmp_path/name)
    assert not fired.exists()


FORBIDDEN = re.compile(r'(pickle|dill|cloudpickle|shelve|marshal)\b|^(eval|exec|compile|__import__)$|torch\.load$'
                       r'|joblib\.load$|np\.load$|read_pickle$|yaml\.(unsafe_|full_)?load$|os\.system$'
                       r'|trust_remote_code')


def names_in(node):
    "What a call or an import names."
    if isinstance(node, ast.Call): return [ast.unparse(node.func)] + [k.arg for k in node.keywords if k.arg]
    return [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []


def nodes():
    "Every node of the package's code with its file."
    files = list(PACKAGE.rglob('*.py'))
    assert len(files) > 30
    return [(file, node) for file in files for node in ast.walk(ast.parse(file.read_text()))]


PACKAGED = 'torch.load(packaged_weights(), weights_only=True)'  # after their SHA-256 was checked


def test_the_code_has_no_way_to_unpickle_or_to_run_text():
    "But for the packaged weights of the backbone, of which tensors alone are read, and YAML, of which text alone is."
    unsafe = [(file, node) for file, node in nodes() for name in names_in(node) if FORBIDDEN.search(name)]
    allowed = [('annotations.py', 'yaml.load(text, yaml.BaseLoader)'), ('backbone.py', PACKAGED)]
    assert sorted((file.name, ast.unparse(node)) for file, node in unsafe) == allowed


def test_packaged_weights_of_another_hash_are_not_read(tmp_path, monkeypatch):
    fired = tmp_path/'fired'
    torch.save(Bomb(fired), tmp_path/'weights.pth')
    monkeypatch.setattr(backbone, 'find_spec', lambda name: SimpleNamespace(origin=str(tmp_path/'__init__.py')))
    with pytest.raises(StudyError, match='its SHA-256 hash differs'): backbone.packaged_weights()
    assert not fired.exists()


def test_pretrained_pipelines_are_loaded_from_safetensors_only():
    calls = [(file, node) for file, node in nodes() if isinstance(node, ast.Call)]
    loading = [(f, c) for f, c in calls if ast.unparse(c.func).endswith('from_pretrained')]
    assert loading
    for file, call in loading:
        is_safe = 'use_safetensors' in [k.arg for k in call.keywords] or 'Config' in ast.unparse(call.func)
        assert is_safe, f'{file}: {ast.unparse(call)}'


# --- pages ---

ELEMENTS = ['script', 'iframe', 'object', 'embed', 'form', 'base', 'svg', 'audio', 'video']


def acting_links(soup):
    "Addresses that are code."
    values = [t.get(a) for t in soup(True) for a in ('href', 'src', 'action')]
    code = re.compile(r'\s*(javascript|vbscript|data:text)', re.I)
    return [v for v in values if v and code.match(re.sub(r'\s', '', v))]


def active(soup):
    "What could act on a page."
    tags = [t.name for t in soup(ELEMENTS)]
    tags += [str(t) for t in soup('meta') if str(t.get('http-equiv', '')).lower() == 'refresh']
    handlers = [f'{t.name} {a}' for t in soup(True) for a in t.attrs if a.startswith('on')]
    foreign = [str(t) for t in soup('img') if not t.get('src', '').startswith('data:')]
    foreign += [t['href'] for t in soup('link') if not t['href'].startswith('data:')]
    return tags + handlers + acting_links(soup) + foreign + [s for s in soup('style') if 'evil' in s.text]


def without_own_script(page):
    "A page of the report, without the one script that its policy allows by its hash."
    soup = BeautifulSoup(page.read_text(), 'html.parser')
    assert csp_hash(soup.find('script').extract().string) in str(soup.meta.find_next('meta'))
    return soup


HOSTILE = '''
import json, matplotlib.pyplot as plt, pandas as pd, torch
from pathlib import Path
from types import SimpleNamespace
from IPython.display import HTML, Markdown, display
from weldsynth.core.profiles import choose_profile
from weldsynth.core.display import patch_rows, show_figure, show_table
from weldsynth.core.store import Study
display(Markdown('<div class="verdict"><p>none</p></div>'))
payloads = json.loads(Path(data).read_text())
show_table(pd.DataFrame({'label': payloads, **{p: [1]*len(payloads) for p in payloads}}), 'A table of ' + payloads[0])
for p in payloads:
    fig, ax = plt.subplots(figsize=(1, 1)); ax.set_title('t')
    show_figure(fig, p)
    print(p)
    display(pd.DataFrame({p: [p]}, index=[p]))
    display(Study(p, Path('.'), choose_profile('fixture')))
    display(HTML('<b>raw</b> ' + p)); display(Markdown('raw ' + p)); display(HTML('<p title="a">raw</p>' + p))
show_figure(patch_rows({'<b>row</b>': torch.zeros(3, 1, 8, 8, dtype=torch.uint8)}, columns=3), 'rows')
'''


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    "A rendered report that shows every payload in every way that text can be shown. Its study is named by a payload."
    folder = tmp_path_factory.mktemp('hostile')
    (folder/'nbs').mkdir()
    (folder/'payloads.json').write_text(json.dumps(PAYLOADS))
    parameters = "name = ''\ndata = ''\nprofile = ''\ngroup = ''\nseed = 0"
    cells = [v4.new_markdown_cell('# Hostile'), v4.new_code_cell(parameters, metadata=dict(tags=['parameters'])),
             v4.new_code_cell(HOSTILE), *(v4.new_markdown_cell(f'## {escape(p)}') for p in PAYLOADS)]
    nbformat.write(v4.new_notebook(cells=cells), folder/'nbs'/'c.ipynb')
    study = Study(PAYLOADS[1], folder/'made', choose_profile('fixture'), str(folder/'payloads.json'))
    execute(study, folder/'nbs', ['c'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PATH', os.devnull)
        return render(study, ['c'])


def test_payloads_are_inert_and_legible(hostile):
    soup = without_own_script(hostile)
    assert not active(soup)
    assert page_issues(hostile.parent) == []
    def plain(text): return ' '.join(text.split())
    shown = plain(soup.main.get_text(' '))
    cells = {plain(cell.get_text()) for cell in soup(['td', 'th'])}
    captions = {plain(p.get_text()).split('. ', 1)[1] for p in soup('p', class_='caption')}
    alts = {plain(i['alt']) for i in soup('img')}
    for p in map(plain, PAYLOADS):
        for texts in (cells, captions, alts): assert p in texts, 'shown as it was written'
        assert f'Study {p}' in shown
    assert PAYLOADS[1] in soup.title.get_text()
    assert PAYLOADS[1] in soup.footer.get_text()
    print(f'{len(PAYLOADS)} payloads in {len(soup("td"))} cells, {len(captions)} captions and elsewhere: none acts')


def test_every_page_has_a_policy_that_comes_first(hostile):
    head = BeautifulSoup(hostile.read_text(), 'html.parser').head
    policy = head.find('meta', attrs={'http-equiv': 'Content-Security-Policy'})
    assert [t.name for t in head.find_all(True)].index('meta') < 2
    assert str(head).index('Content-Security-Policy') < min(str(head).index(t) for t in ('<title', '<style', '<link'))
    rules = dict(part.strip().split(' ', 1) for part in policy['content'].split(';'))
    assert rules['default-src'] == "'none'"
    assert rules['script-src'].startswith("'sha256-"), 'the page\'s own script and no other'
    assert rules['img-src'] == 'data:'
    assert rules['base-uri'] == rules['form-action'] == "'none'"
    assert "default-src 'none'" in POLICY
    assert "connect-src 'none'" in POLICY
    assert 'http' not in POLICY


def test_a_browser_runs_none_of_it(hostile):
    playwright, chromium = pytest.importorskip('playwright.sync_api'), shutil.which('chromium')
    if not chromium: pytest.skip('chromium is not installed')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page, heard = browser.new_page(), []
        page.on('dialog', lambda d: (heard.append(d.message), d.dismiss()))
        page.on('request', lambda r: heard.append(r.url) if not r.url.startswith(('file:', 'data:')) else None)
        page.goto(hostile.as_uri())
        page.wait_for_timeout(300)
        assert not heard
        assert page.evaluate('document.scripts.length') == 1
        assert page.url == hostile.as_uri()
        browser.close()


@pytest.mark.parametrize('payload', [
    *PAYLOADS, '<p style="background: url(http://evil.example/a.png)">x</p>',
    '<img src="data:text/html,<script>alert(1)">', '<a href="data:text/html,<script>alert(1)">x</a>',
    '<math href="javascript:alert(1)"><mi>x</mi></math>', '<base href=//e>', '<unknown onx=1>',
    '<form action=//evil.example><input name=a><button formaction=javascript:alert(1)>x</button></form>'])
def test_foreign_markup_cannot_act(payload):
    soup = sanitise(f'<b>{payload}</b>')
    assert not active(soup)
    assert 'evil.example/a' not in str(soup)
    assert soup.find(['input', 'button', 'unknown', 'base', 'meta']) is None


@pytest.mark.parametrize('payload', PAYLOADS)
def test_text_is_inert_wherever_it_is_shown(payload):
    table = markdown_table(pd.DataFrame({payload: [payload]}))
    soup = BeautifulSoup(markdown_html(f'a {escape(payload)} b\n\n{table}'), 'html.parser')
    assert not active(soup)
    assert not soup('a')
    assert not soup('code')
    assert not soup('math')
    assert ' '.join(payload.split()) in ' '.join(soup.get_text().split())


@pytest.mark.parametrize('payload', PAYLOADS)
def test_payloads_name_no_study_and_no_class(payload, tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    with pytest.raises(StudyError, match='is not a plain folder name') as e: open_study(payload, profile='fixture')
    assert '\n' not in str(e.value).replace(payload, '')
    folder = tmp_path/payload.replace('/', '')
    folder.mkdir()
    assert re.fullmatch(r'[\w.+-]+', open_study('', str(folder), 'fixture').name)


# --- the network ---

GUARD = '''
import os, socket
def _watch(name):
    real = getattr(socket.socket, name)
    def guarded(self, *args):
        address = next((a for a in args if isinstance(a, tuple)), None)
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and address and not str(address[0]).startswith(('127.', '::1', 'localhost')):
            with open(os.environ['HEARD'], 'a') as f: f.write(f'{name} {address}\\n')
            raise OSError('no network here')
        return real(self, *args)
    setattr(socket.socket, name, guarded)
for _name in ('connect', 'connect_ex', 'sendto'): _watch(_name)
_resolve = socket.getaddrinfo
def _guarded(host, *args, **kwargs):
    if host not in (None, '', 'localhost', '127.0.0.1', '::1', '0.0.0.0'):
        with open(os.environ['HEARD'], 'a') as f: f.write(f'getaddrinfo {host}\\n')
        raise OSError('no network here')
    return _resolve(host, *args, **kwargs)
socket.getaddrinfo = _guarded
open(os.environ['HEARD'] + f'.{os.getpid()}', 'w')
'''

STUDY = '''
import sys
from weldsynth.core.opening import open_study
from weldsynth.report.chapters import execute
from weldsynth.report.pages import page_issues, render
from weldsynth.stages.verdict import recommend
from weldsynth.report.cards import finish
study = open_study('named', sys.argv[1], 'fixture', 'film')
recommend(study)
chapters = ('04_eval', '01_data')
execute(study, chapters=chapters)
assert page_issues(render(study, chapters).parent) == []
finish(study)
import huggingface_hub.constants
assert huggingface_hub.constants.HF_HUB_OFFLINE
'''


@pytest.fixture(scope='module')
def walled(tmp_path_factory):
    "A study on data with payloads for names, from reading to cards, in processes that reach only this machine."
    folder = tmp_path_factory.mktemp('walled')
    data, rows = folder/PAYLOADS[1], []
    data.mkdir()
    (folder/'guard').mkdir()
    for i in range(240):
        film = PAYLOADS[i//20].replace('\n', '')
        name = re.sub(r'[\\/\n]', '', f'{i} {film}.png')
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)).save(data/name)
        rows.append((name, ('clean', 'crack', 'porosity')[i % 3], film))
    pd.DataFrame(rows, columns=['image', 'label', 'film']).to_csv(data/'manifest.csv', index=False)
    (folder/'guard'/'sitecustomize.py').write_text(GUARD)
    path = os.pathsep.join([str(folder/'guard'), str(PACKAGE.parent)])
    bins = os.pathsep.join([str(Path(sys.executable).parent), '/bin', '/usr/bin'])
    env = dict(os.environ, PYTHONPATH=path, HEARD=str(folder/'heard'), WELDSYNTH_HOME=str(folder), PATH=bins)
    def run(code, *args):
        return subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, cwd=folder, env=env)
    control = run("import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError as e: print(e)")
    assert control.stdout == 'no network here\n', 'the wall stands'
    assert (folder/'heard').read_text() == 'getaddrinfo 192.0.2.1\n'
    (folder/'heard').unlink()
    return folder, run(STUDY, str(data))


@pytest.mark.slow
def test_a_study_needs_no_network(walled):
    folder, done = walled
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (folder/'heard').exists(), (folder/'heard').read_text()
    print(f'{len(list(folder.glob("heard.*")))} processes behind the wall, no attempt to leave')
    assert len(list(folder.glob('heard.*'))) >= 4, 'the wall stood in the kernels too'


@pytest.mark.slow
def test_names_from_the_data_are_inert_in_the_pages_and_cards(walled):
    folder = walled[0]
    pages = list((folder/'studies'/'named'/'report').glob('*.html'))
    assert len(pages) == 2
    for page in pages: assert not active(without_own_script(page))
    for card in (folder/'studies'/'named'/'cards').rglob('README.md'):
        text = card.read_text().split('---', 2)[2]
        assert '<img' not in text
        assert html.escape(PAYLOADS[1]) in text
