"""The mathematics of diffusion, each formula against one worked out by hand."""
import math

import pandas as pd
import pytest
import torch

from weldsynth.core.config import DenoiserConfig, OptimiserConfig
from weldsynth.core.random import torch_stream
from weldsynth.data.patches import PatchSet
from weldsynth.models.denoiser import (
    NULL_CLASS,
    condition_ids_for,
    denoiser_batch,
    denoiser_loss,
    guided_velocity,
    make_denoiser,
    noise_schedule,
)
from weldsynth.models.training import seeded_weights, start_training, train, training_step

def alpha(time):
    "The cosine schedule (Nichol and Dhariwal 2021) as diffusers cuts it into 1000 steps, alpha_t."
    def share_of_signal(t): return math.cos((t + .008)/1.008*math.pi/2)**2
    product = 1.
    for i in range(time + 1): product *= 1 - min(1 - share_of_signal((i + 1)/1000)/share_of_signal(i/1000), .999)
    return math.sqrt(product)


class Recorder(torch.nn.Module):
    "A denoiser that notes its inputs and predicts `velocity(labels)`, the same everywhere."
    def __init__(self, velocity=lambda labels: torch.zeros(len(labels))):
        super().__init__()
        self.velocity = velocity
        self.inputs = []

    def forward(self, x, timestep, class_labels):
        self.inputs.append((x, timestep, class_labels))
        values = self.velocity(class_labels).view(-1, 1, 1, 1)
        return type('Output', (), dict(sample=values.expand_as(x)))


# --- noise ---

@pytest.mark.parametrize('time', [0, 150, 500, 850, 999])
def test_the_input_is_alpha_latent_plus_sigma_noise(time):
    latent, noise = torch.full((1, 1, 2, 2), 2.), torch.full((1, 1, 2, 2), -3.)
    net = Recorder()
    denoiser_loss(net, latent, noise, torch.tensor([time]), torch.tensor([1]), torch.ones(1, 1, 2, 2))
    a = alpha(time)
    expected = 2*a - 3*math.sqrt(1 - a*a)
    assert net.inputs[0][0].flatten().tolist() == pytest.approx([expected]*4, abs=1e-4)


@pytest.mark.parametrize('time', [0, 150, 500, 850, 999])
def test_the_loss_is_the_weighted_squared_error_of_the_velocity(time):
    latent, noise = torch.full((1, 1, 2, 2), 2.), torch.full((1, 1, 2, 2), -3.)
    weight = torch.tensor([[[[1., 2.], [3., 6.]]]])
    net = Recorder(lambda labels: torch.full((len(labels),), .5))
    a = alpha(time)
    velocity = -3*a - 2*math.sqrt(1 - a*a)
    loss = denoiser_loss(net, latent, noise, torch.tensor([time]), torch.tensor([1]), weight)
    assert loss.item() == pytest.approx(3*(.5 - velocity)**2, rel=1e-4)


@pytest.mark.parametrize('time', [0, 100, 300, 500, 700, 900, 999])
def test_the_input_has_unit_variance_at_every_time(time):
    rng = torch_stream('test', time)
    latent, noise = torch.randn(2, 200, 4, 8, 8, generator=rng)
    noisy = noise_schedule().add_noise(latent, noise, torch.full((200,), time))
    assert noisy.var().item() == pytest.approx(1, abs=.03)
    assert noisy.mean().item() == pytest.approx(0, abs=.02)


def test_latent_and_noise_follow_from_input_and_velocity():
    rng = torch_stream('test')
    latent, noise = torch.randn(2, 8, 4, 8, 8, generator=rng)
    time = torch.tensor([0, 1, 50, 200, 400, 600, 800, 998])
    noisy = noise_schedule().add_noise(latent, noise, time)
    velocity = noise_schedule().get_velocity(latent, noise, time)
    a = torch.tensor([alpha(t) for t in time.tolist()]).view(-1, 1, 1, 1)
    s = (1 - a*a).sqrt()
    assert torch.allclose(a*noisy - s*velocity, latent, atol=1e-4)
    assert torch.allclose(s*noisy + a*velocity, noise, atol=1e-4)


# --- guidance ---

def guided(guidance, time=500., interval=(.15, .85)):
    "The velocity of two images whose predictions are 2 and 5 with their class, and 1 without."
    net = Recorder(lambda labels: torch.where(labels == NULL_CLASS, 1., 3.*labels - 1))
    velocity = guided_velocity(net, torch.zeros(2, 1, 2, 2), time, torch.tensor([1, 2]), guidance, interval)
    return velocity[:, 0, 0, 0].tolist(), net.inputs


def test_guidance_extrapolates_from_no_class_through_the_class():
    assert guided(3.)[0] == [1 + 3*(2 - 1), 1 + 3*(5 - 1)]


def test_guidance_of_one_is_the_prediction_of_the_class_in_a_single_pass():
    velocity, inputs = guided(1.)
    assert velocity == [2, 5]
    assert len(inputs[0][0]) == 2


def test_guidance_of_zero_is_the_prediction_without_class():
    assert guided(0.)[0] == [1, 1]


@pytest.mark.parametrize('time, acts', [(149., False), (150., True), (850., True), (851., False)])
def test_guidance_acts_within_its_interval(time, acts):
    assert guided(3., time)[0] == ([4, 13] if acts else [2, 5])


def test_both_halves_of_guidance_have_the_same_input_and_time():
    _, inputs = guided(3.)
    x, time, labels = inputs[0]
    assert len(inputs) == 1
    assert labels.tolist() == [1, 2, NULL_CLASS, NULL_CLASS]
    assert time.tolist() == [500]*4
    assert torch.equal(x[:2], x[2:])


# --- batches ---

@pytest.fixture(scope='module')
def batch():
    "A large batch of latents whose class and weld are known."
    table = pd.DataFrame(dict(label=['clean']*10 + ['crack']*20, group=['a']*20 + ['b']*10))
    patches = PatchSet(torch.zeros(30, 1, 8, 8, dtype=torch.uint8), table, ('clean', 'crack'))
    ids, _ = condition_ids_for(patches, 8)
    latents = torch.arange(30.).view(1, 30, 1, 1, 1).expand(4, 30, 2, 2, 2)
    flaws = torch.zeros(4, 30, 1, 2, 2)
    flaws[:, 10:, :, 0, 0] = 1
    config = DenoiserConfig(batch=20_000, condition_dropout=.1, flaw_weight=3.)
    return denoiser_batch(latents, patches.labels, ids, flaws, torch.tensor([.5, 1.5]), config, 0)(1)


def test_one_in_ten_is_trained_without_class(batch):
    conditions = batch[3]
    assert (conditions == NULL_CLASS).float().mean().item() == pytest.approx(.1, abs=.01)


def test_one_in_ten_is_trained_with_the_class_but_without_its_weld(batch):
    x, _, _, conditions, _ = batch
    cracks = x[:, 0, 0, 0] >= 10
    assert (conditions[cracks] == 1).float().mean().item() == pytest.approx(.1, abs=.01)
    with_weld = torch.isin(conditions[cracks], torch.tensor([2, 3]))
    assert with_weld.float().mean().item() == pytest.approx(.8, abs=.01)


def test_classes_have_equal_shares(batch):
    cracks = batch[0][:, 0, 0, 0] >= 10
    assert cracks.float().mean().item() == .5


def test_a_condition_belongs_to_its_patch(batch):
    x, _, _, conditions, _ = batch
    row = x[:, 0, 0, 0]
    assert set(conditions[row < 10].tolist()) == {0, NULL_CLASS}
    assert set(conditions[(row >= 10) & (row < 20)].tolist()) == {1, 2, NULL_CLASS}
    assert set(conditions[row >= 20].tolist()) == {1, 3, NULL_CLASS}


def test_times_are_logit_normal(batch):
    time = (batch[2] + .5)/1000
    logit = (time/(1 - time)).log()
    assert logit.mean().item() == pytest.approx(0, abs=.03)
    assert logit.std().item() == pytest.approx(1.2, abs=.03)


def test_the_weight_is_that_of_the_channel_times_that_of_the_flaw(batch):
    x, _, _, _, weight = batch
    crack = int((x[:, 0, 0, 0] >= 10).nonzero()[0])
    clean = int((x[:, 0, 0, 0] < 10).nonzero()[0])
    assert weight[crack].tolist() == [[[2., .5], [.5, .5]], [[6., 1.5], [1.5, 1.5]]]
    assert weight[clean].tolist() == [[[.5, .5], [.5, .5]], [[1.5, 1.5], [1.5, 1.5]]]


# --- training ---

def test_averaged_weights_follow_their_formula():
    "a becomes d a + (1 - d) w, with d the smaller of the decay and 1 - step^-.75; the first steps only copy."
    net = torch.nn.Linear(1, 1, bias=False)
    training = start_training(net, lambda net, x: net(x).mean(), 30, .1, OptimiserConfig(), .9, False)
    average = net.weight.item()
    for step in range(1, 31):
        training_step(training, (torch.ones(2, 1),))
        decay = min(.9, 1 - step**-.75) if step > 1 else 0.
        average = decay*average + (1 - decay)*net.weight.item()
    assert training.ema.shadow_params[0].item() == pytest.approx(average, abs=1e-6)


def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine():
    net = torch.nn.Linear(1, 1)
    training = start_training(net, lambda net, x: net(x).mean(), 100, 2., OptimiserConfig(warmup=.1), None, False)
    rates = []
    for _ in range(100):
        training_step(training, (torch.ones(2, 1),))
        rates.append(training.lr)
    expected = [.2*i for i in range(10)] + [1 + math.cos(math.pi*i/90) for i in range(90)]
    assert rates == pytest.approx(expected)


def test_the_gradient_is_clipped():
    net = torch.nn.Linear(1, 1, bias=False)
    training = start_training(net, lambda net, x: 50*net(x).mean(), 10, .1, OptimiserConfig(clip_norm=2.), None, False)
    seen = []
    training.optimizer.register_step_pre_hook(lambda *_: seen.append(net.weight.grad.item()))
    _, grad_norm = training_step(training, (torch.ones(2, 1),))
    assert grad_norm.item() == pytest.approx(50)
    assert seen == pytest.approx([2], rel=1e-4)


def test_a_small_denoiser_overfits_one_batch():
    "Its loss falls to a tenth: gradients reach every part of the network."
    rng = torch_stream('overfit')
    latents, noise = torch.randn(2, 8, 4, 4, 4, generator=rng)
    time, labels = torch.randint(100, 900, (8,), generator=rng), torch.arange(8)
    one_batch = latents, noise, time, labels, torch.ones_like(latents)
    net = seeded_weights(0, 'overfit', lambda: make_denoiser(16, 4, 2, 2)).eval()
    _, curve = train(net, denoiser_loss, lambda step: one_batch, 300, 3e-3)
    assert curve.loss.iloc[-1] < .1*curve.loss.iloc[0]
