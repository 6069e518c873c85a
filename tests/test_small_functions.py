"""Small public functions and types, by what they promise."""
import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import mse_loss

from weldsynth.core import opening
from weldsynth.core.config import ClassifierConfig, DataConfig, OptimiserConfig
from weldsynth.core.display import patch_rows, show_table, titled_patches
from weldsynth.core.files import remove_part
from weldsynth.core.store import artefact_folders, make_artefact
from weldsynth.data import flaws, simulate as simulator
from weldsynth.data.flaws import (
    DRAW_FLAW,
    Plate,
    draw_cracks,
    draw_lack_of_fusion,
    draw_lack_of_penetration,
    draw_plate,
    draw_pores,
    draw_slag,
    flaw_sizes,
)
from weldsynth.data.images import Picture
from weldsynth.data.loading import Patch, real_image_issues
from weldsynth.data.scene import Scene
from weldsynth.data.sources import TableSource, open_source
from weldsynth.data.tables import line_of
from weldsynth.metrics.timing import matrix_rate
from weldsynth.models.classifier import CLASSIFIERS, grey_resnet18
from weldsynth.models.training import Checkpoints, Snapshots, TrainingLog, start_training
from weldsynth.report.chapters import study_parameters
from weldsynth.stages.review import answer_scores, export_review, export_text, score_text
from weldsynth.stages.review_set import new_set, sealed_set

# --- the simulator ---

@pytest.fixture
def plate() -> Plate: return draw_plate(np.random.default_rng(0))


DRAWN = [(draw_cracks, (1, 8)), (draw_pores, (.4, 2)), (draw_slag, (1, 9)), (draw_lack_of_fusion, (1.8, 9)),
         (draw_lack_of_penetration, (2.5, 10))]


@pytest.mark.parametrize(('values', 'caption'), [([.5, np.nan], 'Shares. n/a: too few.'), ([.5, .6], 'Shares.')])
def test_a_table_says_why_a_value_is_missing_where_one_is(monkeypatch, values, caption):
    shown = []
    monkeypatch.setattr('IPython.display.display', shown.append)
    show_table(pd.DataFrame(dict(share=values)), 'Shares.', absent='too few.')
    assert shown[1].data == f'<p class="caption">{caption}</p>'


@pytest.mark.parametrize('draw, sizes', DRAWN, ids=lambda value: getattr(value, '__name__', ''))
def test_a_flaw_has_the_length_of_its_kind(draw, sizes, plate):
    capsules = draw(np.random.default_rng(1), 200, plate)
    assert capsules.shape == (200, flaws.CAPSULES, 6)
    found = flaw_sizes(capsules, draw is draw_pores)
    assert sizes[0] <= np.quantile(found, .05)
    assert np.quantile(found, .95) <= sizes[1]


def test_every_kind_of_flaw_is_drawn_by_its_function():
    assert set(DRAW_FLAW.values()) == {draw for draw, _ in DRAWN}


def test_a_scene_gives_the_patches_that_are_asked_of_it():
    scene = Scene(*(np.arange(3) for _ in Scene._fields))
    assert all((part == [2, 0]).all() for part in scene.take([2, 0]))


def test_what_is_simulated_has_one_entry_for_each_patch():
    made = simulator.simulate(6, 4, 2, 16)
    assert isinstance(made, simulator.Radiographs)
    assert {len(part) for part in made} == {10}
    assert 'density' in simulator.RadiographSteps._fields


# --- reading ---

def test_the_place_of_an_issue_names_table_and_line():
    assert line_of('manifest.csv', 7) == 'manifest.csv, line 7'


def test_a_picture_by_another_name_is_an_issue():
    picture = Picture(np.random.default_rng(0).random((32, 32)).astype('float32'), 'PNG', np.nan, False)
    assert list(real_image_issues('a.png', picture)) == []
    [issue] = real_image_issues('a.tif', picture)
    assert issue.what == 'is a PNG file by another name'


def test_a_patch_carries_what_its_file_was_like():
    patch = Patch(torch.zeros(1, 8, 8), None, (640, 480), 'TIFF', .04)
    assert patch.size == (640, 480)
    assert patch.pitch == .04


def test_a_csv_is_a_source_with_a_table(tmp_path):
    (tmp_path/'manifest.csv').write_text('image,label,group\n')
    source = open_source(str(tmp_path), DataConfig())
    assert isinstance(source, TableSource)
    assert source.table == tmp_path/'manifest.csv'


# --- training ---

@pytest.fixture
def training():
    return start_training(torch.nn.Linear(1, 1), lambda net, x, y: mse_loss(net(x), y), 40, .1, OptimiserConfig(),
                          None, False)


def test_a_snapshot_is_due_at_its_steps_and_may_stop_the_training(training):
    snapshots = Snapshots(training, lambda step, net: step > 10, {5, 20})
    assert [step for step in range(40) if snapshots.due(step)] == [5, 20]
    assert not snapshots.says_stop(5)
    assert snapshots.says_stop(20)


def test_a_checkpoint_brings_the_weights_back(training, tmp_path):
    def checkpoints(): return Checkpoints(tmp_path, 40, training, TrainingLog(training, 40, '', tmp_path), {})
    with torch.no_grad(): training.net.weight.fill_(3)
    checkpoints().save(7)
    with torch.no_grad(): training.net.weight.fill_(5)
    assert checkpoints().restore() == 7
    assert training.net.weight.item() == 3


def test_resnet18_takes_grey_images():
    assert CLASSIFIERS['resnet18'] is grey_resnet18
    assert grey_resnet18(4, ClassifierConfig())(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


def test_the_rate_of_a_matrix_product_is_positive():
    assert matrix_rate(64) > 0


# --- studies ---

def test_a_part_goes_with_its_lock(tmp_path):
    (tmp_path/'.part-a').mkdir()
    (tmp_path/'.part-a.lock').touch()
    remove_part(tmp_path/'.part-a')
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_is_made_once(study_copy):
    calls = []
    def build(folder): calls.append((folder/'a.txt').write_text('1'))
    made = [make_artefact(study_copy, 'example/a', build, 1, [], False, {}, {}) for _ in range(2)]
    assert made[0] == made[1]
    assert len(calls) == 1
    assert made[0].path in artefact_folders(study_copy.path)


def test_the_parameters_of_a_chapter_open_the_same_study(study, monkeypatch, home):
    monkeypatch.setenv('WELDSYNTH_HOME', str(home))
    assert opening.open_study(**study_parameters(study)) == study


def test_a_review_is_exported_and_counts_nothing_before_answers_come(study_copy):
    file = export_review(study_copy)
    assert file.suffix == '.html'
    assert sealed_set(study_copy) == new_set(study_copy)
    assert str(file) in export_text(study_copy)
    assert score_text(study_copy) == 'No answers count so far: not reviewed.'
    assert 'answers' in inspect.signature(answer_scores).parameters


def test_the_key_of_a_set_names_real_and_synthetic_images(study_copy):
    key = pd.read_csv(sealed_set(study_copy).path/'key.csv')
    assert set(key.origin) == {'real', 'synthetic'}


def test_pictures_are_left_out_where_the_terms_of_the_data_forbid_them(monkeypatch):
    import matplotlib.pyplot as plt
    patches = torch.arange(128, dtype=torch.uint8).reshape(2, 1, 8, 8)
    def greys():
        figures = patch_rows({'a': patches}, 2), titled_patches(patches, ['a', 'b'], 2)
        drawn = [set(np.unique(im.get_array())) for fig in figures for ax in fig.axes for im in ax.images]
        notes = [[text.get_text() for text in fig.texts] for fig in figures]
        for fig in figures: plt.close(fig)
        return set().union(*drawn), notes
    shown, notes = greys()
    assert len(shown) > 100
    assert notes == [[], []]
    monkeypatch.setenv('WELDSYNTH_PICTURES', 'no')
    assert greys() == ({220, 255}, [['pictures are left out']]*2)
