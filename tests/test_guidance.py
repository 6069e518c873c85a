"""Guidance by a classifier: on a mixture of normal distributions in which everything is known, and as a generator."""
from dataclasses import replace

import pandas as pd
import pytest
import torch

from weldsynth.core.config import with_overrides
from weldsynth.core.files import file_hash
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.data.sample_files import sample_issues
from weldsynth.models.denoiser import NULL_CLASS, few_step_solver, guided_velocity, noise_schedule
from weldsynth.models.guidance import ClassifierGuidance, NoiseClassifier, class_gradient, velocity_shift
from weldsynth.stages.data import training_fold
from weldsynth.stages.guided import classifier_guidance, train_noise_classifier
from weldsynth.stages.ldm import load_pipeline
from weldsynth.stages.sample import draw_defects, load_samples, tried_guidances

MEANS = torch.tensor([[-1.5, 0.], [.5, 2.], [2., -1.]])  # of three classes in two dimensions
SHARES = torch.tensor([.5, .3, .2])
SPREAD = .4
THROUGHOUT = (0., 1.)
CONDITIONS = torch.tensor([0, 1, 2, 1])  # the fourth condition of the denoiser belongs to class 1


def log_joint(x, time):
    "Log of share times density of each class at a time, up to a constant; x is N x 2 x 1 x 1."
    signal = noise_schedule().alphas_cumprod[int(time)]
    away = x.flatten(1)[:, None] - signal.sqrt()*MEANS
    return SHARES.log() - away.square().sum(2)/(2*(signal*SPREAD**2 + 1 - signal))


def class_velocity(x, time):
    "The best prediction of the velocity with each class, N x 3 x 2."
    signal = noise_schedule().alphas_cumprod[int(time)]
    away = x.flatten(1)[:, None] - signal.sqrt()*MEANS
    variance = signal*SPREAD**2 + 1 - signal
    clear = MEANS + signal.sqrt()*SPREAD**2/variance*away
    noise = (1 - signal).sqrt()/variance*away
    return signal.sqrt()*noise - (1 - signal).sqrt()*clear


class Known(torch.nn.Module):
    "The denoiser that makes the smallest error."
    def forward(self, x, timestep, class_labels):
        each = class_velocity(x, timestep[0])
        without = (log_joint(x, timestep[0]).softmax(1)[..., None]*each).sum(1)
        told = each[torch.arange(len(x)), CONDITIONS[class_labels.clamp(max=3)]]
        velocity = torch.where((class_labels == NULL_CLASS)[:, None], without, told)
        return type('Output', (), dict(sample=velocity.view_as(x)))


def logits(x, times): return log_joint(x, times[0])


def points(n): return 1.5*torch.randn(n, 2, 1, 1, generator=torch.manual_seed(0))


def labels_of(n): return torch.arange(n) % 4


@pytest.mark.parametrize('time', [1, 50, 150, 500, 850, 950])
def test_the_velocity_without_class_and_the_shift_are_that_with_the_class(time):
    x = points(60)
    without = Known()(x, torch.full((60,), time), torch.full((60,), NULL_CLASS)).sample
    for y in range(3):
        gradient = class_gradient(logits, x, time, torch.full((60,), y))
        shifted = (without + velocity_shift(gradient, time)).flatten(1)
        assert torch.allclose(shifted, class_velocity(x, time)[:, y], atol=2e-3)


def test_the_gradient_is_that_of_finite_differences():
    x, time, y = points(5).double(), 400, torch.tensor([0, 1, 2, 0, 1])
    gradient = class_gradient(logits, x, time, y).flatten(1)
    for axis in range(2):
        step = torch.zeros(5, 2, 1, 1, dtype=torch.float64)
        step[:, axis] = 1e-5
        ends = [log_joint(x + sign*step, time).log_softmax(1)[torch.arange(5), y] for sign in (1, -1)]
        assert torch.allclose(gradient[:, axis], (ends[0] - ends[1])/2e-5, atol=1e-4)


@pytest.mark.parametrize('alone', [False, True])
@pytest.mark.parametrize('w', [1., 2., 5.])
def test_a_perfect_classifier_guides_as_a_perfect_denoiser_does(alone, w):
    x, y = points(40), labels_of(40)
    by_classifier = ClassifierGuidance(logits, CONDITIONS, alone)
    for time in (100., 500., 800.):
        expected = guided_velocity(Known(), x, time, y, w, THROUGHOUT)
        assert torch.allclose(by_classifier(Known(), x, time, y, w, THROUGHOUT), expected, atol=5e-3)


def test_the_sampler_arrives_at_the_class_though_the_denoiser_is_not_told_it():
    "Mean and spread of each class from noise, with the classifier alone at scale 1."
    y = torch.arange(3).repeat_interleave(400)
    solver, guide = few_step_solver(), ClassifierGuidance(logits, CONDITIONS, alone=True)
    solver.set_timesteps(60)
    x = torch.randn(1200, 2, 1, 1, generator=torch.manual_seed(1))
    with torch.inference_mode():
        for t, time in zip(solver.timesteps, solver.timesteps.tolist(), strict=True):
            x = solver.step(guide(Known(), x, time, y, 1., THROUGHOUT), t, x).prev_sample
    for c in range(3):
        drawn = x[y == c].flatten(1)
        assert torch.allclose(drawn.mean(0), MEANS[c], atol=.1)
        assert torch.allclose(drawn.std(0), torch.full((2,), SPREAD), atol=.08)


@pytest.mark.parametrize(('time', 'acts'), [(149., False), (150., True), (850., True), (851., False)])
def test_the_classifier_is_asked_within_the_interval_alone(time, acts):
    asked = []
    def noting(x, times):
        asked.append(len(x))
        return logits(x, times)
    x, y = points(4), labels_of(4)
    for alone, told in ((False, y), (True, torch.full_like(y, NULL_CLASS))):
        velocity = ClassifierGuidance(noting, CONDITIONS, alone)(Known(), x, time, y, 3., (.15, .85))
        assert torch.equal(velocity, Known()(x, torch.full((4,), time), told).sample) == (not acts)
    assert asked == [4, 4]*acts


def test_scale_1_beside_a_denoiser_that_is_told_the_class_is_no_guidance():
    def never(x, times): raise AssertionError
    x, y = points(4), labels_of(4)
    velocity = ClassifierGuidance(never, CONDITIONS)(Known(), x, 500., y, 1., THROUGHOUT)
    assert torch.equal(velocity, guided_velocity(Known(), x, 500., y, 1., THROUGHOUT))


def test_a_gradient_can_be_had_in_inference_mode_and_leaves_the_weights_alone():
    net = NoiseClassifier(3, 4, 8).eval().requires_grad_(False)
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    outside = class_gradient(net, x, 300., y)
    with torch.inference_mode(): inside = class_gradient(net, x.clone(), 300., y.clone())
    assert torch.equal(outside, inside)
    assert outside.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())


# --- as a generator ---

SMALL = {'sampler.generator': 'ldm-guided', 'autoencoder.steps': 2, 'denoiser.steps': 2, 'guidance.steps': 4,
         'sampler.steps': 3, 'sampler.batch': 7}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    return Study('guided', tmp_path_factory.mktemp('guided'), with_overrides(PROFILES['fixture'], SMALL))


def test_the_samples_are_marked_with_the_classifier_that_guided_them(study):
    drawn, model = draw_defects(study, 3., 20), train_noise_classifier(study)
    rows = pd.read_csv(drawn.path/'manifest.csv')
    assert not [*sample_issues(drawn.path)]
    assert set(rows.checkpoint) == {model.key}
    assert set(rows.weights) == {file_hash(model.path/'classifier.safetensors')}
    assert tried_guidances(study) == study.config.guidance.scales, 'validation chooses the scale'


def test_at_scale_1_nothing_pushes_and_above_it_the_classifier_does(study):
    alone = replace(study, config=with_overrides(study.config, {'sampler.generator': 'ldm'}))
    classes = training_fold(study).classes
    def images(study, scale): return load_samples(draw_defects(study, scale, 20), classes).images.int()
    assert (images(study, 1.) - images(alone, 1.)).abs().max() <= 1
    assert (images(study, 8.) - images(study, 1.)).abs().max() > 1


def test_each_condition_of_the_denoiser_has_the_class_that_it_was_trained_for(study):
    guide = classifier_guidance(study, train_noise_classifier(study))
    names = load_pipeline(study).labels
    classes = training_fold(study).classes
    assert len(guide.classes) == len(names)
    assert {classes[c] for c in guide.classes.tolist()} == set(classes)
    assert not guide.alone


def test_a_part_of_the_defects_has_a_classifier_of_its_own(study):
    part, whole = train_noise_classifier(study, fraction=.5), train_noise_classifier(study)
    assert part.key != whole.key
    assert part.info['args'] == dict(generator=0, fraction=.5)
