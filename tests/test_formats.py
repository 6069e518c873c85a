"""Images and masks in the formats and encodings that people have them in."""
import importlib
import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from imagecodecs import jpeg_encode, png_encode
from PIL import Image
from pydicom.encaps import encapsulate
from tifffile import TiffWriter, imwrite

from weldsynth.core.config import StudyError, with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.data.check import check_and_read
from weldsynth.data.formats import ImageError, decode_image, is_image_file
from weldsynth.data.masks import decode_mask

CASES = Path(__file__).parent/'cases'
CONFIG = PROFILES['fixture']
SET_WARNINGS = ('groups only', 'test image', 'defects are too few')  # any set of 96 images has them


@pytest.fixture
def case(tmp_path, monkeypatch):
    "A function that writes a case of that name, and returns the data to be read."
    monkeypatch.syspath_prepend(str(CASES))
    def write(name):
        getattr(importlib.import_module(name), name)(tmp_path/'set')
        table = tmp_path/'set'/'manifest.csv'
        return table if table.exists() else tmp_path/'set'
    return write


def read(data, **overrides):
    "The patches of a set, and its issues as (severity, what, fix) with the number of files that have each."
    issues, patches = check_and_read(str(data), with_overrides(CONFIG, overrides), every=True)
    issues = issues[~issues.what.str.contains('|'.join(SET_WARNINGS))]
    return patches, issues.groupby(['severity', 'what', 'fix']).size().to_dict()


def is_whole(patches):
    "Are all 96 images of a case there, by label and film?"
    return patches.table.label.value_counts().to_dict() == dict(clean=48, crack=24, porosity=24) \
        and patches.table.group.nunique() == 6


# --- images ---

READ = ['bmp', 'pgm', 'jp2', 'tif_float64', 'tif16_rgb', 'png16_la', 'tif_with_thumbnail_page', 'dicom_no_ext',
        'dicom_jpegls']


@pytest.mark.parametrize('name', READ)
def test_a_folder_is_read_without_a_word(name, case):
    patches, issues = read(case(name))
    assert is_whole(patches)
    assert issues == {}


def test_a_wrong_suffix_is_one_warning_for_all(case):
    patches, issues = read(case('wrong_suffix'))
    assert is_whole(patches)
    fix = "nothing to do, it is read as that; for other programs let it end in '.png'"
    assert issues == {('warning', 'is a PNG file by another name', fix): 96}


def test_an_unread_compression_is_named(case):
    patches, issues = read(case('tif16_lerc'))
    assert patches is None
    fix = 'save it uncompressed, or compressed by LZW or deflate'
    assert issues == {('error', 'is compressed by JPEG XL', fix): 96}


def test_a_pointer_of_git_lfs_is_named(case):
    patches, issues = read(case('lfs_pointer'))
    assert len(patches) == 92
    what = 'is a Git LFS pointer, not the image itself'
    assert issues == {('error', what, 'fetch the images with `git lfs pull`'): 4}


RAMP = (np.arange(48*60).reshape(48, 60)*20).astype(np.uint16)
EIGHT = (RAMP//256).astype(np.uint8)
OPAQUE = np.full_like(RAMP, 65_535)


def tiff(values, **options):
    file = io.BytesIO()
    imwrite(file, values, **options)
    return file.getvalue()


def pillow(values, format, **options):
    file = io.BytesIO()
    Image.fromarray(values).save(file, format, **options)
    return file.getvalue()


def pages(*pages):
    file = io.BytesIO()
    with TiffWriter(file) as writer:
        for values, subfiletype in pages: writer.write(values, subfiletype=subfiletype)
    return file.getvalue()


SAME = {
    'float16 TIFF': (tiff((RAMP//64).astype(np.float16)), RAMP//64),
    'float64 TIFF, deflate with prediction': (tiff(RAMP.astype(float), compression='deflate', predictor=True), RAMP),
    'uint32 TIFF': (tiff(RAMP.astype(np.uint32) + 2**31), RAMP.astype(np.float64) + 2**31),
    'int16 TIFF': (tiff((RAMP//2).astype(np.int16) - 9), RAMP//2 - 9.),
    'BigTIFF': (tiff(RAMP, bigtiff=True), RAMP),
    'big-endian TIFF': (tiff(RAMP, byteorder='>'), RAMP),
    'RGB TIFF in planes': (tiff(np.stack([RAMP]*3), photometric='rgb', planarconfig='separate'), RAMP),
    'RGBA TIFF by LZW': (
        tiff(np.dstack([RAMP]*3 + [OPAQUE]), photometric='rgb', extrasamples=['unassalpha'], compression='lzw'), RAMP),
    'RGB PNG': (png_encode(np.dstack([RAMP]*3)), RAMP),
    'RGBA PNG': (png_encode(np.dstack([RAMP]*3 + [OPAQUE])), RAMP),
    'JPEG in TIFF': (tiff(np.full((48, 64), 99, np.uint8), compression='jpeg'), np.full((48, 64), 99)),
    'thumbnail first': (pages((EIGHT[::4, ::4], 1), (RAMP, 0)), RAMP),
    'lossless WebP': (pillow(EIGHT, 'WEBP', lossless=True), EIGHT),
    'PGM as text': (b'P2\n3 2\n255\n0 1 2\n3 4 255\n', [[0, 1, 2], [3, 4, 255]]),
    **{f'WhiteIsZero, {kind}': (tiff(values, photometric='miniswhite'), -values.astype(float) + top)
       for kind, values, top in (
           ('8 bits', EIGHT, 255), ('16 bits', RAMP, 65_535), ('32 bits', RAMP.astype(np.uint32), 2**32 - 1),
           ('float32', RAMP.astype(np.float32), 0), ('float64', RAMP.astype(np.float64), 0))}}


@pytest.mark.parametrize('kind', SAME)
def test_values_are_taken_as_they_are(kind):
    data, values = SAME[kind]
    assert np.array_equal(decode_image(data).grey, np.float32(values))


def dicom(syntax='', code=b'', preamble=True, **attributes):
    "A DICOM file of the ramp, as bytes, perhaps compressed."
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax or '1.2.840.10008.1.2.1'
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.7'
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    file.Rows, file.Columns = RAMP.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, 'MONOCHROME2', 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelData = encapsulate([code]) if code else RAMP.tobytes()
    for name, value in attributes.items(): setattr(file, name, value)
    written = io.BytesIO()
    if preamble: file.save_as(written, enforce_file_format=True)
    else:
        del file.file_meta
        file.save_as(written, implicit_vr=True, little_endian=True)
    return written.getvalue()


def test_dicom_without_preamble_is_read():
    data = dicom(preamble=False)
    assert data[128:132] != b'DICM'
    assert np.array_equal(decode_image(data).grey, RAMP)


@pytest.mark.parametrize('predictor', [1, 6])
@pytest.mark.parametrize('syntax', [57, 70])
def test_lossless_jpeg_in_dicom_is_read(syntax, predictor):
    code = jpeg_encode(RAMP, bitspersample=16, lossless=True, predictor=predictor)
    assert np.array_equal(decode_image(dicom(f'1.2.840.10008.1.2.4.{syntax}', code)).grey, RAMP)


def test_signed_values_of_few_bits_keep_their_sign():
    from imagecodecs import jpegls_encode
    signed = (RAMP//32).astype(np.int16) - 1000
    code = jpegls_encode((signed & 4095).astype(np.uint16))
    data = dicom('1.2.840.10008.1.2.4.80', code, PixelRepresentation=1, BitsStored=12, HighBit=11)
    assert np.array_equal(decode_image(data).grey, signed)


REFUSED = {
    'lossless JPEG of another size': (
        dicom('1.2.840.10008.1.2.4.70', jpeg_encode(np.zeros((999, 60), np.uint16), lossless=True)), 'another size'),
    'MPEG in DICOM': (dicom('1.2.840.10008.1.2.4.100', b'1234'), 'is compressed (MPEG2'),
    'two pages': (pages((RAMP, 0), (RAMP, 0)), 'holds 2 frames'),
    'stack of ImageJ': (tiff(np.stack([RAMP]*3), imagej=True), 'holds 3 frames'),
    'moving GIF': (pillow(EIGHT, 'GIF', save_all=True, append_images=[Image.fromarray(EIGHT//2)]), 'holds 2 frames'),
    '16-bit colour': (png_encode(np.dstack([RAMP, RAMP//2, RAMP//4])), 'is in colour'),
    '16-bit transparency': (png_encode(np.dstack([RAMP, OPAQUE//2])), 'is transparent in places'),
    'colour WebP': (pillow(np.dstack([EIGHT, EIGHT//2, EIGHT//4]), 'WEBP', lossless=True), 'is in colour'),
    'five channels': (tiff(np.dstack([RAMP]*5), photometric='minisblack', planarconfig='contig'), 'has 5 channels'),
    'complex TIFF': (tiff(RAMP.astype(np.complex64)), 'holds values of the kind complex64'),
    'LERC': (tiff(RAMP, compression='lerc'), 'is compressed by LERC'),
    'NumPy': (b'\x93NUMPY\1\0', 'it is a NumPy array'),
    'web page': (b'<!DOCTYPE html>', 'it is a web page')}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_needs_a_guess_is_refused(kind):
    data, message = REFUSED[kind]
    with pytest.raises(ImageError) as caught: decode_image(data)
    assert message in caught.value.args[0]


def test_a_bomb_in_a_tiff_is_not_unpacked():
    "A strip of a few bytes that would be a gigabyte, in an image of 8 x 8 float64."
    bomb = zlib.compress(bytes(2**30), 1)
    tags = {256: 8, 257: 8, 258: 64, 259: 8, 262: 1, 273: 200, 277: 1, 278: 8, 279: len(bomb), 339: 3}
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
    data = (b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + entries + bytes(4)).ljust(200, b'\0') + bomb
    peak = resource_peak()
    try: decode_image(data)
    except ImageError: pass
    assert resource_peak() - peak < 200


def resource_peak():
    "The greatest memory of this process so far, in MiB."
    resource = pytest.importorskip('resource')
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)


def test_a_file_is_an_image_by_its_content(tmp_path):
    files = {'IM_0001': dicom(), '1.2.840.113619': dicom(preamble=False), 'scan.001': tiff(RAMP), 'x.IMA': dicom(),
             'b': pillow(EIGHT, 'JPEG'), 'c': pillow(EIGHT, 'BMP'), 'd': pillow(EIGHT, 'PPM')}
    others = {'DICOMDIR': dicom(), 'notes': b'P.S. BMW', 'labels.txt': b'0 .1 .2', 'empty': b''}
    for name, data in (files | others).items(): (tmp_path/name).write_bytes(data)
    assert {p.name for p in tmp_path.iterdir() if is_image_file(p)} == {*files}


# --- masks ---

MASKED = ['mask_palette_voc', 'mask_palette_inverted_colours', 'mask_rgb_red', 'mask_bmp', 'mask_gif',
          'mask_blank_for_clean']


@pytest.mark.parametrize('name', MASKED)
def test_masks_are_read_without_a_word(name, case):
    patches, issues = read(case(name))
    assert is_whole(patches)
    assert issues == {}
    assert masks_are_right(patches)


def masks_are_right(patches):
    "Do all flaws, and no clean images, have a mask that covers a small part?"
    share = (patches.masks > 0).float().mean((1, 2, 3)).numpy()
    is_clean = (patches.table.label == 'clean').to_numpy()
    return (share[is_clean] == 0).all() and (share[~is_clean] > 0).all() and share.max() < .2


def test_a_mask_as_jpeg_is_halved_with_one_warning(case):
    patches, issues = read(case('mask_jpeg'))
    assert masks_are_right(patches)
    assert [(severity, n) for (severity, _, _), n in issues.items()] == [('warning', 48)]
    assert 'above half of the greatest' in str(issues)


def test_inverted_masks_are_one_line_that_says_how_to_say_so(case):
    data = case('mask_inverted')
    patches, issues = read(data)
    [(severity, what, fix)] = issues
    assert severity == 'error'
    assert what.startswith('cover most of the image in 96 files, such as masks/clean_0000.png')
    assert 'data.mask_flaw=dark' in fix
    patches, issues = read(data, **{'data.mask_flaw': 'dark'})
    assert issues == {}
    assert masks_are_right(patches)


def test_masks_of_large_flaws_can_be_confirmed(case, tmp_path):
    data = case('mask_bmp')
    table = pd.read_csv(data)
    table['mask'] = table['mask'].where(table.label != 'clean', '')
    table.to_csv(data, index=False)
    for name in table['mask'][table['mask'] != '']:
        Image.fromarray(np.pad(np.full((40, 40), 255, np.uint8), 4)).save(data.parent/name)
    assert 'data.mask_flaw=bright' in str(read(data)[1])
    assert read(data, **{'data.mask_flaw': 'bright'})[1] == {}


def test_another_word_for_it_is_refused(case):
    data = case('mask_bmp')
    with pytest.raises(StudyError, match="data.mask_flaw='black' is unknown: choose bright or dark"):
        read(data, **{'data.mask_flaw': 'black'})


def test_a_mask_on_the_pixels_before_exif_is_turned_with_them(case):
    patches, issues = read(case('exif_orientation_raw_mask'))
    assert is_whole(patches)
    [(severity, what, _)] = issues
    assert severity == 'warning'
    assert 'EXIF orientation (6)' in what
    dark = patches.images.float().where(patches.masks > 0, np.nan)[patches.labels > 0].nanmean()
    around = patches.images.float().where(patches.masks == 0, np.nan)[patches.labels > 0].nanmean()
    assert dark < around - 40, 'the mask lies on the flaw'


SPOT = np.pad(np.ones((4, 6), np.uint8), ((9, 30), (20, 5)))


def drawn(mode, flaw, ground, palette=()):
    "A picture with the spot in one colour."
    image = Image.new(mode, SPOT.shape[::-1], ground)
    image.paste(flaw, mask=Image.fromarray(SPOT*255))
    if palette: image.putpalette(palette)
    return image


PALETTE = [255, 255, 255, 0, 0, 0, 9, 9, 9, 0, 0, 0]
MASKS = {
    'one bit': drawn('1', 1, 0), '0 and 1': drawn('L', 1, 0), '0 and 255': drawn('L', 255, 0),
    '16 bits': drawn('I;16', 60_000, 0), 'kind 3 of a palette': drawn('P', 3, 0, PALETTE),
    'green on black': drawn('RGB', (0, 128, 0), (0, 0, 0)), 'red on white': drawn('RGB', (255, 0, 0), (255, 255, 255)),
    'grey kind': drawn('RGB', (128, 128, 128), (0, 0, 0)), 'white on clear': drawn('RGBA', (255,)*4, (0, 0, 0, 0)),
    'black on clear': drawn('RGBA', (0, 0, 0, 255), (0, 0, 0, 0)),
    'half clear red': drawn('RGBA', (255, 0, 0, 90), (0, 0, 0, 0)),
    'red on opaque black': drawn('RGBA', (255, 0, 0, 255), (0, 0, 0, 255)),
    'grey and alpha': drawn('LA', (255, 255), (0, 255))}
WRITTEN = {
    '1': ('PNG', 'TIFF', 'BMP', 'GIF'), 'L': ('PNG', 'TIFF', 'BMP', 'GIF', 'JPEG', 'WEBP'), 'I;16': ('PNG', 'TIFF'),
    'P': ('PNG', 'TIFF', 'BMP', 'GIF'), 'RGB': ('PNG', 'TIFF', 'BMP', 'JPEG', 'WEBP'), 'RGBA': ('PNG', 'TIFF', 'WEBP'),
    'LA': ('PNG', 'TIFF')}


@pytest.mark.parametrize('kind, format', [(kind, f) for kind, image in MASKS.items() for f in WRITTEN[image.mode]])
def test_what_is_not_background_is_flaw(kind, format):
    file = io.BytesIO()
    MASKS[kind].save(file, format, **(dict(lossless=True, exact=True) if format == 'WEBP' else {}))
    flaw = decode_mask(file.getvalue()).flaw
    assert (flaw != SPOT).mean() < (.02 if format == 'JPEG' else 1e-9)


def test_red_drawn_over_the_radiograph_is_flaw():
    radiograph = np.repeat(np.random.default_rng(0).integers(60, 200, (*SPOT.shape, 1), dtype=np.uint8), 3, 2)
    radiograph[SPOT > 0] = 255, 0, 0
    assert np.array_equal(decode_mask(pillow(radiograph, 'PNG')).flaw, SPOT > 0)
