"""Sources of images: what they give, and what is said about bad input."""
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from weldsynth.core.config import DataConfig, StudyError
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import PROFILES
from weldsynth.data.images import DataError, read_grey, to_patch
from weldsynth.data.patches import PatchSet
from weldsynth.data.readers import are_guessed, read_folder, read_manifest, read_windows
from weldsynth.data.sources import SOURCES, Simulated, open_source
from weldsynth.data.split import FOLDS, report_duplicates, split
from weldsynth.stages.data import study_patches, study_source

PX = 32
CONFIG = PROFILES['fixture'].data
GDXRAY = os.environ.get('WELDSYNTH_GDXRAY')


@pytest.fixture(autouse=True)
def studies(tmp_path, monkeypatch):
    "Studies go to a folder of the test's own."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))


def noise(seed, side=PX, top=255):
    values = np.random.default_rng(seed).random((side, side))*top
    return values.astype(np.uint8 if top < 256 else np.uint16)


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
        suffix = ('png', 'tif', 'jpg')[i % 3]
        label, mask, size = ('porosity', f'mask-{i}.png', 1.5) if i % 2 else ('clean', '', '')
        Image.fromarray(noise(i, 40, 255 if suffix == 'jpg' else 60_000)).save(tmp_path/f'{i}.{suffix}')
        Image.fromarray((noise(i, 40) > 200).astype(np.uint8)*255).save(tmp_path/f'mask-{i}.png')
        rows.append((f'{i}.{suffix}', label, f'film-{i//8}', mask, size))
    table = pd.DataFrame(rows, columns=['image', 'label', 'film', 'mask', 'size_mm'])
    table.to_csv(tmp_path/'manifest.csv', index=False)
    return tmp_path/'manifest.csv'


@pytest.fixture
def films(tmp_path):
    "Three films, one with a mask, and their windows."
    (tmp_path/'films').mkdir()
    (tmp_path/'masks').mkdir()
    rows = []
    for f in range(3):
        Image.fromarray(noise(f, 100)).save(tmp_path/'films'/f'film{f}.png')
        rows += [(f'film{f}', x, y, 48, 'crack' if y else 'clean') for x in (0, 52) for y in (0, 52)]
    mask = np.pad(np.full((48, 100), 255, np.uint8), ((52, 0), (0, 0)))
    Image.fromarray(mask).save(tmp_path/'masks'/'film1.png')
    table = pd.DataFrame(rows, columns=['film', 'x', 'y', 'size', 'label'])
    table.to_csv(tmp_path/'windows.csv', index=False)
    return tmp_path/'windows.csv'


# --- what the readers give ---

def test_folder(folder):
    patches = read_folder(folder, PX)
    assert patches.classes == ('clean', 'crack')
    assert patches.images.shape == (20, 1, PX, PX)
    assert patches.images.dtype == torch.uint8
    assert patches.table.group.nunique() == 5
    assert patches.labels.bincount().tolist() == [10, 10]


def test_folder_without_welds_is_grouped_by_likeness(folder):
    for file in [*folder.rglob('*.png')]: file.rename(folder/file.parts[-3]/f'{file.parts[-2]}-{file.name}')
    copied = folder/'crack'/'weld-0-0.png'
    Image.open(copied).save(folder/'crack'/'copy.png')
    groups = read_folder(folder, PX).table.set_index('id').group
    assert are_guessed(groups).all()
    assert groups['crack/weld-0-0.png'] == groups['crack/copy.png']
    assert groups.nunique() == 20


def test_other_names_for_clean(folder):
    (folder/'clean').rename(folder/'Good')
    assert read_folder(folder, PX).classes == ('clean', 'crack')


def test_manifest_windows_sixteen_bits_and_keeps_masks_and_sizes(manifest):
    patches = read_manifest(manifest, PX, 'film')
    assert len(patches) == 48
    assert patches.size_unit == 'mm'
    assert patches.masks.shape == patches.images.shape
    assert all(len(image.unique()) > 100 for image in patches.images), 'a clipped 16-bit image would be white'
    assert patches.table['size'].isna().equals(patches.table.label == 'clean')
    has_flaw = patches.masks.flatten(1).amax(1) == 255
    assert has_flaw.numpy().tolist() == (patches.table.label == 'porosity').tolist()


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_a_sixteen_bit_file_keeps_its_scale(tmp_path, suffix):
    deep = noise(1, top=60_000)
    Image.fromarray(deep).save(tmp_path/f'deep.{suffix}')
    assert np.array_equal(read_grey(tmp_path/f'deep.{suffix}'), deep.astype(np.float32))


def test_windows_are_cut_from_films(films):
    patches = read_windows(films, 48, 'film')
    assert torch.equal(patches.images[3], to_patch(noise(0, 100)[52:100, 52:100], 48))
    assert patches.masks.flatten(1).amax(1).tolist() == [0]*4 + [0, 255]*2 + [0]*4
    assert patches.table.group.nunique() == 3


# --- sources ---

def titles(*data): return [open_source(str(d), CONFIG).title for d in data]


def test_each_form_of_data_has_its_source(folder, manifest, films):
    assert titles(folder) == ['images in class folders']
    assert titles(manifest, manifest.parent) == ['images listed in a table']*2
    assert titles(films) == ['windows cut from whole films']
    manifest.unlink()
    assert titles(films.parent) == ['windows cut from whole films']


def test_only_the_simulator_is_simulated(folder, manifest, films):
    assert open_source('simulated', CONFIG).is_simulated
    assert not any(open_source(str(data), CONFIG).is_simulated for data in (folder, manifest, films))


class Toy(Simulated):
    "A source from outside the package: 20 images of noise."
    title = 'toy'

    @classmethod
    def accepts(cls, data): return data == 'simulated' or data.startswith('toy')

    def read(self, px, group, report=None):
        images = torch.from_numpy(np.stack([noise(i, px) for i in range(20)]))[:, None]
        rows = dict(id=[str(i) for i in range(20)], label=['clean', 'crack']*10, group=[f'w{i//4}' for i in range(20)])
        table = pd.DataFrame(rows).assign(size=np.nan, origin='real').assign(film=rows['group'])
        return PatchSet(images, table, ('clean', 'crack'))


def test_a_source_from_outside_goes_first(monkeypatch):
    monkeypatch.setitem(SOURCES, 'toy', Toy)
    assert titles('toy:1', 'simulated') == ['toy', 'toy']
    study = open_study('toy', 'simulated', 'fixture', overrides={'denoiser.batch': 4, 'inserter.batch': 4})
    assert study_source(study).title == 'toy'
    assert len(study_patches(study)) == 20


def test_without_it_the_built_in_source_is_taken(): assert titles('simulated') == ['simulated radiographs']


def fingerprint(data): return open_source(str(data), CONFIG).fingerprint()


@pytest.mark.parametrize('kind', ['folder', 'manifest', 'films'])
def test_the_fingerprint_is_made_of_contents(kind, folder, manifest, films, tmp_path):
    data = dict(folder=folder, manifest=manifest, films=films)[kind]
    source = open_source(str(data), CONFIG)
    before = source.fingerprint()
    copy = Path(shutil.copytree(source.root, tmp_path.parent/f'{tmp_path.name}-copy'))
    copied = copy/data.name if data.is_file() else copy
    for file in copy.rglob('*'): os.utime(file, (1, 1))
    assert fingerprint(copied) == before, 'another folder and other times change nothing'
    changed = copy/source.files()[-1].relative_to(source.root)
    changed.write_bytes(changed.read_bytes() + b' ')
    assert fingerprint(copied) != before


def test_a_renamed_file_changes_the_fingerprint(folder):
    before = fingerprint(folder)
    (folder/'crack'/'weld-0'/'0.png').rename(folder/'crack'/'weld-1'/'0.png')
    assert fingerprint(folder) != before


def test_files_are_those_that_are_read(manifest):
    (manifest.parent/'notes.txt').write_text('not named by the table')
    source = open_source(str(manifest), CONFIG)
    names = {str(file.relative_to(source.root)) for file in source.files()}
    table = pd.read_csv(manifest, keep_default_na=False)
    assert names == {'manifest.csv', *table.image, *table['mask']} - {''}


# --- bad input ---

class Sets(NamedTuple):
    "The three good sets."
    folder: Path
    manifest: Path
    films: Path


def edit(csv, line, column, value):
    "Changes one field of a table."
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    table.loc[line - 2, column] = value
    table.to_csv(csv, index=False)


def drop_labels(csv): pd.read_csv(csv).drop(columns='label').to_csv(csv, index=False)


def two_films(csv):
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    table.assign(film=['film-0', 'film-0', 'film-1', 'film-1']*12).to_csv(csv, index=False)


def porosity_in_one_film(csv):
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    table['label'] = ['porosity' if film == 'film-0' and i % 2 else 'clean' for i, film in enumerate(table.film)]
    table.drop(columns=['mask', 'size_mm']).to_csv(csv, index=False)


def folder_after(change):
    "Reads the folder after a change of one of its files, or of itself."
    def act(sets):
        change(sets.folder)
        return read_folder(sets.folder, PX)
    return act


def test_another_size_than_that_of_the_files_is_said(folder, capsys):
    read_folder(folder, PX)
    assert 'are studied at' not in capsys.readouterr().err
    read_folder(folder, 16)
    said = 'weldsynth: patches have 32 x 32 pixels in their files and are studied at 16 x 16 (data.px)'
    assert said in capsys.readouterr().err
    Image.fromarray(noise(1, 40)).save(first_crack(folder))
    read_folder(folder, PX)
    assert 'patches have 32 x 32 to 40 x 40 pixels in their files' in capsys.readouterr().err


def first_crack(folder): return folder/'crack'/'weld-0'/'0.png'


def manifest_after(*field, change=None):
    "Reads the manifest after a change of a field, or of the table."
    def act(sets):
        if field: edit(sets.manifest, *field)
        if change: change(sets.manifest)
        return read_manifest(sets.manifest, PX, 'film')
    return act


def windows_after(*field):
    "Reads the windows after a change of a field."
    def act(sets):
        edit(sets.films, *field)
        return read_windows(sets.films, PX, 'film')
    return act


def split_after(change): return lambda sets: split(manifest_after(change=change)(sets), CONFIG)


def empty_folder(sets):
    (sets.folder/'a'/'b').mkdir(parents=True)
    return read_folder(sets.folder/'a', PX)


BAD = {
    'missing folder': (
        lambda s: open_study('x', str(s.folder/'nowhere'), 'fixture'),
        r"nowhere' does not exist: give"),
    'unknown profile': (
        lambda s: open_study('x', 'simulated', 'turbo'),
        r"profile 'turbo' is unknown: choose one of .*demo"),
    'unreadable image': (
        folder_after(lambda f: first_crack(f).write_bytes(b'\x89PNG broken')),
        r'0\.png: cannot be read as an image .*: replace or remove'),
    'truncated image': (
        folder_after(lambda f: first_crack(f).write_bytes(first_crack(f).read_bytes()[:200])),
        r'0\.png: cannot be read as an image .*: replace or remove'),
    'one class only': (
        folder_after(lambda f: shutil.rmtree(f/'crack')),
        r"all images are labelled 'clean': .*needs at least one class"),
    'no clean': (
        folder_after(lambda f: shutil.rmtree(f/'clean')),
        r"no image is labelled 'clean' \(labels: crack\)"),
    'empty class folder': (
        folder_after(lambda f: (f/'slag').mkdir()),
        r'slag: is a class folder without images: fill or remove'),
    'no images': (empty_folder, r'has no images in class folders: put'),
    'image missing': (manifest_after(3, 'image', 'gone.png'), r'gone\.png: is missing: .* correct .*csv, line 3$'),
    'no group column': (
        lambda s: read_manifest(s.manifest, PX, 'group'),
        r"no column 'group' \(it has image, label, film, mask, size_mm\): say which .* --group film"),
    'no label column': (manifest_after(change=drop_labels), r"no column 'label'"),
    'blank label': (manifest_after(5, 'label', ' '), r"line 5: 'label' is blank"),
    'label that is a path': (
        manifest_after(5, 'label', '../up'),
        r"label '\.\./up': cannot name a class and its folder: use letters"),
    'synthetic as real': (
        manifest_after(2, 'origin', 'synthetic'),
        r'line 2: a synthetic image is given as a real one'),
    'window off the film': (
        windows_after(4, 'x', '90'),
        r'line 4: the window 90,0 of 48 px leaves the film film0 \(100 x 100 px\)'),
    'window not a number': (windows_after(4, 'x', 'left'), r'line 4: x, y and size must be whole numbers'),
    'film missing': (windows_after(4, 'film', 'film9'), r"line 4: film 'film9' is not in the folder films: add"),
    'more folds than groups': (
        split_after(two_films),
        r"class 'clean': comes from 2 groups, and three folds need three"),
    'empty class in a fold': (
        split_after(porosity_in_one_film),
        r"class 'porosity': comes from 1 group, and three folds need three"),
    'neither folder nor CSV': (
        lambda s: study_source(open_study('x', str(first_crack(s.folder)), 'fixture')),
        r'is neither a folder nor a CSV'),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_input_gets_one_line(kind, folder, manifest, films):
    act, message = BAD[kind]
    with pytest.raises(StudyError, match=message) as caught: act(Sets(folder, manifest, films))
    assert '\n' not in str(caught.value)


def test_an_error_names_its_issue(folder):
    with pytest.raises(DataError) as caught: open_source(str(folder/'nowhere'), CONFIG)
    assert caught.value.issue.what == 'does not exist'


def with_copies(manifest):
    "The manifest with every image a second time, in films of another name."
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    copies = table.assign(image=['copy-' + i for i in table.image], film=table.film + '-copy')
    for image in table.image: (manifest.parent/f'copy-{image}').write_bytes((manifest.parent/image).read_bytes())
    pd.concat([table, copies]).to_csv(manifest, index=False)
    return manifest


def test_a_copy_in_another_fold_is_refused(manifest):
    patches = split(read_manifest(with_copies(manifest), PX, 'film'), CONFIG)[0]
    with pytest.raises(StudyError, match=r".*: and '.*' are the same image in two folds"):
        report_duplicates(patches, CONFIG)


def artefacts(study): return [p for p in (study.path/'data').iterdir() if p.is_dir()]


def test_a_refused_study_leaves_nothing_behind(manifest):
    study = open_study('copies', str(with_copies(manifest)), 'fixture', 'film')
    with pytest.raises(StudyError): study_patches(study)
    assert not artefacts(study)


def test_a_study_keeps_its_plan(manifest):
    study = open_study('mine', str(manifest), 'fixture', 'film')
    (study.path/'ldm'/'denoiser-0').mkdir(parents=True)
    (study.path/'ldm'/'denoiser-0'/'artefact.json').write_text('{}')
    with pytest.raises(StudyError, match="was started with other settings .profile.*: choose another --name"):
        open_study('mine', str(manifest), 'smoke', 'film')


def test_changed_data_make_a_new_artefact(manifest):
    study = open_study('mine', str(manifest), 'fixture', 'film')
    first = study_patches(study)
    edit(manifest, 2, 'label', 'porosity')
    assert (study_patches(study).table.label != first.table.label).sum() == 1
    assert len(artefacts(study)) == 2


# --- splits by film and by section ---

def test_films_are_held_out_whole_where_groups_are_parts_of_them(tmp_path):
    rows = []
    for i in range(180):
        Image.fromarray(noise(i)).save(tmp_path/f'{i}.png')
        rows.append((f'{i}.png', ('clean', 'crack', 'pore')[i % 3], f'film-{i//30}', f'film-{i//30}-{i//5 % 6}'))
    table = pd.DataFrame(rows, columns=['image', 'label', 'film', 'section'])
    table.to_csv(tmp_path/'manifest.csv', index=False)
    table = study_patches(open_study('sections', str(tmp_path), 'fixture', 'section')).table
    held_out = set(table.film[table.fold == 'film'])
    assert held_out
    assert not held_out & set(table.film[table.fold != 'film'])
    assert set(table.fold) == {*FOLDS, 'film'}
    by_film = study_patches(open_study('films', str(tmp_path), 'fixture', 'film')).table
    assert 'film' not in set(by_film.fold), 'groups that are films need no such fold'


def test_the_shares_are_those_of_the_configuration():
    source = open_source('simulated', DataConfig(defects=400, cleans=400, plates=40))
    [patches] = split(source.read(PX, 'group'), DataConfig(train_share=.5, validation_share=.25, test_share=.25))
    shares = patches.table.fold.value_counts(normalize=True)
    assert abs(shares['validation'] - .25) < .03
    assert abs(shares['test'] - .25) < .03


@pytest.fixture(scope='module')
def radiographs(tmp_path_factory):
    "The same real radiographs twice: cut into files, with sections as welds, and as windows of films, by film."
    if not GDXRAY: pytest.skip('real radiographs: set WELDSYNTH_GDXRAY to the folder with films/, masks/, windows.csv')
    cut = tmp_path_factory.mktemp('gdxray')/'cut'
    subprocess.run([sys.executable, Path(GDXRAY)/'cut.py', cut], check=True)
    return (open_source(str(cut), CONFIG).read(PX, 'section'), open_source(GDXRAY, CONFIG).read(PX, 'film'))


def by_file(patches):
    "The table in the order of the files' names, with its row numbers."
    table = patches.table
    table = table.assign(row=range(len(table)), key=table.id.map(lambda i: Path(i).stem))
    return table.sort_values('key')


@pytest.mark.slow
def test_real_radiographs_are_the_same_by_manifest_and_by_windows(radiographs):
    cut, whole = radiographs
    a, b = by_file(cut), by_file(whole)
    assert len(a) == 20_000
    assert torch.equal(cut.images[a.row.to_numpy()], whole.images[b.row.to_numpy()])
    assert a.label.tolist() == b.label.tolist()
    assert a['size'].fillna(0).tolist() == b['size'].fillna(0).tolist()
    assert [*a.group.str.split('/').str[0]] == [*b.group]
    assert a.group.nunique() > 150
    assert b.group.nunique() == 24


@pytest.mark.slow
@pytest.mark.parametrize('kind, named', [(0, (*FOLDS, 'film')), (1, FOLDS)])
def test_real_radiographs_are_split(radiographs, kind, named):
    "Sections are parts of films, so whole films are held out beside."
    [folds] = split(radiographs[kind], CONFIG)
    report_duplicates(folds, CONFIG)
    assert folds.table.groupby('group').fold.nunique().max() == 1
    assert folds.table.groupby('fold').label.nunique().to_dict() == dict.fromkeys(named, 4)
