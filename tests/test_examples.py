"""The example of a folder of one's own images: it passes the check, and its script makes it again."""
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weldsynth.core.config import DataConfig
from weldsynth.core.profiles import choose_profile
from weldsynth.data.check import check_data
from weldsynth.data.sources import Folder, open_source

EXAMPLE = Path(__file__).parent.parent/'examples'/'own_folder'
IMAGES = EXAMPLE/'images'


@pytest.fixture(scope='module')
def issues(): return check_data(str(IMAGES), choose_profile('fixture'))


def test_the_example_has_no_errors(issues):
    assert issues.severity.unique().tolist() == ['warning']


def test_the_check_says_that_the_example_has_few_welds(issues):
    few = issues[issues.what == 'comes from 8 groups only']
    assert few.file.tolist() == ["class 'clean'", "class 'crack'", "class 'porosity'"]


def test_the_check_says_that_the_example_has_few_test_images(issues):
    few = issues[issues.what.str.endswith('test images')]
    assert few.file.tolist() == ["class 'crack'", "class 'porosity'"]


def test_the_check_finds_nothing_else_in_the_example(issues):
    assert len(issues) == 5


def test_the_example_is_too_small_for_the_demo():
    issues = check_data(str(IMAGES), choose_profile('demo'))
    errors = issues[issues.severity == 'error']
    assert errors.what.tolist() == ["40 defects are too few for the profile 'demo', which trains on batches of 64"]


def test_the_welds_of_the_example_are_its_folders():
    source = open_source(str(IMAGES), DataConfig())
    patches = source.read(32, 'group')
    assert isinstance(source, Folder)
    assert patches.classes == ('clean', 'crack', 'porosity')
    assert sorted(patches.table.group.unique()) == [f'weld-{i}' for i in range(8)]


def test_the_script_makes_the_images_of_the_example(tmp_path):
    runpy.run_path(str(EXAMPLE/'make_images.py'))['make_images'](tmp_path)
    names = sorted(p.relative_to(IMAGES) for p in IMAGES.rglob('*.png'))
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*.png')) == names
    for name in names:
        with Image.open(IMAGES/name) as there, Image.open(tmp_path/name) as made:
            difference = np.abs(np.asarray(there, float) - np.asarray(made, float)).mean()
        assert difference < .1, f'{name}: another processor may round a grey level, no more'


def test_the_example_is_small():
    sizes = [p.stat().st_size for p in IMAGES.rglob('*.png')]
    assert len(sizes) == 80
    assert max(sizes) < 1000
