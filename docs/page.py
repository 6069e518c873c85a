"""A notebook as the site shows it: Quarto pipes each one through here (`ipynb-filters` in _quarto.yml)."""
import json
import re
import sys
from pathlib import Path

DIRECTIVE = re.compile(r'\s*#\s*\|(?!\s*(label|fig-cap|tbl-cap):)')  # nbdev's, which Quarto takes for broken options
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


def shown_code(cell: dict) -> dict:
    "A cell of code without nbdev's directives and without what went to stderr."
    source = '\n'.join(line for line in text(cell).splitlines() if not DIRECTIVE.match(line)).strip('\n')
    outputs = [shown_output(o) for o in cell['outputs'] if o.get('name') != 'stderr']
    return dict(cell, source=source.splitlines(keepends=True), outputs=outputs)


def shown_text(cell: dict) -> dict:
    "A cell of text; links to files that are no pages of the site, such as CONTRIBUTING.md, are plain text."
    def link(found):
        is_page = found[2].endswith('.ipynb') and Path(found[2]).is_file()  # Quarto runs this in the notebook's folder
        return found[0] if is_page else found[1]
    return dict(cell, source=LINK.sub(link, text(cell)).splitlines(keepends=True))


def front_matter(title: str) -> dict:
    "The cell in which Quarto expects a title."
    lines = ['---\n', f'title: {json.dumps(title, ensure_ascii=False)}\n', '---']
    return dict(cell_type='raw', id='front', metadata={}, source=lines)


def page(notebook: dict) -> dict:
    "The notebook with its first heading as title, and without cells that show nothing."
    shown = dict(code=shown_code, markdown=shown_text)
    cells = [shown.get(c['cell_type'], dict)(c) for c in notebook['cells']]
    first = cells[0]
    found = TITLE.search(text(first))
    title = found[1].strip() if found else 'weldsynth'
    cells[0] = dict(first, source=TITLE.sub('', text(first), count=1).splitlines(keepends=True))
    return dict(notebook, cells=[front_matter(title), *(c for c in cells if c['source'] or c.get('outputs'))])


if __name__ == '__main__': json.dump(page(json.load(sys.stdin)), sys.stdout)
