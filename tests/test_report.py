"""The report: execution, both ways of rendering, and the search for broken places. Chapters are made up and small."""
import base64
import html
import io
import json
import os
import re
import shutil
import sys

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat import v4
from PIL import Image

from weldsynth.core.config import StudyError
from weldsynth.core.display import escape
from weldsynth.core.profiles import PROFILES, choose_profile
from weldsynth.core.runtime import checkout
from weldsynth.core.store import Study
from weldsynth.report import chapters as report
from weldsynth.report.chapters import CASES, CHAPTERS, execute
from weldsynth.report.citations import citation_label, link_citations, read_bibliography
from weldsynth.report.markup import body_html, csp_hash, mathml
from weldsynth.report.numbering import cell_options
from weldsynth.report.page_checks import empty_announcements
from weldsynth.report.pages import link_pages, page_issues, prepare_page, render
from weldsynth.report.quarto_pages import mend_page, quarto_notebook, quarto_project

ROOT = checkout()
PARAMETERS = dict(name='', data='simulated', profile='', group='group', seed=0, overrides='')
LOCKS = {'.study.lock', '.study.owner'}
WITHOUT_STUDY = ('12_reliability', '13_lab_notes', 'glossary')  # they show records, or no run

SHOW = '''
import sys, matplotlib.pyplot as plt, pandas as pd
from weldsynth.core.display import show_figure, show_table
from IPython.display import HTML, Markdown, display
print('43%|####', file=sys.stderr); print('said aloud')
display(Markdown(f'<div class="verdict no-ship"><p class="sentence">Do not ship {name}.</p></div>'))
fig, ax = plt.subplots(figsize=(2, 1)); ax.plot([1, 2])
show_figure(fig, 'A line, "rising" & <straight>')
show_table(pd.DataFrame(dict(label=['<script>alert(1)</script>'], f1=[.5])), 'One row')
display(HTML('<table><style>b{}</style>\\n\\n    <tr><td>bold</td></tr></table><script>alert(2)</script>'))
'''


def notebook(*cells):
    nb = v4.new_notebook(cells=list(cells))
    for i, c in enumerate(nb.cells): c['id'] = f'cell{i}'
    return nb


def parameters_cell():
    source = '\n'.join(f'{k} = {v!r}' for k, v in PARAMETERS.items())
    return v4.new_code_cell(source, metadata=dict(tags=['parameters']))


def stream(text, name='stdout'): return v4.new_output('stream', name=name, text=text)


def chapter(title='Ship?', link='02_ldm'):
    "An executed chapter that no kernel has seen."
    table = '| a | b |\n|:--|--:|\n| x | 1 |'
    text = f'<div class="verdict ship">\n<p class="sentence">Ship.</p>\n\n{table}\n\n</div>'
    verdict = v4.new_output('display_data', {'text/markdown': text})
    links = f'[it]({link}.ipynb#the-loss), [the study](core/05_store.ipynb), [them](https://example.org)'
    return notebook(v4.new_markdown_cell(f'# {title}\n\n> In short.\n\n## The loss\n\nSee {links}.'),
                    v4.new_code_cell('#| default_exp x'), v4.new_code_cell('#| export\nimport os'), parameters_cell(),
                    v4.new_code_cell('#| hide_input\n#|eval: false\nx = 1\n  #| keep: no',
                                     outputs=[stream('bar', 'stderr'), verdict]),
                    v4.new_markdown_cell('## The loss\n\n$x_1 < y$ and\n\n$$\\frac{1}{2}$$'))


def executed_study(folder, chapters=CHAPTERS, make=chapter):
    study = Study('made-up', folder/'made-up', choose_profile('fixture'), group='film', seed=7)
    (study.path/'notebooks').mkdir(parents=True)
    for c in chapters: nbformat.write(make(), study.path/'notebooks'/f'{c}.ipynb')
    return study


def source_study(folder, **notebooks):
    (folder/'nbs').mkdir()
    for name, nb in notebooks.items(): nbformat.write(nb, folder/'nbs'/f'c{name}.ipynb')
    return Study('made-up', folder/'made-up', choose_profile('fixture'), group='film', seed=7)


@pytest.fixture
def no_quarto(monkeypatch):
    monkeypatch.setenv('PATH', os.devnull)
    monkeypatch.delenv('QUARTO_PATH', raising=False)


@pytest.fixture
def pages(tmp_path, no_quarto): return render(executed_study(tmp_path)).parent


# --- execute ---

def test_a_chapter_goes_from_kernel_to_page(tmp_path, no_quarto, monkeypatch):
    "With foreign kernels about and odd Jupyter folders: the running Python, the study's parameters, and a clean page."
    foreign = tmp_path/'jupyter'/'kernels'/'python3'
    foreign.mkdir(parents=True)
    (foreign/'kernel.json').write_text(
        '{"argv": ["/nonexistent/python"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    monkeypatch.setenv('JUPYTER_DATA_DIR', str(tmp_path/'nowhere'))
    nb = notebook(v4.new_markdown_cell('# Page'), parameters_cell(), v4.new_code_cell(SHOW),
                  v4.new_code_cell('print(sys.executable, data, profile, group, seed)'))
    study = source_study(tmp_path, a=nb)
    before = (tmp_path/'nbs'/'ca.ipynb').read_bytes()
    execute(study, tmp_path/'nbs', ['ca'])
    assert (tmp_path/'nbs'/'ca.ipynb').read_bytes() == before
    index = render(study, ['ca'])
    assert page_issues(index.parent) == []
    soup = BeautifulSoup(index.read_text(), 'html.parser')
    for code in soup('details'): code.decompose()
    text = soup.main.get_text()
    assert f'{sys.executable} simulated fixture film 7' in text
    assert 'Do not ship made-up.' in text
    assert 'said aloud' in text
    assert '43%' not in text
    assert len(soup('script')) == 1
    assert '<script>alert(1)</script>' in text
    assert 'alert(2)' not in text
    assert soup.img['alt'] == 'A line, "rising" & <straight>'
    assert soup.img['src'].startswith('data:image/png;base64,')
    captions = [p.get_text() for p in soup('p', 'caption')]
    assert captions == ['Figure 1. A line, "rising" & <straight>', 'Table 1. One row']
    assert [t.parent['class'] for t in soup('table')] == [['scroll'], ['scroll']]
    assert [t.parent['aria-label'] for t in soup('table')] == ['Table 1', 'Table in “Page”']
    assert 'right' in soup.table('td')[1]['style']


def test_a_case_gets_no_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'CASES', {'ca'})
    given = []
    def note(notebook, copy, parameters, **_): given.append(parameters)
    monkeypatch.setattr('papermill.execute_notebook', note)
    study = source_study(tmp_path, a=notebook(parameters_cell()), b=notebook(parameters_cell()))
    execute(study, tmp_path/'nbs', ['ca', 'cb'])
    assert given == [{}, dict(name='made-up', data='simulated', profile='fixture', group='film', seed=7, overrides='')]


@pytest.mark.parametrize('code, message', [
    ('raise KeyError("first\\nsecond")', r"KeyError: 'first\nsecond'"),
    ('raise ValueError("first\\n second\\n")', 'second'),
    ('class StudyError(ValueError): pass\nraise StudyError("no such\\nfolder: make it")', 'no such folder: make it'),
    ('import os; os._exit(9)', 'its process ended (out of memory?)')])
def test_a_failing_notebook_is_one_line(tmp_path, code, message):
    study = source_study(tmp_path, a=notebook(v4.new_code_cell(code)))
    with pytest.raises(StudyError) as e: execute(study, tmp_path/'nbs', ['ca'])
    assert str(e.value) == f'notebook ca.ipynb failed: {message}'


def test_a_missing_notebook_is_named(tmp_path):
    study = source_study(tmp_path)
    with pytest.raises(StudyError, match=r'ca\.ipynb is missing'): execute(study, tmp_path/'nbs', ['ca'])
    with pytest.raises(StudyError, match=r'ca\.ipynb is missing'): render(study, ['ca'])


@pytest.mark.parametrize('name', CHAPTERS)
def test_each_chapter_takes_the_parameters(name, monkeypatch):
    monkeypatch.delenv('IN_TEST', raising=False)
    file = ROOT/'nbs'/f'{name}.ipynb'
    cells = [c for c in nbformat.read(file, 4).cells if 'parameters' in c.metadata.get('tags', [])]
    if name in WITHOUT_STUDY:
        assert not cells
        return
    assert len(cells) == 1
    scope = dict(os=os)
    exec(cells[0].source, scope)
    if name in CASES: assert scope['gdxray'] == '', 'without the films a case is drawn from its records'
    else: assert {k: scope[k] for k in PARAMETERS} == PARAMETERS


@pytest.mark.parametrize('name', [c for c in CHAPTERS if c not in (*WITHOUT_STUDY, *CASES)])
def test_nbdev_test_by_itself_runs_a_chapter_at_the_smallest_profile(name, monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')
    cells = nbformat.read(ROOT/'nbs'/f'{name}.ipynb', 4).cells
    [parameters] = [c.source for c in cells if 'parameters' in c.metadata.get('tags', [])]
    scope = dict(os=os)
    exec(parameters, scope)
    assert scope['profile'] == 'fixture'


def test_fields_that_differ_from_the_preset_reach_the_chapters(tmp_path):
    config = choose_profile('fixture', {'denoiser.steps': 9, 'sweep.shares': '.5,1'})
    cell = v4.new_code_cell("overrides = ''", metadata=dict(tags=['parameters']))
    source_study(tmp_path, a=notebook(cell, v4.new_code_cell('print(overrides)')))
    study = Study('made-up', tmp_path/'made-up', config)
    copies = execute(study, tmp_path/'nbs', ['ca'])
    printed = nbformat.read(copies/'ca.ipynb', 4).cells[-1].outputs[0].text
    assert choose_profile('fixture', json.loads(printed)) == config


# --- prepare ---

def test_prepared_notebooks_hold_nothing_that_quarto_misreads():
    nb = prepare_page(chapter())
    nbformat.validate(nb)
    code = [c for c in nb.cells if c.cell_type == 'code']
    assert [c.source for c in code] == ['']
    fold = nb.cells[-1].source
    assert '#|' not in fold.replace(' ', '')
    assert '```python\n# --- The loss\n\nimport os\n\nname' in fold
    assert fold.endswith('x = 1\n```\n\n</details>')
    kinds = {k for c in code for o in c.outputs for k in o.get('data', {'stdout': 1})}
    assert kinds == {'text/markdown'}  # an HTML output makes Quarto load scripts from another host


def test_parameters_that_a_page_hides_stay_hidden_when_they_are_given():
    given = v4.new_code_cell('# Parameters\nseed = 3', metadata=dict(tags=['injected-parameters']))
    shown = notebook(v4.new_code_cell('seed = 0', metadata=dict(tags=['parameters'])), given)
    hidden = notebook(v4.new_code_cell('#| echo: false\nseed = 0', metadata=dict(tags=['parameters'])), given)
    assert 'seed = 3' in prepare_page(shown).cells[-1].source
    assert prepare_page(hidden).cells == []
    assert prepare_page(shown, with_code=False).cells == []


def test_every_kind_of_output_is_shown_once():
    outputs = [stream('\x1b[31mred\x1b[0m'), stream('  \n'),
               v4.new_output('error', ename='E', evalue='why', traceback=[]),
               v4.new_output('execute_result', {'text/html': '<b>h</b>', 'text/plain': 'p'}, execution_count=1),
               v4.new_output('display_data', {'text/latex': '$x$', 'text/plain': 'p'}),
               v4.new_output('display_data', {'text/plain': 'plain'}),
               v4.new_output('display_data', {'application/json': {}})]
    made = prepare_page(notebook(v4.new_code_cell('x', outputs=outputs))).cells[0].outputs
    assert [o.get('text') or o.data['text/markdown'] for o in made] == ['red', 'E: why', '<b>h</b>', '$x$', 'plain']


# --- the built-in pages ---

def test_other_uses_of_synthetic_images_are_left_to_the_larger_profiles(tmp_path):
    def chapters(profile, **changed):
        return report.study_chapters(Study('x', tmp_path, choose_profile(profile, changed)))
    for profile in PROFILES:
        extra = [c for c in chapters(profile) if c in report.EXTRAS]
        assert extra == (list(report.EXTRAS) if profile in ('thorough', 'full') else [])
    inserted = chapters('full', **{'sampler.generator': 'insert'})
    assert '27_classifier_guidance' not in inserted, 'it guides whole patches'
    assert not set(report.EXTRAS) & set(chapters('full', **{'classifier.kind': 'small'})), 'they need frozen features'


def test_built_in_pages_hold_together(pages):
    assert page_issues(pages) == []
    assert {p.name for p in pages.iterdir()} == {'index.html', *(f'{c}.html' for c in CHAPTERS[1:])}


def test_navigation_is_in_reading_order(pages):
    soup = BeautifulSoup((pages/'02_ldm.html').read_text(), 'html.parser')
    order = ['index.html', *(f'{c}.html' for c in CHAPTERS[1:])]
    for navigation in ('nav.side', 'details.menu'):
        links = [a['href'] for a in soup.select(f'{navigation} a') if not a['href'].startswith('#')]
        assert links == order
    current = soup.select_one('nav.side [aria-current=page]')
    assert current['href'] == '02_ldm.html'
    assert (soup.find(rel='prev')['href'], soup.find(rel='next')['href']) == ('01_data.html', '03_sample.html')
    assert [a['href'] for a in current.parent.select('ul a')] == ['#the-loss', '#the-loss-1']


def test_a_page_needs_nothing_from_elsewhere(pages):
    soup = BeautifulSoup((pages/'index.html').read_text(), 'html.parser')
    assert not soup(['iframe'])
    assert [s.attrs for s in soup('script')] == [{}], 'one script, in the page'
    assert not soup('link', rel='stylesheet')
    assert "default-src 'none'" in soup.find('meta', attrs={'http-equiv': 'Content-Security-Policy'})['content']
    assert soup.html['lang'] == 'en'
    assert soup.find('meta', attrs={'name': 'viewport'})
    assert soup.select_one('a.skip')['href'] == '#main'
    assert 'Study made-up. weldsynth' in soup.footer.get_text()


def test_text_links_maths_and_code(pages):
    soup = BeautifulSoup((pages/'01_data.html').read_text(), 'html.parser').main
    assert [a['href'] for a in soup('a')] == ['02_ldm.html#the-loss', 'https://example.org']
    assert 'the study' in soup.get_text()
    assert [m['display'] for m in soup('math')] == ['inline', 'block']
    assert soup.find('mfrac')
    assert '$' not in soup.get_text()
    [code] = soup('details')
    assert code['class'] == ['code']
    assert code.find_next_sibling() is None, 'all code of the page is in one fold at its end'
    assert not code.has_attr('open')
    assert code.summary.get_text() == 'The code of this page'
    assert 'name' in code.get_text()
    assert code.select('.kn')
    assert code.pre['tabindex'] == '0'
    assert soup.select_one('.verdict .sentence')
    assert soup.select_one('.verdict td[style*=right]')


def test_the_first_page_has_no_code(pages):
    assert not BeautifulSoup((pages/'index.html').read_text(), 'html.parser').main('details')


def test_a_heading_with_nothing_below_it_goes_with_its_entry(tmp_path, no_quarto):
    def make():
        texts = ['# Page', '## Imports', '## Text\n\nSome.', '## Parts', '### One', '### Two\n\nMore.', '## Last']
        return notebook(*map(v4.new_markdown_cell, texts), v4.new_code_cell('import os'))
    page = render(executed_study(tmp_path, make=make)).with_name('01_data.html')
    soup = BeautifulSoup(page.read_text(), 'html.parser')
    assert [h.get_text() for h in soup.main(['h2', 'h3'])] == ['Text', 'Parts', 'Two']
    assert [a.get_text() for a in soup.select('nav.side ul a')] == ['Text', 'Parts']


def test_the_first_page_goes_from_verdict_pictures_and_figures_to_checks_then_actions():
    page = str(body_html(prepare_page(nbformat.read(ROOT/'nbs'/'04_eval.ipynb', 4))))
    order = ['class="verdict', '<img', 'missed flaws', 'Safety checks', 'What to do now', 'Next review of this page',
             'Integration path']
    places = [page.index(text) for text in order]
    assert places == sorted(places)


# --- numbers and sources ---

def picture(alt='a line'):
    return v4.new_output('display_data', {'image/png': 'AA=='}, metadata={'image/png': dict(alt=alt)})


def caption(text): return v4.new_output('display_data', {'text/markdown': f'<p class="caption">{text}</p>'})


def table(): return v4.new_output('display_data', {'text/markdown': '| a |\n|:--|\n| 0.4 (0.3 to 0.5) |'})


def numbered(by_quarto=False):
    "Two pages with two figures and a table each, of which some have labels."
    first = notebook(v4.new_markdown_cell('# One\n\nSee @fig-curve, @tbl-loss and @fig-gone. Or none (@tbl-lost).'),
                     v4.new_code_cell('#| label: fig-plain\nx', outputs=[picture(), caption('A line')]),
                     v4.new_code_cell('#| label: fig-curve\n#| fig-cap: "A curve"\ny', outputs=[picture()]))
    second = notebook(v4.new_markdown_cell('# Two\n\nSee @fig-curve.'),
                      v4.new_code_cell('#| label: tbl-loss',
                                       outputs=[table(), caption('Loss'), table(), caption('More')]))
    made = dict(index=prepare_page(first), two=prepare_page(second, page='two'))
    link_pages(made, by_quarto)
    return made


def test_figures_and_tables_are_numbered_and_referred_to_across_pages():
    one, two = (body_html(nb) for nb in numbered().values())
    assert [p.get_text() for p in one('p', 'caption')] == ['Figure 1. A line', 'Figure 2. A curve']
    assert [p.get_text() for p in two('p', 'caption')] == ['Table 1. Loss', 'Table 2. More']
    assert [d['id'] for d in one('div', 'float')] == ['fig-plain', 'fig-curve']
    assert [d['id'] for d in two('div', 'float')] == ['tbl-loss', 'tbl-two-2']
    assert [(a['href'], a.get_text()) for a in one('a')] == [('#fig-curve', 'Figure 2'),
                                                              ('two.html#tbl-loss', 'Table 1 of “Two”')]
    assert [(a['href'], a.get_text()) for a in two('a')] == [('index.html#fig-curve', 'Figure 2 of “One”')]


@pytest.mark.parametrize('by_quarto', [False, True])
def test_a_reference_to_what_a_study_lacks_leaves_no_trace_of_its_label(by_quarto):
    pages = numbered(by_quarto)
    shown = ' '.join(c.source for nb in pages.values() for c in nb.cells)
    assert 'and a figure that this report does not have. Or none.' in shown
    assert not re.search(r'@\w+-(gone|lost)|\?\?', shown)


def options(cell):
    "The options of a cell that Quarto gets, in which there is nothing else."
    assert all(line.startswith('#| ') for line in cell.source.splitlines())
    return yaml.safe_load(cell.source.replace('#| ', ''))


def quarto_floats(pages):
    "(options, output) of the figures and tables with captions in prepared pages, as Quarto gets them."
    cells = [c for page, nb in pages.items() for c in quarto_notebook(page, nb).cells if c.cell_type == 'code']
    assert all(options(c)['echo'] is False for c in cells)
    assert not [c for c in cells if c.metadata], 'Quarto makes attributes of it'
    assert 'class=\\"caption' not in json.dumps(cells), 'no caption is left as a paragraph'
    floats = [c for c in cells if 'label' in options(c)]
    assert all(len(c.outputs) == 1 for c in floats)
    return [(options(c), c.outputs[0]) for c in floats]


def test_quarto_numbers_figures_and_tables_itself():
    found = quarto_floats(numbered(by_quarto=True))
    assert [(o['label'], o.get('fig-cap') or o['tbl-cap']) for o, _ in found] == [
        ('fig-plain', 'A line'), ('fig-curve', 'A curve'), ('tbl-loss', 'Loss'), ('tbl-two-2', 'More')]
    assert [o.get('fig-alt') for o, _ in found] == ['a line', 'a line', None, None]
    assert [list(shown.data) for _, shown in found] == [['image/png']]*2 + [['text/markdown']]*2
    text = numbered(by_quarto=True)['index'].cells[0].source
    assert '@fig-curve' in text, 'Quarto resolves what is on the page'
    assert '(two.html#tbl-loss)' in text, 'and does not know other pages'


@pytest.mark.parametrize('text', ['Loss: −5 % to "6" %, it\'s #1', '- a: [b] {c} | `d` $e$', 'a <b> & c_d * e_f ~g\\a',
                                  "key: 'value' # comment", '%!&*@?'])
def test_any_caption_is_an_option_in_yaml_and_reads_as_it_was_written(text):
    "Quarto reads the caption of a figure as Markdown, that of a table as an attribute whose text is Markdown."
    shown = caption(escape(text))
    cell = v4.new_code_cell('x', outputs=[picture(text), shown, table(), shown])
    pages = dict(p=prepare_page(notebook(cell), page='01_p'))
    figure, listed = (o for o, _ in quarto_floats(pages))
    assert (figure['label'], listed['label']) == ('fig-01-p-1', 'tbl-01-p-1')
    assert figure['fig-alt'] == text
    attribute = html.unescape(listed['tbl-cap']).replace('\\\\', '\\')
    assert attribute == figure['fig-cap']
    for p in body_html(pages['p'])('p', 'caption'): assert p.get_text().split('. ', 1)[1].replace('\u00a0', ' ') == text


REPORTED = (*CHAPTERS, report.OUTSIDE, report.INSERTED, report.COMPARED, *report.EXTRAS)


def reported():
    "Every chapter that a report may have, prepared, as it was committed."
    read = {c: nbformat.read(ROOT/'nbs'/f'{c}.ipynb', 4) for c in REPORTED}
    return {report.page_name(c): prepare_page(nb, REPORTED, page=c) for c, nb in read.items()}


def test_labels_are_valid_and_unique_in_the_report():
    pages = reported()
    labels = [label for nb in pages.values() for label in nb.metadata.labels]
    assert len(labels) == len(set(labels)) > 50
    assert all(re.fullmatch('(fig|tbl)-[a-z0-9-]+', label) for label in labels)
    assert [o['label'] for o, _ in quarto_floats(pages)] == labels


def test_chapters_refer_to_what_a_cell_of_theirs_has_as_label():
    cells = [c for file in REPORTED for c in nbformat.read(ROOT/'nbs'/f'{file}.ipynb', 4).cells]
    given = [cell_options(c.source)['label'] for c in cells if 'label' in cell_options(c.source)]
    used = [m[1] for c in cells for m in re.finditer(r'(?<![\w@`/.])@((?:fig|tbl)-[\w-]*\w)', c.source)]
    assert len(given) == len(set(given))
    assert set(used) <= set(given)
    assert len(used) >= 6


def test_an_interval_in_a_table_is_not_broken_within_its_brackets():
    assert '0.4 (0.3\u00a0to\u00a00.5)' in body_html(numbered()['two']).get_text()


def test_works_that_a_page_names_are_listed_at_its_end():
    nb = notebook(v4.new_markdown_cell('# P\n\nNoise (Ho et al. 2020), [@lu2022], @holm1979 and nobody (Nemo 1999).'),
                  v4.new_code_cell('x = "Song et al. 2021"', outputs=[stream('Song et al. 2021')]))
    soup = body_html(prepare_page(nb))
    assert [(a['href'], a.get_text()) for a in soup.p('a')] == [
        ('#ref-ho2020', 'Ho et al. 2020'), ('#ref-lu2022', 'Lu et al. 2022'), ('#ref-holm1979', 'Holm (1979)')]
    assert [p['id'] for p in soup('p', 'reference')] == ['ref-ho2020', 'ref-holm1979', 'ref-lu2022']
    assert soup.h2.get_text() == 'References'
    assert soup.h2.find_next_sibling('details')['class'] == ['code']
    assert 'https://arxiv.org/abs/2006.11239' in [a['href'] for a in soup('a')]


NAME = r'[A-ZÀ-Ž][\w’-]+'
MENTION = re.compile(rf'(?<![\w-])({NAME}(?: et al\.|(?:, {NAME})* and {NAME})?,? \(?(?:19|20)\d\d)\b')
NO_WORK = {'November', 'JPEG', 'Standard', 'Else', 'And', 'In', 'Version'}  # and a year


def prose():
    "(notebook, text of a cell) of the project."
    for file in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in file.parts or file.name == '09_citations.ipynb': continue
        for cell in nbformat.read(file, 4).cells: yield file.name, ' '.join(cell.source.split())


def test_every_work_that_a_notebook_names_is_in_the_bibliography():
    missing = set()
    for name, text in prose():
        for m in MENTION.finditer(text):
            if m[1].split()[0].strip(',') in NO_WORK: continue
            if not link_citations(m[1] + (')' if '(' in m[1] else ''), set()).startswith('['): missing.add((name, m[1]))
    assert missing == set()


def test_the_bibliography_is_complete_and_without_doubles():
    text = (ROOT/'nbs'/'references.bib').read_text()
    entries = read_bibliography()
    assert len(entries) == text.count('\n@') + 1
    assert list(entries) == re.findall(r'^@\w+\{([\w-]+),$', text, re.M)
    for key, entry in entries.items():
        assert {'author', 'title', 'year'} <= set(entry), key
        assert key.startswith(entry['year']) or entry['year'] in key, key
        assert re.fullmatch(r'10\.\d{4,}/\S+', entry.get('doi', '10.1000/x')), key
        assert re.fullmatch(r'\d{4}\.\d{4,5}', entry.get('eprint', '2000.00000')), key
    labels = [citation_label(entry) for entry in entries.values()]
    assert len(set(labels)) == len(labels)


def test_frames_that_scroll_have_names_of_their_own():
    "Screen readers list them as landmarks, so two of one name cannot be told apart."
    file = io.BytesIO()
    Image.new('L', (700, 4)).save(file, 'PNG')
    wide = v4.new_output('display_data', {'image/png': base64.b64encode(file.getvalue()).decode()},
                         metadata={'image/png': dict(alt='a line')})
    cells = [v4.new_markdown_cell('# Page'),
             v4.new_code_cell('x', outputs=[wide, caption('One'), wide, caption('Two')]),
             v4.new_code_cell('y', outputs=[wide, wide, table(), caption('Three'), table()])]
    names = [frame['aria-label'] for frame in body_html(prepare_page(notebook(*cells))).select('[role=region]')]
    assert len(set(names)) == len(names) == 6
    assert {'Figure 1', 'Figure 2', 'Figure in “Page”', 'Table 1', 'Table in “Page”'} <= set(names)


def test_unreadable_maths_is_shown_as_written():
    assert mathml('x^2^3 < y', 'inline') == '<code>x^2^3 &lt; y</code>'


def test_a_new_report_takes_the_place_of_the_old_one_and_a_crash_does_not(tmp_path, no_quarto, monkeypatch):
    study = executed_study(tmp_path)
    index = render(study)
    (index.parent/'stale.html').write_text('')
    assert render(study) == index
    assert not (index.parent/'stale.html').exists()
    whole = index.read_text()
    monkeypatch.setattr('weldsynth.report.pages.body_html', lambda nb: 1/0)
    with pytest.raises(ZeroDivisionError): render(study)
    assert index.read_text() == whole
    assert {p.name for p in study.path.iterdir()} == {*LOCKS, 'notebooks', 'report'}


# --- the suspicious reader ---

@pytest.mark.parametrize('old, new, problem', [
    ('href="02_ldm.html#the-loss"', 'href="02_ldm.html#gone"', '02_ldm.html#gone is not an anchor there'),
    ('href="#main"', 'href="#gone"', '#gone is not an anchor there'),
    ('href="02_ldm.html#the-loss"', 'href="00_core.html"', '00_core.html is not in the report'),
    ('href="02_ldm.html#the-loss"', 'href="../notebooks/02_ldm.ipynb"',
     '../notebooks/02_ldm.ipynb is not in the report'),
    ('href="02_ldm.html#the-loss"', 'href="file:///etc/hosts"', 'file:///etc/hosts leads elsewhere'),
    ('</main>', '<script src="https://cdn.example.org/x.js"></script></main>',
     'https://cdn.example.org/x.js leads elsewhere'),
    ('</main>', '<iframe src="//example.org"></iframe></main>', '//example.org leads elsewhere'),
    ('</main>', '<img src="figure.png" alt="a"></main>', 'figure.png is not in the report'),
    ('</main>', '<img src="data:," alt=" "></main>', 'has an image without alternative text'),
    ('</main>', '<p style="background: url(http://example.org/a.png)"></p></main>',
     'http://example.org/a.png leads elsewhere'),
    ('<style>', '<style>@import "https://fonts.example.org/css";', 'https://fonts.example.org/css leads elsewhere'),
    ('<link rel="icon" href="data:,">', '<link rel="stylesheet" href="https://example.org/a.css">',
     'https://example.org/a.css leads elsewhere'),
    ('<title>', '<title></title><title>', 'has no title'),
    ('http-equiv="Content-Security-Policy"', 'name="policy"', 'has no content security policy'),
    ('</main>', '<h1>Again</h1></main>', 'has 2 main headings (h1), not one'),
    ('</main>', '<p>See @fig-loss.</p></main>', 'refers to @fig-loss, which does not exist'),
    ('</main>', '<p>See [@nobody2020].</p></main>', 'refers to [@nobody2020, which does not exist'),
    ('class="verdict ship"', 'class="note"', 'has no verdict')])
def test_each_kind_of_problem_is_found(pages, old, new, problem):
    text = (pages/'index.html').read_text()
    assert old in text
    (pages/'index.html').write_text(text.replace(old, new, 1))
    assert page_issues(pages) == [f'index.html: {problem}']


def test_style_sheets_are_read_too_and_a_missing_index_is_reported(pages):
    (pages/'site.css').write_text('/* url(https://example.org/old.png) */ @import url("https://example.org/b.css"); '
                                  'p { background: url(data:image/png;base64,AA) }')
    (pages/'index.html').unlink()
    found = page_issues(pages)
    assert found[0] == 'index.html: is missing'
    assert found[-1] == 'site.css: https://example.org/b.css leads elsewhere'


# --- sentences that announce what is not there ---

@pytest.mark.parametrize('after, kept', [
    ('<div class="scroll"><table></table></div>', True), ('<p class="figure"><img></p>', True), ('<ul></ul>', True),
    ('<pre>3</pre>', True), ('<details class="fold"></details>', True), ('<p><math></math></p>', True),
    ('<div class="float"></div>', True), ('', False), ('<p>Text.</p>', False), ('<h2>Next</h2>', False),
    ('<details class="code"></details>', False)])
def test_a_colon_must_announce_something(after, kept):
    found = empty_announcements(BeautifulSoup(f'<p>The loss:</p>{after}', 'html.parser'))
    assert found == ([] if kept else ['The loss:'])


CHAPTERS_OF_ANY_STUDY = (*CHAPTERS, report.OUTSIDE, report.INSERTED, report.COMPARED)
COLONS = {'A set of noise shows what a sealed set holds:', 'The stages at a point:',
          'All is timed and measured by the functions of'}  # how they begin


@pytest.mark.parametrize('name', CHAPTERS_OF_ANY_STUDY)
def test_no_chapter_announces_what_its_page_does_not_show(name):
    body = body_html(prepare_page(nbformat.read(ROOT/'nbs'/f'{name}.ipynb', 4)))
    assert [text for text in empty_announcements(body) if not text.startswith(tuple(COLONS))] == []


# --- Quarto ---

REPORT_PROJECT = yaml.safe_load((ROOT/'weldsynth'/'assets'/'report.quarto.yml').read_text())


def test_quarto_project_lists_the_chapters(tmp_path):
    config = REPORT_PROJECT
    assert config['website']['sidebar']['contents'] == ['index.ipynb', *(f'{c}.ipynb' for c in CHAPTERS[1:])]
    assert config['execute'] == {'enabled': False}
    quarto_project({report.page_name(c): prepare_page(chapter()) for c in CHAPTERS}, tmp_path)
    style = config['format']['html']
    themes = [f for theme in style['theme'].values() for f in theme if '.' in f]
    for file in [*config['website']['sidebar']['contents'], style['css'], *themes, '_quarto.yml']:
        assert (tmp_path/file).is_file()
    copy = nbformat.read(tmp_path/'index.ipynb', 4)
    nbformat.validate(copy)
    assert yaml.safe_load(copy.cells[0].source.strip('-\n')) == {'title': 'Ship?'}
    assert copy.cells[1].source.startswith('> In short.')
    assert '(02_ldm.html#the-loss)' in copy.cells[1].source
    assert {c.source for c in copy.cells if c.cell_type == 'code'} == {'#| echo: false'}


def test_options_of_quarto_that_each_mend_a_fault():
    style = REPORT_PROJECT['format']['html']
    assert style['toc-depth'] == 3, 'with 2 the contents are collapsed'
    assert style['tbl-colwidths'] is False, 'else all columns of a long table are equally wide'
    assert style['search'] is False, 'else there is a search.json that nothing can load'
    assert style['html-math-method'] == 'mathml', 'else a script is fetched'
    assert style['lightbox'] is True, 'figures open enlarged'
    assert style['tbl-cap-location'] == 'bottom', 'as on the built-in pages'
    assert REPORT_PROJECT['crossref']['title-delim'] == '.', 'as on the built-in pages'


def test_quarto_pages_have_the_colours_of_the_report():
    css = (ROOT/'weldsynth'/'assets'/'report.css').read_text()
    for name in ('light', 'dark'):
        block = css.split(f'body.quarto-{name} {{')[1].split('}')[0]
        colours = dict(re.findall(r'--(\w+): (#\w+)', block))
        scss = dict(re.findall(r'\$([\w-]+): (#\w+)', (ROOT/'weldsynth'/'assets'/f'{name}.scss').read_text()))
        used = [scss[name] for name in ('body-bg', 'body-color', 'link-color')]
        assert used == [colours[name] for name in ('paper', 'ink', 'link')]


# a page with what Quarto 1.7 does to one, as far as it has to be mended
QUARTO_PAGE = '''<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="quarto-1.7.34"><title>t</title>
<style>details > summary { color: #6c757d } blockquote { color: #adb5bd }
figcaption { color: #adb5bd } table { width: 100%%; border-spacing: 0 }
%s</style><script>const quarto = "<b>";</script></head>
<body class="quarto-%s"><nav id="quarto-sidebar"><a class="sidebar-title" href="./">weldsynth</a></nav>
<nav id="TOC" role="doc-toc"><h2 id="toc-title">On this page</h2>
<ul class="collapse"><li><a href="#a">A</a><ul class="collapse"><li><a href="#a">B</a></li></ul></li></ul></nav>
<main id="quarto-document-content"><h1>t</h1><blockquote>In short.</blockquote><p class="verdict"></p><h2 id="a">A</h2>
<details class="code-fold"><summary>Code</summary><pre><code></code></pre></details>
<details class="fold"><summary>More</summary><p>text</p></details>
<div id="tbl-x" class="cell quarto-float"><figure class="quarto-float quarto-float-tbl figure"><div>
<table><tr><th>name</th><th>what was measured</th><th>threshold</th><th>outcome</th></tr>
<tr>%s</tr></table></div><figcaption>Table&nbsp;2. Outcomes</figcaption></figure></div>
</main><footer class="footer"><div class="nav-footer-center">weldsynth</div></footer></body></html>'''


def quarto_page(scheme='light'):
    css = (ROOT/'weldsynth'/'assets'/'report.css').read_text()
    background = 'body { background: var(--paper); color: var(--ink) }'
    cells = '<td>0.392\u00a0to\u00a00.433,12</td>'*4
    return QUARTO_PAGE % (f'.collapse {{ display: none }} {css} {background}', scheme, cells)


def test_what_quarto_leaves_undone_is_mended():
    page = mend_page(quarto_page(), 'my <b>study')
    soup = BeautifulSoup(page, 'html.parser')
    assert page.startswith('<!DOCTYPE html>')
    assert soup.select_one('a.sidebar-title')['href'] == './index.html'
    assert not soup.select('#TOC .collapse')
    assert soup.select('details.code-fold') == []
    assert len(soup('details')) == 1
    assert soup.head.find(True)['http-equiv'] == 'Content-Security-Policy'
    assert len(soup('meta', attrs={'http-equiv': True})) == 1
    assert soup.script.get_text() == 'const quarto = "<b>";'
    assert soup.table.parent['class'] == ['scroll', 'wide']
    assert soup.table.parent['aria-label'] == 'Table 2'
    assert soup.main.find(True).get_text() == 'Study my <b>study'
    assert soup.footer.get_text().startswith('Study my <b>study. weldsynth')
    assert 'quarto' not in soup.footer.get_text().lower(), 'a reader need not know what made the page'


@pytest.fixture(scope='module')
def chromium():
    playwright = pytest.importorskip('playwright.sync_api')
    if not shutil.which('chromium'): pytest.skip('chromium is not installed')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_mended_page_is_readable_and_fits_a_telephone(chromium, tmp_path, scheme):
    "Contrast by axe-core; the page does not scroll sideways, the table does and says so."
    axe = pytest.importorskip('axe_playwright_python.sync_playwright')
    (tmp_path/'index.html').write_text(mend_page(quarto_page(scheme), 'made-up'))
    page = chromium.new_page(viewport=dict(width=390, height=800), color_scheme=scheme)
    page.goto((tmp_path/'index.html').as_uri())
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    frame = page.locator('.scroll')
    assert frame.evaluate('e => e.scrollWidth > e.clientWidth')
    assert 'scrolls sideways' in frame.evaluate('e => getComputedStyle(e, "::before").content')
    assert page.locator('#TOC li >> nth=0').is_visible()
    found = axe.Axe().run(page, options=dict(runOnly=['color-contrast'])).response['violations']
    assert [node['target'] for v in found for node in v['nodes']] == []
    page.close()


FAKE = '''#!{python}
import os, pathlib, sys
command, folder, *options = sys.argv[1:]
assert command == 'render' and '--no-execute' in options
assert (pathlib.Path(folder)/'_quarto.yml').is_file()
site = pathlib.Path(folder, '_site'); site.mkdir()
(site/'search.json').write_text('[]')
for nb in pathlib.Path(folder).glob('*.ipynb'):
    if nb.stem != {skip!r}: (site/(nb.stem + '.html')).write_text({page!r})
pathlib.Path(os.environ['QUARTO_LOG']).write_text({log!r})
'''


def test_a_built_in_page_passes_axe_and_fits_a_telephone(chromium, pages):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright')
    page = chromium.new_page(viewport=dict(width=390, height=800), color_scheme='dark')
    page.goto((pages/'01_data.html').as_uri())
    page.locator('details.code > summary').click()
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    assert [(v['id'], v['nodes'][0]['target']) for v in axe.Axe().run(page).response['violations']] == []
    page.close()


def with_figures(tmp_path):
    "A page with a figure and a callout, rendered."
    box = '::: {.callout-warning title="Not of this study"}\nFigures of *another* one.\n:::'
    figure = v4.new_code_cell('x', outputs=[image(), caption('A line')])
    verdict = v4.new_output('display_data', {'text/markdown': '<div class="verdict ship">Ship.</div>'})
    page = notebook(v4.new_markdown_cell(f'# Page\n\n{box}'), figure, v4.new_code_cell('y', outputs=[verdict]))
    return render(executed_study(tmp_path, ['04_eval'], lambda: page), ['04_eval'])


def image(width=300, height=200):
    file = io.BytesIO()
    Image.new('L', (width, height), 90).save(file, 'PNG')
    return v4.new_output('display_data', {'image/png': base64.b64encode(file.getvalue()).decode()},
                         metadata={'image/png': dict(alt='a line')})


@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_figure_opens_enlarged_and_the_focus_returns(chromium, tmp_path, monkeypatch, width, scheme):
    "By mouse and keyboard, with nothing asked of the network."
    monkeypatch.setattr('quarto.path', lambda: None)
    axe = pytest.importorskip('axe_playwright_python.sync_playwright')
    index = with_figures(tmp_path)
    assert page_issues(index.parent) == []
    page = chromium.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
    asked = []
    page.on('request', lambda r: asked.append(r.url) if not r.url.startswith(('data:', 'file:')) else None)
    page.goto(index.as_uri())
    box, button = page.locator('dialog'), page.locator('main .enlarge')
    assert not box.is_visible()
    def opened():
        assert box.is_visible()
        assert box.locator('img').get_attribute('alt') == 'a line'
        assert box.locator('.caption').inner_text() == 'Figure 1. A line'
        assert box.locator('img').bounding_box()['width'] > button.bounding_box()['width']
    button.click()
    opened()
    assert [(v['id'], v['nodes'][0]['target']) for v in axe.Axe().run(page).response['violations']] == []
    page.keyboard.press('Escape')
    assert not box.is_visible()
    assert button.evaluate('e => e === document.activeElement')
    page.keyboard.press('Enter')
    opened()
    box.get_by_role('button', name='Close').click()
    assert not box.is_visible()
    button.click()
    page.mouse.click(2, 2)
    assert not box.is_visible()
    assert [(v['id'], v['nodes'][0]['target']) for v in axe.Axe().run(page).response['violations']] == []
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert asked == []
    page.close()


@pytest.mark.parametrize('width', [1280, 390])
def test_the_first_page_answers_on_one_wide_screen(chromium, tmp_path, no_quarto, width):
    "The committed first page: verdict and pictures side by side, then figures and prices, within 900 pixels."
    committed = nbformat.read(ROOT/'nbs'/'04_eval.ipynb', 4)
    index = render(executed_study(tmp_path, ['04_eval'], lambda: committed), ['04_eval'])
    page = chromium.new_page(viewport=dict(width=width, height=900))
    page.goto(index.as_uri())
    def box(selector): return page.locator(selector).first.bounding_box()
    verdict, pictures, prices = map(box, ('.verdict', '.part .figure', '.part table'))
    checks, steps = map(box, ('h2[id^="safety-checks"]', '#what-to-do-now'))
    side_by_side = width > 1000
    assert (pictures['x'] > verdict['x'] + verdict['width']) == side_by_side
    assert (steps['y'] == checks['y']) == side_by_side
    assert (prices['y'] + prices['height'] < 900) == side_by_side
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    page.close()


def test_without_its_script_a_page_shows_all(tmp_path, no_quarto):
    soup = BeautifulSoup(with_figures(tmp_path).read_text(), 'html.parser')
    assert not soup(['dialog', 'button'])
    assert soup.select_one('.figure > img')
    policy = soup.find('meta', attrs={'http-equiv': 'Content-Security-Policy'})['content']
    assert f"script-src '{csp_hash(soup.script.string)}';" in policy


def test_a_callout_is_a_box(tmp_path, no_quarto):
    soup = BeautifulSoup(with_figures(tmp_path).read_text(), 'html.parser').main
    box = soup.select_one('.callout.warning')
    assert [p.get_text() for p in box('p')] == ['Not of this study', 'Figures of another one.']
    assert box['role'] == 'note'
    assert ':::' not in soup.get_text()


def test_callouts_of_chapters_are_closed_and_of_a_kind_that_quarto_has():
    for file in REPORTED:
        for cell in nbformat.read(ROOT/'nbs'/f'{file}.ipynb', 4).cells:
            if cell.cell_type != 'markdown' or ':::' not in cell.source: continue
            shown = body_html(v4.new_notebook(cells=[cell]))
            kinds = [box['class'][1] for box in shown('div', 'callout')]
            assert len(kinds) == cell.source.count('\n:::\n') + cell.source.endswith('\n:::')
            assert set(kinds) <= {'note', 'tip', 'important', 'warning', 'caution'}
            assert ':::' not in shown.get_text()


def test_print_opens_the_folds_and_leaves_the_code_out(chromium, tmp_path):
    css = (ROOT/'weldsynth'/'assets'/'report.css').read_text()
    (tmp_path/'a.html').write_text(f'''<style>{css}</style><body class="ws"><main>
        <details class="fold"><summary>Risks</summary><p id="risk">text</p></details>
        <details class="code"><summary>Code</summary><pre id="code">x</pre></details></main>''')
    page = chromium.new_page()
    page.goto((tmp_path/'a.html').as_uri())
    assert not page.locator('#risk').is_visible()
    page.emulate_media(media='print')
    assert page.locator('#risk').evaluate('e => e.checkVisibility({contentVisibilityAuto: true})')
    assert not page.locator('#code').is_visible()
    page.close()


# --- what lies beside the first page ---

@pytest.fixture
def with_verdict(tmp_path, monkeypatch):
    "An executed study with the files of a verdict and two cards."
    study = executed_study(tmp_path)
    folder = tmp_path/'verdict'
    folder.mkdir()
    for name in ('verdict.json', 'effects.csv', 'pod.csv', 'artefact.json'): (folder/name).write_text(name)
    for kind in ('model', 'data'):
        (study.path/'cards'/kind).mkdir(parents=True)
        (study.path/'cards'/kind/'README.md').write_text('---\nlicense: x\n---\n\n# Weld defects\n\n> Fine.\n')
    monkeypatch.setattr('weldsynth.report.enclosures._verdict_folder', lambda study: folder)
    return study


def test_the_first_page_links_to_verdict_tables_cards_and_method(with_verdict, no_quarto, capfd):
    index = render(with_verdict)
    assert page_issues(index.parent) == []
    soup = BeautifulSoup(index.read_text(), 'html.parser')
    links = [a['href'] for a in soup.find(id='files-and-method').find_next_sibling('ul')('a')]
    assert links[:3] == ['files/verdict.json', 'files/effects.csv', 'files/pod.csv']
    assert links[3:5] == ['model_card.html', 'data_card.html']
    assert '09_verdict.html' in links
    assert {p.name for p in (index.parent/'files').iterdir()} == {'verdict.json', 'effects.csv', 'pod.csv'}
    card = BeautifulSoup((index.parent/'model_card.html').read_text(), 'html.parser').main
    assert card.h1.get_text() == 'Model card'
    assert 'license' not in card.get_text()
    assert 'no Chromium or Chrome on PATH' in ''.join(capfd.readouterr())


def test_quarto_gets_the_files_too(with_verdict, tmp_path, monkeypatch):
    fake_quarto(tmp_path, monkeypatch)
    index = render(with_verdict)
    assert (index.parent/'files'/'verdict.json').read_text() == 'verdict.json'
    assert (index.parent/'data_card.html').exists()


@pytest.mark.parametrize('works', [True, False])
def test_the_first_page_becomes_a_pdf_where_a_browser_prints(with_verdict, tmp_path, monkeypatch, no_quarto, works):
    (tmp_path/'bin').mkdir()
    write = 'import sys; open([a for a in sys.argv if "print-to-pdf" in a][0].split("=")[1], "w").write("%PDF")'
    (tmp_path/'bin'/'chromium').write_text(f'#!{sys.executable}\n{write if works else "raise SystemExit(1)"}\n')
    (tmp_path/'bin'/'chromium').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path/'bin'))
    index = render(with_verdict)
    assert page_issues(index.parent) == []
    assert (index.parent/'files'/'page-one.pdf').exists() == works
    assert ('files/page-one.pdf' in index.read_text()) == works


def test_a_real_browser_prints_the_first_page(chromium, with_verdict, monkeypatch):
    monkeypatch.setattr('quarto.path', lambda: None)
    index = render(with_verdict)
    pdf = (index.parent/'files'/'page-one.pdf').read_bytes()
    assert pdf.startswith(b'%PDF')
    assert b'file:' not in pdf, 'no place on this machine'
    assert not [*index.parent.glob('.print*')]


def fake_quarto(folder, monkeypatch, log='Output created', skip=''):
    (folder/'bin').mkdir()
    (folder/'bin'/'quarto').write_text(FAKE.format(python=sys.executable, log=log, skip=skip, page=quarto_page()))
    (folder/'bin'/'quarto').chmod(0o755)
    monkeypatch.setenv('PATH', str(folder/'bin'))
    monkeypatch.delenv('QUARTO_PATH', raising=False)


def test_quarto_on_path_makes_the_pages(tmp_path, monkeypatch):
    fake_quarto(tmp_path, monkeypatch)
    index = render(executed_study(tmp_path))
    assert 'Study made-up' in BeautifulSoup(index.read_text(), 'html.parser').main.get_text()
    assert page_issues(index.parent) == []
    assert not (index.parent/'search.json').exists()
    assert 'QUARTO_LOG' not in os.environ


@pytest.mark.parametrize('case, reason', [
    (dict(log='(WARN) Unable to resolve link target: x.ipynb'), 'Unable to resolve link target'),
    (dict(log='fine\n(ERROR) no pandoc'), 'no pandoc'),
    (dict(log='(WARN) The theme file darkly2 was not found'), 'darkly2'),
    (dict(skip='02_ldm'), 'it made no 02_ldm.html')])
def test_quarto_that_fails_is_one_line_and_no_report(tmp_path, monkeypatch, case, reason):
    fake_quarto(tmp_path, monkeypatch, **case)
    study = executed_study(tmp_path)
    with pytest.raises(StudyError, match='^Quarto failed: ') as e: render(study)
    assert reason in str(e.value)
    assert '\n' not in str(e.value)
    assert {p.name for p in study.path.iterdir()} == {*LOCKS, 'notebooks'}


@pytest.mark.skipif(not shutil.which('quarto'), reason='Quarto is not on PATH: its own pages are not tested here')
def test_pages_by_the_real_quarto(tmp_path):
    index = render(executed_study(tmp_path))
    assert page_issues(index.parent) == []
    assert 'content="quarto-' in index.read_text()
