"""What must hold for any split, any manifest and any bytes: properties tried on made-up inputs, and damaged files fed to the readers."""
import csv, io, tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from faults import record
from test_check import dicom
from weldsynth.data.check import check_data
from weldsynth.core.config import StudyError
from weldsynth.data.images import DataError, ImageError, decode_image, printable
from weldsynth.data.patches import PatchSet
from weldsynth.data.sources import normalise_name, read_manifest, read_table, read_windows, resolve_inside
from weldsynth.data.split.split import SHARES, report_duplicates, split

PX = 16
pytestmark = pytest.mark.filterwarnings("ignore")  # decoders and scikit-learn say much about odd input


def tries(n): return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


# --- splits ---

LABELS = ('clean', 'crack', 'porosity', 'slag')


@st.composite
def sets(draw):
    "Labels, groups and films of up to 120 patches, evenly or unevenly spread."
    n, groups = draw(st.integers(1, 120)), draw(st.integers(1, 15))
    rng, uneven, classes = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.sampled_from([.1, 1., 10.])), draw(st.integers(1, 4))
    label, group = rng.choice(LABELS[:classes], n), rng.choice(groups, n, p=rng.dirichlet([uneven]*groups))
    film = group//draw(st.integers(1, 4)) if draw(st.booleans()) else group
    table = pd.DataFrame(dict(id=[str(i) for i in range(n)], label=label, group=[f'g{g}' for g in group], film=[f'f{f}' for f in film], size=np.nan, origin='real'))
    return PatchSet(torch.from_numpy(rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)), table, LABELS)


def split_holds(patches, seed):
    "Either a clear refusal, or folds that keep groups and films whole, have every class, and lose no patch."
    try: done = split(patches, seed, shuffles=1)
    except StudyError as e:
        assert '\n' not in str(e)
        return False
    t = done.table
    assert list(t.id) == list(patches.table.id) and torch.equal(done.images, patches.images) and set(t.fold) <= {*SHARES, 'film'}
    assert t.groupby('group').fold.nunique().eq(1).all()
    held = set(t.film[t.fold == 'film'])
    assert not held & set(t.film[t.fold != 'film'])
    assert (pd.crosstab(t.label, t.fold)[[*SHARES]] > 0).all(axis=None), 'every class in train, validation and test'
    assert split(patches, seed, shuffles=1).table.equals(t), 'the same seed, the same split'
    return True


def run_splits(n):
    made = []
    @tries(n)
    @given(sets(), st.integers(0, 5))
    def go(patches, seed): made.append(split_holds(patches, seed))
    go()
    print(f'{len(made)} sets split: {sum(made)} with all properties, {len(made) - sum(made)} refused')
    assert sum(made) > n//5 and not all(made)
    return dict(tried=len(made), read=sum(made), refused=len(made) - sum(made))


def test_any_split_keeps_groups_whole_or_is_refused(): run_splits(60)


@pytest.mark.soak
def test_any_split_long(): record('data fuzz: sets split', **run_splits(5_000))


@tries(25)
@given(sets(), st.randoms(use_true_random=False))
def test_a_planted_copy_in_another_fold_is_found(patches, rng):
    try: done = split(patches, 0, shuffles=1)
    except StudyError: assume(False)
    train, test = (np.flatnonzero(done.table.fold == f) for f in ('train', 'test'))
    images = done.images.clone()
    images[rng.choice(test)] = images[rng.choice(train)]
    with pytest.raises(DataError): report_duplicates(replace(done, images=images))


# --- manifests ---

field = st.text(st.characters(codec='utf-8', exclude_characters='\r'), max_size=12)


@tries(150)
@given(st.lists(st.lists(field, min_size=3, max_size=3), min_size=1, max_size=8), st.lists(field.map(str.strip), min_size=3, max_size=3, unique=True))
def test_a_table_comes_back_as_it_was_written(rows, header):
    "What Python's csv writes is read to the same text, less blanks around fields and blank lines."
    with tempfile.TemporaryDirectory() as tmp:
        with open(Path(tmp)/'t.csv', 'w', encoding='utf-8', newline='') as f: csv.writer(f).writerows([header, *rows])
        want = [[c.strip() for c in r] for r in rows if any(c.strip() for c in r)]
        try: table = read_table(Path(tmp)/'t.csv')
        except DataError as e: assert not want or not any(header), e
        else: assert list(table) == header and table.to_numpy().tolist() == want


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "A folder of twelve images and six masks."
    root = tmp_path_factory.mktemp('images')
    for i in range(12): Image.fromarray(np.random.default_rng(i).integers(0, 256, (PX, PX), dtype=np.uint8)).save(root/f'{i}.png')
    for i in range(6): Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 6)).save(root/f'mask{i}.png')
    return root


def manifest_holds(root, header, rows, reader=read_manifest):
    "Either a set whose rows are those of the table, or a refusal in one line; and the check ends with a table."
    file = root/'manifest.csv'
    with open(file, 'w', encoding='utf-8', newline='') as f: csv.writer(f).writerows([header, *rows])
    told = check_data(str(file), 'fixture')
    try: patches = reader(file, PX, 'group')
    except StudyError as e:
        assert '\n' not in str(e) and str(e).isprintable() and (told.severity == 'error').any()
        return False
    assert patches.table.id.tolist() == [r[header.index('image')].strip() for r in rows if any(c.strip() for c in r)]
    return True


name = st.sampled_from([f'{i}.png' for i in range(12)])
odd_field = st.one_of(field, name, st.sampled_from(['clean', 'crack', '../1.png', '/etc/hostname', '0.PNG', 'mask0.png', 'nan', '-1', '1e999', '=1+1', '<script>', 'synthetic']))


def run_manifests(root, n):
    made = []
    @tries(n)
    @given(st.permutations(['image', 'label', 'group', 'mask', 'size_mm', 'extra']), st.lists(name, min_size=4, max_size=12, unique=True),
           st.lists(st.tuples(st.integers(0, 11), st.integers(0, 5), odd_field), max_size=2), st.integers(0, 2**32))
    def go(header, names, damage, seed):
        rng, rows = np.random.default_rng(seed), []
        for i, image in enumerate(names):
            row = dict(image=image, label=('clean', 'crack')[i % 2], group=f'weld {rng.integers(4)}', mask=f'mask{i//2}.png' if i % 2 else '', size_mm=f'{rng.random() + .1:.2f}' if i % 2 else '', extra='x')
            rows.append([row[c] for c in header])
        for line, column, text in damage:
            if line < len(rows): rows[line][column] = text
        made.append(manifest_holds(root, header, rows))
    go()
    print(f'{len(made)} manifests: {sum(made)} read with every row in its place, {len(made) - sum(made)} refused in one line')
    assert sum(made) > n//10 and not all(made)
    return dict(tried=len(made), read=sum(made), refused=len(made) - sum(made))


def test_any_manifest_is_read_or_refused(images): run_manifests(images, 80)


@pytest.mark.soak
def test_any_manifest_long(images): record('data fuzz: manifests', **run_manifests(images, 3_000))


def damaged(data, rng):
    "`data` with bytes changed, cut out, put in, doubled or cut off at the end."
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not data: break
        i, n = int(rng.integers(len(data))), int(rng.integers(1, 40))
        how = rng.integers(6)
        if how == 0: data[i] ^= 1 << int(rng.integers(8))
        elif how == 1: data[i:i + n] = rng.bytes(n)
        elif how == 2: del data[i:i + n]
        elif how == 3: data[i:i] = rng.bytes(n)
        elif how == 4: data[i:i] = data[i:i + n]
        else: del data[i:]
    return bytes(data)


def run_tables(root, n):
    "Damaged bytes of a manifest and of a table of windows."
    good = {'manifest.csv': 'image,label,group\n' + ''.join(f'{i}.png,{("clean", "crack")[i % 2]},weld {i//2}\n' for i in range(12)),
            'windows.csv': 'film,x,y,size,label,group\n' + ''.join(f'{i},{i % 3},0,10,{("clean", "crack")[i % 2]},weld {i//2}\n' for i in range(12))}
    if not (root/'films').exists():
        (root/'films').mkdir()
        for i in range(12): (root/'films'/f'{i}.png').write_bytes((root/f'{i}.png').read_bytes())
    rng, counts = np.random.default_rng(0), dict(read=0, refused=0)
    for i in range(n):
        file, text = list(good.items())[i % 2]
        (root/file).write_bytes(damaged(text.encode(), rng))
        try: (read_manifest if file[0] == 'm' else read_windows)(root/file, PX, 'group')
        except StudyError as e:
            assert '\n' not in str(e)
            counts['refused'] += 1
        else: counts['read'] += 1
    for file in good: (root/file).unlink()
    print(f'{n} damaged tables: {counts}')
    assert counts['refused'] > n//4
    return dict(tried=n, **counts)


def test_damaged_tables_are_read_or_refused(images): run_tables(images, 150)


@pytest.mark.soak
def test_damaged_tables_long(images): record('data fuzz: damaged tables', **run_tables(images, 10_000))


# --- images ---

def specimens():
    "A small file of each kind that is read: name -> bytes."
    grey, made = np.random.default_rng(0).integers(0, 60_000, (PX, PX)).astype(np.uint16), {}
    for name, mode, array in (('8.png', None, (grey//256).astype(np.uint8)), ('16.png', None, grey), ('8.jpg', None, (grey//256).astype(np.uint8)), ('16.tif', None, grey), ('float.tif', None, grey.astype(np.float32)),
                              ('rgb.png', 'RGB', (grey//256).astype(np.uint8)), ('palette.png', 'P', (grey//256).astype(np.uint8)), ('deflate.tif', None, (grey//256).astype(np.uint8))):
        image, file = Image.fromarray(array), io.BytesIO()
        (image.convert(mode) if mode else image).save(file, dict(png='PNG', jpg='JPEG', tif='TIFF')[name[-3:]], **(dict(compression='tiff_adobe_deflate') if name == 'deflate.tif' else {}))
        made[name] = file.getvalue()
    with tempfile.TemporaryDirectory() as tmp:
        dicom(Path(tmp)/'a.dcm', grey), dicom(Path(tmp)/'b.dcm', grey, 'MONOCHROME1')
        made |= {f'{n}.dcm': (Path(tmp)/f'{n}.dcm').read_bytes() for n in 'ab'}
    return made


def run_images(n):
    rng, good, counts = np.random.default_rng(0), specimens(), dict(read=0, refused=0)
    for data in good.values(): assert decode_image(data).grey.shape == (PX, PX)
    for i in range(n):
        bad = damaged(list(good.values())[i % len(good)], rng)
        try: picture = decode_image(bad)
        except ImageError as e:
            assert len(e.args) == 2 and all(isinstance(a, str) and a for a in e.args) and '\n' not in e.args[0]
            counts['refused'] += 1
        else:
            assert picture.grey.dtype == np.float32 and picture.grey.ndim == 2 and np.isfinite(picture.grey).all() and picture.grey.size
            counts['read'] += 1
    print(f'{n} damaged images of {len(good)} kinds: {counts}')
    assert counts['refused'] > n//4 and counts['read']
    return dict(tried=n, **counts)


def test_damaged_images_are_read_or_refused(): run_images(2_000)


@pytest.mark.soak
def test_damaged_images_long(): record('data fuzz: damaged images', **run_images(200_000))


@tries(300)
@given(st.binary(max_size=400), st.sampled_from([b'', b'\x89PNG\r\n\x1a\n', b'II*\0', b'MM\0*', b'\xff\xd8\xff\xe0', b'\0'*128 + b'DICM']))
def test_any_bytes_are_refused_or_a_picture(data, head):
    try: assert decode_image(head + data).grey.ndim == 2
    except ImageError as e: assert len(e.args) == 2


# --- names ---

@tries(300)
@given(st.text(max_size=30))
def test_no_name_leads_out_of_the_folder(name):
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)/'data'
        root.mkdir(), (root/'a').write_text(''), (Path(tmp)/'secret').write_text('')
        for path in (name, f'../{name}', f'a/../../{name}', f'{tmp}/{name}'):
            try: found = resolve_inside(root, path)
            except ImageError: continue
            assert found.resolve().is_relative_to(root.resolve()), path
        assert printable(name).isprintable() and normalise_name(normalise_name(name)) == normalise_name(name) == normalise_name(name.strip())
