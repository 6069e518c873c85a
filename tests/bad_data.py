"""Good sets of the three kinds, and every kind of bad data to plant in them."""
import io
import os
import shutil
import struct
import unicodedata
import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import pydicom
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from weldsynth.data.sample_files import marked_png, xmp

SIDE, WELDS = 32, 12


def noise(seed, side=SIDE, top=256):
    "A square of noise, of 8 or 16 bits."
    values = np.random.default_rng(seed).integers(0, top, (side, side))
    return values.astype(np.uint8 if top <= 256 else np.uint16)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def dicom(path, array, photometric='MONOCHROME2', syntax=ExplicitVRLittleEndian, **attributes):
    "Writes a 16-bit DICOM file."
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = syntax
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0'*128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = array.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, photometric
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.PixelData = array.astype('<u2').tobytes()
    for name, value in attributes.items():
        if value is None: delattr(file, name)
        else: setattr(file, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def png(width, height, bits, colour, data):
    "The bytes of a PNG with this header and these uncompressed lines."
    def chunk(kind, content):
        checksum = struct.pack('>I', zlib.crc32(kind + content))
        return struct.pack('>I', len(content)) + kind + content + checksum
    header = struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0)
    parts = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(data)), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def tiff_xl():
    "A TIFF compressed by what is not read there."
    import tifffile
    file = io.BytesIO()
    tifffile.imwrite(file, noise(99), compression='jpegxl')
    return file.getvalue()


def bomb():
    "A PNG of a few bytes that unpacks to ten thousand million pixels."
    return png(100_000, 100_000, 8, 0, b'\0'*100)


def deep_colour():
    "A PNG with 16 bits in each of three channels, which differ."
    pixels = np.stack([noise(seed, top=60_000).astype('>u2') for seed in (97, 98, 99)], 2)
    return png(SIDE, SIDE, 16, 2, b''.join(b'\0' + row.tobytes() for row in pixels))


def compressed_mark():
    "A PNG whose mark of a synthetic image is compressed."
    info, file = PngInfo(), io.BytesIO()
    info.add_itxt('XML:com.adobe.xmp', xmp(), zip=True)
    Image.fromarray(noise(99)).save(file, 'PNG', pnginfo=info)
    assert b'AlgorithmicMedia' not in file.getvalue()
    return file.getvalue()


# --- good sets, of the three kinds ---

def make_folder(root):
    for i in range(4*WELDS): save(root/('clean', 'crack')[i % 2]/f'weld-{i//4:02d}'/f'{i:02d}.png', noise(i))
    return root


def make_manifest(root):
    rows = []
    for i in range(4*WELDS):
        flawed = i % 2
        save(root/'images'/f'{i:02d}.png', noise(i))
        if flawed: save(root/'masks'/f'{i:02d}.png', (np.pad(np.ones((8, 8), np.uint8), 12)*255))
        mask, size = (f'masks/{i:02d}.png', 1 + i/10) if flawed else ('', '')
        rows.append((f'images/{i:02d}.png', ('clean', 'crack')[flawed], f'weld-{i//4:02d}', mask, size))
    table = pd.DataFrame(rows, columns=['image', 'label', 'group', 'mask', 'size_mm'])
    table.to_csv(root/'manifest.csv', index=False)
    return root


def make_windows(root):
    rows = []
    for i in range(WELDS):
        film = f'film{i:02d}'
        save(root/'films'/f'{film}.png', noise(i, 70))
        save(root/'masks'/f'{film}.png', np.pad(np.ones((35, 70), np.uint8)*255, ((35, 0), (0, 0))))
        rows += [(film, x, y, SIDE, 'crack' if y else 'clean', film) for x in (0, 36) for y in (0, 36)]
    table = pd.DataFrame(rows, columns=['film', 'x', 'y', 'size', 'label', 'group'])
    table.to_csv(root/'windows.csv', index=False)
    return root


MAKE = dict(folder=make_folder, manifest=make_manifest, windows=make_windows)


# --- how bad data are planted: each of these returns a function of the root of a set ---

def put(name, data):
    "A file with these bytes."
    def plant(root):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(data(root) if callable(data) else data)
    return plant


def array(name, values, **options):
    "An image file with these values."
    return lambda root: save(root/name, values, **options)


def link(name, target): return lambda root: (root/name).symlink_to(target)


def edit(column, value, line=3, csv='manifest.csv'):
    "Another entry in a field, or in a column if `line` is None."
    def plant(root):
        table = pd.read_csv(root/csv, dtype=str, keep_default_na=False)
        table.loc[slice(None) if line is None else line - 2, column] = value(table) if callable(value) else value
        table.fillna('').to_csv(root/csv, index=False)
    return plant


def window(column, value, line=3): return edit(column, value, line, 'windows.csv')


def text(change, encoding='utf-8'):
    "The text of the manifest changed."
    def plant(root): (root/'manifest.csv').write_bytes(change((root/'manifest.csv').read_text()).encode(encoding))
    return plant


def both(*plants): return lambda root: [plant(root) for plant in plants]


def drop(column):
    "The manifest without a column."
    def without(csv):
        table = pd.read_csv(io.StringIO(csv), dtype=str, keep_default_na=False)
        return table.drop(columns=column).to_csv(index=False)
    return text(without)


def lines(*more): return text(lambda csv: csv + ''.join(line + '\n' for line in more))


def only(*welds):
    "Cracks in these welds alone."
    return lambda root: [shutil.rmtree(d) for d in (root/'crack').iterdir() if d.name not in welds]


def porosity(n, welds=WELDS):
    "A third class."
    def plant(root):
        for i in range(n): save(root/'porosity'/f'weld-{i % welds:02d}'/f'p{i}.png', noise(5000 + i))
    return plant


def again(change):
    "Every crack a second time, in welds of another name."
    def plant(root):
        for path in list((root/'crack').rglob('*.png')):
            copy = root/'crack'/f'{path.parent.name}-again'/path.name
            save(copy, change(np.asarray(Image.open(path)).astype(float)))
    return plant


def noisier(x): return (x*.8 + 20 + np.random.default_rng(1).normal(0, 4, x.shape)).clip(0, 255).astype(np.uint8)


def truncate(root): (root/A).write_bytes((root/A).read_bytes()[:300])


def damage_middle(root):
    data = (root/A).read_bytes()
    (root/A).write_bytes(data[:200] + b'\xff'*50 + data[250:])


def not_unicode(root): shutil.copy(root/A, os.fsencode(root/'crack'/'weld-00') + b'/\xff.png')


def split_folders(root):
    (root/'train').mkdir()
    (root/'clean').rename(root/'train'/'clean')


def no_images(root):
    shutil.rmtree(root/'clean')
    shutil.rmtree(root/'crack')


def no_weld_folders(root):
    for path in list(root.rglob('*.png')): path.rename(root/path.parts[-3]/path.name)


def other_case(root):
    (root/'Crack'/'weld-00').mkdir(parents=True)
    (root/A).rename(root/'Crack'/'weld-00'/'1.png')


def latin_1(root):
    table = (root/'manifest.csv').read_text().replace('crack', 'Größe')
    (root/'manifest.csv').write_bytes(table.encode('latin-1'))


def half_in_one_weld(root):
    for i in range(40): save(root/'crack'/'weld-00'/f'm{i}.png', noise(3000 + i))


def copy_into_other_group(root):
    for path in list((root/'crack').rglob('*.png')):
        if path.parent.name != 'weld-00': shutil.copy(path, root/'crack'/'weld-00'/f'c{path.name}')


def mixed_sizes(root):
    "Some images twice as large."
    for path in sorted(root.rglob('*.png'))[::3]:
        save(path, np.kron(np.asarray(Image.open(path)), np.ones((2, 2), np.uint8)))


def mixed_pitch(root):
    for i, path in enumerate(sorted(root.rglob('*.png'))):
        dpi = 300 + 300*(i % 2)
        Image.open(path).save(path, dpi=(dpi, dpi))


def tiff_cracks(root):
    for path in list((root/'crack').rglob('*.png')):
        Image.open(path).save(path.with_suffix('.tif'))
        path.unlink()


def two_frames(name):
    def plant(root):
        Image.fromarray(noise(1)).save(root/name, save_all=True, append_images=[Image.fromarray(noise(2))])
    return plant


def converted(name, mode): return lambda root: Image.fromarray(noise(99)).convert(mode).save(root/name)


def x_dicom(values=None, *args, **attributes):
    "A DICOM file beside the images."
    return lambda root: dicom(root/X_DCM, noise(1) if values is None else values, *args, **attributes)


A = 'crack/weld-00/01.png'  # a file of the folder
X_XCF, X_TIF, X_JPG, X_DCM = (f'crack/weld-00/x.{suffix}' for suffix in ('xcf', 'tif', 'jpg', 'dcm'))
NFC, NFD = (unicodedata.normalize(form, 'Größe.png') for form in ('NFC', 'NFD'))
E, W = 'error', 'warning'
FLOAT = np.where(np.arange(SIDE*SIDE).reshape(SIDE, SIDE) == 5, np.nan, noise(99)).astype(np.float32)
COLOUR = np.random.default_rng(9).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
GREY = np.repeat(noise(99)[..., None], 3, 2)
SATURATED = np.where(noise(99) > 120, 255, noise(99)).astype(np.uint8)
THREE_LEVELS = np.where(noise(99) < 12, 0, np.where(noise(99) > 243, 255, 128)).astype(np.uint8)


class Fault(NamedTuple):
    "A kind of bad data."
    source: str    # the kind of set that it is planted in
    plant: object  # function of the root
    severity: str
    place: str     # beginning of the file reported
    what: str      # a piece of what is reported


FAULTS = {kind: Fault(*fault) for kind, fault in {
    # files
    'zero bytes': ('folder', put(A, b''), E, A, 'is empty (zero bytes)'),
    'truncated': ('folder', truncate, E, A, 'cannot be read as an image'),
    'no image': ('folder', put(A, b'a letter to the inspector'), E, A, 'cannot be read as an image'),
    'damaged in the middle': ('folder', damage_middle, E, A, 'cannot be read as an image'),
    'wrong extension': ('folder', array(A, noise(99), format='JPEG'), W, A, 'is a JPEG file by another name'),
    'unsupported kind': ('folder', put(X_XCF, b'gimp xcf'), W, X_XCF, 'is not read (1 file with .xcf)'),
    'pointer of Git LFS': (
        'folder', put(A, b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'),
        E, A, 'is a Git LFS pointer'),
    'web page': ('folder', put(A, b'<!DOCTYPE html><title>404</title>'), E, A, 'it is a web page'),
    'TIFF by JPEG XL': ('folder', put(X_TIF, lambda r: tiff_xl()), E, X_TIF, 'is compressed by JPEG XL'),
    'palette': (
        'folder', lambda r: Image.fromarray(COLOUR[..., :3]).quantize(64).save(r/A),
        E, A, 'is in colour (a palette)'),
    'colour': ('folder', array(A, COLOUR[..., :3]), E, A, 'is in colour'),
    'RGBA': ('folder', array(A, np.dstack([GREY, COLOUR[..., 3]])), E, A, 'is transparent in places'),
    'CMYK': ('folder', converted(X_TIF, 'CMYK'), E, X_TIF, 'is in CMYK colours'),
    '16-bit colour': ('folder', put(A, lambda r: deep_colour()), E, A, 'is in colour'),
    'float with NaN': ('folder', array(X_TIF, FLOAT), E, X_TIF, 'holds NaN or infinite values (1 pixel)'),
    'float with infinity': (
        'folder', array(X_TIF, np.nan_to_num(FLOAT, nan=np.inf)),
        E, X_TIF, 'holds NaN or infinite values (1 pixel)'),
    'several frames': ('folder', two_frames(X_TIF), E, X_TIF, 'holds 2 frames'),
    'animated PNG': ('folder', two_frames(A), E, A, 'holds 2 frames'),
    'decompression bomb': ('folder', put(A, bomb()), E, A, 'is huge'),
    'huge DICOM': ('folder', x_dicom(Rows=65_535, Columns=65_535), E, X_DCM, 'is huge (65,535 x 65,535'),
    'DICOM of several frames': (
        'folder', x_dicom(np.stack([noise(1), noise(2)]), NumberOfFrames=2, Rows=SIDE, Columns=SIDE),
        E, X_DCM, 'holds 2 frames'),
    'DICOM without image': ('folder', x_dicom(PixelData=None), E, X_DCM, 'is a DICOM file without an image'),
    'DICOM in colour': ('folder', x_dicom(None, 'PALETTE COLOR'), E, X_DCM, 'is in colour (PALETTE COLOR)'),
    'deflated DICOM': (
        'folder', x_dicom(syntax=DeflatedExplicitVRLittleEndian),
        E, X_DCM, 'is a deflated DICOM file'),
    'DICOM by another name': (
        'folder', lambda r: dicom(r/A, noise(1, top=4096)),
        W, A, 'is a DICOM file by another name'),
    'one pixel': ('folder', array(A, noise(1, 1)), E, A, 'is 1 x 1 pixels'),
    'constant': ('folder', array(A, np.full((SIDE, SIDE), 7, np.uint8)), E, A, 'is a single grey value'),
    'saturated': ('folder', array(A, SATURATED), W, A, 'of its pixels at the ends of its scale'),
    'hardly any grey levels': ('folder', array(A, THREE_LEVELS), W, A, 'has only 3 grey levels'),
    'not square': ('folder', array(A, noise(99, 64)[:30]), W, A, 'is 64 x 30 pixels'),
    # names and links
    'link out of the folder': (
        'folder', link('crack/weld-00/x.png', '/etc/hostname'),
        E, 'crack/weld-00/x.png', 'is a link that leads out of the folder'),
    'link to nothing': (
        'folder', link('crack/weld-00/x.png', 'nowhere.png'),
        E, 'crack/weld-00/x.png', 'is a link to a file that does not exist'),
    'linked folder': ('folder', link('crack/weld-99', '/etc'), E, 'crack/weld-99', 'is a link that leads out'),
    'line break in a name': (
        'folder', array('crack/weld-00/a\nb.png', noise(99)),
        E, r'crack/weld-00/a\nb.png', 'has a line break'),
    'escape codes in a name': (
        'folder', array('crack/weld-00/\x1b[31mred.png', noise(99)),
        E, r'crack/weld-00/\x1b[31mred.png', 'has a line break or another unprintable'),
    'name that is not Unicode': (
        'folder', not_unicode,
        E, r'crack/weld-00/\udcff.png', 'has a line break or another unprintable'),
    'two forms of one accent': (
        'folder', both(array(f'crack/weld-00/{NFC}', noise(98)), array(f'crack/weld-00/{NFD}', noise(99))),
        W, f'crack/weld-00/{NFC}', 'has the same name as'),
    'name in another case': ('folder', array('crack/weld-00/01.PNG', noise(99)), W, A, 'has the same name as'),
    'path out of the folder': (
        'manifest', edit('image', '../../etc/hostname'),
        E, '../../etc/hostname', 'leads out of the folder'),
    'absolute path': ('manifest', edit('image', '/etc/hostname'), E, '/etc/hostname', 'leads out of the folder'),
    'Windows path': ('manifest', edit('image', 'C:\\films\\1.png'), E, 'C:\\films\\1.png', 'leads out of the folder'),
    'mask out of the folder': ('manifest', edit('mask', '../x.png'), E, '../x.png', 'leads out of the folder'),
    'missing image': ('manifest', edit('image', 'images/gone.png'), E, 'images/gone.png', 'is missing'),
    'image named in another case': ('manifest', edit('image', 'images/01.PNG'), E, 'images/01.PNG', 'is missing'),
    'image that is a folder': ('manifest', edit('image', 'images'), E, 'images', 'is missing'),
    'image that is a pipe': (
        'manifest', both(lambda r: os.mkfifo(r/'pipe.png'), edit('image', 'pipe.png')),
        E, 'pipe.png', 'is missing'),
    'archive': ('folder', put('x.zip', b'PK'), W, 'x.zip', 'is not read (1 file with .zip)'),
    # folders
    'image outside the classes': ('folder', array('x.png', noise(99)), E, 'x.png', 'lies outside the class folders'),
    'label without images': ('folder', lambda r: (r/'slag').mkdir(), E, 'slag', 'is a class folder without images'),
    'split folders': ('folder', split_folders, E, 'train', 'is a split, not a class'),
    'no images at all': ('folder', no_images, E, 'folder', 'has no images in class folders'),
    'no weld folders': ('folder', no_weld_folders, W, 'groups', 'no image names its weld'),
    # labels
    'label in another case': ('folder', other_case, E, "label 'Crack'", "is 'crack' in another spelling"),
    'label with other blanks': (
        'manifest', both(edit('label', lambda t: t.label.replace('crack', 'lack of fusion'), None),
                         edit('label', 'lack_of_fusion')),
        E, "label 'lack_of_fusion'", 'in another spelling'),
    'label with a typing error': ('manifest', edit('label', 'crakc'), W, "label 'crakc'", "is nearly 'crack'"),
    'label that says nothing': (
        'manifest', edit('label', 'unknown'),
        W, "label 'unknown'", 'does not name a kind of flaw'),
    'blank label': ('manifest', edit('label', ' '), E, 'manifest.csv, line 3', "'label' is blank"),
    'label that is a path': ('manifest', edit('label', '../up'), E, "label '../up'", 'cannot name a class'),
    'label that is a script': (
        'manifest', edit('label', '<script>alert(1)</script>'),
        E, "label '<script>alert(1)</script>'", 'cannot name a class'),
    'label of our own': ('manifest', edit('label', 'macro'), E, "label 'macro'", 'cannot name a class'),
    'no clean': ('folder', lambda r: shutil.rmtree(r/'clean'), E, 'labels', "no image is labelled 'clean'"),
    'clean alone': ('folder', lambda r: shutil.rmtree(r/'crack'), E, 'labels', "all images are labelled 'clean'"),
    # tables
    'not UTF-8': ('manifest', latin_1, E, 'manifest.csv', 'is not UTF-8'),
    'blanks for commas': (
        'manifest', text(lambda t: t.replace(',', ' ')),
        E, 'manifest.csv', 'does not separate its fields by commas'),
    'workbook': ('manifest', put('manifest.csv', b'PK\3\4'), E, 'manifest.csv', 'is an Excel workbook'),
    'decimal commas': (
        'manifest', edit('size_mm', '1,5'),
        E, 'manifest.csv, line 3', "the size '1,5' is not a number"),
    'empty table': ('manifest', text(lambda t: ''), E, 'manifest.csv', 'is empty'),
    'header alone': (
        'manifest', text(lambda t: t.splitlines()[0] + '\n'),
        E, 'manifest.csv', 'has a header and no lines'),
    'field too many': (
        'manifest', lines('images/00.png,clean,weld-00,,,1'),
        E, 'manifest.csv, line 50', 'has 6 fields, and the header 5'),
    'field too few': (
        'manifest', lines('images/00.png,clean'),
        E, 'manifest.csv, line 50', 'has 2 fields, and the header 5'),
    'open quote': ('manifest', lines('"images/00.png,clean,weld-00,,'), E, 'manifest.csv', 'cannot be read as a table'),
    'column twice': (
        'manifest', text(lambda t: t.replace('size_mm', 'label', 1)),
        E, 'manifest.csv', "has two columns 'label'"),
    'unknown column': (
        'manifest', text(lambda t: t.replace('size_mm', 'size_nm', 1)),
        W, 'manifest.csv', "the column 'size_nm' is not read"),
    'no label column': ('manifest', drop('label'), E, 'manifest.csv', "has no column 'label'"),
    'group missing': ('manifest', drop('group'), E, 'manifest.csv', "has no column 'group'"),
    'blank group': ('manifest', edit('group', ''), E, 'manifest.csv, line 3', "'group' is blank"),
    'line break in a field': ('manifest', edit('group', 'weld\n1'), E, 'manifest.csv, line', 'holds a line break'),
    'duplicate row': (
        'manifest', text(lambda t: t + t.splitlines()[1] + '\n'),
        E, 'manifest.csv, line 50', 'repeats an earlier line'),
    'image with two labels': (
        'manifest', lines('images/00.png,crack,weld-00,,'),
        E, 'manifest.csv, line 50', 'names the image of an earlier line'),
    'image that nothing names': (
        'manifest', array('images/x.png', noise(99)),
        W, 'images/x.png', 'is not named by manifest.csv'),
    'two tables': (
        'manifest', put('windows.csv', b'film,x,y,size,label,group\n'),
        W, 'windows.csv', 'lies beside manifest.csv'),
    # groups
    'group in two spellings': (
        'manifest', edit('group', 'Weld-00'),
        E, "group 'Weld-00'", "is 'weld-00' in another spelling"),
    'group in two splits': (
        'manifest', edit('split', lambda t: ['train', 'test']*(len(t)//2), None),
        E, "group 'weld-00'", 'lies in the splits test and train'),
    'a group for every image': (
        'manifest', edit('group', lambda t: t.image, None),
        W, 'groups', 'every image has a group of its own'),
    'clean and flawed apart': (
        'manifest', edit('group', lambda t: t.group + t.label, None),
        W, 'groups', 'no group has both clean and flawed'),
    'section on two films': (
        'manifest', edit('film', lambda t: [f'film-{i//2 % 5}' for i in range(len(t))], None),
        W, 'group', 'lies on 2 films'),
    'class from one weld': (
        'folder', only('weld-00', 'weld-01'),
        E, "class 'crack'", 'comes from 2 groups, and three folds need three'),
    'half from one weld': (
        'folder', half_in_one_weld,
        W, "class 'crack'", 'has more than half of its images in one group'),
    # copies
    'exact copies across folds': (
        'folder', again(lambda x: x.astype(np.uint8)),
        E, 'crack/', 'are the same image in two folds'),
    'near copies across folds': ('folder', again(noisier), E, 'crack/', 'are nearly the same image'),
    'copy with another label': (
        'folder', lambda r: shutil.copy(r/A, r/'clean'/'weld-00'/'c.png'),
        E, A, "is the same image as 'clean/weld-00/c.png', and labelled"),
    'copy of another group': ('folder', copy_into_other_group, W, 'crack/', 'is the same image as'),
    # masks and sizes
    'mask of another size': (
        'manifest', array('masks/01.png', noise(99, 20)),
        E, 'masks/01.png', 'is 20 x 20 pixels and its image 32 x 32'),
    'mask without flaw': (
        'manifest', array('masks/01.png', np.zeros((SIDE, SIDE), np.uint8)),
        E, 'masks/01.png', 'shows no flaw'),
    'mask of a clean image': (
        'manifest', edit('mask', 'masks/01.png', 2),
        E, 'masks/01.png', 'its image is labelled clean'),
    'mask missing': ('manifest', edit('mask', 'masks/gone.png'), E, 'masks/gone.png', 'is missing'),
    'mask that is all flaw': (
        'manifest', array('masks/01.png', np.full((SIDE, SIDE), 255, np.uint8)),
        W, 'masks/01.png', 'marks the whole image as flaw'),
    'mask of many values': (
        'manifest', array('masks/01.png', noise(99)),
        W, 'masks/01.png', 'has more than two values'),
    'negative flaw size': ('manifest', edit('size_mm', '-1'), E, 'manifest.csv, line 3', 'the size -1 is negative'),
    'flaw size in words': (
        'manifest', edit('size_mm', '1,5 mm'),
        E, 'manifest.csv, line 3', "the size '1,5 mm' is not a number"),
    'infinite flaw size': (
        'manifest', edit('size_mm', 'inf'),
        E, 'manifest.csv, line 3', "the size 'inf' is not a number"),
    'flaw of size 0': ('manifest', edit('size_mm', '0'), E, 'manifest.csv, line 3', 'a flaw has size 0'),
    'flaw size of a clean image': (
        'manifest', edit('size_mm', '2', 2),
        E, 'manifest.csv, line 2', 'a clean image has a flaw size'),
    'blank flaw size': ('manifest', edit('size_mm', ''), W, 'size_mm', 'is blank for 1 flaw'),
    # scale
    'mixed sizes': ('folder', mixed_sizes, W, 'images', 'have 2 sizes'),
    'mixed pixel sizes': ('folder', mixed_pitch, W, 'images', 'have pixels from'),
    'format by label': ('folder', tiff_cracks, W, 'images', 'differ in format from label to label'),
    # provenance
    'origin synthetic': (
        'manifest', edit('origin', 'synthetic'),
        E, 'manifest.csv, line 3', 'a synthetic image is given as a real one'),
    'PNG of ours': ('folder', put(A, marked_png(torch.from_numpy(noise(99))[None])), E, A, 'is marked as synthetic'),
    'JPEG with XMP': ('folder', array(X_JPG, noise(99), xmp=xmp().encode()), E, X_JPG, 'is marked as synthetic'),
    'TIFF with XMP': (
        'folder', array(X_TIF, noise(99), tiffinfo={700: xmp().encode()}),
        E, X_TIF, 'is marked as synthetic'),
    'PNG with compressed XMP': ('folder', put(A, lambda r: compressed_mark()), E, A, 'is marked as synthetic'),
    'DICOM, synthetic data': (
        'folder', x_dicom(noise(1, top=4096), SyntheticData='YES'),
        E, X_DCM, 'is marked as synthetic'),
    'film of ours': (
        'windows', put('films/film00.png', marked_png(torch.from_numpy(noise(0, 70))[None])),
        E, 'films/film00.png', 'is marked as synthetic'),
    # windows
    'window off the film': (
        'windows', window('x', '60'),
        E, 'windows.csv, line 3', 'the window 60,36 of 32 px leaves the film'),
    'window of no size': (
        'windows', window('size', '0'),
        E, 'windows.csv, line 3', 'the window 0,36 of 0 px leaves the film'),
    'window not a number': ('windows', window('x', '1e3'), E, 'windows.csv, line 3', 'must be whole numbers'),
    'negative window': ('windows', window('y', '-4'), E, 'windows.csv, line 3', 'must be whole numbers'),
    'film missing': (
        'windows', window('film', '../film99'),
        E, 'windows.csv, line 3', "film '../film99' is not in the folder films"),
    'film unreadable': ('windows', put('films/film00.png', b'x'), E, 'films/film00.png', 'cannot be read as an image'),
    'film twice': (
        'windows', array('films/film00.tif', noise(50, 70)),
        E, 'films/film00.tif', 'has the same name as film00.png'),
    'film without windows': (
        'windows', array('films/x.png', noise(99, 70)),
        W, 'films/x.png', 'is not named by windows.csv'),
    'film mask of another size': (
        'windows', array('masks/film00.png', noise(99, 60)),
        E, 'masks/film00.png', 'is 60 x 60 pixels and its film 70 x 70'),
    'window without flaw': (
        'windows', array('masks/film00.png', np.zeros((70, 70), np.uint8)),
        E, 'windows.csv, line 3, mask', 'shows no flaw'),
    'overlapping groups': (
        'windows', both(window('x', '10', 4), window('group', 'other', 4)),
        E, 'windows.csv, line 4', 'overlaps line 2, which is of another group'),
    # counts
    'class of few images': ('folder', porosity(4), E, "class 'porosity'", 'has 4 images, and a class needs 10'),
    'too few for the profile': (
        'folder', only('weld-00', 'weld-01', 'weld-02', 'weld-03', 'weld-04'),
        E, 'images', "10 defects are too few for the profile 'fixture'"),
    'imbalance': ('folder', porosity(280), W, 'labels', "'porosity' has 280 images and 'crack' 24"),
    'small effective sample': ('folder', porosity(30, welds=4), W, "class 'porosity'", 'comes from 4 groups only'),
    'few test images': ('folder', lambda r: None, W, "class 'crack'", 'test images'),
}.items()}
