"""Flaws marked on whole images: formats are read alike, windows keep their distance, no pixel lies in two folds."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from weldsynth.core.config import DataConfig
from weldsynth.core.profiles import PROFILES
from weldsynth.data.annotation_formats import ANNOTATIONS, find_annotations, read_annotations
from weldsynth.data.annotations import Annotation
from weldsynth.data.check import check_and_read
from weldsynth.data.film_windows import place_windows, read_films
from weldsynth.data.flaw_maps import draw, flaw_map
from weldsynth.data.images import DataError, ImageError
from weldsynth.data.sources import AnnotatedFilms, open_source, tell_understood
from weldsynth.data.split import split

CASES = Path(__file__).parent/'cases'
PX = 32
CONFIG = DataConfig(px=PX)
KINDS = ('crack', 'pore')


# --- the cases ---

def write_case(name, root):
    subprocess.run([sys.executable, CASES/f'{name}.py', root], check=True)
    return root


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    "A case by its name, written once."
    made = {}
    def get(name):
        if name not in made: made[name] = write_case(name, tmp_path_factory.mktemp(name)/'set')
        return made[name]
    return get


EXPECTED = {  # what is given, labels and their number, groups, flawed patches with a mask, the beginning of the line
    'yolo_det_roboflow': ('', dict(clean=50, crack=50, porosity=50), 90,
                          'read as YOLO: 100 flaws of 2 kinds on 150 films (50 without flaw), weak'),
    'voc_neu_det': ('', dict(crazing=20, inclusion=20, patches=20), 60,
                    'read as Pascal VOC: 60 flaws of 3 kinds on 60 films, weak'),
    'labelme_flat': ('', {'clean': 20, 'air-hole': 20, 'crack': 20}, 60,
                     'read as labelme: 40 flaws of 2 kinds on 60 films (20 without flaw), masks as drawn; 40 flawed'),
    'severstal_rle': ('train.csv', dict(clean=406, class_1=72, class_2=76), 60,
                      'read as run lengths: 40 flaws of 2 kinds on 60 films (20 without flaw), masks as drawn; 148 '),
    'gdxray_raw': ('', dict(clean=38, flaw=160), 4, 'read as GDXray: 4 flaws of 1 kind on 4 films, masks as drawn')}


@pytest.mark.parametrize('name', EXPECTED)
def test_a_case_is_read_as_its_owner_means_it(case, name):
    data, labels, groups, understood = EXPECTED[name]
    source = open_source(str(case(name)/data), DataConfig())
    patches = source.read(64, 'group', lambda issue: None)
    assert patches.table.label.value_counts().to_dict() == labels
    assert patches.table.group.nunique() == groups
    flawed = torch.tensor(list(patches.table.label != 'clean'))
    assert (patches.masks.flatten(1).amax(1) > 0).equal(flawed)
    assert source.understood.startswith(understood)


@pytest.mark.parametrize('name', [n for n in EXPECTED if n != 'voc_neu_det'])
def test_check_finds_no_error_in_a_case(case, name):
    issues, patches = check_and_read(str(case(name)/EXPECTED[name][0]), PROFILES['fixture'])
    errors = issues[(issues.severity == 'error') & ~issues.what.str.contains('nearly the same image')]
    assert patches is not None
    assert errors.empty


def test_a_set_without_images_of_good_metal_is_refused_in_one_line(case):
    issues, _ = check_and_read(str(case('voc_neu_det')), PROFILES['fixture'])
    errors = issues[issues.severity == 'error']
    assert len(errors) == 1
    assert errors.what[0] == "no image is labelled 'clean' (labels: crazing, inclusion, patches)"


@pytest.mark.parametrize('data', ['', 'train.csv'])
def test_run_lengths_are_found_in_the_folder_and_by_their_table(case, data):
    assert open_source(str(case('severstal_rle')/data), CONFIG).title == 'films with run lengths annotations'


def test_a_series_of_gdxray_without_masks_is_left_out_and_said(case):
    issues, _ = check_and_read(str(case('gdxray_raw')), PROFILES['fixture'])
    assert issues.what[issues.file == 'series W0003'].tolist() == \
        ['has neither masks nor a ground_truth.txt, so it is left out (4 films)']


@pytest.mark.parametrize('name', ['films_boxes', 'films_float_xy'])
def test_windows_as_boxes_or_floats_are_the_same_windows(case, name):
    patches = open_source(str(case(name)), CONFIG).read(PX, 'group')
    assert patches.table.label.value_counts().to_dict() == dict(clean=48, crack=24, porosity=16)
    assert patches.table.id[0] == 'F001_00000_00020'
    other = open_source(str(case('films_boxes')), CONFIG).read(PX, 'group')
    assert patches.images.equal(other.images)


# --- one set in every format ---

def film(seed, marks, h=96, w=400):
    "A film, uint8, with dark rectangles (left, top, right, bottom)."
    rng = np.random.default_rng(seed)
    grey = 150 + rng.normal(0, 8, (h, w))
    for left, top, right, bottom in marks: grey[top:bottom, left:right] -= 60
    return grey.clip(0, 255).astype(np.uint8)


MARKS = {f'film{i}': [('crack', (40 + 9*i, 30, 70 + 9*i, 38)), ('pore', (250 + 5*i, 50, 262 + 5*i, 62))]
         for i in range(5)}
MARKS['film5'] = []
H, W = 96, 400


def put_films(root, ending='.png', folder='images', marks=MARKS):
    for i, (name, boxes) in enumerate(marks.items()):
        path = root/folder/f'{name}{ending}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film(i, [b for _, b in boxes])).save(path)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), 'utf-8')


def corners(box):
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def shares(points): return ' '.join(f'{x/W:.6f} {y/H:.6f}' for x, y in points)


def box_shares(box):
    left, top, right, bottom = box
    return f'{(left + right)/2/W:.6f} {(top + bottom)/2/H:.6f} {(right - left)/W:.6f} {(bottom - top)/H:.6f}'


def yolo(root, line, names='names: [crack, pore]\n', labels='labels'):
    for name, marks in MARKS.items():
        put(root/labels/f'{name}.txt', ''.join(f'{KINDS.index(kind)} {line(box)}\n' for kind, box in marks))
    if names: put(root/'data.yaml', names)


def yolo_boxes(root): put_films(root), yolo(root, box_shares)


def yolo_polygons(root): put_films(root), yolo(root, lambda box: shares(corners(box)))


def yolo_classes_txt(root):
    put_films(root, folder='.')
    yolo(root, box_shares, names='', labels='.')
    put(root/'classes.txt', 'crack\npore\n')


def yolo_names_by_number(root):
    put_films(root, '.PNG', 'Images')
    yolo(root, box_shares, 'path: ../x\nnames:\n  0: crack\n  1: pore\n', 'Labels')


def yolo_splits(root):
    for i, name in enumerate(MARKS):
        split_name = ('train', 'valid', 'test')[i % 3]
        put_films(root, folder=f'images/{split_name}', marks={name: MARKS[name]})
        lines = (f'{KINDS.index(kind)} {box_shares(box)}\n' for kind, box in MARKS[name])
        put(root/f'labels/{split_name}/{name}.txt', ''.join(lines))
    put(root/'weld.yaml', 'names: [crack, pore]')


def coco(root, shape, file='annotations/instances.json', folder='images', start=5):
    put_films(root, folder=folder)
    images = [dict(id=i, file_name=f'{name}.png', width=W, height=H) for i, name in enumerate(MARKS)]
    marks = [dict(id=100*i + j, image_id=i, category_id=start + KINDS.index(kind), **shape(box))
             for i, boxes in enumerate(MARKS.values()) for j, (kind, box) in enumerate(boxes)]
    categories = [dict(id=start + i, name=kind, supercategory='flaw') for i, kind in enumerate(KINDS)]
    put(root/file, dict(info={}, images=images, annotations=marks, categories=categories))


def bbox(box): return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def coco_boxes(root): coco(root, lambda box: dict(bbox=bbox(box), segmentation=[], iscrowd=0), start=0)


def coco_polygons(root):
    coco(root, lambda box: dict(bbox=bbox(box), segmentation=[[v for p in corners(box) for v in p]]))


def coco_roboflow(root):
    coco(root, lambda box: dict(bbox=bbox(box), segmentation=[]), 'train/_annotations.coco.json', 'train')


def pixels(box):
    mask = np.zeros((H, W), bool)
    mask[box[1]:box[3], box[0]:box[2]] = True
    return mask


def runs_of(mask):
    "Pairs of start (from 0) and length, column by column."
    steps = np.flatnonzero(np.diff(np.pad(mask.T.ravel().astype(int), 1)))
    return [(int(a), int(b - a)) for a, b in zip(steps[::2], steps[1::2], strict=True)]


def coco_crowd(root):
    def counts(box):
        ends, found = 0, []
        for start, length in runs_of(pixels(box)):
            found += [start - ends, length]
            ends = start + length
        return dict(size=[H, W], counts=[*found, H*W - ends])
    coco(root, lambda box: dict(bbox=bbox(box), segmentation=counts(box), iscrowd=1))


def coco_packed(root):
    from pycocotools import mask
    def rle(box):
        packed = mask.encode(np.asfortranarray(pixels(box).astype(np.uint8)))
        return dict(size=[H, W], counts=packed['counts'].decode())
    coco(root, lambda box: dict(bbox=bbox(box), segmentation=rle(box), iscrowd=0))


def voc(root, name='{}', filename='{}.png', head=''):
    put_films(root, folder='JPEGImages')
    for film_name, marks in MARKS.items():
        sides = ('xmin', 'ymin', 'xmax', 'ymax')
        objects = ''.join(f'<object><name>{kind}</name><bndbox>' + ''.join(
            f'<{s}>{v + (s.endswith("min"))}</{s}>' for s, v in zip(sides, box, strict=True)) + '</bndbox></object>'
            for kind, box in marks)
        size = f'<size><width>{W}</width><height>{H}</height></size>'
        put(root/'Annotations'/f'{name.format(film_name)}.xml',
            f'{head}<annotation><filename>{filename.format(film_name)}</filename>{size}{objects}</annotation>')


def voc_named_inside(root): voc(root, name='label_of_{}', filename='C:\\welds\\JPEGImages\\{}.JPG')


def labelme(root, kind='polygon', folder='.'):
    put_films(root, folder=folder)
    points = corners if kind == 'polygon' else lambda box: [box[:2], box[2:]]
    for name, marks in MARKS.items():
        if not marks: continue  # an image without a file has no flaw
        shapes = [dict(label=label, points=points(box), shape_type=kind) for label, box in marks]
        put(root/folder/f'{name}.json', dict(version='5.2', shapes=shapes, imagePath=f'{name}.png', imageData=None,
                                             imageHeight=H, imageWidth=W))


def labelme_boxes(root): labelme(root, 'rectangle', 'a/b')


def cvat(root):
    put_films(root)
    def mark(kind, box):
        return f'<polygon label="{kind}" points="{";".join(f"{x},{y}" for x, y in corners(box))}"/>'
    images = (f'<image id="0" name="{n}.png" width="{W}" height="{H}">{"".join(mark(*m) for m in marks)}</image>'
              for n, marks in MARKS.items())
    put(root/'annotations.xml', f'<?xml version="1.0"?><annotations>{"".join(images)}</annotations>')


def table(root, columns, row, file='train.csv', blank=None):
    put_films(root, folder='train_images')
    rows = [row(name, kind, box) for name, marks in MARKS.items() for kind, box in marks]
    if blank: rows.append(blank)
    pd.DataFrame(rows, columns=columns).to_csv(root/file, index=False)


def text_runs(box): return ' '.join(f'{start + 1} {length}' for start, length in runs_of(pixels(box)))


def run_lengths(root):
    table(root, ['ImageId', 'ClassId', 'EncodedPixels'], lambda n, k, b: (f'{n}.png', k, text_runs(b)))


def run_lengths_old(root):
    table(root, ['ImageId_ClassId', 'EncodedPixels'], lambda n, k, b: (f'{n}.png_{k}', text_runs(b)),
          blank=('film5.png_1', ''))


def box_table(root):
    table(root, ['filename', 'width', 'height', 'class', 'xmin', 'ymin', 'xmax', 'ymax'],
          lambda n, k, b: (f'{n}.png', W, H, k, *b), '_annotations.csv')


def box_table_windows_csv(root):
    columns = ['Film', 'X', 'Y', 'Width', 'Height', 'Label']
    table(root, columns, lambda n, k, b: (n, *map(float, bbox(b)), k), 'windows.csv')


WEAK = (yolo_boxes, yolo_classes_txt, yolo_names_by_number, yolo_splits, coco_boxes, coco_roboflow, voc,
        voc_named_inside, labelme_boxes, box_table, box_table_windows_csv)
EXACT = (yolo_polygons, coco_polygons, coco_crowd, coco_packed, labelme, cvat, run_lengths, run_lengths_old)


def source_of(root): return open_source(str(root), CONFIG)


@pytest.mark.parametrize('nested', ['', 'export/v2'])
@pytest.mark.parametrize('write', WEAK + EXACT, ids=lambda f: f.__name__)
def test_every_format_marks_the_same_pixels(tmp_path, write, nested):
    write(tmp_path/nested)
    source = source_of(tmp_path)
    assert isinstance(source, AnnotatedFilms)
    films, issues = source.films
    assert issues == []
    assert {Path(f.path).stem: [m.label for m in f.marks if m.kind] for f in films} == \
        {name: [kind for kind, _ in marks] for name, marks in MARKS.items()}
    for f in films:
        truth = np.any([np.zeros((H, W), bool), *(pixels(box) for _, box in MARKS[Path(f.path).stem])], axis=0)
        wrong = truth ^ (flaw_map(f.marks, f.shape) > 0)
        assert wrong.sum() == 0


@pytest.mark.parametrize('write', WEAK + EXACT, ids=lambda f: f.__name__)
def test_weak_masks_are_marked_so(tmp_path, write):
    write(tmp_path)
    source = source_of(tmp_path)
    patches = source.read(PX, 'group')
    flawed = patches.table[patches.table.label != 'clean']
    assert flawed.weak_mask.all() if write in WEAK else not flawed.weak_mask.any()
    assert ('weak masks from boxes' in source.understood) == (write in WEAK)
    assert flawed['size'].isna().all() if write in WEAK else flawed['size'].gt(0).all()
    assert not patches.table.weak_mask[patches.table.label == 'clean'].any()


def test_pictures_of_masks_are_no_films(tmp_path):
    voc(tmp_path)
    for name in MARKS:
        path = tmp_path/'SegmentationClass'/f'{name}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels((0, 0, 9, 9))).convert('P').save(path)
    assert {f.path for f in source_of(tmp_path).films[0]} == {f'JPEGImages/{name}.png' for name in MARKS}


def test_labels_may_be_in_any_script_and_yaml_s_no_is_a_name(tmp_path):
    put_films(tmp_path)
    yolo(tmp_path, box_shares, 'names: [裂纹, no]\n')
    labels = {m.label for f in source_of(tmp_path).films[0] for m in f.marks if m.kind}
    assert labels == {'裂纹', 'no'}


def test_a_class_called_good_marks_no_flaw(tmp_path):
    put_films(tmp_path)
    yolo(tmp_path, box_shares, 'names: [crack, good]\n')
    assert {m.label for f in source_of(tmp_path).films[0] for m in f.marks if m.kind} == {'crack'}


def test_the_split_of_the_folders_is_told_and_kept_as_a_column(tmp_path):
    yolo_splits(tmp_path)
    source = source_of(tmp_path)
    assert source.understood.endswith('split of its own not used (train 2, validation 2, test 2)')
    assert set(source.read(PX, 'group').table.given) == {'train', 'validation', 'test'}


# --- not an annotated set ---

@pytest.mark.parametrize('files', [
    ('clean/a.png', 'crack/b.png', 'readme.txt', 'crack/notes.txt'), ('a.json', 'a.png'), ('a.xml', 'a.png'),
    ('metadata.csv', 'a.png'), ('manifest.csv', 'a.png', 'labels/a.txt'), ('labels/a.txt', 'classes.txt')])
def test_other_folders_are_left_to_other_readers(tmp_path, files):
    for name in files: put(tmp_path/name, 'file_name,label\na.png,crack\n')
    assert find_annotations(str(tmp_path)) is None


def test_a_sample_of_answers_is_not_a_table_of_run_lengths(tmp_path):
    run_lengths(tmp_path)
    (tmp_path/'train.csv').rename(tmp_path/'sample_submission.csv')
    assert find_annotations(str(tmp_path)) is None


def test_images_in_a_folder_of_which_none_is_annotated_are_not_clean(tmp_path):
    run_lengths(tmp_path)
    put_films(tmp_path, folder='test_images', marks={'other': []})
    assert not [f for f in source_of(tmp_path).films[0] if 'other' in f.path]


# --- what can be wrong ---

def yolo_with(root, text, name='film0', names='names: [crack, pore]\n'):
    put_films(root)
    yolo(root, box_shares, names)
    put(root/'labels'/f'{name}.txt', text)


def test_a_film_without_a_label_file_is_doubted_where_others_have_an_empty_one(tmp_path):
    yolo_with(tmp_path, '0 .5 .5 .1 .1\n')
    for file in (tmp_path/'labels').iterdir():
        if file.name == 'film2.txt' or not file.read_text().strip(): file.unlink()
    issues, _ = check_and_read(str(tmp_path), PROFILES['fixture'], every=True)
    said = 'has no annotation, where other films have an empty one'
    assert not issues.what.str.contains(said).any(), 'no film has an empty label file'
    put(tmp_path/'labels'/'film1.txt', '')
    issues, _ = check_and_read(str(tmp_path), PROFILES['fixture'], every=True)
    doubted = issues[issues.what.str.contains(said)]
    assert len(doubted) == 1
    assert doubted.severity.item() == 'warning'


def coco_with(root, **changes):
    coco_boxes(root)
    file = root/'annotations/instances.json'
    data = json.loads(file.read_text())
    data['annotations'][0] |= changes
    put(file, data)


def labelme_with(root, **shape):
    labelme(root)
    shapes = [dict(label='crack') | shape]
    put(root/'film0.json', dict(shapes=shapes, imagePath='film0.png', imageWidth=W, imageHeight=H))


def two_of_one_stem(root):
    yolo_boxes(root)
    Image.fromarray(film(9, [])).save(root/'images/film0.jpg')


def voc_for_another_size(root):
    voc(root)
    file = root/'Annotations/film0.xml'
    put(file, file.read_text().replace(f'<width>{W}', f'<width>{2*W}'))


def voc_without_image(root):
    voc(root)
    (root/'JPEGImages/film0.png').unlink()


FAULTS = {  # how it comes about, is it an error, file, what
    'mark outside': (lambda r: yolo_with(r, '0 320 40 20 20\n'), False, 'labels/film0.txt, line 1',
                     'lies outside its image, which is left out'),
    'class without name': (lambda r: yolo_with(r, '7 .5 .5 .1 .1\n'), False, 'labels/film0.txt, line 1',
                           'is of class 7, which has no name'),
    'not YOLO': (lambda r: yolo_with(r, '0 .5 .5\n'), True, 'labels/film0.txt, line 1',
                 'is not a class number and a box or polygon'),
    'NaN': (lambda r: yolo_with(r, '0 .5 .5 nan .1\n'), True, 'labels/film0.txt, line 1',
            'is not a class number and a box or polygon'),
    'label without image': (lambda r: yolo_with(r, '0 .5 .5 .1 .1\n', 'film9'), False, 'labels/film9.txt',
                            'names an image that is missing'),
    'two images of one stem': (two_of_one_stem, False, 'labels/film0.txt',
                               'fits two images, images/film0.jpg and images/film0.png'),
    'image not listed': (lambda r: coco_with(r, image_id=99), False, 'annotations/instances.json, annotation 0',
                         'names an image that the file does not list'),
    'category not listed': (lambda r: coco_with(r, category_id=99), False, 'annotations/instances.json, annotation 0',
                            'is of class 99, which has no name'),
    'width below 0': (lambda r: coco_with(r, bbox=[100, 10, -5, 50]), True, 'annotations/instances.json, annotation 0',
                      'has neither a box nor a polygon'),
    'image lost': (lambda r: [coco_boxes(r), (r/'images/film0.png').unlink()], False,
                   'annotations/instances.json, image film0.png', 'names an image that is missing'),
    'no shape': (lambda r: coco_with(r, bbox=None), True, 'annotations/instances.json, annotation 0',
                 'has neither a box nor a polygon'),
    'run lengths of another size': (lambda r: coco_with(r, segmentation=dict(size=[9, 9], counts=[81])), True,
                                    'annotations/instances.json, annotation 0', 'is of another size than its image'),
    'broken run lengths': (lambda r: coco_with(r, segmentation=dict(size=[H, W], counts=[-5, 9])), True,
                           'annotations/instances.json, annotation 0', 'has run lengths that cannot be read'),
    'another image': (voc_for_another_size, True, 'Annotations/film0.xml, object 1',
                      'is for an image of 800 x 96 pixels, not 400 x 96'),
    'VOC without image': (voc_without_image, False, 'Annotations/film0.xml', 'names an image that is missing'),
    'no points': (lambda r: labelme_with(r, points=[]), True, 'film0.json, shape 1', 'has no points or no label'),
    'not JSON': (lambda r: put(labelme(r) or r/'film0.json', '{"shapes": '), True, 'film0.json, line 1',
                 'cannot be read as JSON'),
    'document type': (lambda r: put(voc(r) or r/'Annotations/film0.xml',
                                    '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'), True,
                      'Annotations/film0.xml', 'declares a document type'),
    'not XML': (lambda r: put(voc(r) or r/'Annotations/film0.xml', '<annotation><object>'), True,
                'Annotations/film0.xml', 'cannot be read as XML')}


@pytest.mark.parametrize('name', FAULTS)
def test_what_is_wrong_is_one_line(tmp_path, name):
    write, error, file, what = FAULTS[name]
    write(tmp_path)
    films, issues = source_of(tmp_path).films
    assert [(i.error, i.file, i.what) for i in issues] == [(error, file, what)]
    assert all(str(i).isprintable() and i.fix for i in issues)
    known = name in ('class without name', 'category not listed', 'label without image', 'image not listed')
    assert known == any('film0' in f.name for f in films), 'a film whose flaws are not known gives no clean window'


@pytest.mark.parametrize(('kind', 'points', 'area'), [
    ('circle', [[50, 50], [50, 60]], 314), ('line', [[40, 50], [80, 50]], 123), ('point', [[40, 50]], 9),
    ('linestrip', [[40, 50], [60, 50], [60, 70]], 126), ('polygon', [[40, 50], [80, 50]], 123),
    ('polygon', [[40, 50]], 9)])
def test_every_shape_of_labelme_is_drawn(tmp_path, kind, points, area):
    labelme_with(tmp_path, points=points, shape_type=kind)
    films, issues = source_of(tmp_path).films
    mark = next(f for f in films if f.name == 'film0').marks[0]
    assert issues == []
    assert draw(mark, (H, W))[2].sum() == pytest.approx(area, rel=.4)
    assert mark.is_weak == (kind != 'circle')


@pytest.mark.parametrize('points', [
    [[1e9, 0], [0, 1e9], [-1e9, -1e9]], [[-50, -50], [500, -50], [500, 500], [-50, 500]]])
def test_a_polygon_that_reaches_far_outside_is_cut_off(points):
    top, left, mask = draw(Annotation('a', 'crack', 'a', 'polygon', (np.array(points, float),)), (H, W))
    assert mask.any()
    assert mask.shape <= (H, W)


@pytest.mark.parametrize('text', ['1', '0 5', 'a b', '1 2 3', '99999999999 1'])
def test_bad_run_lengths_are_refused(tmp_path, text):
    run_lengths(tmp_path)
    file = tmp_path/'train.csv'
    rows = pd.read_csv(file)
    rows.loc[0, 'EncodedPixels'] = text
    rows.to_csv(file, index=False)
    films, issues = source_of(tmp_path).films
    assert len(issues) == 1
    assert issues[0].file == 'train.csv, line 2'
    assert not any(f.name == 'film0' for f in films)


def test_an_image_without_annotation_in_the_folder_of_a_flaw_is_not_clean(tmp_path):
    labelme(tmp_path, folder='crack')
    films, issues = source_of(tmp_path).films
    assert not any(f.name == 'film5' for f in films)
    assert [(i.file, i.error) for i in issues] == [('crack/film5.png', False)]


def test_classes_without_names_are_called_by_their_numbers(tmp_path):
    put_films(tmp_path)
    yolo(tmp_path, box_shares, '')
    films, issues = source_of(tmp_path).films
    assert {m.label for f in films for m in f.marks if m.kind} == {'class_0', 'class_1'}
    assert [i.what for i in issues if not i.error and 'class_0, class_1' in i.what]


def gdxray(root, masks=True, text='', letter='W'):
    for i, (_, marks) in enumerate(MARKS.items(), 1):
        flaws = np.any([np.zeros((H, W), bool), *(pixels(box) for _, box in marks)], axis=0)
        for number, image in ((1, film(i, [b for _, b in marks])), *([(2, np.uint8(255)*flaws)] if masks else [])):
            path = root/f'{letter}{number:04d}/{letter}{number:04d}_{i:04d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    if text: put(root/f'{letter}0001/ground_truth.txt', text)


@pytest.mark.parametrize('folder', ['', 'Welds', 'a/Welds'])
def test_masks_of_gdxray_are_those_of_the_series_before(tmp_path, folder):
    gdxray(tmp_path/folder)
    films, issues = source_of(tmp_path).films
    assert issues == []
    assert [len([p for p in f.places if p]) for f in films] == [2]*5 + [0]
    for f, marks in zip(films, MARKS.values(), strict=True):
        assert (flaw_map(f.marks, f.shape) > 0).sum() == sum(pixels(box).sum() for _, box in marks)


def test_boxes_of_gdxray_count_where_there_are_no_masks(tmp_path):
    text = ''.join(f' {i:.7e} {b[0] + 1:.7e} {b[2]:.7e} {b[1] + 1:.7e} {b[3]:.7e}\n'
                   for i, marks in enumerate(MARKS.values(), 1) for _, b in marks)
    gdxray(tmp_path/'Castings', False, text, 'C')
    source = source_of(tmp_path)
    assert [sum(m.is_weak for m in f.marks) for f in source.films[0]] == [2]*5 + [0]
    truth = [(flaw_map(f.marks, f.shape) > 0).sum() for f in source.films[0]]
    assert truth == [sum(pixels(box).sum() for _, box in marks) for marks in MARKS.values()]


@pytest.mark.parametrize(('write', 'file'), [
    (coco_boxes, 'annotations/instances.json'), (yolo_boxes, 'data.yaml'), (box_table, '_annotations.csv'),
    (cvat, 'annotations.xml')])
def test_the_file_of_annotations_may_be_given_itself(tmp_path, write, file):
    write(tmp_path)
    if write is coco_boxes:
        (tmp_path/file).rename(tmp_path/'instances.json')
        file = 'instances.json'
    assert len(source_of(tmp_path/file).films[0]) == len(MARKS)


# --- windows ---

def windows_of(root, config=CONFIG): return AnnotatedFilms(str(root), config).windows(PX)


def test_clean_windows_keep_their_distance(tmp_path):
    coco_polygons(tmp_path)
    source = source_of(tmp_path)
    maps = {f.path: flaw_map(f.marks, f.shape) > 0 for f in source.films[0]}
    windows = source.windows(PX)
    distance = round(.25*windows['size'][0])
    clean = windows[windows.label == 'clean']
    assert len(clean) >= (windows.label != 'clean').sum()
    for w in clean.itertuples():
        rows = slice(max(w.y - distance, 0), w.y + w.size + distance)
        columns = slice(max(w.x - distance, 0), w.x + w.size + distance)
        assert not maps[w.film][rows, columns].any()


def test_a_window_holds_the_flaw_it_is_placed_around(tmp_path):
    coco_polygons(tmp_path)
    source = source_of(tmp_path)
    windows = source.windows(PX)
    for f in source.films[0]:
        for place, mark in zip(f.places, f.marks, strict=True):
            if not place: continue
            rows, columns = place
            inside = windows[(windows.film == f.path) & (windows.x <= columns.start) & (windows.y <= rows.start)
                             & (windows.x + windows['size'] >= columns.stop)
                             & (windows.y + windows['size'] >= rows.stop)]
            assert len(inside) >= 2
            assert inside.label.eq(mark.label).any()


def test_windows_are_the_same_each_time_and_on_each_film_alone(tmp_path):
    coco_polygons(tmp_path/'all')
    config = DataConfig(px=PX, window=48)
    windows = windows_of(tmp_path/'all', config)
    assert windows.equals(windows_of(tmp_path/'all', config))
    films = AnnotatedFilms(str(tmp_path/'all'), config).films[0]
    alone = place_windows(films[:1], PX, config)
    flawed = windows[(windows.film == films[0].path) & (windows.label != 'clean')]
    assert alone[alone.label != 'clean'].reset_index(drop=True).equals(flawed.reset_index(drop=True))


@pytest.mark.parametrize(('px', 'window', 'side'), [(16, 0, 40), (32, 0, 40), (64, 0, 64), (32, 56, 56)])
def test_the_side_of_windows_follows_the_flaws_unless_it_is_given(tmp_path, px, window, side):
    coco_boxes(tmp_path)
    source = AnnotatedFilms(str(tmp_path), DataConfig(px=px, window=window))
    assert source.windows(px)['size'].unique() == pytest.approx([side], abs=3)


def test_the_largest_flaw_names_a_window_with_several(tmp_path):
    put_films(tmp_path, marks={'a': [], 'b': [], 'c': []})
    put(tmp_path/'labels/a.txt', f'0 {box_shares((100, 30, 130, 60))}\n1 {box_shares((132, 40, 136, 44))}\n')
    put(tmp_path/'data.yaml', 'names: [crack, pore]')
    source = source_of(tmp_path)
    windows = source.windows(PX)
    several = windows[windows.labels > 1]
    assert len(several)
    assert set(several.label) <= {'crack', 'pore'}
    assert several.label.eq('crack').mean() > .5
    assert f'{len(several)} with several kinds are named after the largest' in source.understood


def test_small_images_are_taken_whole(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path/f'images/{i}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (60, 64)).astype(np.uint8)).save(path)
        put(tmp_path/f'labels/{i}.txt', '0 .9 .5 .1 .1\n' if i % 2 else '')
    windows = windows_of(tmp_path)
    assert windows['size'].eq(60).all()
    assert windows.label.tolist() == ['clean', 'class_0']*3
    assert windows.x.tolist() == [2, 4]*3


def test_blank_rims_are_left_out_and_said(tmp_path):
    put_films(tmp_path)
    yolo(tmp_path, box_shares)
    for path in (tmp_path/'images').iterdir():
        grey = np.asarray(Image.open(path)).copy()
        grey[:, 320:] = 0
        Image.fromarray(grey).save(path)
    found = []
    patches = source_of(tmp_path).read(PX, 'group', found.append)
    assert patches.images.flatten(1).float().std(1).min() > 0
    assert [i.what for i in found if 'single grey value' in i.what]


# --- folds ---

def shared_pixels(table, folds):
    "Pairs of windows of one image that share pixels and lie in two folds."
    table = table.assign(fold=folds)
    pairs = 0
    for _, t in table.groupby('film'):
        for a in t.itertuples():
            near = (abs(t.x - a.x) < a.size) & (abs(t.y - a.y) < a.size)
            pairs += int((near & (t.fold != a.fold)).sum())
    return pairs


@pytest.mark.parametrize('folds', [1, 3])
def test_no_pixel_of_a_film_lies_in_two_folds(tmp_path, folds):
    coco_polygons(tmp_path)
    for i in range(6, 12): Image.fromarray(film(i, [])).save(tmp_path/f'images/film{i}.png')
    data = json.loads((tmp_path/'annotations/instances.json').read_text())
    for i in range(6, 12):
        data['images'].append(dict(id=i, file_name=f'film{i}.png'))
        mark = data['annotations'][i % 2]
        data['annotations'].append(mark | dict(id=900 + i, image_id=i))
    put(tmp_path/'annotations/instances.json', data)
    config = DataConfig(px=PX, folds=folds)
    source = AnnotatedFilms(str(tmp_path), config)
    patches = source.read(PX, 'group')
    windows = source.windows(PX)
    ids = windows.film + '_' + windows.x.map('{:05d}'.format) + '_' + windows.y.map('{:05d}'.format)
    windows = windows.set_index(ids).loc[patches.table.id]
    assert shared_pixels(windows, np.arange(len(windows))) > 0, 'windows do overlap'
    for part in split(patches, config):
        assert shared_pixels(windows, part.table.fold.to_numpy()) == 0


def test_copies_by_roboflow_stay_in_one_fold(case):
    patches = open_source(str(case('yolo_det_roboflow')), CONFIG).read(PX, 'group')
    assert not patches.table.group.str.contains('.rf.', regex=False).any()
    [part] = split(patches, CONFIG)
    assert part.table.groupby('group').fold.nunique().max() == 1
    copies = part.table.groupby('group').id.nunique()
    assert copies.max() == 3


def test_the_weld_of_a_table_is_the_group(tmp_path):
    table(tmp_path, ['image', 'label', 'xmin', 'ymin', 'xmax', 'ymax', 'weld'],
          lambda n, k, b: (f'{n}.png', k, *b, f'weld-{n[-1] in "01"}'), 'boxes.csv')
    groups = {f.name: f.group for f in source_of(tmp_path).films[0]}
    assert groups['film0'] == groups['film1'] == 'weld-True'
    assert groups['film2'] == 'weld-False'


# --- the source ---

def test_rows_and_masks_say_the_same_as_reading(tmp_path):
    coco_polygons(tmp_path/'set')
    source = source_of(tmp_path/'set')
    name, rows = source.rows()
    assert name == 'windows.csv'
    for f in source.films[0]:
        to = tmp_path/'out/films'/f.path
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes((tmp_path/'set'/f.path).read_bytes())
    for path, mask in source.masks():
        to = tmp_path/'out/masks'/path
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(to)
    rows.to_csv(tmp_path/'out/windows.csv', index=False)
    again = open_source(str(tmp_path/'out'), CONFIG).read(PX, 'group')
    patches = source.read(PX, 'group')
    assert again.images.equal(patches.images)
    assert again.masks.equal(patches.masks)
    assert again.table.label.equals(patches.table.label)
    assert again.table.weak_mask.equals(patches.table.weak_mask)


def test_a_format_of_one_s_own_is_one_line(tmp_path, monkeypatch):
    put_films(tmp_path)
    put(tmp_path/'marks.lst', 'film0 10 10 30 30\n')

    def read(tree, files, report):
        for line in tree.text(files[0]).splitlines():
            name, *numbers = line.split()
            box = np.array(numbers, float).reshape(2, 2)
            yield Annotation(tree.film(name, files[0]), 'crack', files[0], 'box', box)

    form = next(iter(ANNOTATIONS.values()))._replace(
        title='lists', find=lambda tree: tree.ending('.lst'), read=read, complete=False)
    monkeypatch.setitem(ANNOTATIONS, 'lists', form)
    assert source_of(tmp_path).understood.startswith('read as lists: 1 flaw of 1 kind on 6 films (5 without flaw)')


def test_a_changed_label_file_makes_other_data(tmp_path):
    yolo_boxes(tmp_path)
    before = source_of(tmp_path).fingerprint()
    assert source_of(tmp_path).fingerprint() == before
    put(tmp_path/'data.yaml', 'names: [slag, pore]\n')
    assert source_of(tmp_path).fingerprint() != before


def test_another_column_for_the_weld_is_said_to_be_ignored(tmp_path, capsys):
    yolo_boxes(tmp_path)
    for group in ('group', 'film', 'section'): tell_understood(str(tmp_path), DataConfig(), group=group)
    found = [line for line in capsys.readouterr().err.splitlines() if 'is ignored' in line]
    assert len(found) == 1
    assert 'has no columns, so --group section is ignored: its folders or films say what is one weld' in found[0]


# --- windows.csv ---

def films_and(root, rows, names=('f1',)):
    for i, name in enumerate(names):
        path = root/'films'/f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film(i, [])).save(path)
    pd.DataFrame(rows).to_csv(root/'windows.csv', index=False)
    return root


def window(film_name='f1', x=0, **other):
    return dict(film=film_name, x=x, y=0, size=48, label='crack' if x else 'clean', group='a') | other


@pytest.mark.parametrize('x', ['48', '48.0', '48.00', '48.', '48,0'])
def test_whole_numbers_may_be_written_as_floats(tmp_path, x):
    films_and(tmp_path, [window(), window(x=x)])
    patches = open_source(str(tmp_path), CONFIG).read(PX, 'group')
    assert patches.table.id.tolist() == ['f1_00000_00000', 'f1_00048_00000']


@pytest.mark.parametrize(('column', 'value'), [
    ('x', '48.5'), ('y', '-4'), ('size', '1e3'), ('x', 'left'), ('size', 'wide')])
def test_other_numbers_are_one_line_with_the_value(tmp_path, column, value):
    odd = [window(x=x) | {column: value, 'group': f'g{x}'} for x in (96, 99)]
    films_and(tmp_path, [window(), window(x=48), *odd])
    found = []
    open_source(str(tmp_path), CONFIG).read(PX, 'group', found.append)
    [issue] = [i for i in found if 'whole numbers' in i.what]
    assert issue.file == 'windows.csv, line 4'
    assert issue.what == f"x, y and size must be whole numbers of pixels, and {column} is '{value}' (2 such lines)"


@pytest.mark.parametrize('name', ['f1', 'f1.png', 'films/f1.png', 'films\\f1.png', 'f1.tif'])
def test_a_film_may_be_named_with_its_ending_and_folder(tmp_path, name):
    films_and(tmp_path, [window(name), window('f1', 48)])
    patches = open_source(str(tmp_path), CONFIG).read(PX, 'group')
    assert patches.table.id.tolist() == ['f1_00000_00000', 'f1_00048_00000']


@pytest.mark.parametrize('name', ['f1', 'plate/f1', 'plate/f1.png', 'plate\\f1.png'])
def test_films_may_lie_in_sub_folders(tmp_path, name):
    films_and(tmp_path, [window(name), window(name, 48)], ('plate/f1',))
    assert len(open_source(str(tmp_path), CONFIG).read(PX, 'group')) == 2


def test_two_films_of_one_name_in_sub_folders_are_told_apart_by_their_paths(tmp_path):
    films_and(tmp_path, [window('a/f1'), window('b/f1', 48)], ('a/f1', 'b/f1'))
    patches = open_source(str(tmp_path), CONFIG).read(PX, 'group')
    assert patches.table.film.tolist() == ['a/f1', 'b/f1']


@pytest.mark.parametrize('columns', [('xmin', 'ymin', 'xmax', 'ymax'), ('X1', 'Y1', 'X2', 'Y2'),
                                     ('left', 'top', 'width', 'height'), ('x', 'y', 'w', 'h')])
def test_windows_may_be_boxes(tmp_path, columns):
    corner = columns[2].lower() in ('xmax', 'x2')
    rows = [dict(zip(columns, (x, 0, x*corner + 48, 48), strict=True), film='f1', label=label, group='a')
            for x, label in ((0, 'good'), (48, 'crack'))]
    films_and(tmp_path, rows)
    patches = open_source(str(tmp_path), CONFIG).read(PX, 'group')
    assert patches.table.id.tolist() == ['f1_00000_00000', 'f1_00048_00000']
    assert patches.table.label.tolist() == ['clean', 'crack']


def test_windows_must_be_square(tmp_path):
    rows = [dict(film='f1', xmin=x, ymin=0, xmax=x + 48, ymax=40, label=label, group='a')
            for x, label in ((0, 'clean'), (48, 'crack'))]
    films_and(tmp_path, rows)
    message = r'line 2: has a window of 48 x 40 pixels \(2 such lines\): give square windows'
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path), CONFIG).read(PX, 'group')


def test_an_empty_mark_is_refused():
    with pytest.raises(ImageError): draw(Annotation('a', 'x', 'a', 'mask', ((0, 0), np.zeros((3, 3), bool))), (9, 9))


def test_films_without_any_flaw_are_still_cut(tmp_path):
    put_films(tmp_path, marks={'a': [], 'b': []})
    for name in 'ab': put(tmp_path/f'labels/{name}.txt', '')
    put(tmp_path/'data.yaml', 'names: [crack]')
    marked = find_annotations(str(tmp_path))
    films = read_films(tmp_path, read_annotations(marked, print), print)
    assert place_windows(films, PX, CONFIG).label.eq('clean').all()


@pytest.mark.parametrize('name', ['f1', 'f1.png', 'films/f1.png'])
def test_a_film_that_is_named_counts_as_read(tmp_path, name):
    films_and(tmp_path, [window(name), window(name, 48)])
    issues, _ = check_and_read(str(tmp_path), PROFILES['fixture'])
    assert not issues.what.str.contains('is not named by').any()


def test_one_film_by_two_names_is_one_film(tmp_path):
    films_and(tmp_path, [window('plate/f1'), window('f1', 24, group='b')], ('plate/f1',))
    found = []
    open_source(str(tmp_path), CONFIG).read(PX, 'group', found.append)
    assert [i.what for i in found if i.error] == \
        ["overlaps line 2, which is of another group (1 such windows of film 'plate/f1')"]
