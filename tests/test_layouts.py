"""Folders as other tools write them: every layout, masks beside images, and clean under any name."""
import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from weldsynth.cli import main
from weldsynth.core.config import DataConfig, StudyError, with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.data.check import check_and_read
from weldsynth.data.clean import clean_labels, is_clean
from weldsynth.data.importing import import_data
from weldsynth.data.layouts import COLUMNS, LAYOUTS, Reading, layout_issues, understand
from weldsynth.data.readers import are_guessed
from weldsynth.data.sources import open_source
from weldsynth.data.split import split

CASES = Path(__file__).parent/'cases'
CONFIG = with_overrides(PROFILES['fixture'], {'data.shuffles': 1})
SIDE = CONFIG.data.px


def write_case(name, root):
    "Writes the input `name` below `root`; what its writer says to give as data, and the group."
    sys.path.insert(0, str(CASES))
    try:
        spec = importlib.util.spec_from_file_location(f'case_{name}', CASES/f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            spec.loader.exec_module(module)
            getattr(module, name)(root)
    finally: sys.path.remove(str(CASES))
    data = module.__doc__.split('| data: ')[1].split(' |')[0]
    group = module.__doc__.split('--group ')[1].split()[0] if '--group' in module.__doc__ else 'group'
    return str(root if data == '(the folder)' else root/data), group


def noise(seed, side=32): return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def write_images(root, paths):
    "Noise under each path; a mask with a square under each that has mask, GT or label in it."
    square = np.zeros((32, 32), np.uint8)
    square[8:16, 8:16] = 255
    for i, path in enumerate(paths):
        file = root/path
        file.parent.mkdir(parents=True, exist_ok=True)
        is_mask = any(word in path for word in ('mask', 'Mask', 'GT', '_label', 'ground_truth'))
        Image.fromarray(square if is_mask else noise(i)).save(file)


# --- the 22 inputs ---

WITH_FILMS = dict(clean=48, crack=24, porosity=24)

# case -> how it is understood, images of each label, groups (0: guessed), masks with a flaw (None: no masks)
READ = {
    'anomalib_folder_masks': (
        'anomalib folders: 2 kinds of flaw, masks from mask, 24 good', dict(clean=24, crack=24, porosity=24), 0, 48),
    'anomalib_masks_three_kinds': (
        'anomalib folders: 3 kinds of flaw, masks from mask, 24 good',
        dict(clean=24, crack=24, porosity=24, lof=24), 0, 72),
    'mvtec': (
        'MVTec AD: 2 kinds of flaw, masks from ground_truth, 56 good, '
        'split of its own not used (train 40, test 48), no folder names the weld',
        dict(clean=56, crack=16, porosity=16), 0, 32),
    'mask_suffix_beside': (
        'class folders: 2 kinds of flaw, masks from *_mask.png, 24 clean',
        dict(clean=24, crack=24, porosity=24), 6, 48),
    'mask_blank_for_clean': ('a table of images, manifest.csv', WITH_FILMS, 6, 48),
    'ng_with_subclasses': (
        'OK and NG folders: 3 kinds of flaw, 40 OK',
        {'clean': 40, 'crack': 20, 'porosity': 20, 'lack of fusion': 20}, 0, None),
    'riawelc_nd': ('class folders: 3 kinds of flaw, 48 ND', dict(clean=48, CR=24, PO=24, LP=24), 6, None),
    'riawelc_splits': (
        'class folders: 3 kinds of flaw, 60 ND, split of its own not used (train 80, validation 80, test 80)',
        dict(clean=60, CR=60, PO=60, LP=60), 0, None),
    'film_over_class': (
        'class folders in film folders: 2 kinds of flaw, 24 clean, welds named by folders',
        dict(clean=24, crack=24, porosity=24), 6, None),
    'hf_metadata_csv': ('a table of images, metadata.csv', WITH_FILMS, 6, None),
    'roboflow_augmented': ('class folders: 2 kinds of flaw, 72 clean', dict(clean=72, crack=72, porosity=72), 0, None),
    'wide_films_as_images': (
        'class folders: 2 kinds of flaw, 12 clean', dict(clean=12, crack=12, porosity=12), 6, None),
    'label_odd_chars': (
        'class folders: 2 kinds of flaw, 48 clean',
        {'clean': 48, 'Slag & tungsten inclusion': 24, "Root pass (d'un côté)": 24}, 6, None),
    'chinese_labels': ('class folders: 2 kinds of flaw, 48 clean', {'clean': 48, '裂纹': 24, '气孔': 24}, 6, None)}
CLEAN_CASES = {
    'clean_background': 'background', 'clean_defect_free': 'defect_free', 'clean_free': 'MT_Free',
    'clean_negative': 'negative', 'clean_no_defects': 'no_defects', 'clean_no_space': 'No Defect',
    'clean_non_defective': 'Non-defective', 'clean_nondefect': 'nondefect'}
READ |= {case: (f'class folders: 2 kinds of flaw, 48 {name}', WITH_FILMS, 6, None)
         for case, name in CLEAN_CASES.items()}


@pytest.mark.parametrize('case', READ)
def test_a_case_is_read_as_its_owner_means_it(case, tmp_path):
    understood, labels, groups, flawed_masks = READ[case]
    data, group = write_case(case, tmp_path/case)
    issues, patches = check_and_read(data, CONFIG, group)
    assert open_source(data, CONFIG.data).understood.startswith(f'read as {understood}')
    assert not (issues.severity == 'error').any(), issues.to_string()
    assert patches.table.label.value_counts().to_dict() == labels
    if groups: assert patches.table.group.nunique() == groups
    else: assert are_guessed(patches.table.group).all()
    if flawed_masks is None: assert patches.masks is None
    else:
        has_flaw = patches.masks.flatten(1).amax(1).gt(0)
        assert int(has_flaw.sum()) == flawed_masks
        assert not has_flaw[(patches.table.label == 'clean').to_numpy()].any()


@pytest.mark.parametrize('case', ['mask_blank_for_clean', 'mask_suffix_beside', 'anomalib_masks_three_kinds'])
def test_masks_are_never_a_nuisance(case, tmp_path):
    data, group = write_case(case, tmp_path/case)
    issues, _ = check_and_read(data, CONFIG, group)
    assert not issues.file.str.contains('mask').any(), issues.to_string()


def test_copies_of_one_source_share_a_group(tmp_path):
    data, _ = write_case('roboflow_augmented', tmp_path/'export')
    table = check_and_read(data, CONFIG)[1].table
    source = table.id.str.replace(r'\.rf\..*', '', regex=True)
    assert table.groupby(source).group.nunique().eq(1).all()
    assert table.group.nunique() == source.nunique() == 72


def test_whole_films_get_a_hint_to_the_table_of_windows(tmp_path):
    data, _ = write_case('wide_films_as_images', tmp_path/'films')
    issues, _ = check_and_read(data, CONFIG)
    [hint] = issues[issues.what.str.contains('look like whole films')].itertuples()
    assert hint.what == 'look like whole films (36 of 36, such as 1000 x 225 pixels)'
    assert 'windows.csv' in hint.fix


# --- others of their kinds, by their paths ---

def films(*folders, n=2, names=('f1', 'f2')):
    return [f'{folder}/{film}/{i}.png' for folder in folders for film in names for i in range(n)]


def flat(*folders, n=2, suffix='.png'): return [f'{folder}/{i}{suffix}' for folder in folders for i in range(n)]


# what it is -> paths, title, label -> images, groups, masks
OTHERS = {
    'Ultralytics, images over split': (
        flat('images/train/ok', 'images/train/crack', 'images/val/ok', 'images/val/crack'),
        'class folders', dict(clean=4, crack=4), {''}, 0),
    'Roboflow, valid': (
        flat('train/Good', 'train/Crack', 'valid/Good', 'test/Crack'), 'class folders',
        dict(clean=4, Crack=4), {''}, 0),
    'split below the class': (
        flat('ok/train', 'ok/test', 'crack/train', 'crack/test'), 'class folders', dict(clean=4, crack=4), {''}, 0),
    'split over class over film': (
        films('Train/ok', 'Train/crack', 'Test/ok'), 'class folders', dict(clean=8, crack=4), {'f1', 'f2'}, 0),
    'a folder around it all': (
        flat('casting_data/train/ok_front', 'casting_data/train/def_front', 'casting_data/test/ok_front'),
        'class folders', dict(clean=4, def_front=2), {''}, 0),
    'a folder around film over class': (
        flat('data/f1/ok', 'data/f1/crack', 'data/f2/crack'), 'class folders in film folders',
        dict(clean=2, crack=4), {'f1', 'f2'}, 0),
    'film over split-free NG': (
        flat('f1/OK', 'f1/NG/crack', 'f2/NG/slag'), 'OK and NG folders',
        dict(clean=2, crack=2, slag=2), {'f1', 'f2'}, 0),
    'NG with films': (films('OK', 'NG'), 'class folders', dict(clean=4, NG=4), {'f1', 'f2'}, 0),
    'NG with numbered welds': (
        flat('OK', 'NG/weld_01', 'NG/weld_02'), 'class folders', dict(clean=2, NG=4), {'', 'weld_01', 'weld_02'}, 0),
    'NG with kinds and films': (
        films('good', 'bad/crack', 'bad/porosity'), 'OK and NG folders', dict(clean=4, crack=4, porosity=4),
        {'f1', 'f2'}, 0),
    'NG in Chinese': (
        flat('合格', '不合格/裂纹', '不合格/气孔'), 'OK and NG folders', {'clean': 2, '裂纹': 2, '气孔': 2}, {''}, 0),
    'defects and no defect': (
        flat('No Defect', 'Defects/crack', 'Defects/pore'), 'OK and NG folders',
        dict(clean=2, crack=2, pore=2), {''}, 0),
    'masks in class folders': (
        flat('good/images', 'crack/images', 'crack/masks'), 'class folders', dict(clean=2, crack=2), {''}, 2),
    'masks over films': (
        films('good', 'crack', 'Masks/crack'), 'anomalib folders', dict(clean=4, crack=4), {'f1', 'f2'}, 4),
    'masks in a split': (
        flat('train/images/good', 'train/images/crack', 'train/masks/crack', 'test/images/crack', 'test/masks/crack'),
        'class folders', dict(clean=2, crack=4), {''}, 4),
    'labels are masks': (
        flat('images/good', 'images/crack', 'labels/crack'), 'anomalib folders', dict(clean=2, crack=2), {''}, 2),
    'class folders with masks beside them': (
        flat('good', 'crack', 'crack_mask'), 'anomalib folders', dict(clean=2, crack=2), {''}, 2),
    'one flat folder of masks': (
        ['good/g0.png', 'crack/c0.png', 'crack/c1.png', 'ground-truth/c0.png', 'ground-truth/c1.png'],
        'anomalib folders', dict(clean=1, crack=2), {''}, 2),
    'GT': (['good/0.png', 'crack/1.png', 'crack/1_GT.png'], 'class folders', dict(clean=1, crack=1), {''}, 1),
    'label': (['good/0.jpg', 'crack/1.jpg', 'crack/1_label.bmp'], 'class folders', dict(clean=1, crack=1), {''}, 1),
    'dot mask': (['good/0.jpg', 'crack/1.jpg', 'crack/1.mask.png'], 'class folders', dict(clean=1, crack=1), {''}, 1),
    'mask first': (['good/0.jpg', 'crack/1.jpg', 'crack/mask_1.png'], 'class folders', dict(clean=1, crack=1), {''}, 1),
    'image and mask': (
        ['good/0_image.png', 'crack/1_image.png', 'crack/1_mask.png'], 'class folders',
        dict(clean=1, crack=1), {''}, 1),
    'magnetic tiles': (
        ['MT_Free/Imgs/1.jpg', 'MT_Free/Imgs/1.png', 'MT_Crack/Imgs/2.jpg', 'MT_Crack/Imgs/2.png'],
        'class folders', dict(clean=1, MT_Crack=1), {''}, 2),
    'a class of labels that are images': (
        flat('good', 'crack', 'label'), 'class folders', dict(clean=2, crack=2, label=2), {''}, 0),
    'an image called like a mask': (
        ['good/1.png', 'crack/2.png', 'crack/3_gt.png'], 'class folders', dict(clean=1, crack=2), {''}, 0),
    'BTAD': (
        flat('01/train/ok', '01/test/ko', '02/train/ok', '02/test/ko', '01/ground_truth/ko', '02/ground_truth/ko'),
        'MVTec AD', dict(clean=4, ko=4), {'01', '02'}, 4),
    'MVTec LOCO': (
        ['train/good/0.png', 'test/scratch/0.png', 'ground_truth/scratch/0/000.png'], 'MVTec AD',
        dict(clean=1, scratch=1), {''}, 1),
    'VisA': (
        flat('Data/Images/Normal', 'Data/Images/Anomaly', suffix='.JPG') + flat('Data/Masks/Anomaly'),
        'VisA', dict(clean=2, Anomaly=2), {''}, 2),
    'classes in names': (
        ['normal_01.png', 'normal_02.png', 'crack_01.png', 'crack_02.png'],
        'classes in file names', dict(clean=2, crack=2), {''}, 0),
    'Kolektor': (
        [f'kos{k}/Part{i}{s}' for k in (1, 2) for i in (0, 1) for s in ('.jpg', '_label.bmp')],
        'images with masks', {'': 4}, {'kos1', 'kos2'}, 4),
    'no name for clean': (films('A', 'B'), 'class folders', dict(A=4, B=4), {'f1', 'f2'}, 0)}


@pytest.mark.parametrize('kind', OTHERS)
def test_others_of_their_kinds(kind):
    paths, title, labels, groups, masks = OTHERS[kind]
    reading = understand(paths)
    assert reading.title == title
    assert reading.rows.label.value_counts().to_dict() == labels
    assert set(reading.rows.group) == groups
    assert (reading.rows['mask'] != '').sum() == masks
    assert list(reading.rows) == COLUMNS
    assert not reading.outside
    everything = {*reading.rows.image, *reading.rows['mask']} - {''}
    assert everything == set(paths)


def test_the_order_of_the_files_does_not_matter():
    for paths, *_ in OTHERS.values():
        there, back = (understand(p).rows.sort_values('image', ignore_index=True) for p in (paths, paths[::-1]))
        pd.testing.assert_frame_equal(there, back)


def test_a_layout_of_ones_own_is_one_line(monkeypatch):
    def by_suffix(listing):
        if not all(image.path.endswith('_ok.png') or '_flaw' in image.path for image in listing.images): return None
        rows = [(i.path, 'clean' if 'ok' in i.path else 'flaw', '', '', '') for i in listing.images]
        return Reading(pd.DataFrame(rows, columns=COLUMNS), 'own', 'own', [], listing.pairing)
    monkeypatch.setattr('weldsynth.data.layouts.LAYOUTS', {'own': by_suffix, **LAYOUTS})
    assert understand(['1_ok.png', '2_flaw.png']).title == 'own'
    assert understand(['ok/1.png', 'crack/2.png']).title == 'class folders'


# --- what is said ---

def said(paths): return [str(issue) for issue in layout_issues(understand(paths))]


def test_missing_masks_are_counted():
    paths = [*flat('good', 'crack', n=4), 'mask/crack/0.png']
    assert understand(paths).note.startswith(
        'anomalib folders: 1 kind of flaw, masks from mask (missing for 3 of 4 flaws), 4 good')
    [line] = said(paths)
    assert line.startswith('crack/1.png: has no mask, as have 3 of 4 flaws')


def test_masks_without_an_image_are_counted():
    [line] = said([*flat('good', 'crack'), *flat('masks/crack', n=5)])
    assert line.startswith('masks/crack/2.png: is a mask without an image (3 such masks), and is not read')


def test_images_without_a_class_are_counted_in_a_split():
    [line] = said([*flat('train/good', 'train/crack'), *flat('test', n=9)])
    assert line.startswith('test/0.png: lies in no class folder (9 such images), and is not read')


def test_a_split_beside_class_folders_is_refused_in_one_line(tmp_path):
    write_images(tmp_path, flat('train/clean', 'train/crack', 'crack'))
    issues, patches = check_and_read(str(tmp_path), CONFIG)
    assert patches is None
    assert issues.file.tolist() == ['train']
    assert issues.what.tolist() == ['is a split, not a class']


# --- clean ---

SURE = """good Good GOOD ok Ok OK okay normal Normal clean CLEAN no_defect no-defect NoDefect nodefect no_defects
    No_Defects non-defective nondefective non_defect nondefect defect-free defectfree flawless no_flaw without_defects
    zero_defects free_of_defects no_crack non-cracked uncracked crack_free undamaged healthy intact 0_good 1-ok weld_ok
    good_weld OK_images NoDifetto nodifetti senza_difetti buono conforme fehlerfrei ohne_Fehler kein_Fehler keine_Fehler
    rissfrei i.O. gut
    sans_défaut sans-defauts aucun_défaut bon sain sin_defecto sin-defectos ningún_defecto bueno sem_defeito
    合格 正常 良品 无缺陷 無缺陷 没有缺陷
    欠陥なし 異常なし 정상 no_recordable_indications"""
UNSURE = 'ND nd N.D. negative Neg free MT_Free accept Accepted background Background BG pass'
FLAWS = """crack NG ng nok KO not_ok n.i.O. bad defect defective abnormal anomaly difetto Difetto1 défaut defecto Fehler
    不合格 缺陷 裂纹 gas_free cleaning normalised a_crack un_défaut
    no_good not_normal reject positive
    none unknown 0 nonconforming"""


@pytest.mark.parametrize('name', SURE.split())
def test_a_sure_name_for_clean(name):
    assert is_clean(name)
    assert is_clean(name.replace('_', ' '))
    assert clean_labels([name, 'crack', 'pore']) == {name}


@pytest.mark.parametrize('name', UNSURE.split())
def test_an_unsure_name_for_clean_counts_where_there_is_no_sure_one(name):
    assert not is_clean(name)
    assert clean_labels([name, 'crack', 'pore']) == {name}
    assert clean_labels([name, 'good', 'pore']) == {'good'}


@pytest.mark.parametrize('name', FLAWS.split())
def test_no_name_for_clean(name):
    assert clean_labels([name, 'pore', 'slag']) == set()
    assert clean_labels([name, 'good', 'pore']) == {'good'}


def test_an_unsure_name_beside_a_sure_one_is_a_flaw_and_said_so(tmp_path):
    write_images(tmp_path, films('OK', 'ND', 'crack', n=4, names=('f1', 'f2', 'f3', 'f4')))
    issues, patches = check_and_read(str(tmp_path), CONFIG)
    assert patches.classes == ('clean', 'ND', 'crack')
    [line] = issues[issues.file == "label 'ND'"].itertuples()
    assert (line.severity, line.fix) == ('warning', "--clean 'ND' if its images have no flaw")


def test_the_message_names_the_labels_and_what_was_looked_for(tmp_path):
    write_images(tmp_path, films('Klasse A', 'Klasse B'))
    issues, _ = check_and_read(str(tmp_path), CONFIG)
    [line] = issues[issues.file == 'labels'].itertuples()
    assert line.what == "no image is labelled 'clean' (labels: Klasse A, Klasse B)"
    assert 'NoDifetto' in line.fix
    assert '--clean NAME (make: CLEAN=NAME)' in line.fix


@pytest.mark.parametrize('named', ['Klasse A', 'klasse_a', 'other,KLASSE-A'])
def test_clean_can_be_named(named, tmp_path):
    write_images(tmp_path, films('Klasse A', 'Klasse B'))
    source = open_source(str(tmp_path), DataConfig(clean=named))
    assert source.read(SIDE, 'group').table.label.value_counts().to_dict() == {'clean': 4, 'Klasse B': 4}
    assert '4 Klasse A' in source.understood


def test_clean_can_be_named_in_a_table(tmp_path):
    write_images(tmp_path, ['0.png', '1.png'])
    (tmp_path/'manifest.csv').write_text('image,label,group\n0.png,A,x\n1.png,B,x\n')
    patches = open_source(str(tmp_path), DataConfig(clean='A')).read(SIDE, 'group')
    assert patches.table.label.tolist() == ['clean', 'B']


# --- tables of other tools ---

@pytest.mark.parametrize('head', ['file_name,label,film', 'File_Name,category,film', 'image_path,class,film',
                                  'filename,label,film'])
def test_columns_of_other_tools(head, tmp_path):
    write_images(tmp_path, ['0.png', '1.png'])
    (tmp_path/'metadata.csv').write_text(f'{head}\n0.png,good,x\n1.png,crack,x\n')
    patches = open_source(str(tmp_path), DataConfig()).read(SIDE, 'film')
    assert patches.table.label.tolist() == ['clean', 'crack']


def test_a_table_that_names_no_labels_leaves_the_folders_to_name_them(tmp_path):
    write_images(tmp_path, films('good', 'crack'))
    (tmp_path/'metadata.csv').write_text('file_name,operator\ngood/f1/0.png,x\n')
    assert open_source(str(tmp_path), DataConfig()).understood.startswith('read as class folders: 1 kind of flaw')


def test_how_many_images_have_a_weld_is_said(tmp_path):
    write_images(tmp_path, ['good/f1/0.png', 'good/f1/1.png', 'crack/f2/0.png', 'crack/1.png'])
    assert open_source(str(tmp_path), DataConfig()).understood.endswith('welds named by folders for 3 of 4')


# --- masks decide where no folder does ---

def test_without_class_folders_the_masks_say_what_is_flawed(tmp_path):
    write_images(tmp_path, [f'kos{k}/Part{i}{s}' for k in range(4) for i in range(4) for s in ('.png', '_label.png')])
    for file in tmp_path.glob('*/Part[12]_label.png'): Image.fromarray(np.zeros((32, 32), np.uint8)).save(file)
    patches = open_source(str(tmp_path), DataConfig()).read(SIDE, 'group')
    assert patches.table.label.value_counts().to_dict() == {'clean': 8, 'flaw': 8}
    assert patches.table.group.nunique() == 4


# --- the split that came with the data ---

def test_the_given_split_is_kept_where_welds_allow(tmp_path):
    names = [f'w{i}' for i in range(8)]
    trained = films('train/ok', 'train/crack', names=names[:6])
    write_images(tmp_path, [*trained, *films('test/ok', 'test/crack', names=names[6:]), 'test/crack/w0/9.png'])
    config = with_overrides(CONFIG, {'data.given_split': 'true'})
    issues, patches = check_and_read(str(tmp_path), config)
    [table] = [part.table for part in split(patches, config.data)]
    assert set(table.group[table.fold == 'test']) == {'w6', 'w7'}
    assert set(table.fold) == {'train', 'validation', 'test'}
    assert table.groupby('group').fold.nunique().eq(1).all()
    [line] = issues[issues.file == "group 'w0'"].itertuples()
    assert line.what == 'lies in several parts of the given split, as do 1 group of 8'
    understood = open_source(str(tmp_path), config.data).understood
    assert 'split of its own kept where welds allow (train 24, test 9)' in understood


def test_a_given_split_that_is_not_there_is_refused(tmp_path):
    write_images(tmp_path, films('ok', 'crack', names=('a', 'b', 'c', 'd')))
    patches = open_source(str(tmp_path), DataConfig()).read(SIDE, 'group')
    with pytest.raises(StudyError, match='is to be kept, and the data have none: leave out'):
        split(patches, DataConfig(given_split=True))


# --- import ---

def same(a, b):
    "Do two sets hold the same patches, whatever their order?"
    a, b = (s.take(np.argsort(s.table.id.to_numpy())) for s in (a, b))
    columns = ['id', 'label', 'group']
    assert a.table[columns].equals(b.table[columns])
    assert (a.images == b.images).all()
    assert (a.masks is None) == (b.masks is None)
    if a.masks is not None: assert (a.masks == b.masks).all()


@pytest.mark.parametrize('case', ['mvtec', 'film_over_class', 'ng_with_subclasses', 'mask_suffix_beside',
                                  'riawelc_splits', 'hf_metadata_csv', 'roboflow_augmented'])
@pytest.mark.parametrize('elsewhere', [False, True])
def test_import_writes_the_same_data_down(case, elsewhere, tmp_path):
    data, group = write_case(case, tmp_path/case)
    before = open_source(data, CONFIG.data).read(SIDE, group)
    files = set((tmp_path/case).rglob('*'))
    to = tmp_path/'new' if elsewhere else tmp_path/case
    assert main(['import', data, *([str(to)] if elsewhere else []), '--profile', 'fixture']) == 0
    assert set((tmp_path/case).rglob('*')) - files == (set() if elsewhere else {to/'manifest.csv'})
    same(before, open_source(str(to), CONFIG.data).read(SIDE, group))


def test_import_keeps_a_table_that_is_there(tmp_path, capsys):
    write_images(tmp_path, films('ok', 'crack'))
    assert main(['import', str(tmp_path)]) == 0
    before = (tmp_path/'manifest.csv').read_text()
    assert main(['import', str(tmp_path)]) == 1
    assert 'is there already: remove it, or name another folder' in capsys.readouterr().err
    assert (tmp_path/'manifest.csv').read_text() == before


def test_import_writes_clean_under_its_own_name(tmp_path):
    write_images(tmp_path, films('Klasse A', 'Klasse B'))
    assert main(['import', str(tmp_path), '--clean', 'Klasse A']) == 0
    table = pd.read_csv(tmp_path/'manifest.csv')
    assert set(table.label) == {'clean', 'Klasse B'}


def test_simulated_radiographs_are_not_imported():
    simulated = open_source('simulated', CONFIG.data)
    with pytest.raises(StudyError, match='cannot be imported'): import_data(simulated, Path('.'))


# --- the command ---

def test_check_says_how_the_folder_was_understood(tmp_path, capsys):
    data, _ = write_case('mvtec', tmp_path/'bottle')
    assert main(['check', data, '--profile', 'fixture']) == 0
    assert 'bottle is read as MVTec AD: 2 kinds of flaw, masks from ground_truth, 56 good' in capsys.readouterr().err


def test_check_takes_the_name_of_clean_and_the_split(tmp_path, capsys):
    write_images(tmp_path, films('train/A', 'train/B', 'test/A', 'test/B', n=6, names=[f'{i}' for i in range(8)]))
    assert main(['check', str(tmp_path), '--profile', 'fixture', '--clean', 'A', '--split', 'given']) in (0, 1)
    err = capsys.readouterr().err
    assert '96 A' in err
    assert 'kept where welds allow' in err
    assert main(['check', str(tmp_path), '--split', 'mine']) == 1


# --- tables of Hugging Face ---

def as_json_lines(folder):
    "The case of Hugging Face's metadata, with a JSON object on each line."
    write_case('hf_metadata_csv', folder)
    table = pd.read_csv(folder/'metadata.csv')
    table.to_json(folder/'metadata.jsonl', orient='records', lines=True)
    (folder/'metadata.csv').unlink()
    return folder


def test_metadata_may_be_json_lines(tmp_path):
    issues, patches = check_and_read(str(as_json_lines(tmp_path/'set')), CONFIG, 'film')
    assert not (issues.severity == 'error').any()
    assert (len(patches), patches.classes) == (96, ('clean', 'crack', 'porosity'))


def test_a_line_that_is_no_json_object_is_named(tmp_path):
    folder = as_json_lines(tmp_path/'set')
    lines = (folder/'metadata.jsonl').read_text().splitlines()
    (folder/'metadata.jsonl').write_text('\n'.join([*lines[:4], '["a list"]', *lines[4:]]))
    issues, _ = check_and_read(str(folder/'metadata.jsonl'), CONFIG, 'film')
    assert issues.loc[0, ['file', 'what']].tolist() == ['metadata.jsonl, line 5', 'is not a JSON object']


def test_tables_in_the_folders_of_splits_are_to_be_joined(tmp_path):
    for part in ('train', 'test'): as_json_lines(tmp_path/'set'/part)
    issues, _ = check_and_read(str(tmp_path/'set'), CONFIG, 'film')
    first = issues.loc[0]
    assert (first.file, first.what) == ('test/metadata.jsonl', 'names the labels of its own folder alone')
