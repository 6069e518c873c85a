"""Sets of patches that share a stamp or a frame, with copies planted in them.

`python tests/planted_copies.py` states both rates: different exposures that are taken for copies, and copies found.
"""
import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent/'cases'))
from _images import patch, u8  # noqa: E402

from weldsynth.data.copies import copy_pairs  # noqa: E402
from weldsynth.data.images import to_patch  # noqa: E402

PX = 64
N = 240


def frame(side, value=0., one_side=False, texture=False):
    "Overwrites a rim of `side` pixels, with grey or with a texture that is the same for all."
    rim = np.random.default_rng(5).random((PX, PX)) if texture else np.full((PX, PX), value)
    inside = (slice(None), slice(side, None)) if one_side else (slice(side, -side),)*2
    def mark(image, i):
        marked = rim.copy()
        marked[inside] = image[inside]
        return marked
    return mark


def stamp(text=lambda i: 'W-0815 2021', share=1.):
    "Burns a text into a share of the patches."
    def mark(image, i):
        if np.random.default_rng(i).random() > share: return image
        sheet = Image.fromarray(u8(image*.6 + .1))
        draw = ImageDraw.Draw(sheet)
        draw.text((2, 2), text(i), fill=255)
        draw.text((2, 50), 'IIIIII', fill=255)
        return np.asarray(sheet)/255
    return mark


def ruler(image, i):
    marked = image.copy()
    marked[-8:] = .1
    marked[-8:, ::4] = .9
    return marked


def watermark(image, i):
    y, x = np.mgrid[:PX, :PX]
    return (image + .06*(((x + y)//3) % 4 == 0)).clip(0, 1)


def of_film(film, mark): return lambda image, i: mark(image, i) if i % 12 == film else image


MARKS = {
    'nothing': lambda image, i: image, 'one stamp': stamp(), 'a stamp in half': stamp(share=.5),
    'a stamp in a tenth': stamp(share=.1), 'a date per film': stamp(lambda i: f'F{i % 12:02d} 20{i % 12:02d}'),
    'a black rim': frame(8), 'a wide black rim': frame(16), 'a white rim': frame(8, 1.),
    'a blank side': frame(12, one_side=True), 'a textured rim': frame(8, texture=True),
    'a textured rim on one film': of_film(3, frame(14, texture=True)), 'a rim per film': lambda image, i:
    frame(4 + i % 12)(image, i), 'a ruler': ruler, 'a watermark': watermark}


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file))


def with_noise(image):
    return (image + np.random.default_rng(1).normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)


def resized(image, side): return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


COPIES = {
    'saved again': lambda x: x, 'mirrored': lambda x: x[:, ::-1], 'upside down': lambda x: x[::-1],
    'turned by 90 degrees': np.rot90, 'turned by 180 degrees': lambda x: x[::-1, ::-1], 'transposed': lambda x: x.T,
    'brighter': lambda x: u8((x/255*1.25).clip(0, 1)), 'darker': lambda x: u8(x/255*.6),
    'another gamma': lambda x: u8((x/255)**.5), 'a negative': lambda x: 255 - x,
    'mirrored, as JPEG': lambda x: jpeg(np.ascontiguousarray(x[:, ::-1]), 90), 'a poor JPEG': lambda x: jpeg(x, 50),
    'with noise': with_noise, 'made smaller': lambda x: resized(x, 48), 'made larger': lambda x: resized(x, 128),
    '16 bits': lambda x: x.astype(np.float32)*257 + 31}


def planted(mark, seed=0):
    "N exposures and one copy of each kind: images, and the pair of rows of each copy."
    rng = np.random.default_rng(seed)
    files = [u8(mark(patch(rng, ('clean', 'crack', 'porosity')[i % 3], PX, PX)[0], i)) for i in range(N)]
    pairs = {kind: (7*j + 1, N + j) for j, kind in enumerate(COPIES)}
    files += [COPIES[kind](files[a]) for kind, (a, _) in pairs.items()]
    return torch.stack([to_patch(np.array(f), PX) for f in files]), pairs


def rates(mark, seed=0):
    "Different exposures that are taken for copies, and the kinds of copies that are found."
    images, pairs = planted(mark, seed)
    found = set(map(tuple, copy_pairs(images).tolist()))
    return len(found - set(pairs.values())), {kind for kind, pair in pairs.items() if pair in found}


if __name__ == '__main__':
    print(f'{N} exposures, {N*(N - 1)//2:,} pairs that are no copies, {len(COPIES)} kinds of copies')
    for name, mark in MARKS.items():
        false, found = rates(mark)
        print(f'{name:28} false {false}, found {len(found)}, not found: {", ".join(set(COPIES) - found) or "none"}')
