"""Every kind of bad data: planted in a good set, told by the check with its place and a fix, refused by a study, and the source left as it was."""
import functools, hashlib, io, os, shutil, struct, unicodedata, zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from faults import record
from weldsynth import check, data
from weldsynth.data.check import check_data, count_text
from weldsynth.stages.data import prepare_or_count
from weldsynth.cli import main
from weldsynth.core.config import StudyError
from weldsynth.core.random import digest
from weldsynth.core.store import open_study
from weldsynth.data.images import read_grey, read_picture, to_patch
from weldsynth.data.sources import read_manifest
from weldsynth.stages.data import prepare
from weldsynth.stages.sample import marked_png, xmp

SIDE, WELDS = 32, 12


def grain(seed, side=SIDE, top=256): return np.random.default_rng(seed).integers(0, top, (side, side)).astype(np.uint8 if top <= 256 else np.uint16)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def dicom(path, array, photometric='MONOCHROME2', syntax=ExplicitVRLittleEndian, **attributes):
    "A 16-bit DICOM file."
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = SecondaryCaptureImageStorage, pydicom.uid.generate_uid(), syntax
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0'*128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *array.shape[:2], 1, photometric
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.PixelData = array.astype('<u2').tobytes()
    for name, value in attributes.items():
        if value is None: delattr(file, name)
        else: setattr(file, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def bomb():
    "A PNG of a few bytes that unpacks to ten thousand million pixels."
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 100_000, 100_000, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*100)) + chunk(b'IEND', b'')


# --- good sets, of the three kinds ---

def make_folder(root):
    for i in range(4*WELDS): save(root/('clean', 'crack')[i % 2]/f'weld-{i//4:02d}'/f'{i:02d}.png', grain(i))
    return root


def make_manifest(root):
    rows = []
    for i in range(4*WELDS):
        save(root/'images'/f'{i:02d}.png', grain(i))
        if i % 2: save(root/'masks'/f'{i:02d}.png', (np.pad(np.ones((8, 8), np.uint8), 12)*255))
        rows.append((f'images/{i:02d}.png', ('clean', 'crack')[i % 2], f'weld-{i//4:02d}', f'masks/{i:02d}.png' if i % 2 else '', 1 + i/10 if i % 2 else ''))
    pd.DataFrame(rows, columns=['image', 'label', 'group', 'mask', 'size_mm']).to_csv(root/'manifest.csv', index=False)
    return root


def make_windows(root):
    rows = []
    for f in range(WELDS):
        save(root/'films'/f'film{f:02d}.png', grain(f, 70))
        save(root/'masks'/f'film{f:02d}.png', np.pad(np.ones((35, 70), np.uint8)*255, ((35, 0), (0, 0))))
        rows += [(f'film{f:02d}', x, y, SIDE, 'crack' if y else 'clean', f'film{f:02d}') for x in (0, 36) for y in (0, 36)]
    pd.DataFrame(rows, columns=['film', 'x', 'y', 'size', 'label', 'group']).to_csv(root/'windows.csv', index=False)
    return root


MAKE = dict(folder=make_folder, manifest=make_manifest, windows=make_windows)


@pytest.fixture(scope='session')
def good(tmp_path_factory):
    "kind -> a good set of it."
    return {kind: make(tmp_path_factory.mktemp('good')/kind) for kind, make in MAKE.items()}


@pytest.fixture(autouse=True)
def studies(tmp_path, monkeypatch):
    "Studies go to a folder of the test's own, and one shuffle is enough for a split."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))
    for module in (data, check): monkeypatch.setattr(module, 'split', functools.partial(data.split, shuffles=1))


def state(root):
    "What must not change: every file's path, bytes and time."
    return {str(p): (p.lstat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else '') for p in sorted(root.rglob('*'))}


# --- the faults ---

A, B, C = 'crack/weld-00/01.png', 'crack/weld-03/13.png', 'clean/weld-05/20.png'  # of the folder


def put(name, data): return lambda root: (root/name).parent.mkdir(parents=True, exist_ok=True) or (root/name).write_bytes(data(root) if callable(data) else data)
def draw(name, array, **options): return lambda root: save(root/name, array, **options)
def mode(name, to): return lambda root: Image.fromarray(grain(99)).convert(to).save(root/name)


def edit(column, value, line=3, csv='manifest.csv'):
    "Change a field, or a column if `line` is None."
    def plant(root):
        table = pd.read_csv(root/csv, dtype=str, keep_default_na=False)
        table.loc[slice(None) if line is None else line - 2, column] = value(table) if callable(value) else value
        table.fillna('').to_csv(root/csv, index=False)
    return plant


def window(column, value, line=3): return edit(column, value, line, 'windows.csv')
def text(change, csv='manifest.csv', encoding='utf-8'): return lambda root: (root/csv).write_bytes(change((root/csv).read_text()).encode(encoding))
def both(*plants): return lambda root: [p(root) for p in plants]


def drop(column): return text(lambda t: pd.read_csv(io.StringIO(t), dtype=str, keep_default_na=False).drop(columns=column).to_csv(index=False))
def lines(*more): return text(lambda t: t + ''.join(m + '\n' for m in more))


def only(*welds):
    "Cracks in these welds alone."
    return lambda root: [shutil.rmtree(d) for d in (root/'crack').iterdir() if d.name not in welds]


def more_cleans(root):
    for i in range(400): save(root/'clean'/f'weld-{i % WELDS:02d}'/f'more-{i}.png', grain(1000 + i))


def third_class(n, label='porosity', welds=WELDS):
    return lambda root: [save(root/label/f'weld-{i % welds:02d}'/f'p{i}.png', grain(5000 + i)) for i in range(n)]


def again(change):
    "Every crack a second time, in welds of another name."
    def plant(root):
        for p in list((root/'crack').rglob('*.png')): save(root/'crack'/f'{p.parent.name}-again'/p.name, change(np.asarray(Image.open(p)).astype(float)))
    return plant


def noisier(x): return (x*.8 + 20 + np.random.default_rng(1).normal(0, 4, x.shape)).clip(0, 255).astype(np.uint8)


def grown(root):
    "Some images twice as large."
    for p in sorted(root.rglob('*.png'))[::3]: save(p, np.kron(np.asarray(Image.open(p)), np.ones((2, 2), np.uint8)))


def by_label(suffix): return lambda root: [(Image.open(p).save(p.with_suffix(suffix)), p.unlink()) for p in list((root/'crack').rglob('*.png'))]


nfc, nfd = (unicodedata.normalize(f, 'Größe.png') for f in ('NFC', 'NFD'))
E, W = 'error', 'warning'
FLOAT = np.where(np.arange(SIDE*SIDE).reshape(SIDE, SIDE) == 5, np.nan, grain(99).astype(np.float32))
COLOUR = np.random.default_rng(9).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
GREY = np.repeat(grain(99)[..., None], 3, 2)

FAULTS = {  # kind -> (source, how to plant it, severity, place, what is said)
    # files
    'zero bytes':               ('folder', put(A, b''), E, A, 'is empty (zero bytes)'),
    'truncated':                ('folder', lambda r: (r/A).write_bytes((r/A).read_bytes()[:300]), E, A, 'cannot be read as an image'),
    'no image':                 ('folder', put(A, b'a letter to the inspector'), E, A, 'cannot be read as an image'),
    'damaged in the middle':    ('folder', lambda r: (r/A).write_bytes((b := (r/A).read_bytes())[:200] + b'\xff'*50 + b[250:]), E, A, 'cannot be read as an image'),
    'wrong extension':          ('folder', lambda r: Image.fromarray(grain(99)).save(r/A, 'JPEG'), E, A, 'is a JPEG file by another name'),
    'unsupported kind':         ('folder', lambda r: Image.fromarray(grain(99)).save(r/'crack'/'weld-00'/'x.bmp'), W, 'crack/weld-00/x.bmp', 'is not read (1 file with .bmp)'),
    'palette':                  ('folder', lambda r: Image.fromarray(COLOUR[..., :3]).quantize(64).save(r/A), E, A, 'is in colour (a palette)'),
    'colour':                   ('folder', draw(A, COLOUR[..., :3]), E, A, 'is in colour'),
    'RGBA':                     ('folder', draw(A, np.dstack([GREY, COLOUR[..., 3]])), E, A, 'is transparent in places'),
    'CMYK':                     ('folder', lambda r: Image.fromarray(grain(99)).convert('CMYK').save(r/'crack'/'weld-00'/'x.tif'), E, 'crack/weld-00/x.tif', 'is in CMYK colours'),
    '16-bit colour':            ('folder', put(A, lambda r: deep_colour()), E, A, 'has 16 bits in several channels'),
    'float with NaN':           ('folder', lambda r: Image.fromarray(FLOAT.astype(np.float32)).save(r/'crack'/'weld-00'/'x.tif'), E, 'crack/weld-00/x.tif', 'holds 1 values that are no numbers'),
    'float with infinity':      ('folder', lambda r: Image.fromarray(np.nan_to_num(FLOAT, nan=np.inf).astype(np.float32)).save(r/'crack'/'weld-00'/'x.tif'), E, 'crack/weld-00/x.tif', 'holds 1 values that are no numbers'),
    'several frames':           ('folder', lambda r: Image.fromarray(grain(1)).save(r/'crack'/'weld-00'/'x.tif', save_all=True, append_images=[Image.fromarray(grain(2))]), E, 'crack/weld-00/x.tif', 'holds 2 frames'),
    'animated PNG':             ('folder', lambda r: Image.fromarray(grain(1)).save(r/A, save_all=True, append_images=[Image.fromarray(grain(2))]), E, A, 'holds 2 frames'),
    'decompression bomb':       ('folder', put(A, bomb()), E, A, 'is huge'),
    'huge DICOM':               ('folder', lambda r: dicom(r/'crack'/'weld-00'/'x.dcm', grain(1), Rows=65_535, Columns=65_535), E, 'crack/weld-00/x.dcm', 'is huge (65,535 x 65,535'),
    'DICOM of several frames':  ('folder', lambda r: dicom(r/'crack'/'weld-00'/'x.dcm', np.stack([grain(1), grain(2)]), NumberOfFrames=2, Rows=SIDE, Columns=SIDE), E, 'crack/weld-00/x.dcm', 'holds 2 frames'),
    'DICOM without image':      ('folder', lambda r: dicom(r/'crack'/'weld-00'/'x.dcm', grain(1), PixelData=None), E, 'crack/weld-00/x.dcm', 'is a DICOM file without an image'),
    'DICOM in colour':          ('folder', lambda r: dicom(r/'crack'/'weld-00'/'x.dcm', grain(1), 'PALETTE COLOR'), E, 'crack/weld-00/x.dcm', 'is in colour (PALETTE COLOR)'),
    'deflated DICOM':           ('folder', lambda r: dicom(r/'crack'/'weld-00'/'x.dcm', grain(1), syntax=DeflatedExplicitVRLittleEndian), E, 'crack/weld-00/x.dcm', 'is a deflated DICOM file'),
    'DICOM by another name':    ('folder', lambda r: dicom(r/A, grain(1, top=4096)), E, A, 'is a DICOM file by another name'),
    'one pixel':                ('folder', draw(A, grain(1, 1)), E, A, 'is 1 x 1 pixels'),
    'constant':                 ('folder', draw(A, np.full((SIDE, SIDE), 7, np.uint8)), E, A, 'is one grey throughout'),
    'saturated':                ('folder', draw(A, np.where(grain(99) > 120, 255, grain(99)).astype(np.uint8)), W, A, 'of its pixels at the ends of its scale'),
    'hardly any greys':         ('folder', draw(A, np.where(grain(99) < 12, 0, np.where(grain(99) > 243, 255, 128)).astype(np.uint8)), W, A, 'has only 3 greys'),
    'not square':               ('folder', draw(A, grain(99, 64)[:30]), W, A, 'is 64 x 30 pixels'),
    # names and links
    'link out of the folder':   ('folder', lambda r: (r/'crack'/'weld-00'/'x.png').symlink_to('/etc/hostname'), E, 'crack/weld-00/x.png', 'is a link that leads out of the folder'),
    'link to nothing':          ('folder', lambda r: (r/'crack'/'weld-00'/'x.png').symlink_to('nowhere.png'), E, 'crack/weld-00/x.png', 'is a link to nothing'),
    'linked folder':            ('folder', lambda r: (r/'crack'/'weld-99').symlink_to('/etc'), E, 'crack/weld-99', 'is a linked folder'),
    'line break in a name':     ('folder', draw('crack/weld-00/a\nb.png', grain(99)), E, r'crack/weld-00/a\nb.png', 'has a line break'),
    'escape codes in a name':   ('folder', draw('crack/weld-00/\x1b[31mred.png', grain(99)), E, r'crack/weld-00/\x1b[31mred.png', 'has a line break or another unprintable'),
    'name that is no Unicode':  ('folder', lambda r: shutil.copy(r/A, os.fsencode(r/'crack'/'weld-00') + b'/\xff.png'), E, r'crack/weld-00/\udcff.png', 'has a line break or another unprintable'),
    'two forms of one accent':  ('folder', both(draw(f'crack/weld-00/{nfc}', grain(98)), draw(f'crack/weld-00/{nfd}', grain(99))), W, f'crack/weld-00/{nfc}', 'has the same name as'),
    'name in another case':     ('folder', draw('crack/weld-00/01.PNG', grain(99)), W, A, 'has the same name as'),
    'path out of the folder':   ('manifest', edit('image', '../../etc/hostname'), E, '../../etc/hostname', 'leads out of the folder'),
    'absolute path':            ('manifest', edit('image', '/etc/hostname'), E, '/etc/hostname', 'leads out of the folder'),
    'Windows path':             ('manifest', edit('image', 'C:\\films\\1.png'), E, 'C:\\films\\1.png', 'leads out of the folder'),
    'mask out of the folder':   ('manifest', edit('mask', '../x.png'), E, '../x.png', 'leads out of the folder'),
    'missing image':            ('manifest', edit('image', 'images/gone.png'), E, 'images/gone.png', 'is missing'),
    'image named in another case': ('manifest', edit('image', 'images/01.PNG'), E, 'images/01.PNG', 'is missing'),
    'image that is a folder':   ('manifest', edit('image', 'images'), E, 'images', 'is missing'),
    'image that is a pipe':     ('manifest', both(lambda r: os.mkfifo(r/'pipe.png'), edit('image', 'pipe.png')), E, 'pipe.png', 'is missing'),
    'archive':                  ('folder', lambda r: (r/'x.zip').write_bytes(b'PK'), W, 'x.zip', 'is not read (1 file with .zip)'),
    # folders
    'image outside the classes': ('folder', draw('x.png', grain(99)), E, 'x.png', 'lies outside the class folders'),
    'label without images':     ('folder', lambda r: (r/'slag').mkdir(), E, 'slag', 'is a class folder without images'),
    'split folders':            ('folder', lambda r: [(r/'train').mkdir(), (r/'clean').rename(r/'train'/'clean')], E, 'train', 'is a split, not a class'),
    'no images at all':         ('folder', lambda r: (shutil.rmtree(r/'clean'), shutil.rmtree(r/'crack')), E, 'folder', 'has no images in class folders'),
    'no weld folders':          ('folder', lambda r: [p.rename(r/p.parts[-3]/p.name) for p in list(r.rglob('*.png'))], W, 'groups', 'no image names its weld'),
    # labels
    'label in another case':    ('folder', lambda r: [(r/'Crack'/'weld-00').mkdir(parents=True), (r/A).rename(r/'Crack'/'weld-00'/'1.png')], E, "label 'Crack'", "is 'crack' in another spelling"),
    'label with other blanks':  ('manifest', both(edit('label', lambda t: t.label.replace('crack', 'lack of fusion'), None), edit('label', 'lack_of_fusion')), E, "label 'lack_of_fusion'", 'in another spelling'),
    'label with a typing error': ('manifest', edit('label', 'crakc'), W, "label 'crakc'", "is nearly 'crack'"),
    'label that says nothing':  ('manifest', edit('label', 'unknown'), W, "label 'unknown'", 'is no kind of flaw'),
    'blank label':              ('manifest', edit('label', ' '), E, 'manifest.csv, line 3', "'label' is blank"),
    'label that is a path':     ('manifest', edit('label', '../up'), E, "label '../up'", 'cannot name a class'),
    'label that is a script':   ('manifest', edit('label', '<script>alert(1)</script>'), E, "label '<script>alert(1)</script>'", 'cannot name a class'),
    'label of our own':         ('manifest', edit('label', 'macro'), E, "label 'macro'", 'cannot name a class'),
    'no clean':                 ('folder', lambda r: shutil.rmtree(r/'clean'), E, 'labels', "no image is labelled 'clean'"),
    'clean alone':              ('folder', lambda r: shutil.rmtree(r/'crack'), E, 'labels', "all images are labelled 'clean'"),
    # tables
    'not UTF-8':                ('manifest', both(text(lambda t: t.replace('crack', 'Größe')), lambda r: (r/'manifest.csv').write_bytes((r/'manifest.csv').read_text().encode('latin-1'))), E, 'manifest.csv', 'is not UTF-8'),
    'UTF-16':                   ('manifest', text(lambda t: t, encoding='utf-16'), E, 'manifest.csv', 'is not UTF-8'),
    'semicolons':               ('manifest', text(lambda t: t.replace(',', ';')), E, 'manifest.csv', 'has its fields separated by other than commas'),
    'empty table':              ('manifest', text(lambda t: ''), E, 'manifest.csv', 'is empty'),
    'header alone':             ('manifest', text(lambda t: t.splitlines()[0] + '\n'), E, 'manifest.csv', 'has a header and no lines'),
    'field too many':           ('manifest', lines('images/00.png,clean,weld-00,,,1'), E, 'manifest.csv, line 50', 'has not the 5 fields'),
    'field too few':            ('manifest', lines('images/00.png,clean'), E, 'manifest.csv, line 50', 'has not the 5 fields'),
    'open quote':               ('manifest', lines('"images/00.png,clean,weld-00,,'), E, 'manifest.csv', 'cannot be read as a table'),
    'column twice':             ('manifest', text(lambda t: t.replace('size_mm', 'label', 1)), E, 'manifest.csv', "has two columns 'label'"),
    'unknown column':           ('manifest', text(lambda t: t.replace('size_mm', 'size_nm', 1)), W, 'manifest.csv', "the column 'size_nm' is not read"),
    'no label column':          ('manifest', drop('label'), E, 'manifest.csv', "has no column 'label'"),
    'group missing':            ('manifest', drop('group'), E, 'manifest.csv', "has no column 'group'"),
    'blank group':              ('manifest', edit('group', ''), E, 'manifest.csv, line 3', "'group' is blank"),
    'line break in a field':    ('manifest', edit('group', 'weld\n1'), E, 'manifest.csv, line', 'holds a line break'),
    'duplicate row':            ('manifest', text(lambda t: t + t.splitlines()[1] + '\n'), E, 'manifest.csv, line 50', 'repeats an earlier line'),
    'image with two labels':    ('manifest', lines('images/00.png,crack,weld-00,,'), E, 'manifest.csv, line 50', 'names the image of an earlier line'),
    'image that nothing names': ('manifest', draw('images/x.png', grain(99)), W, 'images/x.png', 'is not named by manifest.csv'),
    'two tables':               ('manifest', put('windows.csv', b'film,x,y,size,label,group\n'), W, 'windows.csv', 'lies beside manifest.csv'),
    # groups
    'group in two spellings':   ('manifest', edit('group', 'Weld-00'), E, "group 'Weld-00'", "is 'weld-00' in another spelling"),
    'group in two splits':      ('manifest', edit('split', lambda t: ['train', 'test']*(len(t)//2), None), E, "group 'weld-00'", 'lies in the splits test and train'),
    'a group for every image':  ('manifest', edit('group', lambda t: t.image, None), W, 'groups', 'every image has a group of its own'),
    'clean and flawed apart':   ('manifest', edit('group', lambda t: t.group + t.label, None), W, 'groups', 'no group has both clean and flawed'),
    'section on two films':     ('manifest', edit('film', lambda t: [f'film-{i//2 % 5}' for i in range(len(t))], None), W, 'group', 'lies on 2 films'),
    'class from one weld':      ('folder', only('weld-00', 'weld-01'), E, "class 'crack'", 'comes from 2 groups, and three folds need three'),
    'half from one weld':       ('folder', lambda r: [save(r/'crack'/'weld-00'/f'm{i}.png', grain(3000 + i)) for i in range(40)], W, "class 'crack'", 'has more than half of its images in one group'),
    # copies
    'exact copies across folds': ('folder', again(lambda x: x.astype(np.uint8)), E, 'crack/', 'are the same image in two folds'),
    'near copies across folds': ('folder', again(noisier), E, 'crack/', 'are nearly the same image'),
    'copy with another label':  ('folder', lambda r: shutil.copy(r/A, r/'clean'/'weld-00'/'c.png'), E, A, "is the same image as 'clean/weld-00/c.png', and labelled"),
    'copy of another group':    ('folder', lambda r: [shutil.copy(p, r/'crack'/'weld-00'/f'c{p.name}') for p in (r/'crack').rglob('*.png') if p.parent.name != 'weld-00'], W, 'crack/', 'is the same image as'),
    # masks and sizes
    'mask of another size':     ('manifest', draw('masks/01.png', grain(99, 20)), E, 'masks/01.png', 'is 20 x 20 pixels and its image 32 x 32'),
    'mask without flaw':        ('manifest', draw('masks/01.png', np.zeros((SIDE, SIDE), np.uint8)), E, 'masks/01.png', 'shows no flaw'),
    'mask of a clean image':    ('manifest', edit('mask', 'masks/01.png', 2), E, 'masks/01.png', 'its image is labelled clean'),
    'mask missing':             ('manifest', edit('mask', 'masks/gone.png'), E, 'masks/gone.png', 'is missing'),
    'mask that is all flaw':    ('manifest', draw('masks/01.png', np.full((SIDE, SIDE), 255, np.uint8)), W, 'masks/01.png', 'is flaw throughout'),
    'mask of many values':      ('manifest', draw('masks/01.png', grain(99)), W, 'masks/01.png', 'has other values than two'),
    'negative flaw size':       ('manifest', edit('size_mm', '-1'), E, 'manifest.csv, line 3', 'the size -1 is negative'),
    'flaw size in words':       ('manifest', edit('size_mm', '1,5 mm'), E, 'manifest.csv, line 3', "the size '1,5 mm' is not a number"),
    'infinite flaw size':       ('manifest', edit('size_mm', 'inf'), E, 'manifest.csv, line 3', "the size 'inf' is not a number"),
    'flaw of size 0':           ('manifest', edit('size_mm', '0'), E, 'manifest.csv, line 3', 'a flaw has size 0'),
    'flaw size of a clean image': ('manifest', edit('size_mm', '2', 2), E, 'manifest.csv, line 2', 'a clean image has a flaw size'),
    'blank flaw size':          ('manifest', edit('size_mm', ''), W, 'size_mm', 'is blank for 1 flaws'),
    # scale
    'mixed sizes':              ('folder', grown, W, 'images', 'have 2 sizes'),
    'mixed pixel sizes':        ('folder', lambda r: [Image.open(p).save(p, dpi=(300 + 300*(i % 2),)*2) for i, p in enumerate(sorted(r.rglob('*.png')))], W, 'images', 'have pixels from'),
    'format by label':          ('folder', by_label('.tif'), W, 'images', 'differ in format from label to label'),
    # provenance
    'origin synthetic':         ('manifest', edit('origin', 'synthetic'), E, 'manifest.csv, line 3', 'a synthetic image is offered as real'),
    'PNG of ours':              ('folder', put(A, marked_png(torch.from_numpy(grain(99))[None])), E, A, 'is marked as synthetic'),
    'JPEG with XMP':            ('folder', lambda r: Image.fromarray(grain(99)).save(r/'crack'/'weld-00'/'x.jpg', xmp=xmp().encode()), E, 'crack/weld-00/x.jpg', 'is marked as synthetic'),
    'TIFF with XMP':            ('folder', lambda r: Image.fromarray(grain(99)).save(r/'crack'/'weld-00'/'x.tif', tiffinfo={700: xmp().encode()}), E, 'crack/weld-00/x.tif', 'is marked as synthetic'),
    'PNG with compressed XMP':  ('folder', put(A, lambda r: compressed_mark()), E, A, 'is marked as synthetic'),
    'DICOM, synthetic data':    ('folder', lambda r: dicom(r/'crack'/'weld-00'/'x.dcm', grain(1, top=4096), SyntheticData='YES'), E, 'crack/weld-00/x.dcm', 'is marked as synthetic'),
    'film of ours':             ('windows', put('films/film00.png', marked_png(torch.from_numpy(grain(0, 70))[None])), E, 'films/film00.png', 'is marked as synthetic'),
    # windows
    'window off the film':      ('windows', window('x', '60'), E, 'windows.csv, line 3', 'the window 60,36 of 32 px leaves the film'),
    'window of no size':        ('windows', window('size', '0'), E, 'windows.csv, line 3', 'the window 0,36 of 0 px leaves the film'),
    'window not a number':      ('windows', window('x', '1e3'), E, 'windows.csv, line 3', 'must be whole numbers'),
    'negative window':          ('windows', window('y', '-4'), E, 'windows.csv, line 3', 'must be whole numbers'),
    'film missing':             ('windows', window('film', '../film99'), E, 'windows.csv, line 3', "film '../film99' is not in the folder films"),
    'film unreadable':          ('windows', put('films/film00.png', b'x'), E, 'films/film00.png', 'cannot be read as an image'),
    'film twice':               ('windows', lambda r: Image.fromarray(grain(50, 70)).save(r/'films'/'film00.tif'), E, 'films/film00.tif', 'has the same name as film00.png'),
    'film without windows':     ('windows', draw('films/x.png', grain(99, 70)), W, 'films/x.png', 'is not named by windows.csv'),
    'film mask of another size': ('windows', draw('masks/film00.png', grain(99, 60)), E, 'masks/film00.png', 'is 60 x 60 pixels and its film 70 x 70'),
    'window without flaw':      ('windows', draw('masks/film00.png', np.zeros((70, 70), np.uint8)), E, 'windows.csv, line 3, mask', 'shows no flaw'),
    'overlapping groups':       ('windows', both(window('x', '10', 4), window('group', 'other', 4)), E, 'windows.csv, line 4', 'overlaps line 2, which is of another group'),
    # counts
    'class of few images':      ('folder', third_class(4), E, "class 'porosity'", 'has 4 images, and a class needs 10'),
    'too few for the profile':  ('folder', only('weld-00', 'weld-01', 'weld-02', 'weld-03', 'weld-04'), E, 'images', "10 defects are too few for the profile 'fixture'"),
    'imbalance':                ('folder', third_class(280), W, 'labels', "'porosity' has 280 images and 'crack' 24"),
    'small effective sample':   ('folder', third_class(30, welds=4), W, "class 'porosity'", 'comes from 4 groups only'),
    'few test images':          ('folder', lambda r: None, W, "class 'crack'", 'test images'),
}
found_kinds = set()


def deep_colour():
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    pixels = np.repeat(grain(99, top=60_000).astype('>u2')[..., None], 3, 2)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', SIDE, SIDE, 16, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in pixels))) + chunk(b'IEND', b''))


def compressed_mark():
    info, file = PngInfo(), io.BytesIO()
    info.add_itxt('XML:com.adobe.xmp', xmp(), zip=True)
    Image.fromarray(grain(99)).save(file, 'PNG', pnginfo=info)
    assert b'AlgorithmicMedia' not in file.getvalue()
    return file.getvalue()


@pytest.mark.parametrize('kind', MAKE)
def test_a_good_set_has_no_errors_and_makes_a_study(kind, good):
    problems = check_data(str(good[kind]), 'fixture')
    assert set(problems.severity) <= {'warning'} and set(problems.what.str.replace(r'\d+', 'n', regex=True)) <= {'has n test images'}, problems.to_string()
    assert len(prepare(open_study(f'good-{kind}', str(good[kind]), 'fixture')).info['files']) == 3


@pytest.mark.parametrize('kind', FAULTS)
def test_the_check_tells_it_and_a_study_refuses_it(kind, good, tmp_path):
    source, plant, severity, place, what = FAULTS[kind]
    root = Path(shutil.copytree(good[source], tmp_path/'mine'/source, symlinks=True))
    plant(root)
    before = state(root)
    problems = check_data(str(root), 'fixture')
    told = problems[(problems.severity == severity) & problems.file.str.startswith(place) & problems.what.str.contains(what, regex=False)]
    assert len(told) and told.fix.str.len().gt(3).all(), problems.to_string()
    assert problems.map(lambda cell: cell.isprintable()).all(axis=None)
    if severity == 'error':
        with pytest.raises(StudyError) as e: prepare(open_study('mine', str(root), 'fixture'))
        assert '\n' not in str(e.value) and not list((tmp_path/'home').rglob('patches-*')), 'one line, and nothing half made'
        assert str(e.value) in {f'{p.file}: {p.what}: {p.fix}' for p in problems.itertuples()}
    else: prepare(open_study('mine', str(root), 'fixture')) if not (problems.severity == 'error').any() else None
    assert state(root) == before, 'the source is never written to'
    found_kinds.add(kind)


def test_how_many_kinds():
    print(f'{len(FAULTS)} kinds of bad data planted, {len(found_kinds)} told with place and fix; {sum(f[2] == E for f in FAULTS.values())} are errors, {sum(f[2] == W for f in FAULTS.values())} warnings')
    assert len(FAULTS) >= 40


@pytest.mark.soak
def test_all_kinds_for_the_record(good, tmp_path, monkeypatch):
    for kind in FAULTS:
        (folder := tmp_path/digest(kind)).mkdir()
        monkeypatch.setenv('WELDSYNTH_HOME', str(folder/'home'))
        test_the_check_tells_it_and_a_study_refuses_it(kind, good, folder)
    record('bad data: kinds planted', tried=len(FAULTS), told=len(found_kinds), errors=sum(f[2] == E for f in FAULTS.values()), warnings=sum(f[2] == W for f in FAULTS.values()))


def test_all_problems_are_told_at_once(good, tmp_path, capsys):
    root, kinds = Path(shutil.copytree(good['folder'], tmp_path/'many')), ('zero bytes', 'link out of the folder', 'label without images', 'label in another case', 'image outside the classes', 'decompression bomb')
    places = {'zero bytes': 'crack/weld-07/29.png', 'decompression bomb': 'crack/weld-08/33.png'}
    for k in kinds: put(places[k], b'' if k == 'zero bytes' else bomb())(root) if k in places else FAULTS[k][1](root)
    problems = check_data(str(root), 'fixture')
    for k in kinds: assert ((problems.file == places.get(k, FAULTS[k][3])) & problems.what.str.contains(FAULTS[k][4], regex=False)).any(), k
    assert main(['check', str(root), '--profile', 'fixture']) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ['severity', 'file', 'what', 'fix'] and len(out.splitlines()) == len(problems) + 1
    assert f'weldsynth: {count_text(problems)}: mend the errors' in err
    with pytest.raises(StudyError, match=rf'one of {count_text(problems)}, which `weldsynth check .*many'): prepare_or_count(open_study('many', str(root), 'fixture'))


def test_exit_codes(good, capsys):
    assert main(['check', str(good['manifest']), '--profile', 'fixture']) == 0 and 'a study can start' in capsys.readouterr().out
    assert main(['check', 'nowhere', '--profile', 'fixture']) == 1 and 'does not exist' in capsys.readouterr().out
    assert main(['check', 'simulated', '--profile', 'fixture']) == 0
    assert main(['check', str(good['manifest']/'images'/'00.png'), '--profile', 'fixture']) == 1 and 'is neither a folder nor a CSV' in capsys.readouterr().out


def test_an_archive_is_not_unpacked(tmp_path):
    (tmp_path/'welds.zip').write_bytes(b'PK')
    assert check_data(str(tmp_path/'welds.zip'), 'fixture').what.tolist() == ['is an archive']


# --- what is read, and how ---

def test_sixteen_bits_are_windowed_in_every_format(tmp_path):
    deep = grain(3, top=60_000)
    Image.fromarray(deep).save(tmp_path/'a.png'), Image.fromarray(deep).save(tmp_path/'a.tif')
    Image.fromarray(deep.astype(np.float32)/60_000).save(tmp_path/'b.tif')
    dicom(tmp_path/'a.dcm', deep)
    want = to_patch(deep.astype(np.float32), 24)
    for name in ('a.png', 'a.tif', 'b.tif', 'a.dcm'): assert (to_patch(read_grey(tmp_path/name), 24).int() - want.int()).abs().max() <= 1, name
    assert len(want.unique()) > 100


def test_monochrome1_and_white_is_zero_are_turned_round(tmp_path):
    deep = grain(4, top=60_000)
    dicom(tmp_path/'one.dcm', deep, 'MONOCHROME1', RescaleSlope=2, RescaleIntercept=-5, ImagerPixelSpacing=[.05, .05])
    dicom(tmp_path/'two.dcm', 65_535 - deep, 'MONOCHROME2', RescaleSlope=2, RescaleIntercept=-5)
    dicom(tmp_path/'signed.dcm', deep.astype(np.int16), 'MONOCHROME1', PixelRepresentation=1)
    assert np.array_equal(read_grey(tmp_path/'one.dcm'), read_grey(tmp_path/'two.dcm')) and read_grey(tmp_path/'two.dcm').max() > 65_535
    assert np.array_equal(read_grey(tmp_path/'signed.dcm'), -1. - deep.astype(np.int16)) and read_picture(tmp_path/'one.dcm').pitch == .05
    Image.fromarray(deep).save(tmp_path/'a.tif', tiffinfo={262: 0})
    assert np.array_equal(read_grey(tmp_path/'a.tif'), 65_535. - deep)


def test_orientation_and_grey_in_other_modes(tmp_path):
    grey = grain(5)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(grey).save(tmp_path/'turned.png', exif=exif)
    assert np.array_equal(read_grey(tmp_path/'turned.png'), np.rot90(grey, -1))
    for mode in ('RGB', 'RGBA', 'LA', 'P'):
        Image.fromarray(grey).convert(mode).save(tmp_path/f'{mode}.png')
        assert np.array_equal(read_grey(tmp_path/f'{mode}.png'), grey), mode
    Image.fromarray(grey > 99).save(tmp_path/'1.png')
    assert set(np.unique(read_grey(tmp_path/'1.png'))) == {0, 255}


def test_a_table_by_a_spreadsheet_is_read(good, tmp_path):
    "With a byte order mark, blanks around fields, blank lines, and a weld called NA."
    root = Path(shutil.copytree(good['manifest'], tmp_path/'m'))
    t = (root/'manifest.csv').read_text().replace('weld-01', 'NA').replace(',', ' , ')
    (root/'manifest.csv').write_bytes(b'\xef\xbb\xbf' + t.replace('\n', '\r\n').encode() + b'\r\n,,,,\r\n')
    patches = read_manifest(root/'manifest.csv', SIDE, 'group')
    assert len(patches) == 4*WELDS and 'NA' in set(patches.table.group) and set(patches.table.label) == {'clean', 'crack'}
