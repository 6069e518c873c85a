"""Refined whole patches: the network, its place among the generators, and what depends on what."""
from dataclasses import replace

import pandas as pd
import pytest
import torch
from diffusers import UNet2DModel

from weldsynth.core.config import RefinerConfig, RefiningConfig, StudyError, with_overrides
from weldsynth.core.files import file_hash
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.data.sample_files import sample_issues
from weldsynth.models.refiner import make_refiner, refine, refiner_batch, refiner_loss, refiner_solver
from weldsynth.report.cards import _what_loads
from weldsynth.stages.data import training_fold
from weldsynth.stages.refining import load_refiner, refined_sampler, train_refiner
from weldsynth.stages.sample import draw_defects, load_samples, tried_guidances

SMALL = {'sampler.generator': 'ldm-refined', 'autoencoder.steps': 2, 'denoiser.steps': 2, 'refiner.steps': 4,
         'sampler.steps': 2, 'sampler.batch': 7}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    return Study('refined', tmp_path_factory.mktemp('refined'), with_overrides(PROFILES['fixture'], SMALL))


def with_config(study, **values): return replace(study, config=with_overrides(study.config, values))


def test_the_samples_are_marked_with_the_network_that_refined_them(study):
    drawn, model = draw_defects(study, .6, 20), train_refiner(study)
    rows = pd.read_csv(drawn.path/'manifest.csv')
    assert not [*sample_issues(drawn.path)]
    assert set(rows.checkpoint) == {model.key}
    assert set(rows.weights) == {file_hash(model.path/'refiner'/'diffusion_pytorch_model.safetensors')}
    assert set(rows.guidance) == {.6}, 'the strength'
    assert set(rows.steps) == {study.config.refining.solver_steps}


def test_an_image_depends_on_its_own_seed_and_class(study):
    draw = refined_sampler(study, train_refiner(study), .6)
    several, alone = draw([(1, 1), (2, 2), (3, 3)], [5, 6, 7]), draw([(2, 2)], [6])
    assert (several[1].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(several[1], draw([(2, 2)], [8])[0])
    assert several.dtype == torch.uint8
    assert several.shape == (3, 1, 32, 32)


def test_validation_chooses_the_strength(study):
    assert tried_guidances(study) == study.config.refining.strengths


def test_how_samples_are_refined_trains_no_network_anew(study):
    other = with_config(study, **{'refining.guidance': 1., 'refining.solver_steps': 2})
    assert train_refiner(other).key == train_refiner(study).key
    assert draw_defects(other, .6, 20).key != draw_defects(study, .6, 20).key


@pytest.mark.parametrize('strength', [0., .02, 1.2])
def test_a_strength_that_the_refiner_has_not_learnt_is_an_error_in_one_line(study, strength):
    with pytest.raises(StudyError, match=rf'refining.strengths={strength:g} is out of range: choose more than 0.02'):
        refined_sampler(study, train_refiner(study), strength)


def test_the_strength_says_how_much_is_drawn_anew(study):
    images, net = training_fold(study).images[:8], load_refiner(train_refiner(study))
    def change(strength):
        after = refine(net, images, [0]*8, range(8), strength, study.config.refining)
        return (after.int() - images.int()).abs().float().mean()
    assert change(.05) < change(.3) < change(.9)


def test_diffusers_loads_the_network(study):
    model = train_refiner(study)
    stock, ours = UNet2DModel.from_pretrained(model.path/'refiner'), load_refiner(model)
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), ours.parameters(), strict=True))
    assert _what_loads(model) == (model.path/'refiner', 'UNet2DModel'), 'as the card says'
    assert len(load_samples(draw_defects(study, .6, 20), training_fold(study).classes)) == 20


def test_the_solver_begins_with_the_noise_that_was_added_and_ends_without():
    solver = refiner_solver(.8, .02)
    solver.set_timesteps(3)
    assert solver.sigmas.tolist() == pytest.approx([.8, solver.sigmas[1].item(), .02, 0])


def test_a_network_that_knows_the_images_has_no_loss():
    x = torch.randn(6, 1, 8, 8, generator=torch.manual_seed(0))/2
    level, noise = torch.tensor([.02, .1, .3, .5, .8, 1.]), torch.ones(6, 1, 8, 8)
    class Knows(torch.nn.Module):
        def forward(self, scaled, time, classes):
            sigma = (4*time).exp().view(-1, 1, 1, 1)  # EDM's time is a quarter of the noise level's logarithm
            noisy = scaled*(sigma**2 + .25).sqrt()
            output = (x - .25/(sigma**2 + .25)*noisy)*(sigma**2 + .25).sqrt()/(.5*sigma)
            return type('Output', (), dict(sample=output))
    assert refiner_loss(Knows(), x, noise, level, torch.zeros(6)) < 1e-8


def test_a_batch_has_all_classes_and_noise_up_to_the_greatest_strength(study):
    fold, config = training_fold(study), RefinerConfig(batch=600, most_noise=.7)
    x, noise, level, classes = refiner_batch(fold, config, 0)(0)
    assert x.shape == noise.shape
    assert x.min() >= -1
    assert x.max() <= 1
    assert level.min() >= .0199
    assert .6 < level.max() <= .7001
    counts = classes.bincount(minlength=len(fold.classes) + 1)
    assert counts[:-1].min() > 60
    assert .06 < counts[-1]/600 < .14, 'a tenth has no class'


def test_the_class_reaches_the_network():
    net = make_refiner(16, 3, 8).eval()
    x = torch.randn(1, 1, 16, 16, generator=torch.manual_seed(0))
    with torch.no_grad(): net.conv_out.weight.normal_(generator=torch.manual_seed(1))
    first, second = (net(x, -.3, torch.tensor([c])).sample for c in (0, 2))
    assert (first - second).abs().max() > 1e-4


def test_values_that_are_not_finite_are_an_error_in_one_line():
    net = make_refiner(16, 3, 8).eval()
    with torch.no_grad(): net.conv_out.bias.fill_(torch.nan)
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(StudyError, match=r'not finite: remove the folder ldm/refiner-\.\.\.'):
        refine(net, images, [1, 1], [0, 1], .6, RefiningConfig())
