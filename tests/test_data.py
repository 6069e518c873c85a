"""Sources of images: what they give, and what each bad input is told."""
import os, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from weldsynth.core.config import PROFILES, StudyError

from weldsynth.core.store import open_study
from weldsynth.data.images import read_grey, to_patch
from weldsynth.data.sources import GUESSED_GROUP_PREFIX, read_folder, read_manifest, read_source, read_windows
from weldsynth.data.split.split import report_duplicates, split
from weldsynth.stages.data import study_patches

PX = 32
GDXRAY = os.environ.get('WELDSYNTH_GDXRAY')


@pytest.fixture(autouse=True)
def studies(tmp_path, monkeypatch):
    "Studies go to a folder of the test's own."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))


def noise(seed, side=PX, top=255):
    return (np.random.default_rng(seed).random((side, side))*top).astype(np.uint8 if top < 256 else np.uint16)


@pytest.fixture
def folder(tmp_path):
    "Two classes of ten images in five welds each."
    for c, label in enumerate(('clean', 'crack')):
        for i in range(10):
            file = tmp_path/'welds'/label/f'weld-{i//2}'/f'{i}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(100*c + i)).save(file)
    return tmp_path/'welds'


@pytest.fixture
def manifest(tmp_path):
    "A manifest of 16-bit PNG, TIFF and 8-bit JPEG with masks and sizes."
    rows = []
    for i in range(48):
        name = f'{i}.' + ('png', 'tif', 'jpg')[i % 3]
        Image.fromarray(noise(i, 40, 255 if i % 3 == 2 else 60_000)).save(tmp_path/name)
        Image.fromarray((noise(i, 40) > 200).astype(np.uint8)*255).save(tmp_path/f'mask-{i}.png')
        rows.append((name, 'porosity' if i % 2 else 'clean', f'film-{i//8}', f'mask-{i}.png' if i % 2 else '', 1.5 if i % 2 else ''))
    pd.DataFrame(rows, columns=['image', 'label', 'film', 'mask', 'size_mm']).to_csv(tmp_path/'manifest.csv', index=False)
    return tmp_path/'manifest.csv'


def test_folder(folder):
    patches = read_folder(folder, PX)
    assert patches.classes == ('clean', 'crack') and patches.images.shape == (20, 1, PX, PX) and patches.images.dtype == torch.uint8
    assert patches.table.group.nunique() == 5 and patches.labels.bincount().tolist() == [10, 10]


def test_folder_without_welds_is_grouped_by_likeness(folder):
    for file in [*folder.rglob('*.png')]: file.rename(folder/file.parts[-3]/f'{file.parts[-2]}-{file.name}')
    twin = folder/'crack'/'weld-0-0.png'
    Image.open(twin).save(folder/'crack'/'twin.png')
    patches = read_folder(folder, PX)
    groups = patches.table.set_index('id').group
    assert groups.str.startswith(GUESSED_GROUP_PREFIX).all() and groups['crack/weld-0-0.png'] == groups['crack/twin.png'] and groups.nunique() == 20


def test_other_names_for_clean(folder):
    (folder/'clean').rename(folder/'Good')
    assert read_folder(folder, PX).classes == ('clean', 'crack')


def test_manifest_windows_sixteen_bits_and_keeps_masks_and_sizes(manifest):
    patches = read_manifest(manifest, PX, 'film')
    assert len(patches) == 48 and patches.size_unit == 'mm' and patches.masks.shape == patches.images.shape
    assert all(len(image.unique()) > 100 for image in patches.images), 'a clipped 16-bit image would be white'
    assert patches.table['size'].isna().equals(patches.table.label == 'clean')
    assert (patches.masks.flatten(1).amax(1) == 255).numpy().tolist() == (patches.table.label == 'porosity').tolist()


def test_a_sixteen_bit_file_keeps_its_scale(tmp_path):
    deep = noise(1, top=60_000)
    for suffix in ('png', 'tif'):
        Image.fromarray(deep).save(tmp_path/f'deep.{suffix}')
        assert np.array_equal(read_grey(tmp_path/f'deep.{suffix}'), deep.astype(np.float32))


@pytest.fixture
def films(tmp_path):
    "Three films, one with a mask, and their windows."
    (tmp_path/'films').mkdir(), (tmp_path/'masks').mkdir()
    rows = []
    for f in range(3):
        Image.fromarray(noise(f, 100)).save(tmp_path/'films'/f'film{f}.png')
        rows += [(f'film{f}', x, y, 48, 'crack' if y else 'clean') for x in (0, 52) for y in (0, 52)]
    Image.fromarray(np.pad(np.full((48, 100), 255, np.uint8), ((52, 0), (0, 0)))).save(tmp_path/'masks'/'film1.png')
    pd.DataFrame(rows, columns=['film', 'x', 'y', 'size', 'label']).to_csv(tmp_path/'windows.csv', index=False)
    return tmp_path/'windows.csv'


def test_windows_are_cut_from_films(films):
    patches = read_windows(films, 48, 'film')
    assert torch.equal(patches.images[3], to_patch(noise(0, 100)[52:100, 52:100], 48))
    assert patches.masks.flatten(1).amax(1).tolist() == [0]*4 + [0, 255]*2 + [0]*4 and patches.table.group.nunique() == 3


def edit(csv, line, column, value):
    "Change one field of a table."
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    table.loc[line - 2, column] = value
    table.to_csv(csv, index=False)


def two_films(csv):
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    table.assign(film=['film-0', 'film-0', 'film-1', 'film-1']*12).to_csv(csv, index=False)


def only_in(csv, label, films):
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    table['label'] = ['porosity' if f in films and i % 2 else 'clean' for i, f in enumerate(table.film)]
    table.drop(columns=['mask', 'size_mm']).to_csv(csv, index=False)


BAD = {
    'missing folder':      (lambda d: open_study('x', str(d['folder']/'nowhere'), 'fixture'), r"nowhere' does not exist: give"),
    'unknown profile':     (lambda d: open_study('x', 'simulated', 'turbo'), r"profile 'turbo' is unknown: choose one of .*demo"),
    'unreadable image':    (lambda d: ((d['folder']/'crack'/'weld-0'/'0.png').write_bytes(b'\x89PNG broken'), read_folder(d['folder'], PX)), r'0\.png: cannot be read as an image .*: replace or remove'),
    'truncated image':     (lambda d: ((f := d['folder']/'crack'/'weld-0'/'0.png').write_bytes(f.read_bytes()[:200]), read_folder(d['folder'], PX)), r'0\.png: cannot be read as an image .*: replace or remove'),
    'one class only':      (lambda d: (shutil.rmtree(d['folder']/'crack'), read_folder(d['folder'], PX)), r"all images are labelled 'clean': .*needs at least one class"),
    'no clean':            (lambda d: (shutil.rmtree(d['folder']/'clean'), read_folder(d['folder'], PX)), r"no image is labelled 'clean' \(labels: crack\)"),
    'empty class folder':  (lambda d: ((d['folder']/'slag').mkdir(), read_folder(d['folder'], PX)), r"slag: is a class folder without images: fill or remove"),
    'no images':           (lambda d: ((d['folder']/'a'/'b').mkdir(parents=True), read_folder(d['folder']/'a', PX)), r'has no images in class folders: put'),
    'image missing':       (lambda d: (edit(d['manifest'], 3, 'image', 'gone.png'), read_manifest(d['manifest'], PX, 'film')), r'gone\.png: is missing: put it there'),
    'no group column':     (lambda d: read_manifest(d['manifest'], PX, 'group'), r"no column 'group' \(it has image, label, film, mask, size_mm\): say which column"),
    'no label column':     (lambda d: (pd.read_csv(d['manifest']).drop(columns='label').to_csv(d['manifest'], index=False), read_manifest(d['manifest'], PX, 'film')), r"no column 'label'"),
    'blank label':         (lambda d: (edit(d['manifest'], 5, 'label', ' '), read_manifest(d['manifest'], PX, 'film')), r"line 5: 'label' is blank"),
    'label that is a path': (lambda d: (edit(d['manifest'], 5, 'label', '../up'), read_manifest(d['manifest'], PX, 'film')), r"label '\.\./up': cannot name a class and its folder: use letters"),
    'synthetic as real':   (lambda d: (edit(d['manifest'], 2, 'origin', 'synthetic'), read_manifest(d['manifest'], PX, 'film')), r'line 2: a synthetic image is offered as real'),
    'window off the film': (lambda d: (edit(d['films'], 4, 'x', '90'), read_windows(d['films'], PX, 'film')), r'line 4: the window 90,0 of 48 px leaves the film film0 \(100 x 100 px\)'),
    'window not a number': (lambda d: (edit(d['films'], 4, 'x', 'left'), read_windows(d['films'], PX, 'film')), r'line 4: x, y and size must be whole numbers'),
    'film missing':        (lambda d: (edit(d['films'], 4, 'film', 'film9'), read_windows(d['films'], PX, 'film')), r"line 4: film 'film9' is not in the folder films: add"),
    'more folds than groups': (lambda d: (edit(d['manifest'], 2, 'film', 'film-1'), two_films(d['manifest']), split(read_manifest(d['manifest'], PX, 'film'))), r"class 'clean': comes from 2 groups, and three folds need three"),
    'empty class in a fold':  (lambda d: (only_in(d['manifest'], 'porosity', ('film-0',)), split(read_manifest(d['manifest'], PX, 'film'))), r"class 'porosity': comes from 1 group, and three folds need three"),
    'neither folder nor CSV': (lambda d: read_source(open_study('x', str(d['folder']/'crack'/'weld-0'/'0.png'), 'fixture')), r'is neither a folder nor a CSV'),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_input_gets_one_line(kind, folder, manifest, films):
    act, message = BAD[kind]
    with pytest.raises(StudyError, match=message) as caught: act(dict(folder=folder, manifest=manifest, films=films))
    assert '\n' not in str(caught.value)


def test_a_copy_in_another_fold_stops_the_study(manifest):
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    copies = table.assign(image=['copy-' + i for i in table.image], film=table.film + '-copy')
    for i in table.image: (manifest.parent/f'copy-{i}').write_bytes((manifest.parent/i).read_bytes())
    pd.concat([table, copies]).to_csv(manifest, index=False)
    with pytest.raises(StudyError, match=r".*: and '.*' are the same image in two folds"):
        report_duplicates(split(read_manifest(manifest, PX, 'film')))
    study = open_study('copies', str(manifest), 'fixture', 'film')
    with pytest.raises(StudyError): study_patches(study)
    assert not [*(study.path/'data').iterdir()], 'a refused study leaves nothing behind'


def test_a_study_keeps_its_plan(manifest):
    open_study('mine', str(manifest), 'fixture', 'film')
    with pytest.raises(StudyError, match="study 'mine' was started with another .*profile.*: choose another NAME"):
        open_study('mine', str(manifest), 'smoke', 'film')


def test_changed_data_make_a_new_artefact(manifest):
    study = open_study('mine', str(manifest), 'fixture', 'film')
    first = study_patches(study)
    edit(manifest, 2, 'label', 'porosity')
    assert (study_patches(study).table.label != first.table.label).sum() == 1 and len([*(study.path/'data').iterdir()]) == 2


@pytest.mark.skipif(not GDXRAY, reason='real radiographs: set WELDSYNTH_GDXRAY to the folder with films/, masks/ and windows.csv')
@pytest.mark.slow
def test_real_radiographs_by_manifest_and_by_windows(tmp_path):
    subprocess.run([sys.executable, Path(GDXRAY)/'cut.py', tmp_path/'cut'], check=True)
    cut, whole = (read_source(open_study(kind, str(data), 'fixture', by)) for kind, data, by in (('cut', tmp_path/'cut', 'section'), ('whole', GDXRAY, 'film')))
    a, b = (t.table.assign(row=range(len(t)), key=t.table.id.map(lambda i: Path(i).stem)).sort_values('key') for t in (cut, whole))
    assert len(a) == 20_000 and torch.equal(cut.images[a.row.to_numpy()], whole.images[b.row.to_numpy()])
    assert a.label.tolist() == b.label.tolist() and a['size'].fillna(0).tolist() == b['size'].fillna(0).tolist()
    assert [*a.group.str.split('/').str[0]] == [*b.group] and a.group.nunique() > 150 and b.group.nunique() == 24
    for patches in (cut, whole):
        folds = split(patches)
        report_duplicates(folds)
        named = ['train', 'validation', 'test'] + ['film']*(patches is cut)  # sections are parts of films, so whole films are held out beside
        assert folds.table.groupby('group').fold.nunique().max() == 1 and folds.table.groupby('fold').label.nunique().to_dict() == dict.fromkeys(named, 4)


def test_films_are_held_out_whole_where_groups_are_parts_of_them(tmp_path):
    rows = []
    for i in range(180):
        Image.fromarray(noise(i)).save(tmp_path/f'{i}.png')
        rows.append((f'{i}.png', ('clean', 'crack', 'pore')[i % 3], f'film-{i//30}', f'film-{i//30}-{i//5 % 6}'))
    pd.DataFrame(rows, columns=['image', 'label', 'film', 'section']).to_csv(tmp_path/'manifest.csv', index=False)
    table = study_patches(open_study('sections', str(tmp_path), 'fixture', 'section')).table
    held = set(table.film[table.fold == 'film'])
    assert held and not held & set(table.film[table.fold != 'film']) and set(table.fold) == {'train', 'validation', 'test', 'film'}
    assert 'film' not in set(study_patches(open_study('films', str(tmp_path), 'fixture', 'film')).table.fold), 'groups that are films need no such fold'
