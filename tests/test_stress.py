"""Disturbances of images, attacks on a classifier, and images that are not welds."""
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from weldsynth.core.config import RobustnessConfig, StressConfig, with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.data.images import window
from weldsynth.data.simulate import simulate
from weldsynth.metrics.intervals import Jackknife
from weldsynth.models.attacks import FlawOrClean, answers, asked_once, pgd, square
from weldsynth.models.stress import (
    CORRUPTIONS,
    Corruption,
    add_noise,
    all_corruptions,
    blur,
    blur_axis,
    corrupted,
    darken,
    invert,
    letter,
    ood_images,
    quantise,
    scale_contrast,
    scratch,
    strengths,
    unsharpen,
)
from weldsynth.stages.arms import fit_arms, study_arms
from weldsynth.stages.robustness import attack_classifiers, half_flawed, measure_robustness, robustness

@pytest.fixture
def images(): return torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_contrast_and_density_by_hand():
    x = torch.tensor([28., 128., 228.])
    assert scale_contrast(x, .5, torch.Generator()).tolist() == [78, 128, 178]
    assert darken(x, 20., torch.Generator()).tolist() == [8, 108, 208]


def test_grey_values_stay_within_their_range():
    dark = torch.full((1, 1, 16, 16), 30, dtype=torch.uint8)
    assert (corrupted(dark, 'density', 3, 0, StressConfig()) == 0).all()


def test_no_noise_and_no_blur_only_apply_the_window(images):
    x = images[:1].float()
    quiet = add_noise(x, 0., torch.Generator())
    assert torch.equal(quiet, blur(x, 1e-3, torch.Generator()))


def test_amounts_come_from_the_config(images):
    gentle = StressConfig(density=(1., 2.))
    assert torch.equal(corrupted(images, 'density', 2, 0, gentle), (images.float() - 2).clamp(min=0).byte())
    assert [s for kind, s in all_corruptions(images, 0, gentle) if kind == 'density'] == [1, 2]


def test_each_kind_has_three_strengths_but_polarity(images):
    expected = {(kind, s) for kind in CORRUPTIONS if kind != 'polarity' for s in (1, 2, 3)} | {('polarity', 1)}
    assert set(all_corruptions(images, 0, StressConfig())) == expected


@pytest.fixture(scope='module')
def welds():
    "Simulated patches as the study has them: passed through the window."
    return window(torch.from_numpy(simulate(5, 5, 1, 32).images)[:, None].float())


NOTHING = dict.fromkeys(CORRUPTIONS, 0.) | dict(blur=1e-3, contrast=1., quantisation=8.)


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_a_disturbance_without_strength_changes_nothing_but_by_the_window(kind, welds):
    left = CORRUPTIONS[kind].apply(welds.float(), NOTHING[kind], torch.manual_seed(0)).round().to(torch.uint8)
    assert torch.equal(left, welds) or torch.equal(left, window(welds.float()))
    assert (window(welds.float()).int() - welds.int()).abs().max() <= 2, 'the window does next to nothing twice'


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_every_disturbance_disturbs_more_when_it_is_stronger(kind, welds):
    amounts = strengths(StressConfig())[kind]
    change = [(corrupted(welds, kind, s + 1, 0, StressConfig()).float() - welds.float()).square().mean()
              for s in range(len(amounts))]
    assert change[0] > 0
    assert change == sorted(change)


def test_unsharpness_of_three_pixels_spreads_a_point_over_three_of_its_row():
    point = torch.zeros(1, 1, 7, 7)
    point[..., 3, 3] = 90
    spread = blur_axis(point, 3, -1)[0, 0]
    assert spread[3].tolist() == [0, 0, 30, 30, 30, 0, 0]
    assert spread[[0, 1, 2, 4, 5, 6]].abs().max() == 0, 'no other row'
    assert torch.equal(blur_axis(point, 3, -2), blur_axis(point, 3, -1).mT)


def test_unsharpness_of_a_broken_number_of_pixels_takes_a_part_of_the_outer_ones():
    point = torch.zeros(1, 1, 1, 5)
    point[..., 2] = 100
    assert blur_axis(point, 2.5, -1)[0, 0, 0].tolist() == pytest.approx([0, 30, 40, 30, 0])


def test_unsharpness_along_one_axis_leaves_stripes_along_it_alone():
    stripes = torch.arange(8.).view(1, 1, 8, 1).expand(1, 1, 8, 8)*30
    assert torch.allclose(blur_axis(stripes, 4, -1), stripes)
    assert not torch.allclose(blur_axis(stripes, 4, -2), stripes)


def test_each_image_is_unsharp_along_one_of_both_axes(welds):
    x = welds.float()
    both = [window(blur_axis(x, 5., axis)) for axis in (-1, -2)]
    made = unsharpen(x, 5., torch.manual_seed(0))
    axes = {k for i in range(len(x)) for k in (0, 1) if torch.equal(made[i], both[k][i])}
    assert axes == {0, 1}
    assert all(torch.equal(made[i], both[0][i]) or torch.equal(made[i], both[1][i]) for i in range(len(x)))


@pytest.mark.parametrize('bits', [1., 2., 3., 8.])
def test_quantisation_leaves_two_to_the_bits_grey_levels_from_black_to_white(bits):
    levels = quantise(torch.arange(256.), bits, torch.Generator()).unique()
    assert len(levels) == 2**bits
    assert torch.allclose(levels.diff(), torch.tensor(255/(2**bits - 1)))
    assert levels[[0, -1]].tolist() == [0, 255]


def test_inverted_polarity_is_its_own_inverse(images):
    x = images.float()
    once = invert(x, 1., torch.Generator())
    assert torch.equal(once, 255 - x)
    assert torch.equal(invert(once, 1., torch.Generator()), x)


def test_scratches_are_few_thin_lines_of_the_depth_that_was_asked_for():
    ramp = (torch.arange(64.)*4)[None, None, None].expand(20, 1, 64, 64)
    with patch('weldsynth.models.stress.window', lambda x: x): change = scratch(ramp, 40., torch.manual_seed(0)) - ramp
    touched = (change.abs() > 1).float().mean((1, 2, 3))
    assert (touched > 0).all()
    assert (touched < .12).all()
    assert change.max() > 30
    assert change.min() < -30
    one = scratch(ramp, 40., torch.manual_seed(0), count=1)
    assert one.shape == ramp.shape


def test_lead_letters_lie_at_the_upper_or_lower_edge_and_are_brighter_than_all_else():
    grey = torch.full((12, 1, 64, 64), 100.)
    with patch('weldsynth.models.stress.window', lambda x: x): made = letter(grey, 12., torch.manual_seed(0))
    rows = (made > 110).any(-1)[:, 0]
    assert rows.any(1).all()
    assert not rows[:, 16:48].any(), 'the middle, where flaws are, stays as it is'
    assert 300 < made.max() <= 382
    assert made.min() == 100


def test_a_disturbance_from_outside_brings_its_strengths(images):
    shift = Corruption(lambda x, pixels, rng: x.roll(int(pixels), -1), 'px', (1., 2.))
    with patch.dict(CORRUPTIONS, shift=shift):
        assert strengths(StressConfig())['shift'] == (1., 2.)
        assert torch.equal(all_corruptions(images, 0, StressConfig())['shift', 2], images.roll(2, -1))


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_an_axis_of_strengths_has_their_unit(kind):
    made = CORRUPTIONS[kind]
    assert made.axis().endswith(made.unit)
    assert made.axis('mm').endswith('mm')


def test_an_axis_without_an_amount_is_the_unit_alone(): assert Corruption(darken, 'levels').axis() == 'levels'


# --- attacks ---

class Curved(nn.Module):
    "Two logits that are no linear function of the image, N x 1 x 8 x 8."
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3))

    def forward(self, x): return self.layers(x)


FLAWED = torch.tensor([True, False]*6)
CONFIG = RobustnessConfig(pgd_steps=7, square_queries=40)


@pytest.fixture
def decision(): return FlawOrClean(Curved(), .7).eval()


@pytest.fixture
def shown(): return torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(1))


def loss(decision, images, flawed=FLAWED): return cross_entropy(answers(decision, images), flawed.long()).item()


@pytest.mark.parametrize('threshold', [.1, .5, .9])
def test_a_decision_calls_flawed_what_its_classifier_does_at_the_threshold(shown, threshold):
    net = Curved().eval()
    suspicion = 1 - net(shown.float()/127.5 - 1).softmax(1)[:, 0]
    called = answers(FlawOrClean(net, threshold), shown).argmax(1).bool()
    assert torch.equal(called, suspicion >= threshold)


@pytest.mark.parametrize('threshold', [0., 1.5])
def test_a_threshold_that_calls_all_or_nothing_has_finite_logits(shown, threshold):
    assert answers(FlawOrClean(Curved(), threshold), shown).isfinite().all()


def by_formula(decision, images, flawed, bound, step, steps):
    "Projected gradient descent, written out."
    start = images.float()
    x = start.clone()
    for _ in range(steps):
        x.requires_grad_(True)
        gradient, = torch.autograd.grad(cross_entropy(decision(x), flawed.long()), x)
        x = (x.detach() + step*gradient.sign()).clamp(0, 255)
        x = start + (x - start).clamp(-bound, bound)
    return x


def test_pgd_is_its_formula(decision, shown):
    expected = by_formula(decision, shown, FLAWED, 3., 2.5*3/7, 7)
    assert torch.allclose(pgd(decision, shown, FLAWED, 3., CONFIG), expected, atol=1e-3)


def fast_gradient_sign(decision, images, flawed, bound):
    "One step along the sign of the gradient (Goodfellow et al. 2015)."
    x = images.float().requires_grad_(True)
    gradient, = torch.autograd.grad(cross_entropy(decision(x), flawed.long()), x)
    return (x.detach() + bound*gradient.sign()).clamp(0, 255)


def test_pgd_with_one_step_is_the_fast_gradient_sign_method(decision, shown):
    one = pgd(decision, shown, FLAWED, 3., replace(CONFIG, pgd_steps=1))
    assert torch.allclose(one, fast_gradient_sign(decision, shown, FLAWED, 3.), atol=1e-3)


@pytest.mark.parametrize('bound', [1., 8., 32.])
def test_pgd_is_no_weaker_than_the_fast_gradient_sign_method(bound, decision, shown):
    many = pgd(decision, shown, FLAWED, bound, replace(CONFIG, pgd_steps=20))
    assert loss(decision, many) >= loss(decision, fast_gradient_sign(decision, shown, FLAWED, bound)) - 1e-6


@pytest.mark.parametrize('attack', [pgd, square])
@pytest.mark.parametrize('bound', [.5, 1., 6.])
def test_an_attack_stays_within_its_bound_and_within_black_and_white(attack, bound, decision, shown):
    moved = attack(decision, shown, FLAWED, bound, CONFIG)
    assert (moved - shown.float()).abs().max() <= bound + 1e-4
    assert moved.min() >= 0
    assert moved.max() <= 255
    assert not torch.equal(moved, shown.float())


@pytest.mark.parametrize('attack', [pgd, square])
def test_an_attack_does_not_lower_the_loss(attack, decision, shown):
    before = loss(decision, shown)
    losses = [loss(decision, attack(decision, shown, FLAWED, bound, CONFIG)) for bound in (1., 4., 16.)]
    assert before <= losses[0] + 1e-6
    assert losses == sorted(losses)


@pytest.mark.parametrize('attack', [pgd, square])
def test_an_attack_gives_the_same_images_again_and_leaves_random_numbers_alone(attack, decision, shown):
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    first = attack(decision, shown, FLAWED, 2., CONFIG)
    assert np.random.rand() == expected
    assert torch.equal(first, attack(decision, shown, FLAWED, 2., CONFIG))


def test_the_square_attack_computes_no_gradient(shown):
    class Rounded(Curved):
        "No gradient passes through it, and none may be asked for."
        def forward(self, x):
            assert not torch.is_grad_enabled()
            assert not x.requires_grad
            return self.layers(x.round(decimals=2))
    decision = FlawOrClean(Rounded(), .7)
    moved = square(decision, shown, FLAWED, 16., CONFIG)
    assert loss(decision, moved) > loss(decision, shown)
    assert all(p.grad is None for p in decision.parameters())


def test_the_square_attack_leaves_alone_what_is_wrong_already(decision, shown):
    wrong = answers(decision, shown).argmax(1).bool()
    assert torch.equal(square(decision, shown, ~wrong, 4., CONFIG), shown.float())


def test_an_image_is_asked_about_once():
    asked = []
    def answer(x):
        asked.append(len(x))
        return x.mean((1, 2, 3))[:, None]
    x = np.arange(2*16, dtype=np.float32).reshape(2, 1, 4, 4)
    remembered = asked_once(answer)
    assert np.array_equal(remembered(x[[0, 1, 0]]), [[7.5], [23.5], [7.5]])
    assert np.array_equal(remembered(x), [[7.5], [23.5]])
    assert asked == [2]


# --- robustness ---

def scored(*fits): return Jackknife(np.array(fits, float), np.zeros(len(fits), int), np.array(len(fits[0]) - 1))


def test_robustness_is_the_mean_over_kinds_whatever_their_number_of_strengths():
    scores = {('none', 0): scored([.8]*3), ('noise', 1): scored([.8]*3), ('noise', 2): scored([.4]*3),
              ('noise', 3): scored([0.]*3), ('polarity', 1): scored([.2]*3)}
    disturbed, share = robustness(scores)
    assert disturbed.estimate == pytest.approx((.4 + .2)/2)
    assert share.estimate == pytest.approx(.3/.8)


def test_what_no_disturbance_harms_keeps_all():
    same = scored([.5, .4, .6], [.7, .6, .8])
    _, share = robustness({('none', 0): same, ('noise', 1): same, ('blur', 1): same})
    assert np.allclose(share.values, 1), 'and welds and seeds make no difference'


SMALL = {'robustness.images': 16, 'robustness.attacked': 8, 'robustness.pgd_bounds': (1., 8.),
         'robustness.pgd_steps': 2, 'robustness.square_queries': 2, 'sampler.generator': 'insert'}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A study of the profile `fixture` whose classifiers have been fitted."
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('WELDSYNTH_CORES', '1')
        made = Study('stress', tmp_path_factory.mktemp('stress'), with_overrides(PROFILES['fixture'], SMALL))
        fit_arms(made)
        yield made


def test_half_of_the_disturbed_patches_are_flaws_and_the_attacked_are_among_them(study):
    many, few = half_flawed(study, 16), half_flawed(study, 8)
    assert (many.labels > 0).sum() == 8
    assert (few.labels > 0).sum() == 4
    assert set(few.table.id) < set(many.table.id)
    assert set(many.table.fold) == {'validation'}


def test_robustness_has_every_arm_with_every_disturbance(study):
    folder = measure_robustness(study).path
    disturbed, one = (pd.read_csv(folder/f'{name}.csv') for name in ('disturbed', 'robustness'))
    versions = 1 + sum(map(len, strengths(StressConfig()).values()))
    assert disturbed.groupby('arm').size().eq(4*versions).all()
    assert set(disturbed.arm) == set(study_arms(study))
    rates = disturbed[disturbed.measure.isin(['escapes', 'false_calls', 'macro_f1'])]
    assert rates['mean'].between(0, 1).all()
    assert set(one.measure) == {'undisturbed', 'disturbed', 'robustness', 'over real'}
    wide = one.pivot(index='arm', columns='measure', values='mean')
    defined = wide.undisturbed > 0
    assert wide.robustness[~defined].isna().all(), 'nothing is kept of nothing'
    assert np.allclose(wide.robustness[defined], (wide.disturbed/wide.undisturbed)[defined])
    assert np.allclose(wide['over real'].drop('real'), (wide.robustness - wide.robustness['real']).drop('real'),
                       equal_nan=True)


def test_escapes_and_false_calls_of_every_arm_are_apart_and_grow_under_attack(study):
    table = pd.read_csv(attack_classifiers(study).path/'attacks.csv')
    assert set(table.arm) == set(study_arms(study))
    assert set(table.measure) == {'escapes', 'false_calls'}
    wide = table.pivot(index=['arm', 'measure'], columns=['attack', 'bound'], values='mean')
    assert set(wide.columns) == {('none', 0), ('PGD', 1), ('PGD', 8), ('Square', 4)}
    assert (wide.ge(wide['none', 0] - 1e-9, axis=0)).to_numpy().all(), 'no attack puts a decision right'
    assert wide['PGD', 8].mean() > wide['none', 0].mean()


def test_shuffled_images_keep_their_grey_values(images):
    shuffled = ood_images(images, 0)['shuffled']
    assert torch.equal(shuffled.flatten(1).sort().values, images.flatten(1).sort().values)
