"""A study of several generators: each has arms of its own, validation chooses one, and the verdict is about it."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from weldsynth.core.config import StudyError, with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.data.patches import head_per_class
from weldsynth.data.simulate import simulate
from weldsynth.models.layers import holes
from weldsynth.report.chapters import study_chapters
from weldsynth.stages.arms import (
    ARMS,
    Pool,
    all_arms,
    fit_arms,
    free_arms,
    freeze,
    study_arms,
    test_predictions as predictions_of,
)
from weldsynth.stages.audit import audit_samples
from weldsynth.stages.data import study_patches
from weldsynth.stages.review_set import new_set
from weldsynth.stages.sample import GENERATORS, draw_defects, each_generator, tried_guidances
from weldsynth.stages.sweep import (
    curve_arms,
    curve_gains,
    curve_worth,
    draw_study_samples,
    learning_curve,
    log_worth,
    real_equivalents,
    selected,
    share_scores,
    with_chosen_generator,
)
from weldsynth.stages.verdict import evaluate

SMALL = {
    'sampler.generator': 'ldm,insert', 'autoencoder.steps': 2, 'denoiser.steps': 2, 'inserter.steps': 2,
    'sampler.steps': 2, 'sampler.synthetics': 40, 'classifier.steps': 10, 'classifier.seeds': 1,
    'sweep.guidances': (2.,), 'sweep.insert_guidances': (1., 1.5), 'sweep.shares': (.2,), 'rule.simulated_studies': 2,
    'audit.fidelity_resamples': 4, 'audit.probe_repeats': 2, 'sweep.curve_fractions': (.5, 1.)}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A finished study with two generators."
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('WELDSYNTH_CORES', '1')
        made = Study('two', tmp_path_factory.mktemp('two'), with_overrides(PROFILES['fixture'], SMALL))
        evaluate(made)
        learning_curve(made)
        yield made


def test_each_generator_tries_the_guidance_scales_that_suit_it(study):
    tried = {name: tried_guidances(one) for name, one in each_generator(study).items()}
    assert tried == {'ldm': (2.,), 'insert': (1., 1.5)}


def test_each_generator_has_an_arm_beside_real_images_and_one_alone(study):
    own = [name for name, arm in ARMS.items() if arm.needs != 'contrastive']
    assert study_arms(study) == (*own, 'real+ldm', 'ldm-alone', 'real+insert', 'insert-alone')
    assert set(study_arms(study)) <= set(all_arms())
    assert {f'real+{name}' for name in GENERATORS} <= set(all_arms())


def test_the_best_on_validation_is_chosen_and_frozen_into_the_plan(study):
    scores = {name: share_scores(one).max() for name, one in each_generator(study).items()}
    chosen = max(scores, key=scores.get)
    assert with_chosen_generator(study).config.sampler.generator == chosen
    assert selected(study) == selected(each_generator(study)[chosen])
    assert freeze(study)['parts'][0]['selected']['generator'] == chosen
    assert json.loads((evaluate(study).path/'verdict.json').read_text())['generator'] == [chosen]


def test_real_synthetic_is_the_arm_of_the_chosen_generator(study):
    predictions, chosen = predictions_of(study), selected(study)['generator']
    assert (predictions['real+synthetic'].probs == predictions[f'real+{chosen}'].probs).all()
    [other] = {'ldm', 'insert'} - {chosen}
    assert (predictions['real+synthetic'].probs != predictions[f'real+{other}'].probs).any()


def test_the_table_of_generators_corrects_for_their_number(study):
    table = pd.read_csv(evaluate(study).path/'generators.csv')
    assert set(table.arm) == {'real+ldm', 'real+insert'}
    control = freeze(study)['best_control']
    assert set(table.over) == {'real', control}
    assert (table.holm >= table.p).all()


def test_audit_and_review_are_about_the_chosen_generator(study):
    one = with_chosen_generator(study)
    assert audit_samples(one).path.exists()
    assert draw_study_samples(one).key in new_set(study).info['inputs']


def test_the_fits_rest_on_the_samples_of_both(study):
    drawn = {draw_study_samples(one).key for one in each_generator(study).values()}
    assert len(drawn) == 2
    assert drawn <= set(fit_arms(study).info['inputs'])


def test_an_arm_pastes_real_flaws_with_the_masks_and_welds_of_the_inserted_ones(study):
    assert {'cut-paste', 'cut-paste-matched'} <= set(free_arms(study))
    assert 'cut-paste-matched' not in study_arms(each_generator(study)['ldm'])
    pool = Pool(study, 0)
    inserted = head_per_class(pool.of('insert').synthetic, pool.added)
    pasted = all_arms()['cut-paste-matched'].make(pool).take(range(len(pool.real), len(pool.real) + len(inserted)))
    assert torch.equal(pasted.labels, inserted.labels)
    assert (pasted.masks <= inserted.masks).all(), 'some have a second flaw beside it'
    assert (pasted.masks == inserted.masks).flatten(1).all(1).float().mean() > .7
    far = (pasted.images.float() - inserted.images.float()).abs()*(1 - holes(inserted.masks))
    assert far.flatten(1).amax(1).median() <= 8, 'the same welds, but for the stretch'


def test_the_learning_curve_has_an_arm_for_each_and_the_control_with_masks(study):
    assert list(curve_arms(study)) == ['real+ldm', 'real+insert']
    curve = learning_curve(study)
    assert set(curve.arm[curve.fraction == 1]) == {'real', 'real+ldm', 'real+insert', 'real-repeated',
                                                   'real-augmented', 'cut-paste'}
    assert set(curve.arm[curve.fraction == .5]) == {'real'}
    gains = curve_gains(study)
    assert gains.arm.tolist() == ['real+ldm', 'real+insert']
    assert gains.control.isin(['real-repeated', 'real-augmented', 'cut-paste']).all()


def test_a_curve_that_could_not_be_measured_is_worth_nothing_known():
    sizes = np.array([10., 20., 40.])
    assert np.isnan(log_worth(sizes, np.array([.2, np.nan, .4]), np.array([.3, .1]))).all()
    assert np.allclose(log_worth(sizes, np.array([.2, .3, .4]), np.array([.3])), np.log(20))


def test_what_a_score_is_worth_agrees_with_the_curve(study):
    worth, points = curve_worth(study), real_equivalents(learning_curve(study))
    both = worth.merge(points, on=['arm', 'defects_per_class'])
    assert len(both) == len(worth) == 5
    pd.testing.assert_series_equal(both.worth_x, both.worth_y, check_names=False)


def test_the_report_has_the_chapter_of_each(study):
    assert {'02_ldm', '20_insertion_audit'} <= set(study_chapters(study))
    assert '02_ldm' not in study_chapters(each_generator(study)['insert'])
    assert '20_insertion_audit' not in study_chapters(each_generator(study)['ldm'])


def test_an_unknown_one_among_several_is_an_error_in_one_line(study):
    odd = with_overrides(study.config, {'sampler.generator': 'ldm,flow'})
    with pytest.raises(StudyError, match="sampler.generator='flow' is unknown"):
        each_generator(Study('odd', study.path, odd))


def test_flaws_without_masks_are_inserted_where_weak_masks_show_them(tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_CORES', '1')
    bare = tmp_path/'welds'
    patches = _simulated()
    for i, (label, plate, image) in enumerate(patches):
        (bare/label/plate).mkdir(parents=True, exist_ok=True)
        image.save(bare/label/plate/f'{i}.png')
    config = with_overrides(PROFILES['fixture'], SMALL | {'sampler.generator': 'insert'})
    made = Study('bare', tmp_path/'bare', config, data=str(bare))
    assert study_patches(made).masks is None
    drawn = pd.read_csv(draw_defects(made, 1., 10).path/'manifest.csv')
    assert len(drawn) == 10
    saved = load_file(next((made.path/'insert').glob('masks-*'))/'masks.safetensors')
    assert saved['weak'].sum() > 20
    assert (saved['masks'][~saved['weak']] == 0).all(), 'no mask but where something stands out'


def _simulated():
    "Images of 32 px with label and plate."
    drawn = simulate(120, 160, 8, 32)
    return [(label, plate, Image.fromarray(image))
            for label, plate, image in zip(drawn.labels, drawn.plates, drawn.images, strict=True)]
