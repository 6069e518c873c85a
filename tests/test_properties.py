"""What must hold for any split, any manifest and any bytes: properties tried on made-up inputs and on damaged files."""
import csv
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from bad_data import dicom
from faults import record
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from imagecodecs import jpegls_encode, ljpeg_encode, png_encode
from PIL import Image
from pydicom.encaps import encapsulate
from tifffile import imwrite

from weldsynth.core.config import DataConfig, StudyError
from weldsynth.core.profiles import PROFILES
from weldsynth.data.check import check_data
from weldsynth.data.images import DataError, ImageError, decode_image, printable
from weldsynth.data.loading import resolve_inside
from weldsynth.data.masks import decode_mask
from weldsynth.data.patches import PatchSet
from weldsynth.data.readers import read_manifest, read_windows
from weldsynth.data.split import FOLDS, report_duplicates, split
from weldsynth.data.tables import normalise_name, read_table

PX = 16
ONE_SHUFFLE = DataConfig(shuffles=1)
pytestmark = pytest.mark.filterwarnings("ignore")  # decoders and scikit-learn warn much about odd input


def tries(n):
    return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def write_csv(path, *rows):
    with open(path, 'w', encoding='utf-8', newline='') as f: csv.writer(f).writerows(rows)


# --- splits ---

LABELS = ('clean', 'crack', 'porosity', 'slag')


@st.composite
def sets(draw):
    "Labels, groups and films of up to 120 patches, evenly or unevenly spread."
    n = draw(st.integers(1, 120))
    groups = draw(st.integers(1, 15))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    uneven = draw(st.sampled_from([.1, 1., 10.]))
    classes = draw(st.integers(1, 4))
    label = rng.choice(LABELS[:classes], n)
    group = rng.choice(groups, n, p=rng.dirichlet([uneven]*groups))
    film = group//draw(st.integers(1, 4)) if draw(st.booleans()) else group
    columns = dict(id=[str(i) for i in range(n)], label=label, group=[f'g{g}' for g in group])
    table = pd.DataFrame(columns).assign(film=[f'f{f}' for f in film], size=np.nan, origin='real')
    return PatchSet(torch.from_numpy(rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)), table, LABELS)


def split_holds(patches, seed):
    "Either a clear refusal, or folds that keep groups and films whole, have every class, and lose no patch."
    try: [done] = split(patches, ONE_SHUFFLE, seed)
    except StudyError as e:
        assert '\n' not in str(e)
        return False
    t = done.table
    assert list(t.id) == list(patches.table.id)
    assert torch.equal(done.images, patches.images)
    assert set(t.fold) <= {*FOLDS, 'film'}
    assert t.groupby('group').fold.nunique().eq(1).all()
    assert not set(t.film[t.fold == 'film']) & set(t.film[t.fold != 'film'])
    assert (pd.crosstab(t.label, t.fold)[[*FOLDS]] > 0).all(axis=None), 'every class in train, validation and test'
    assert split(patches, ONE_SHUFFLE, seed)[0].table.equals(t), 'the same seed, the same split'
    return True


def counted(results):
    "How many were tried, read and refused."
    return dict(tried=len(results), read=sum(results), refused=len(results) - sum(results))


def run_splits(n):
    results = []

    @tries(n)
    @given(sets(), st.integers(0, 5))
    def try_one(patches, seed): results.append(split_holds(patches, seed))

    try_one()
    counts = counted(results)
    print(f'sets split (read: with all properties): {counts}')
    assert counts['read'] > n//5
    assert counts['refused']
    return counts


def test_any_split_keeps_groups_whole_or_is_refused(): run_splits(60)


@pytest.mark.soak
def test_any_split_long(): record('data fuzz: sets split', **run_splits(5_000))


@tries(25)
@given(sets(), st.randoms(use_true_random=False))
def test_a_planted_copy_in_another_fold_is_found(patches, rng):
    try: [done] = split(patches, ONE_SHUFFLE, 0)
    except StudyError: assume(False)
    train, test = (np.flatnonzero(done.table.fold == f) for f in ('train', 'test'))
    images = done.images.clone()
    images[rng.choice(test)] = images[rng.choice(train)]
    with pytest.raises(DataError): report_duplicates(replace(done, images=images), ONE_SHUFFLE)


# --- manifests ---

field = st.text(st.characters(codec='utf-8', exclude_characters='\r'), max_size=12)
headers = st.lists(field.map(str.strip).filter(bool), min_size=3, max_size=3, unique=True)  # unnamed ones are left out


@tries(150)
@given(st.lists(st.lists(field, min_size=3, max_size=3), min_size=1, max_size=8), headers)
def test_a_table_comes_back_as_it_was_written(rows, header):
    "What Python's csv writes is read to the same text, less blanks around fields and blank lines."
    want = [[c.strip() for c in row] for row in rows if any(c.strip() for c in row)]
    with tempfile.TemporaryDirectory() as tmp:
        write_csv(Path(tmp)/'t.csv', header, *rows)
        try: table = read_table(Path(tmp)/'t.csv')
        except DataError as e:
            assert not want, e
            return
    assert list(table) == header
    assert table.to_numpy().tolist() == want


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "A folder of twelve images and six masks."
    root = tmp_path_factory.mktemp('images')
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (PX, PX), dtype=np.uint8)
        Image.fromarray(noise).save(root/f'{i}.png')
    for i in range(6): Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 6)).save(root/f'mask{i}.png')
    return root


def manifest_holds(root, header, rows):
    "Either a set whose rows are those of the table, or a refusal in one line; and the check ends with a table."
    file = root/'manifest.csv'
    write_csv(file, header, *rows)
    issues = check_data(str(file), PROFILES['fixture'])
    try: patches = read_manifest(file, PX, 'group')
    except StudyError as e:
        assert '\n' not in str(e)
        assert str(e).isprintable()
        assert (issues.severity == 'error').any()
        return False
    named = [row[header.index('image')].strip() for row in rows if any(c.strip() for c in row)]
    assert patches.table.id.tolist() == named
    return True


name = st.sampled_from([f'{i}.png' for i in range(12)])
odd_words = st.sampled_from([
    'clean', 'crack', '../1.png', '/etc/hostname', '0.PNG', 'mask0.png', 'nan', '-1', '1e999', '=1+1', '<script>',
    'synthetic'])
odd_field = st.one_of(field, name, odd_words)
columns = st.permutations(['image', 'label', 'group', 'mask', 'size_mm', 'extra'])
damages = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 5), odd_field), max_size=2)


def made_up_row(i, image, rng):
    "A line of a manifest: column -> text."
    row = dict(image=image, label='clean', group=f'weld {rng.integers(4)}', mask='', size_mm='', extra='x')
    if i % 2: row |= dict(label='crack', mask=f'mask{i//2}.png', size_mm=f'{rng.random() + .1:.2f}')
    return row


def run_manifests(root, n):
    results = []

    @tries(n)
    @given(columns, st.lists(name, min_size=4, max_size=12, unique=True), damages, st.integers(0, 2**32))
    def try_one(header, names, damage, seed):
        rng = np.random.default_rng(seed)
        made_up = [made_up_row(i, image, rng) for i, image in enumerate(names)]
        rows = [[row[c] for c in header] for row in made_up]
        for line, column, text in damage:
            if line < len(rows): rows[line][column] = text
        results.append(manifest_holds(root, header, rows))

    try_one()
    counts = counted(results)
    print(f'manifests (read: every row in its place): {counts}')
    assert counts['read'] > n//10
    assert counts['refused']
    return counts


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


def good_tables():
    "The texts of a manifest and of a table of windows."
    ends = [f'{("clean", "crack")[i % 2]},weld {i//2}\n' for i in range(12)]
    manifest = ''.join(f'{i}.png,{end}' for i, end in enumerate(ends))
    windows = ''.join(f'{i},{i % 3},0,10,{end}' for i, end in enumerate(ends))
    return {'manifest.csv': 'image,label,group\n' + manifest, 'windows.csv': 'film,x,y,size,label,group\n' + windows}


def run_tables(root, n):
    "Damaged bytes of a manifest and of a table of windows."
    films = root/'films'
    films.mkdir(exist_ok=True)
    for i in range(12): (films/f'{i}.png').write_bytes((root/f'{i}.png').read_bytes())
    readers = {'manifest.csv': read_manifest, 'windows.csv': read_windows}
    good, rng, counts = good_tables(), np.random.default_rng(0), dict(read=0, refused=0)
    for i in range(n):
        file = list(good)[i % 2]
        (root/file).write_bytes(damaged(good[file].encode(), rng))
        try: readers[file](root/file, PX, 'group')
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

def encoded(array, format, mode=None, **options):
    "The bytes of an image file."
    image, file = Image.fromarray(array), io.BytesIO()
    if mode: image = image.convert(mode)
    image.save(file, format, **options)
    return file.getvalue()


def specimens():
    "A small file of each kind that is read: name -> bytes."
    deep = np.random.default_rng(0).integers(0, 60_000, (PX, PX)).astype(np.uint16)
    grey = (deep//256).astype(np.uint8)
    made = {
        '8.png': encoded(grey, 'PNG'), '16.png': encoded(deep, 'PNG'), '8.jpg': encoded(grey, 'JPEG'),
        '16.tif': encoded(deep, 'TIFF'), 'float.tif': encoded(deep.astype(np.float32), 'TIFF'),
        'rgb.png': encoded(grey, 'PNG', 'RGB'), 'palette.png': encoded(grey, 'PNG', 'P'),
        'deflate.tif': encoded(grey, 'TIFF', compression='tiff_adobe_deflate'),
        'jpeg.tif': encoded(grey, 'TIFF', compression='jpeg'), 'grey.bmp': encoded(grey, 'BMP'),
        'grey.gif': encoded(grey, 'GIF'), 'grey.webp': encoded(grey, 'WEBP', lossless=True),
        '16.pgm': encoded(deep, 'PPM'), '16.jp2': encoded(deep, 'JPEG2000'),
        'alpha.png': png_encode(np.dstack([deep, np.full_like(deep, 65_535)])),
        'float64.tif': tiff(deep.astype(np.float64), compression='deflate', predictor=True),
        'deep_rgb.tif': tiff(np.dstack([deep]*3), photometric='rgb', compression='lzw'),
        'white.tif': tiff(deep//16, photometric='miniswhite', compression='packbits')}
    with tempfile.TemporaryDirectory() as tmp:
        for photometric in ('MONOCHROME2', 'MONOCHROME1'):
            file = Path(tmp)/f'{photometric}.dcm'
            dicom(file, deep, photometric)
            made[file.name] = file.read_bytes()
    made['bare.dcm'] = made['MONOCHROME2.dcm'][132:]
    for syntax, code in ((80, jpegls_encode(deep)), (70, ljpeg_encode(deep))):
        made[f'{syntax}.dcm'] = compressed_dicom(made['MONOCHROME2.dcm'], f'1.2.840.10008.1.2.4.{syntax}', code)
    return made


def tiff(array, **options):
    "The bytes of a TIFF file as tifffile writes it."
    file = io.BytesIO()
    imwrite(file, array, **options)
    return file.getvalue()


def compressed_dicom(data, syntax, code):
    "The bytes of a DICOM file with other pixel data."
    file, written = pydicom.dcmread(io.BytesIO(data)), io.BytesIO()
    file.file_meta.TransferSyntaxUID = syntax
    file.PixelData = encapsulate([code])
    file['PixelData'].VR = 'OB'
    file.save_as(written)
    return written.getvalue()


def decodes(data):
    "Is this a picture? Else it is refused with a reason and a fix."
    try: picture = decode_image(data)
    except ImageError as e:
        assert len(e.args) == 2
        assert all(isinstance(a, str) and a for a in e.args)
        assert '\n' not in e.args[0]
        return False
    assert picture.grey.dtype == np.float32
    assert picture.grey.ndim == 2
    assert np.isfinite(picture.grey).all()
    assert picture.grey.size
    return True


def masks(data):
    "The same for a mask."
    try: mask = decode_mask(data)
    except ImageError as e:
        assert len(e.args) == 2
        return False
    assert mask.flaw.dtype == bool
    assert mask.flaw.ndim == 2
    return True


def run_images(n):
    rng, good = np.random.default_rng(0), list(specimens().values())
    for data in good: assert decode_image(data).grey.shape == (PX, PX)
    print('damaged masks:', counted([masks(damaged(good[i % len(good)], rng)) for i in range(n//4)]))
    counts = counted([decodes(damaged(good[i % len(good)], rng)) for i in range(n)])
    print(f'damaged images of {len(good)} kinds: {counts}')
    assert counts['refused'] > n//4
    assert counts['read']
    return counts


def test_damaged_images_are_read_or_refused(): run_images(2_000)


@pytest.mark.soak
def test_damaged_images_long(): record('data fuzz: damaged images', **run_images(200_000))


MAGIC = [b'', b'\x89PNG\r\n\x1a\n', b'II*\0', b'MM\0*', b'II+\0\x08\0\0\0', b'\xff\xd8\xff\xe0', b'\0'*128 + b'DICM',
         b'BM', b'GIF89a', b'RIFF\x40\0\0\0WEBP', b'P5 ', b'\0\0\0\x0cjP  \r\n\x87\n', b'\xff\x4f\xff\x51',
         b'\x08\0\x16\0UI\x1a\x001.2.840.10008.']


@tries(300)
@given(st.binary(max_size=400), st.sampled_from(MAGIC))
def test_any_bytes_are_refused_or_a_picture(data, head):
    decodes(head + data)
    masks(head + data)


# --- names ---

@tries(300)
@given(st.text(max_size=30))
def test_no_name_leads_out_of_the_folder(name):
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)/'data'
        root.mkdir()
        for file in (root/'a', Path(tmp)/'secret'): file.write_text('')
        for path in (name, f'../{name}', f'a/../../{name}', f'{tmp}/{name}'):
            try: found = resolve_inside(root, path)
            except ImageError: continue
            assert found.resolve().is_relative_to(root.resolve()), path


@tries(300)
@given(st.text(max_size=30))
def test_a_name_can_be_printed(name): assert printable(name).isprintable()


@tries(300)
@given(st.text(max_size=30))
def test_a_normalised_name_stays_as_it_is(name):
    assert normalise_name(normalise_name(name)) == normalise_name(name)
    assert normalise_name(name.strip()) == normalise_name(name)
