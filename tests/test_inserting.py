"""Flaws of a chosen kind, place and size in images of one's own."""
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from weldsynth.cli import main
from weldsynth.core.config import StudyError, with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.data.annotation_formats import find_annotations, read_annotations
from weldsynth.data.formats import decode_image
from weldsynth.data.label_files import box_of
from weldsynth.data.patches import mirror_images
from weldsynth.data.readers import read_manifest
from weldsynth.data.sample_files import TRAINED, read_mark, sample_issues
from weldsynth.models.insertion import bend_masks
from weldsynth.stages import inserting
from weldsynth.stages.data import training_fold
from weldsynth.stages.inserting import (
    Hand,
    Request,
    fit_mask,
    insert_into,
    parse_place,
    parse_size,
    patch_side,
    window_side,
)
from weldsynth.stages.sample import draw_defects, load_samples

SMALL = {'sampler.generator': 'insert', 'inserter.heads': 2, 'inserter.layers': 2, 'inserter.steps': 60,
         'inserter.batch': 16, 'inserter.lr': 4e-3, 'autoencoder.steps': 2, 'sampler.steps': 4}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A study with an inserter of 60 steps."
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('WELDSYNTH_CORES', '1')
        config = with_overrides(PROFILES['fixture'], SMALL)
        made = Study('hand', tmp_path_factory.mktemp('hand'), config, data='simulated')
        draw_defects(made, 2., 20)
        yield made


@pytest.fixture(scope='module')
def hand(study): return Hand(study)


@pytest.fixture
def film():
    "A film of 16 bits, 200 x 120 pixels, with a bead and grain."
    rng = np.random.default_rng(0)
    bead = 8_000*np.exp(-((np.arange(120) - 60)/20)**2)[:, None]
    return np.rint(20_000 + bead + rng.normal(0, 300, (120, 200))).astype(np.uint16)


def test_drawn_flaws_come_with_masks_from_the_training_fold_alone(study):
    drawn = draw_defects(study, 2., 20)
    table, samples = pd.read_csv(drawn.path/'manifest.csv'), load_samples(drawn, ('clean',))
    assert not list(sample_issues(drawn.path))
    assert samples.masks.flatten(1).amax(1).tolist() == [255]*20
    train = pd.read_parquet(next((study.path/'data').glob('*'))/'table.parquet')
    train = train[train['fold-1'] == 'train'].set_index('id') if 'fold-1' in train else train.set_index('id')
    assert (train.label[table.mask_of].to_numpy() == table.label).all(), 'the mask of a flaw of the same kind'
    assert (train.label[table.laid_on] == 'clean').all()


def test_variations_keep_class_and_source_and_lie_on_other_welds(study):
    other = replace(study, config=with_overrides(study.config, {'sampler.generator': 'vary'}))
    drawn = draw_defects(other, .3, 20)
    table, samples = pd.read_csv(drawn.path/'manifest.csv'), load_samples(drawn, training_fold(study).classes)
    fold = training_fold(study)
    real = fold.table.set_index('id')
    assert (real.label[table.mask_of].to_numpy() == table.label).all()
    assert set(table.guidance) == {.3}
    masks = fold.masks[[fold.table.id.tolist().index(i) for i in table.mask_of]]
    bent = torch.stack([bend_masks(m, table.seed.tolist(), study.config.masks) for m in mirror_images(masks)])
    assert (bent == samples.masks).flatten(2).all(2).any(0).all(), 'the mask is that of the source, mirrored and bent'
    stronger = load_samples(draw_defects(other, .6, 20), fold.classes)
    assert torch.equal(stronger.masks, samples.masks)
    assert not torch.equal(stronger.images, samples.images)


def test_a_dark_film_of_16_bits_stays_one(hand, tmp_path):
    dark = (100 + np.random.default_rng(0).integers(0, 90, (120, 200))).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path/'dark.png')
    Image.fromarray(dark.astype(np.uint8)).save(tmp_path/'shallow.png')
    deep, shallow = (decode_image((tmp_path/name).read_bytes()) for name in ('dark.png', 'shallow.png'))
    assert (deep.deep, shallow.deep) == (True, False)
    for picture, kind in ((deep, np.uint16), (shallow, np.uint8)):
        assert hand.insert(picture.grey, Request('crack', at=(100, 60)), picture.deep).grey.dtype == kind


def test_outside_the_hole_a_film_stays_as_it_is_and_16_bits_stay_16(hand, film):
    made = hand.insert(film.astype(np.float32), Request('crack', at=(100, 60)))
    assert made.grey.dtype == np.uint16
    changed = made.grey != film
    assert changed.any()
    x, y, width, height = box_of(changed)
    window = made.window
    assert window.x <= x < x + width <= window.x + window.side
    assert window.y <= y < y + height <= window.y + window.side
    left, top, w, h = box_of(made.mask)
    assert left - 4 <= x < x + width <= left + w + 4, 'the rim of a hole is 2 px wide at 32 px'
    assert abs(left + w/2 - 100) <= 2
    assert abs(top + h/2 - 60) <= 2


def test_size_severity_and_seed_do_what_they_say(hand, film):
    grey = film.astype(np.float32)
    sizes = [max(box_of(hand.insert(grey, Request('crack', at=(100, 60), size=s)).mask)[2:]) for s in (8, 16)]
    assert sizes == pytest.approx([8, 16], abs=2)
    change = [np.abs(hand.insert(grey, Request('crack', at=(100, 60), severity=s)).grey - grey).sum() for s in (.5, 2.)]
    assert change[1] > 3*change[0]
    first, again, other = (hand.insert(grey, Request('porosity', at=(100, 60), seed=s)).grey for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_given_outline_is_where_the_flaw_is(hand, film):
    outline = np.zeros(film.shape, bool)
    outline[50:58, 90:110] = True
    made = hand.insert(film.astype(np.float32), Request('crack', mask=outline))
    assert abs(int(made.mask.sum()) - outline.sum()) < 40
    assert np.array_equal(made.grey[:, :80], film[:, :80])


@pytest.mark.parametrize(('request_', 'line'), [
    (Request('dent'), "--kind 'dent' is not a class of this study: choose one of crack, "),
    (Request('crack', at=(100, 60), size=80), 'a flaw of 80 px does not fit into the window of 32 px, which holds'),
    (Request('crack', at=(190, 60), size=18), 'a flaw of 18 px does not fit so near the edge of the image'),
    (Request('crack', at=(199, 60), size=9), 'the place of --at is too near the edge of the image'),
    (Request('crack', at=(-5, 60)), '--at -5,60 lies outside the image, which has 200 x 120 px'),
    (Request('crack', at=(100, 130)), '--at 100,130 lies outside the image, which has 200 x 120 px'),
    (Request('crack', window=500), '--window 500 is larger than the image, 200 x 120 px'),
    (Request('crack', mask=np.ones((10, 10), bool)), 'the mask has 10 x 10 px and the image 200 x 120'),
    (Request('crack', mask=np.ones((120, 200), bool)), 'which does not fit into a window of 32')])
def test_what_cannot_be_done_is_one_line(hand, film, request_, line):
    with pytest.raises(StudyError, match=line): hand.insert(film.astype(np.float32), request_)


@pytest.mark.parametrize(('text', 'pitch', 'pixels'), [('3mm', .05, 60), ('40px', np.nan, 40), (' 7.5 ', np.nan, 7.5)])
def test_sizes(text, pitch, pixels): assert parse_size(text, pitch) == pytest.approx(pixels)


@pytest.mark.parametrize(('text', 'line'), [
    ('big', 'is not a size'), ('0mm', 'is not a size'), ('3mm', 'has no pixel size')])
def test_sizes_that_are_none(text, line):
    with pytest.raises(StudyError, match=line): parse_size(text, np.nan)


def test_places():
    assert parse_place('3,4') == (3, 4)
    assert parse_place('-3, 4') == (-3, 4)
    with pytest.raises(StudyError, match='is not a place'): parse_place('3;4')


@pytest.mark.parametrize(('shape', 'side'), [((64, 64), 64), ((100, 90), 64), ((300, 4000), 64), ((40, 900), 40)])
def test_a_window_is_as_large_as_a_patch_where_there_is_room(shape, side): assert window_side(shape, 64, 0) == side


@pytest.mark.parametrize(('pitches', 'pitch', 'side'), [
    ((np.nan, np.nan), np.nan, 62), ((.05, np.nan), np.nan, 62), ((.05, .05), .1, 31), ((.1, .1), .05, 124)])
def test_on_a_film_flaws_keep_the_size_of_those_learned(study, film, monkeypatch, pitches, pitch, side):
    "Patches of 62 pixels in their files are studied at 32: windows have 62 pixels, or as many millimetres."
    hand = Hand(study)
    table = hand.flaws.table.assign(side=62., pitch=np.resize(pitches, len(hand.flaws)))
    monkeypatch.setattr(hand, 'flaws', replace(hand.flaws, table=table))
    film = np.tile(film, (2, 2))
    made = hand.insert(film, Request('crack', seed=2), pitch=pitch)
    assert made.window.side == side
    smaller = hand.insert(film, Request('crack', seed=2, window=32)).mask
    assert np.sqrt(made.mask.sum()/smaller.sum()) == pytest.approx(side/32, rel=.15)


def test_a_film_with_less_than_a_patch_is_told_of(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inserting, 'patch_side', lambda *_: 128)
    Image.fromarray(np.full((100, 300), 90, np.uint8)).save(tmp_path/'a.png', dpi=(508, 508))
    made = insert_into(study, tmp_path/'a.png', tmp_path/'out', Request('crack'))
    assert made.window.tolist() == [100]
    assert '1 of 1 images smaller than a patch of the study' in ''.join(capsys.readouterr())
    insert_into(study, tmp_path/'a.png', tmp_path/'again', Request('crack'), size='30px')
    assert 'smaller than a patch' not in ''.join(capsys.readouterr())
    for name in ('image', 'mask'):
        picture = decode_image((tmp_path/'out'/made[name][0]).read_bytes())
        assert picture.pitch == pytest.approx(.05, rel=1e-3), 'the scale of the film'


def test_an_outline_below_a_pixel_of_the_window_is_refused(hand, film):
    film = np.tile(film, (4, 4))
    outline = np.zeros(film.shape, bool)
    outline[100:102, 200:202] = True
    with pytest.raises(StudyError, match='smaller than one pixel of its window'):
        hand.insert(film, Request('crack', mask=outline, window=400))


@pytest.mark.parametrize(('option', 'value', 'line'), [
    ('--window', '-5', '--window -5 is too small: give 8 or more'),
    ('--guidance', '-3', '--guidance -3 is below 0'), ('--count', '0', '--count 0 makes no image')])
def test_numbers_out_of_range_are_refused(tmp_path, capsys, option, value, line):
    command = ['insert', 'a.png', '--study', 'x', '--kind', 'crack', '--out', str(tmp_path/'out'), option, value]
    assert main(command) == 1
    assert line in capsys.readouterr().err


def test_files_say_how_large_patches_were_in_them(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)
    for i in range(2): Image.fromarray(np.roll(grey[:, 16*i:], i, 1)).save(tmp_path/f'{i}.png', dpi=(254, 254))
    lines = ['image,label,group', '0.png,clean,a', '1.png,crack,b']
    (tmp_path/'manifest.csv').write_text('\n'.join(lines))
    table = read_manifest(tmp_path/'manifest.csv', 32, 'group', lambda issue: None).table
    assert table.side.tolist() == pytest.approx([np.sqrt(48*64), 48])
    assert table.pitch.tolist() == pytest.approx([np.nan, .1], rel=1e-3, nan_ok=True), 'one has no single scale'
    assert patch_side(table.drop(columns=['side', 'pitch']), 32, .1) == 32, 'a study of an earlier version'


def test_a_mask_moves_and_grows_as_asked():
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    mask[..., 10:14, 20:30] = 255
    x, y, width, height = box_of(fit_mask(mask, 20, (40, 30))[0, 0].numpy() > 0)
    assert (width, height) == (20, 8)
    assert (x + width/2, y + height/2) == (40, 30)


@pytest.mark.parametrize('size', [12, 15, 20, 21])
def test_far_from_the_edge_a_flaw_fits_whatever_mask_is_drawn(hand, film, size):
    for seed in range(12):
        mask, window = hand._site(film, Request('crack', at=(100, 60), size=size, seed=seed), 1, 32)
        left, top, width, height = box_of(mask[0, 0].numpy() > 0)
        assert abs(window.x + left + width/2 - 100.5) <= 1
        assert abs(window.y + top + height/2 - 60.5) <= 1


def test_the_command_writes_images_masks_and_labels(study, film, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('weldsynth.core.opening.find_study', lambda *_: study)
    (tmp_path/'in').mkdir()
    Image.fromarray(film).save(tmp_path/'in'/'a.png')
    Image.fromarray((film/256).astype(np.uint8)).save(tmp_path/'in'/'b.png')
    command = ['insert', str(tmp_path/'in'), '--study', 'hand', '--kind', 'crack', '--out', str(tmp_path/'out'),
               '--count', '2', '--size', '14px']
    assert main(command) == 0
    assert '4 flawed images' in capsys.readouterr().out
    manifest = pd.read_csv(tmp_path/'out'/'manifest.csv')
    assert manifest.source.tolist() == ['a.png']*2 + ['b.png']*2
    for row in manifest.itertuples():
        picture = decode_image((tmp_path/'out'/row.image).read_bytes())
        assert picture.synthetic
        mark = read_mark(tmp_path/'out'/row.image)
        assert (mark['DigitalSourceType'], mark['seed'], mark['label']) == (TRAINED, str(row.seed), 'crack')
        mask = decode_image((tmp_path/'out'/row.mask).read_bytes()).grey > 0
        assert box_of(mask) == (row.x, row.y, row.width, row.height)
    assert decode_image((tmp_path/'out'/manifest.image[0]).read_bytes()).grey.max() > 255
    boxes = json.loads((tmp_path/'out'/'annotations'/'instances.json').read_text())['annotations']
    assert [b['bbox'] for b in boxes] == manifest[['x', 'y', 'width', 'height']].to_numpy().tolist()
    marks = read_annotations(find_annotations(str(tmp_path/'out')), print)
    assert {mark.label for mark in marks} == {'crack'}
    assert main(command) == 1
    assert 'is not empty' in capsys.readouterr().err
    command[1], command[-5] = str(tmp_path/'out'/'images'), str(tmp_path/'twice')
    assert main(command) == 0
    assert '4 of 4 images marked as synthetic' in ''.join(capsys.readouterr())


def test_after_an_error_nothing_is_left(study, film, tmp_path):
    (tmp_path/'in').mkdir()
    Image.fromarray(film).save(tmp_path/'in'/'a.png')
    (tmp_path/'in'/'b.png').write_bytes(b'no image')
    with pytest.raises(StudyError, match='b.png'):
        insert_into(study, tmp_path/'in', tmp_path/'out', Request('crack'))
    assert [p.name for p in tmp_path.iterdir()] == ['in']


def test_without_an_inserter_the_command_says_how_to_train_one(tmp_path, film):
    bare = Study('bare', tmp_path/'bare', PROFILES['fixture'], data='simulated')
    Image.fromarray(film).save(tmp_path/'a.png')
    with pytest.raises(StudyError, match="'bare' has no inserter: .* weldsynth train 'simulated' --name bare-"):
        insert_into(bare, tmp_path/'a.png', tmp_path/'out', Request('crack'))


@pytest.mark.parametrize(('trained', 'line'), [
    (['able', 'parts'], 'choose one of able, parts'),
    ([], 'start one with `weldsynth train FOLDER --set sampler.generator=insert`')])
def test_only_studies_with_an_inserter_are_offered(tmp_path, monkeypatch, capsys, trained, line):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    for name in ('bare', *trained):
        part = tmp_path/'studies'/name/('fold-1' if name == 'parts' else '.')
        part.mkdir(parents=True)
        (tmp_path/'studies'/name/'study.json').write_text('{}')
        if name != 'bare': (part/'insert'/'denoiser-1').mkdir(parents=True)
    assert main(['insert', 'a.png', '--study', 'nope', '--kind', 'crack', '--out', str(tmp_path/'out')]) == 1
    err = capsys.readouterr().err
    assert "there is no study 'nope'" in err
    assert err.rstrip().endswith(line)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize(('name', 'line'), [
    ('nosuch.png', 'nosuch.png does not exist: give an image or a folder of images'),
    ('empty', 'empty is not an image and has none in it')])
def test_what_is_no_image_and_what_is_not_there(tmp_path, name, line):
    (tmp_path/'empty').mkdir()
    with pytest.raises(StudyError, match=line): inserting.image_files(tmp_path/name)
