"""Lay out the notebooks as a Quarto project: python docs/lay_out.py FOLDER. `make docs` renders it."""
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).parent.parent
NBS = ROOT/'nbs'


def shown_source(source: str) -> str:
    "A cell's code without directives (Quarto takes `#| export` for a broken option of its own)."
    return '\n'.join(line for line in source.splitlines() if not re.match(r'\s*#\s*\|', line)).strip('\n')


def with_title(notebook, name: str):
    "The notebook with its first heading moved to where Quarto expects a title."
    heading = re.compile(r'^# +(.+)\n*', re.M)
    title = name
    first = notebook.cells[0]
    found = heading.search(first.source)
    if found:
        title = found[1].strip()
        first.source = heading.sub('', first.source, count=1)
    front = nbformat.v4.new_raw_cell(f'---\ntitle: {json.dumps(title, ensure_ascii=False)}\n---', id='front')
    notebook.cells.insert(0, front)
    return notebook


def page(file: Path):
    "A notebook as the site shows it."
    notebook = nbformat.read(file, 4)
    for cell in notebook.cells:
        if cell.cell_type == 'code': cell.source = shown_source(cell.source)
    notebook.cells = [c for c in notebook.cells if c.source or c.get('outputs')]
    return with_title(notebook, file.stem)


def sidebar(names: list) -> list:
    "The index, the chapters, then a section for each folder."
    top = sorted((n for n in names if '/' not in n), key=lambda n: (n != 'index.ipynb', n))
    folders = dict.fromkeys(n.split('/')[0] for n in names if '/' in n)
    return top + [dict(section=f, contents=[n for n in names if n.startswith(f'{f}/')]) for f in folders]


def lay_out(folder: Path):
    "Write the project. Its style is that of the report."
    names = sorted(f.relative_to(NBS).as_posix() for f in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in f.parts)
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page(NBS/name), folder/name)
    config = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    config['website']['sidebar']['contents'] = sidebar(names)
    (folder/'_quarto.yml').write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding='utf-8')
    shutil.copytree(ROOT/'weldsynth'/'assets', folder/'weldsynth'/'assets', dirs_exist_ok=True)
    shutil.copytree(NBS/'images', folder/'images', dirs_exist_ok=True)


if __name__ == '__main__': lay_out(Path(sys.argv[1]))
