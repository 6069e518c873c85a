"""A notebook as the site shows it: Quarto pipes each one through here (`ipynb-filters` in _quarto.yml)."""
import json
import re
import sys
from pathlib import Path

DIRECTIVE = re.compile(r'\s*#\s*\|')  # nbdev's, which Quarto takes for broken options
LABEL = re.compile(r'^#\| label: (\S+)$', re.M)
CAPTION = re.compile(r'\s*<p class="caption">(.*)</p>\s*', re.S)
REFERENCE = re.compile(r'( \()?(?<![\w@`/.])@((fig|tbl)-[\w-]*\w)(?(1)\))')
TITLE = re.compile(r'^# +(.+)\n*', re.M)
LINK = re.compile(r'(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(?:#[^)\s]*)?\)')


def text(cell: dict) -> str:
    "The source of a cell, which may be a text or a list of lines."
    return ''.join(cell['source'])


def shown_output(output: dict) -> dict:
    "An output without HTML where it has another form: an HTML output makes Quarto load scripts from another host."
    kinds = output.get('data', {})
    if len(kinds) > 1: kinds.pop('text/html', None)
    return output


def markdown(output: dict) -> str:
    "The Markdown of an output, '' if it has none."
    return ''.join(output.get('data', {}).get('text/markdown', ''))


def kind(output: dict) -> str:
    "'fig' for a picture, 'tbl' for a table, else ''."
    if 'image/png' in output.get('data', {}): return 'fig'
    return 'tbl' if markdown(output).lstrip().startswith('|') else ''


def numbered(cell: dict, output: dict, caption: str, labels: list) -> dict:
    "A figure or table with its caption as Quarto numbers it: a cell of options, with one output."
    what = kind(output)
    own = LABEL.search(text(cell))
    label = own[1] if own and own[1].startswith(what) and own[1] not in labels else f'{what}-{len(labels) + 1}'
    labels.append(label)
    escaped = caption if what == 'fig' else caption.replace('&', '&amp;')  # an attribute of which Quarto reads the text
    options = {'echo': False, 'label': label, f'{what}-cap': escaped}
    alt = output.get('metadata', {}).get('image/png', {}).get('alt')
    if alt: options['fig-alt'] = alt
    source = [f'#| {key}: {json.dumps(value, ensure_ascii=False)}\n' for key, value in options.items()]
    return dict(cell, id=f'{cell["id"]}-{len(labels)}', source=source, outputs=[output])


def shown_code(cell: dict, labels: list) -> list:
    "A cell of code without nbdev's directives and what went to stderr, and a cell for each output with a caption."
    source = '\n'.join(line for line in text(cell).splitlines() if not DIRECTIVE.match(line)).strip('\n')
    cells = [dict(cell, source=source.splitlines(keepends=True), outputs=[])]
    for i, output in enumerate(map(shown_output, (o for o in cell['outputs'] if o.get('name') != 'stderr'))):
        caption = CAPTION.fullmatch(markdown(output))
        last = cells[-1]['outputs']
        if caption and last and kind(last[-1]):
            cells.append(numbered(cell, last.pop(), caption[1], labels))
            cells.append(dict(cell, id=f'{cell["id"]}-after{i}', source=[], outputs=[]))
        else: last.append(output)
    return cells


def shown_text(cell: dict, labels: list) -> dict:
    "A cell of text. Links to what is no page of the site are plain text, and references lead to their own page alone."
    def link(found):
        is_page = found[2].endswith('.ipynb') and Path(found[2]).is_file()  # Quarto runs this in the notebook's folder
        return found[0] if is_page else found[1]
    def reference(found):
        if found[2] in labels: return found[0]
        return '' if found[1] else f'a {dict(fig="figure", tbl="table")[found[3]]} of another chapter'
    return dict(cell, source=LINK.sub(link, REFERENCE.sub(reference, text(cell))).splitlines(keepends=True))


def front_matter(title: str) -> dict:
    "The cell in which Quarto expects a title."
    lines = ['---\n', f'title: {json.dumps(title, ensure_ascii=False)}\n', '---']
    return dict(cell_type='raw', id='front', metadata={}, source=lines)


def page(notebook: dict) -> dict:
    "The notebook with its first heading as title, and without cells that show nothing."
    labels: list = []
    cells = [shown for c in notebook['cells'] for shown in (shown_code(c, labels) if 'outputs' in c else [c])]
    cells = [shown_text(c, labels) if c['cell_type'] == 'markdown' else c for c in cells]
    first = cells[0]
    found = TITLE.search(text(first))
    title = found[1].strip() if found else 'weldsynth'
    cells[0] = dict(first, source=TITLE.sub('', text(first), count=1).splitlines(keepends=True))
    return dict(notebook, cells=[front_matter(title), *(c for c in cells if c['source'] or c.get('outputs'))])


if __name__ == '__main__': json.dump(page(json.load(sys.stdin)), sys.stdout)
