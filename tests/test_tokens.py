"""The embedding of a class with few flaws, learnt alone."""
import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.core.config import InserterConfig, OptimiserConfig, SamplerConfig, StudyError, with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.data.patches import PatchSet
from weldsynth.models.autoencoder import make_autoencoder, whiten
from weldsynth.models.insertion import Inserter, inserter_batch, inserter_loss, insertion_pairs, make_inserter
from weldsynth.models.tokens import class_tables, only_tokens, token_pairs
from weldsynth.models.training import seeded_weights, train
from weldsynth.stages.data import training_fold
from weldsynth.stages.insertion import load_inserter, train_common, train_inserter, train_tokens
from weldsynth.stages.sample import GENERATORS, draw_defects, load_samples

PX, DOT = 32, 2
QUICK = InserterConfig(heads=2, layers=2, batch=16)
PLAIN = OptimiserConfig(weight_decay=0.)
SMALL = {'sampler.generator': 'vary', 'inserter.steps': 10, 'autoencoder.steps': 2, 'token.steps': 5,
         'sampler.steps': 3}


@pytest.fixture(scope='module')
def fold():
    "40 noisy cleans, 24 bright bars and 24 dark dots with masks."
    rng = torch.manual_seed(0)
    images = 120 + 10*torch.randn(88, 1, PX, PX, generator=rng)
    masks = torch.zeros(88, 1, PX, PX, dtype=torch.uint8)
    for i in range(24):
        masks[40 + i, :, 20:23, 4:16 + i % 9] = 255
        masks[64 + i, :, 10:14 + i % 4, 12:16] = 255
    images[40:64] += 50*(masks[40:64] > 0)
    images[64:] -= 50*(masks[64:] > 0)
    table = pd.DataFrame(dict(label=['clean']*40 + ['bar']*24 + ['dot']*24, group='w', low=100., high=150.))
    return PatchSet(images.clamp(0, 255).to(torch.uint8), table, ('clean', 'bar', 'dot'), masks)


@pytest.fixture(scope='module')
def base(fold):
    "An inserter that has seen bars alone."
    autoencoder = make_autoencoder(fold.images, 4)
    whiten(autoencoder, fold.images)
    pairs = insertion_pairs(autoencoder, fold.take(range(64)), np.random.default_rng(0))
    net = seeded_weights(0, 'test', lambda: make_inserter(PX, 4, 2, 2))
    net, _ = train(net, inserter_loss, inserter_batch(pairs, QUICK, 0), 200, 4e-3)
    return Inserter(net, autoencoder, pairs.spread)


def started(base): return only_tokens(copy.deepcopy(base.net), [DOT], [1])


def learnt(base, fold, **kwargs):
    "The network after 150 steps on the first five dots."
    pairs = token_pairs(base, fold.take(range(69)), [DOT])
    assert len(pairs.labels) == 5
    return train(started(base), inserter_loss, inserter_batch(pairs, QUICK, 1), 150, 1e-2, PLAIN, **kwargs)[0]


@pytest.fixture(scope='module')
def tokens(base, fold): return learnt(base, fold)


@torch.no_grad()
def loss_on(net, base, patches, label):
    batch = inserter_batch(token_pairs(base, patches, [label]), QUICK, 9)
    return np.mean([inserter_loss(net, *batch(step)).item() for step in range(40)])


def test_only_the_rows_of_the_class_change(base, tokens):
    before, after = base.net.state_dict(), tokens.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f'transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight' for i in range(2)}
    for old, new in zip(class_tables(base.net), class_tables(tokens), strict=True):
        assert (old != new).any(1).nonzero().flatten().tolist() == [DOT]


def test_the_loss_on_flaws_of_the_class_falls_on_those_that_were_not_seen_too(base, fold, tokens):
    for rows in (range(64, 69), range(69, 88)):
        dots = fold.take(rows)
        assert loss_on(tokens, base, dots, DOT) < .9*loss_on(started(base), base, dots, DOT)


def test_the_token_moves_what_is_drawn_towards_its_own_kind(base, fold, tokens):
    "Dots are dark and bars, all that the network had seen, are bright."
    clean, masks = fold.of('clean').take(range(8)), fold.masks[80:88]
    def contrast(net, label):
        inserter, labels = replace(base, net=net), torch.full((8,), label)
        layers = inserter.layers(clean.greys, masks, labels, range(8), 1., SamplerConfig(steps=6))
        return layers[masks > 0].mean().item()
    assert contrast(tokens, DOT) < .75*contrast(started(base), DOT)
    assert contrast(tokens, 1) == contrast(base.net, 1), 'bars are drawn as before'


def test_an_interrupted_training_of_tokens_goes_on(base, fold, tokens, tmp_path):
    def stop(step, net): return step == 60
    learnt(base, fold, on_snapshot=stop, snapshot_steps=[60], resume=tmp_path)
    again = learnt(base, fold, resume=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tokens.parameters(), strict=True))


# --- in a study ---

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('WELDSYNTH_CORES', '1')
        yield Study('few', tmp_path_factory.mktemp('few'), with_overrides(PROFILES['fixture'], SMALL))


def below(study, n): return replace(study, config=with_overrides(study.config, {'token.below': n}))


def counts(study): return training_fold(study).table.label.value_counts().drop('clean')


def test_nothing_changes_where_no_class_has_few_flaws(study):
    usual = train_inserter(study)
    for n in (0, counts(study).min()):
        assert GENERATORS['vary'].train(below(study, int(n)), 0, 1.) == usual
    assert not list((study.path/'insert').glob('tokens-*'))


def test_a_class_with_few_flaws_is_varied_by_its_token(study, monkeypatch):
    fold = training_fold(study)
    few = fold.classes[-1]
    rows = np.flatnonzero(fold.table.label == few)[4:]
    small = fold.take(~np.isin(np.arange(len(fold)), rows))
    monkeypatch.setattr('weldsynth.stages.insertion.training_fold', lambda study, fraction=1.: small)
    rare = replace(below(study, 5), path=study.path/'rare')
    common, tokens = load_inserter(rare, model=train_common(rare)), load_inserter(rare, model=train_tokens(rare))
    changed = [(a != b).any(1).nonzero().flatten().tolist()
               for a, b in zip(*map(class_tables, (common.net, tokens.net)), strict=True)]
    assert changed == [[len(fold.classes) - 1]]*2
    assert torch.equal(common.spread, tokens.spread)
    drawn = draw_defects(rare, .3, 10)
    assert set(pd.read_csv(drawn.path/'manifest.csv').checkpoint) == {train_tokens(rare).key}
    assert load_samples(drawn, fold.classes).masks.flatten(1).amax(1).tolist() == [255]*10


def test_a_limit_above_all_classes_is_refused_in_one_line(study):
    with pytest.raises(StudyError, match='token.below=100000: all classes have fewer flaws.*choose a smaller number'):
        GENERATORS['vary'].train(below(study, 100_000), 0, 1.)
