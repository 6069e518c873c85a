"""The supervised contrastive loss: by hand, and against four mistakes known from published code."""
import math

import pytest
import torch
from torch.nn.functional import normalize

from weldsynth.models.contrastive import supervised_contrastive

TEMPERATURE = .5


def points(n, seed=0):
    return normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)))


def loss(z, labels): return supervised_contrastive(z, torch.tensor(labels), TEMPERATURE).item()


def test_three_images_by_hand():
    "Two of a class at a right angle, and a third that lies opposite the first."
    z = torch.tensor([[1., 0.], [0., 1.], [-1., 0.]])
    first = math.log(1 + math.exp(-1/TEMPERATURE))  # -log(e^0 / (e^0 + e^(-1/T)))
    second = math.log(2)
    assert loss(z, [0, 0, 1]) == pytest.approx((first + second)/2, rel=1e-5)


def test_labels_belong_to_their_images():
    z, labels = points(8), [0, 0, 0, 1, 1, 2, 2, -1]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1)).tolist()
    assert loss(z[order], [labels[i] for i in order]) == pytest.approx(loss(z, labels), rel=1e-5)
    assert abs(loss(z[order], labels) - loss(z, labels)) > .01, 'labels of other images are noticed'


def test_bad_images_are_no_positives_of_each_other():
    z = points(6)
    assert loss(z, [0, 1, 2, -1, -1, -1]) == 0, 'no image has another of its class'
    near, far = z.clone(), z.clone()
    near[5], far[5] = z[4], -z[4]
    def pull(x): return loss(x[3:], [-1, -1, -1])
    assert pull(near) == pull(far) == 0
    with_bad, without = loss(z, [0, 0, 1, 1, -1, -1]), loss(z[:4], [0, 0, 1, 1])
    assert with_bad > without, 'they are among those that each image must differ from'


def test_two_views_of_one_image_are_a_pair():
    "An image that is alone in its class is pulled towards its second view."
    z = points(5)
    apart, together = z.clone(), z.clone()
    apart[1], together[1] = -z[0], z[0]
    labels = [0, 0, 1, 2, 3]
    assert loss(together, labels) < loss(z, labels) < loss(apart, labels)


def test_pairs_left_out_are_nothing_in_the_sum():
    "Of two images alone each has all of the sum; were the pair with itself e^0 instead of nothing, it would not."
    assert loss(points(2), [0, 0]) == pytest.approx(0, abs=1e-6)
