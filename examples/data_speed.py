"""How long data take on this machine, in seconds of processor time: `python examples/data_speed.py [FOLDER OF FILMS]`.

Cuts 20,000 windows from 24 films (made up, or those of a folder with films/, masks/ and windows.csv), checks 20,000
patches in class folders, and splits 3,000 groups. With another checkout in PYTHONPATH it measures that version.
"""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from weldsynth.core.config import DataConfig
from weldsynth.core.profiles import PROFILES
from weldsynth.data.check import check_data
from weldsynth.data.patches import PatchSet
from weldsynth.data.readers import read_windows
from weldsynth.data.split import split

def made_up_films(root, films=24, windows=20_000, side=96):
    "Noise with a bead, a mask for every film, and a table of windows."
    rng = np.random.default_rng(0)
    rows = []
    for f in range(films):
        film = rng.normal(120, 18, (600, 4200)) + 40*np.sin(np.arange(600)/190)[:, None]
        film = film.clip(0, 255).astype(np.uint8)
        mask = np.zeros_like(film)
        mask[280:300, ::400] = 255
        for folder, image in (('films', film), ('masks', mask)):
            (root/folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root/folder/f'film-{f:02d}.png')
        for _ in range(windows//films + (f < windows % films)):
            x, y = rng.integers(0, 4200 - side), rng.integers(0, 600 - side)
            label = 'crack' if mask[y:y + side, x:x + side].any() else 'clean'
            rows.append((f'film-{f:02d}', x, y, side, label, f'film-{f:02d}'))
    table = pd.DataFrame(rows, columns=['film', 'x', 'y', 'size', 'label', 'group'])
    table.drop_duplicates(['film', 'x', 'y']).to_csv(root/'windows.csv', index=False)


def made_up_patches(root, n=20_000, px=64):
    "Noise in class folders, a hundred patches to a weld."
    rng = np.random.default_rng(1)
    for i in range(n):
        file = root/('clean', 'clean', 'crack', 'porosity')[i % 4]/f'weld-{i//100:03d}'/f'{i:05d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.normal(120, 30, (px, px)).clip(0, 255).astype(np.uint8)).save(file)


def many_groups(n=3000):
    "A set in which each image is a group of its own."
    groups = [f'w{i:05d}' for i in range(n)]
    labels = ['clean']*(n//2) + ['crack']*(n//4) + ['porosity']*(n - n//2 - n//4)
    table = pd.DataFrame(dict(id=groups, label=labels, group=groups, film=groups, size=np.nan, origin='real'))
    return PatchSet(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), table, ('clean', 'crack', 'porosity'))


def timed(what, function):
    start, wall = time.process_time(), time.perf_counter()
    function()
    seconds, waited = time.process_time() - start, time.perf_counter() - wall
    print(f'{what:36} {seconds:6.1f} s of processor time, {waited:6.1f} s in all')


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as tmp:
        films, patches = Path(tmp, 'films'), Path(tmp, 'patches')
        if len(sys.argv) > 1: films = Path(sys.argv[1])
        else: made_up_films(films)
        made_up_patches(patches)
        group = 'group' if 'group' in pd.read_csv(films/'windows.csv', nrows=1) else 'film'
        timed('20,000 windows cut from 24 films', lambda: read_windows(films/'windows.csv', 64, group, print))
        timed('20,000 patches checked', lambda: check_data(str(patches), PROFILES['fixture']))
        timed('3,000 groups split', lambda: split(many_groups(), DataConfig()))
