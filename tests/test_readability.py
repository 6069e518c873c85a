"""What readers see is in plain English: notebooks, README, messages, docstrings, outputs of committed chapters."""
import ast
import re
from functools import lru_cache
from pathlib import Path

import nbformat
import pytest

from weldsynth.report.chapters import CHAPTERS

ROOT = Path(__file__).parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MODULES = sorted(p for p in (ROOT/'weldsynth').rglob('*.py') if p.name != '_modidx.py')
DIARY = '13_lab_notes'  # its entries are short and assume the chapters
ASSETS = sorted(p for p in (ROOT/'weldsynth'/'assets').iterdir() if p.suffix in ('.json', '.html', '.js', '.jinja'))

# what readers stumbled over, with what it should say
RIDDLES = {
    r"changes the classifier's score by": 'state the gain, its range and the reason in plain words',
    r'\blearnt from\b': 'is trained on',
    r'found at all': 'detected (any type)',
    r'that nothing had seen': 'kept out of all training',
    r'best free (alternative|control)|free controls?\b': 'no-cost alternative or control',
    r'markedly less often': 'give the number',
    r'by which a computer knows': 'a computer can tell them apart',
    r'no number of welds would decide': 'more test welds alone will not settle this',
    r'one is right': 'test images were used once, as intended',
    r'whose own luck|one\'s own luck|\bluck\b(?! of the draw)': 'variation, or chance',
    r'one switch goes back': 'can be switched back at once',
    r'parts of a customer': "reproduces customers' images",
    r'Safeguards: \d+ hold': 'Safety checks: ... passed',
    r'[Ii]t at work': 'Example',
    r'is one grey throughout': 'is a single grey value',
    r'[Ww]hat costs nothing': 'no-cost alternatives',
    r'so would a coin': 'that is chance',
    r'sturd(y|ier)': 'more robust',
    r'are not what films are full of': 'most real flaws are less clear-cut',
    r'[Ss]omething else altogether|\b[Ss]trangers?\b': 'images that are not welds, out of distribution',
    r'to be told from none': 'power',
    r', as said\b': 'predicted probability',
    r'is not to be had': 'cannot be',
    r'against that helps': 'only ... protects against that',
    r'[Tt]he stock way': 'the standard implementation',
    r'(fold|test) (is |was )?opened|opened the test\b': 'the test images were used',
    r'\bstays? quiet|\bingest\b|trained to the end|\bfigures (are those )?of the day': 'plain words',
    r'\btold\b(?! apart\b)': 'distinguished, given or reported',
    r'by a hair': 'narrowly, with the number',
    r'octave by octave|octave of real': 'in each octave',
    r'in the words of|gives? (it|them|itself) away': 'plain words',
    r'speaks? against\b|nothing speaks': 'no check fails',
    r'has flattened|keeps improving|too sure of': 'a claim about results: compute it from the data of the run',
}
GLOSSED = ('arm', 'judge', 'gate', 'probe', 'floor')  # to be defined in *italics* or linked where first used
WORDS_OF_A_SENTENCE = 50  # at most


def prose(text):
    "Markdown without code, mathematics and the targets of links."
    text = re.sub(r'```.*?```|`[^`]*`|\$[^$]*\$', ' ', text, flags=re.S)
    return re.sub(r'\]\([^)]*\)', ']', text)


def riddles(text):
    "Phrases of `RIDDLES` in a text, with the advice."
    found = [(m[0], better) for phrase, better in RIDDLES.items() for m in re.finditer(phrase, prose(text))]
    return sorted(set(found))


def unglossed(text):
    "Words of `GLOSSED` whose first use in Markdown, titles aside, is neither in *italics* nor part of a link."
    text = re.sub(r'```.*?```|`[^`]*`|^# [^\n]*', ' ', text, flags=re.S | re.M)
    text = re.sub(r'\]\([^)]*\)', ']()', text)
    missing = []
    for word in GLOSSED:
        first = re.search(rf'(?i)(?<!-)\b{word}s?\b', text)
        if not first: continue
        around = text[max(0, first.start() - 60):first.end() + 60]
        defined = rf'\*[^*]*\b{first[0]}\b[^*]*\*|\[[^\]]*\b{first[0]}\b[^\]]*\]\('
        if not re.search(defined, around): missing.append(word)
    return missing


def long_sentences(text, most=WORDS_OF_A_SENTENCE):
    "Sentences of more than that many words."
    paragraphs = [p for p in re.split(r'\n\s*\n|\n(?=[-|#>])', prose(text)) if not p.startswith('|')]
    sentences = [s for p in paragraphs for s in re.split(r'(?<=[.?!:;])\s+', p)]
    return [s for s in sentences if len(s.split()) > most]


def empty_headings(cells):
    "Headings with neither text nor an output under them, up to the next heading of the same or a higher level."
    found = []
    for i, cell in enumerate(cells):
        last = cell.source.strip().splitlines()[-1:] if cell.cell_type == 'markdown' else []
        if not last or not re.match(r'#{2,} ', last[0]): continue
        level = last[0].index(' ')
        for later in cells[i + 1:]:
            if later.cell_type == 'code' and later.get('outputs'): break
            if later.cell_type == 'markdown':
                heading = re.match(r'#+(?= )', later.source)
                if heading and len(heading[0]) <= level: found.append(last[0])
                break
        else: found.append(last[0])
    return found


def pending_colons(cells):
    "Paragraphs that end in a colon before a code cell without output: a page hides the code."
    pairs = zip(cells, cells[1:], strict=False)
    return [a.source.strip().splitlines()[-1] for a, b in pairs if a.cell_type == 'markdown'
            and re.search(r'(?<!:):$', a.source.strip()) and b.cell_type == 'code' and not b.get('outputs')]


def untidy(text):
    "Numbers that a reader stumbles over: seeds of many digits, hyphens as minus signs, a negative zero, 'nan'."
    return re.findall(r'\b\d{12,}\b|(?<![\w.)\]-])-\d[\d.]*|(?<!\w)−0(?:\.0+)?(?![\d.])|\bnan\b', text)


@lru_cache(maxsize=None)
def cells_of(path): return nbformat.read(path, 4).cells


def markdown_of(path): return '\n\n'.join(c.source for c in cells_of(path) if c.cell_type == 'markdown')


def shown_by(path):
    "The texts that a notebook's code shows: strings of its cells, and its committed Markdown and printed outputs."
    code = [c for c in cells_of(path) if c.cell_type == 'code']
    strings = [s for c in code if not c.source.lstrip().startswith('#| default_exp') for s in texts_of(c.source)]
    return [*strings, *outputs_of(path)]


def outputs_of(path):
    "The Markdown and printed texts among a notebook's committed outputs."
    outputs = [o for c in cells_of(path) if c.cell_type == 'code' for o in c.get('outputs', ())]
    return [o.get('text') or o.get('data', {}).get('text/markdown', '') for o in outputs]


def texts_of(source):
    "Sentences in the strings of Python code, docstrings among them: those of four words and more."
    try: tree = ast.parse(source)
    except SyntaxError: return []
    parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    joined = [''.join(v.value if isinstance(v, ast.Constant) else '…' for v in n.values)
              for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]
    plain = [n.value for n in ast.walk(tree)
             if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in parts]
    return [s for s in [*joined, *plain] if len(s.split()) > 3]


def title(path): return str(path.relative_to(ROOT).with_suffix(''))


# --- what the project says ---

@pytest.mark.parametrize('path', NOTEBOOKS, ids=title)
def test_prose_has_no_riddles(path): assert riddles(markdown_of(path)) == []


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.stem != DIARY], ids=title)
def test_terms_are_defined_or_linked_where_they_are_first_used(path): assert unglossed(markdown_of(path)) == []


@pytest.mark.parametrize('path', [p for p in NOTEBOOKS if p.stem != DIARY], ids=title)
def test_sentences_are_not_long(path): assert long_sentences(markdown_of(path)) == []


@pytest.mark.parametrize('path', NOTEBOOKS, ids=title)
def test_captions_and_outputs_have_no_riddles(path):
    assert [found for text in shown_by(path) for found in riddles(text)] == []


@pytest.mark.parametrize('path', MODULES, ids=title)
def test_messages_and_docstrings_have_no_riddles(path):
    assert [found for text in texts_of(path.read_text()) for found in riddles(text)] == []


@pytest.mark.parametrize('path', ASSETS, ids=lambda p: p.name)
def test_pages_and_forms_have_no_riddles(path): assert riddles(path.read_text()) == []


@pytest.mark.parametrize('name', ['README.md', 'CONTRIBUTING.md'])
def test_pages_beside_the_notebooks_have_no_riddles(name): assert riddles((ROOT/name).read_text()) == []


@pytest.mark.parametrize('path', sorted(NBS.glob('*.ipynb')), ids=title)
def test_headings_have_something_under_them(path): assert empty_headings(cells_of(path)) == []


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_no_sentence_announces_an_output_that_is_not_there(chapter):
    assert pending_colons(cells_of(NBS/f'{chapter}.ipynb')) == []


@pytest.mark.parametrize('path', sorted(NBS.glob('*.ipynb')), ids=title)  # none is exempt
def test_numbers_in_outputs_are_tidy(path):
    assert [found for text in outputs_of(path) for found in untidy(text)] == []


def test_the_glossary_defines_the_terms():
    text = markdown_of(NBS/'glossary.ipynb')
    terms = re.findall(r'^- \*\*(.+?)\*\*: (.+)', text, re.M)
    assert len(terms) > 40
    assert all(len(term + meaning) <= 180 for term, meaning in terms), 'two lines at most'
    for word in ('arm', 'fold', 'macro F1', 'POD', 'false call', 'guidance scale', 'probe', 'Holm', 'real-equivalents'):
        assert any(word in term for term, _ in terms), word


# --- each check can fail ---

def markdown(text): return nbformat.v4.new_markdown_cell(text)


def code(outputs=()): return nbformat.v4.new_code_cell('x', outputs=list(outputs))


OUTPUT = nbformat.v4.new_output('stream', text='7')


@pytest.mark.parametrize('text', [
    'Then so would a coin.', 'SHIP is not to be had.', 'The test fold was opened.', 'Real is told from synthetic.',
    'It misses the limit by a hair.', 'What the classifier learnt from.', '*Strangers* at night',
    'When the test was opened, nothing else was.', 'The audits stay quiet.'])
def test_a_riddle_is_found(text): assert riddles(text)


def test_code_and_names_are_no_prose():
    assert riddles('See `told` and [the chapter](what_costs_nothing.ipynb).\n```\nluck = 3\n```') == []


@pytest.mark.parametrize(('text', 'missing'), [
    ('The arm wins.', ['arm']), ('An *arm* is a training set. Each arm wins.', []),
    ('See [the arms](07_arms.ipynb): an arm wins.', []), ('Two judges look; the `gate` is code.', ['judge']),
    ('[The audit](06_audit.ipynb) uses a floor of steel, charm and alarms.', ['floor'])])
def test_a_word_without_a_gloss_is_found(text, missing): assert unglossed(text) == missing


def test_a_long_sentence_is_found():
    assert long_sentences('word '*51 + 'end.')
    assert not long_sentences(('word '*40 + 'end. ')*3)


def test_an_empty_heading_is_found():
    cells = [markdown('# Title\n\nText.'), markdown('## Empty'), code(), markdown('## Full'), code([OUTPUT])]
    assert empty_headings(cells) == ['## Empty']
    assert empty_headings([markdown('## Last'), code()]) == ['## Last']
    assert empty_headings([markdown('## Above'), code(), markdown('### Below\n\nText.')]) == []


def test_a_colon_before_nothing_is_found():
    assert pending_colons([markdown('The figures:'), code(), markdown('The rest:'), code([OUTPUT])]) == ['The figures:']


def test_untidy_numbers_are_found():
    assert untidy('| 3442841833123882369 | (-0.5 to 1) | -3 |') == ['3442841833123882369', '-0.5', '-3']
    assert untidy('rose by -2 points, +1.0 (−3.0 to -0.4)') == ['-2', '-0.4']
    assert untidy('| 58.5 (nan to nan) | n/a |') == ['nan', 'nan']
    assert untidy('| −0.0 | −0 % | -0.00 |') == ['−0.0', '−0', '-0.00']
    assert untidy('| 12,345 | (−0.5 to 1) | 2026-11-26 | −0.04 | plate-01_00036 | insert-1step |') == []


def test_texts_of_code_are_found():
    source = 'def f(x):\n    "A docstring of five words."\n    raise E(f"no room for {x} files here")'
    assert texts_of(source) == ['no room for … files here', 'A docstring of five words.']
