"""Near copies are found in every set of samples, and no classifier is trained on them."""
import shutil

import numpy as np
import pandas as pd
import pytest

from weldsynth.core.config import StudyError
from weldsynth.stages import copies, sweep
from weldsynth.stages.audit import study_copies
from weldsynth.stages.copies import copies_of, load_usable
from weldsynth.stages.data import training_fold
from weldsynth.stages.sample import draw_defects, load_samples
from weldsynth.stages.sweep import draw_study_samples, usable_patches

@pytest.fixture
def stolen(study_copy, monkeypatch):
    "A training image that the second generator gives out, mirrored, as its third sample: its id."
    fold = training_fold(study_copy)
    row = int(np.flatnonzero(fold.table.label != 'clean')[3])
    def thief(samples, classes):
        drawn = load_samples(samples, classes)
        if samples.info['args']['generator'] == 1: drawn.images[2] = fold.images[row].flip(-1)
        return drawn
    monkeypatch.setattr(copies, 'load_samples', thief)
    shutil.rmtree(copies_of(study_copy, draw_study_samples(study_copy, 1)).path)
    return fold.table.id[row]


def test_a_stolen_training_image_is_counted_and_named(study_copy, stolen):
    rows, _ = study_copies(study_copy)
    found = rows.loc[rows.exact, ['generator', 'nearest', 'near']]
    assert found.values.tolist() == [[1, stolen, True]]


def test_copies_stay_in_quarantine(study_copy, stolen):
    rows, _ = study_copies(study_copy)
    left = usable_patches(study_copy, 1)
    assert rows.image[rows.exact].iloc[0] not in set(left.table.id)
    assert len(left) == (~rows.near[rows.generator == 1]).sum()


@pytest.fixture
def trained_on(study_copy, monkeypatch):
    "A function, stage to the ids of the samples that its classifiers are trained on."
    seen = set()
    def note(study, sets, *_, **__):
        seen.update(row for patches in sets.values() for row in patches.table.id if row.startswith('synthetic/'))
        return pd.DataFrame([(name, 0, .5) for name in sets], columns=['set', 'seed', 'f1'])
    monkeypatch.setattr(sweep, 'score_sets', note)
    def made_anew(made):
        seen.clear()
        shutil.rmtree(made(study_copy).path)
        made(study_copy)
        return set(seen)
    return made_anew


def _with_copies(monkeypatch, study, near):
    "From now on the search finds what `near` says, a function of the table of a set of samples."
    found = copies.flag_copies
    monkeypatch.setattr(copies, 'flag_copies', lambda table, limit: found(table, limit).assign(near=near(table)))
    for folder in (study.path/'eval').glob('copies-*'): shutil.rmtree(folder)


def test_choices_are_made_with_what_the_arms_are_trained_on(study_copy, trained_on, monkeypatch):
    _with_copies(monkeypatch, study_copy, lambda table: np.arange(len(table)) % 3 == 0)
    usable = usable_patches(study_copy)
    assert len(usable) == pytest.approx(2/3*len(load_samples(draw_study_samples(study_copy), usable.classes)), abs=1)
    assert trained_on(sweep.sweep_share) == set(usable.table.id)
    n = study_copy.config.sweep.samples
    swept = [load_usable(study_copy, draw_defects(study_copy, g, n)) for g in study_copy.config.sweep.guidances]
    assert trained_on(sweep.sweep_guidance) == {row for drawn in swept for row in drawn.table.id}


def test_samples_that_are_all_copies_are_refused_with_a_way_out(study_copy, trained_on, monkeypatch):
    _with_copies(monkeypatch, study_copy, lambda table: True)
    fix = 'draw further from them .a network: train it for'
    with pytest.raises(StudyError, match=f'all 40 samples of generator 0 are copies of training images: {fix}'):
        usable_patches(study_copy)
    with pytest.raises(StudyError, match=f'all samples at guidance scales 1.5, 3 are copies of training images: {fix}'):
        trained_on(sweep.sweep_guidance)
