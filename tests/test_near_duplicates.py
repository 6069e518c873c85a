"""Copies of one exposure are found, and patches that share a stamp or a frame are not taken for copies."""
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted_copies import COPIES, MARKS, PX, planted, rates

from weldsynth.core.config import DataConfig
from weldsynth.core.profiles import PROFILES
from weldsynth.data.check import check_data
from weldsynth.data.copies import copy_pairs, source_name
from weldsynth.data.images import to_patch
from weldsynth.data.patches import PatchSet
from weldsynth.data.readers import read_folder
from weldsynth.data.sources import open_source
from weldsynth.data.split import report_duplicates

CASES = Path(__file__).parent/'cases'
HARD = {'a poor JPEG', 'made smaller', 'made larger', 'with noise', 'mirrored, as JPEG'}  # part of the grain is lost


def write_case(name, folder):
    runpy.run_path(str(CASES/f'{name}.py'))[name](folder)
    return folder


def check(folder): return check_data(str(folder), PROFILES['fixture'])


@pytest.mark.parametrize('mark', MARKS)
def test_what_patches_share_makes_no_copies_and_hides_none(mark):
    false, found = rates(MARKS[mark])
    assert false == 0
    assert set(COPIES) - found <= HARD
    assert len(found) >= .8*len(COPIES)


def test_all_marks_together():
    "240 exposures in each set have 28,680 pairs: of 401,520 none is false, and of 224 copies nine in ten are found."
    false, found = zip(*(rates(mark, seed=1) for mark in MARKS.values()), strict=True)
    assert sum(false) == 0
    assert sum(map(len, found)) >= .9*len(MARKS)*len(COPIES)


@pytest.mark.parametrize('case', ['stamp_same_everywhere', 'border_black_wide'])
def test_a_case_of_a_shared_mark_has_no_copies(case, tmp_path):
    issues = check(write_case(case, tmp_path/'set'))
    assert not issues.what.str.contains('same image').any(), issues.to_string()
    assert not (issues.severity == 'error').any(), issues.to_string()


def test_roboflow_copies_are_one_group(tmp_path):
    patches = read_folder(write_case('roboflow_augmented', tmp_path/'set'), PX, report=lambda issue: None)
    source = patches.table.id.map(source_name)
    assert source.nunique() == 72
    assert patches.table.groupby(source).group.nunique().eq(1).all()
    issues = check(tmp_path/'set')
    assert not issues.what.str.contains('in two folds').any(), issues.to_string()


def test_flips_are_found_without_their_names(tmp_path):
    patches = read_folder(write_case('roboflow_augmented', tmp_path/'set'), PX, report=lambda issue: None)
    source = patches.table.id.map(source_name).to_numpy()
    pairs = copy_pairs(patches.images)
    assert (source[pairs[:, 0]] == source[pairs[:, 1]]).all(), 'no false pair'
    assert len(pairs) == 3*72, 'each of three copies with each other'


def test_copies_by_name_in_two_folds_are_an_error():
    "Turned by some degrees, they have nothing in common but their names."
    images = torch.randint(0, 255, (2, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = ['train/crack/a_jpg.rf.0123456789abcdef.jpg', 'valid/crack/a_jpg.rf.fedcba9876543210.jpg']
    table = pd.DataFrame(dict(id=ids, label='crack', group=['a', 'b'], fold=['train', 'test']))
    found = []
    report_duplicates(PatchSet(images, table, ('clean', 'crack')), DataConfig(), found.append)
    assert [i.what for i in found] == [f"and '{ids[0]}' are copies of one image by their names (.rf.) in two folds"]


@pytest.mark.parametrize('name, source', [
    ('train/images/w1_jpg.rf.0a1b2c3d4e.jpg', 'images/w1'), ('w1_png.rf.AbCdEf123456.png', 'w1'),
    ('VALID/pore/w.1.rf.0123456.tif', 'pore/w.1'), ('crack/surf.rf', 'crack/surf.rf'), ('a/b.png', 'a/b.png'),
    ('latest/w1_jpg.rf.0a1b2c3d4e.jpg', 'latest/w1')])
def test_names_of_exported_copies(name, source):
    assert source_name(name).removesuffix(Path(name).suffix if '.rf.' in name else '') == source


def test_each_pair_is_told_once():
    "Equal pixels are no near-duplicates as well."
    images, _ = planted(MARKS['nothing'])
    images = images[[0, 1, 2, 0, 0]]
    table = pd.DataFrame(dict(id=list('abcde'), label='crack', group=list('abcde'), fold=['train']*3 + ['test']*2))
    found = []
    report_duplicates(PatchSet(images, table, ('clean', 'crack')), DataConfig(), found.append)
    assert [(i.file, i.what) for i in found] == [('d', "and 'a' are the same image in two folds"),
                                                 ('e', "and 'a' are the same image in two folds")]


def test_many_copies_of_one_exposure_stay_found():
    "What they all have in common is the exposure."
    images, _ = planted(MARKS['one stamp'])
    many = torch.cat([images[:100], images[5:6].flip(-1).repeat(20, 1, 1, 1)])
    assert len(copy_pairs(many)) == 21*20//2


@pytest.mark.parametrize('side', [8, 12, 16, 24])
def test_tiny_patches_that_were_enlarged_are_no_copies(side):
    rng = np.random.default_rng(side)
    small = torch.stack([to_patch(rng.normal(120, 30, (side, side)), PX) for _ in range(600)])
    assert len(copy_pairs(small)) == 0


def test_simulated_plates_have_no_copies():
    patches = open_source('simulated', DataConfig(defects=600, cleans=600, plates=40)).read(PX, 'group')
    pairs = copy_pairs(patches.images)
    plates = patches.table.group.to_numpy()
    assert (plates[pairs[:, 0]] == plates[pairs[:, 1]]).all()


def test_small_and_empty_sets():
    images, _ = planted(MARKS['nothing'])
    assert copy_pairs(images[:1]).shape == (0, 2)
    assert copy_pairs(torch.full((4, 1, 16, 16), 7, dtype=torch.uint8)).shape == (0, 2), 'no grain'
    assert copy_pairs(torch.cat([images[:2], images[:1].flip(-2)])).tolist() == [[0, 2]]


def test_the_least_correlation_is_a_field():
    images, pairs = planted(MARKS['nothing'])
    table = pd.DataFrame(dict(id=[str(i) for i in range(len(images))], label='crack', group='a', fold='train'))
    table.loc[len(images) - len(pairs):, 'fold'] = 'test'
    patches = PatchSet(images, table, ('clean', 'crack'))
    def count(correlation):
        found = []
        report_duplicates(patches, replace(DataConfig(), duplicate_correlation=correlation), found.append)
        return len(found)
    assert count(.99) < count(.5)
