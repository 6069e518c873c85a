"""The audit of inserted flaws, and the student."""
import pandas as pd
import pytest
import torch
from torch.nn.functional import avg_pool2d

from weldsynth.core.config import SamplerConfig, with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.models.insertion import draw_layers, flaws_with_masks, open_sites
from weldsynth.models.layers import holes
from weldsynth.stages.data import training_fold
from weldsynth.stages.insertion import load_inserter, masked_fold, teach, train_student
from weldsynth.stages.insertion_audit import (
    AUDIT_COLUMNS,
    GRID,
    SIZES,
    VIEWS,
    _flaw_set,
    _thirds,
    _traces_of,
    audit_insertions,
    inserted_sets,
    judged,
    rim_steps,
    swapped,
)
from weldsynth.stages.sample import GENERATORS, draw_defects, load_samples

@pytest.fixture(scope='module')
def study(tmp_path_factory):
    small = {'sampler.generator': 'insert-1step', 'autoencoder.steps': 2, 'sampler.steps': 3,
             'audit.fidelity_resamples': 4}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('WELDSYNTH_CORES', '1')
        config = with_overrides(PROFILES['fixture'], small)
        made = Study('audit', tmp_path_factory.mktemp('audit'), config, data='simulated')
        audit_insertions(made, 40)
        yield made


def test_lessons_are_even_over_the_classes_and_lie_in_their_cells(study):
    lessons = teach(study, load_inserter(study), training_fold(study), [0, 0])
    counts = lessons.labels.bincount()
    assert counts.sum() == 40
    assert counts.max() - counts.min() <= 1
    for part in (lessons.layers, lessons.noise): assert (part*(1 - lessons.cells) == 0).all()


def test_the_student_has_its_own_weights_and_the_teachers_scale(study):
    teacher, student = load_inserter(study), load_inserter(study, model=train_student(study))
    assert torch.equal(teacher.spread, student.spread)
    pairs = zip(teacher.net.state_dict().values(), student.net.state_dict().values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_class_and_mask_change_what_the_student_draws(study):
    student = load_inserter(study, model=train_student(study))
    clean, (_, masks) = training_fold(study).of('clean').take(range(4)), flaws_with_masks(masked_fold(study))
    def drawn(masks, label):
        sites, _ = open_sites(student.autoencoder, clean.greys, masks)
        return draw_layers(student.net, sites, torch.tensor([label]*4), [1]*4, 1., SamplerConfig(steps=1))
    first = drawn(masks[:4], 1)
    assert torch.equal(first, drawn(masks[:4], 1))
    least = .001*first.abs().amax()
    for other in (drawn(masks[:4], 2), drawn(masks[-4:], 1)):
        assert ((other - first).flatten(1).abs().amax(1) > least).all()


def test_the_one_step_generator_takes_one_step_without_guidance(study):
    drawn = draw_defects(study, 3., 10)
    manifest = pd.read_csv(drawn.path/'manifest.csv')
    assert set(manifest.steps) == {1}
    assert set(manifest.guidance) == {1.}
    assert load_samples(drawn, ('clean',)).masks.flatten(1).amax(1).tolist() == [255]*10
    assert set(GENERATORS) == {'ldm', 'ldm-refined', 'insert', 'insert-1step', 'vary', 'text', 'ldm-guided'}


def test_the_table_holds_every_set_and_class_with_shares(study):
    table = pd.read_csv(audit_insertions(study, 40).path/'sets.csv')
    assert list(table) == AUDIT_COLUMNS
    classes = (*training_fold(study).classes[1:], 'all', *SIZES)
    assert len(table) == 10*len(classes)
    shares = table[['asked', 'mask', 'clean']]
    assert shares.ge(0).all(axis=None)
    assert shares.le(1).all(axis=None)
    unswapped = table[~table.set.str.contains('swapped|other classes')]
    assert (unswapped.asked == unswapped['mask']).all()
    every = table[table['class'] == 'all'].set_index('set')
    unfiltered = every.n.drop('real, unseen').filter(regex='^(?!.*filtered)')
    assert unfiltered.eq(40).all()
    assert 4 < every.n.filter(like='filtered').item() <= 40
    assert every.rim.gt(0).all()
    of_sizes = table[table['class'].isin(SIZES)].groupby('set').n.sum()
    assert (of_sizes == every.n[of_sizes.index]).all(), 'each flaw has a size'


def test_real_flaws_cut_to_other_masks_keep_to_them(study):
    both, asked, of_mask = inserted_sets(study, 20)['real flaws cut to masks of other classes']
    others, _, _ = inserted_sets(study, 20)['inserted, classes swapped']
    assert torch.equal(both[:, 1:], others[:, 1:]), 'the masks of all sets are the same'
    [varied] = [both for title, (both, *_) in inserted_sets(study, 20).items() if title.startswith('varied')]
    assert torch.equal(both[:, 1:], varied[:, 1:])
    outside = 1 - holes(both[:, 1:])
    far = ((both[:, :1].float() - others[:, :1].float()).abs()*outside).flatten(1).amax(1)
    assert far.median() <= 8, 'the welds too, but for the stretch'
    assert all(a != b for a, b in zip(asked, of_mask, strict=True))


def test_a_probe_sees_pasted_inserted_and_varied_flaws_in_three_views_and_on_the_grid(study):
    table = pd.read_csv(audit_insertions(study, 40).path/'traces.csv')
    groups = [*training_fold(study).classes[1:], 'all', *SIZES]
    views = [view for view in (*VIEWS, GRID) for _ in groups]
    assert table.set.nunique() == 5
    assert table.groupby('set').view.apply(list).tolist() == [views]*5
    assert (table['class'] == groups*20).all()
    assert table.auc.dropna().between(0, 1).all()


def test_the_probe_on_the_grid_sees_blocks_and_nothing_else(study):
    flaws = flaws_with_masks(masked_fold(study))[0]
    real = _flaw_set(flaws)
    blocky = real._replace(both=real.both.clone())
    blocky.both[:, :1] = avg_pool2d(real.both[:, :1].float(), 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    darker = real._replace(both=torch.cat([real.both[:, :1]//2, real.both[:, 1:]], 1))
    def auc(some):
        rows = _traces_of(study, real, flaws.table.group.to_numpy(), some, _thirds(real), GRID)
        return {row[0]: row[1] for row in rows}['all']
    assert auc(blocky) > .95
    assert auc(darker) < auc(blocky) - .1


def test_pasted_flaws_have_the_masks_and_welds_of_inserted_ones(study):
    sets = inserted_sets(study, 20)
    pasted, [inserted] = sets['cut and paste'], [some for title, some in sets.items() if title.endswith('3 steps')]
    assert torch.equal(pasted.both[:, 1:], inserted.both[:, 1:])
    difference = (pasted.both[:, :1].float() - inserted.both[:, :1].float()).abs()
    inside = holes(pasted.both[:, 1:])
    assert (difference*(1 - inside)).flatten(1).amax(1).median() <= 8, 'the welds too, but for the stretch'
    assert (difference*inside).flatten(1).amax(1).median() > 8, 'and not the flaws'


def test_layers_of_pasted_flaws_are_the_most_like_those_of_the_training_fold(study):
    table = pd.read_csv(audit_insertions(study, 40).path/'copies.csv')
    assert set(table['class']) == {*training_fold(study).classes[1:], 'all', *SIZES}
    table = table[table['class'] == 'all'].set_index('set')
    assert table.near['cut and paste'] > table.near['real, unseen']
    inserted = table['median'][table.index.str.startswith('inserted')]
    assert table['median'].filter(like='varied').item() > inserted.max(), 'a varied flaw is still a real one'
    assert inserted.max() < table['median']['real, unseen'] < table['median']['cut and paste']


def test_shares_by_hand():
    probs = torch.tensor([[.8, .1, .1], [.1, .8, .1], [.1, .1, .8], [.1, .1, .8]])
    assert judged(probs, [1, 1, 1, 2], [2, 2, 2, 1]) == dict(asked=.5, mask=.25, clean=.25)


def test_each_class_is_swapped_for_another_and_all_are_used():
    assert sorted(swapped([1, 2, 3, 4, 5], 6)) == [1, 2, 3, 4, 5]
    assert all(a != b for a, b in zip(swapped([1, 2, 3], 4), [1, 2, 3], strict=True))


def test_a_step_on_the_rim_is_seen_and_one_elsewhere_is_not():
    noise = torch.randint(90, 110, (20, 1, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(0))
    mask = torch.zeros(20, 1, 64, 64, dtype=torch.uint8)
    mask[..., 28:36, 28:36] = 255
    brighter, far = noise.clone(), noise.clone()
    brighter[..., 27:37, 27:37] += 40
    far[..., 2:6, 2:6] += 40
    assert rim_steps(brighter, mask).mean() > 1.2*rim_steps(noise, mask).mean()
    assert torch.equal(rim_steps(far, mask), rim_steps(noise, mask))
