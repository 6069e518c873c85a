"""A rule that can say yes, no and perhaps, and says yes by mere chance in at most 2.5 of 100 studies."""
import copy

import jsonschema
import numpy as np
import pytest

from weldsynth.models.controls import best_control
from weldsynth.core.config import RULE
from weldsynth.metrics.bootstrap import interval, resample, simulate_counts
from weldsynth.stages.verdict import Guard, check_verdict, decide_shipping, guard_autoencoded, guard_brier, guard_copies, guard_false_calls, guard_film, guard_fingerprint, guard_gate, guard_recall, guard_review, integration_path, risk_register, sample_size_note

GROUPS, FITS = 16, 4
CONTROLS = {'real-repeated': 0., 'real-augmented': 0., 'cut-paste': 0.}


def decided(shifts, seed, groups=GROUPS, **more):
    "The rule's decision on a made-up study; what is no matter of calls is given as holding."
    counts = simulate_counts(np.random.default_rng(seed), dict(real=0., **CONTROLS) | shifts, groups, FITS, **more)
    drawn = resample(counts, np.zeros(FITS, int), 400, seed)
    control = best_control({arm: d['macro_f1'][0, 0] for arm, d in drawn.items()})
    gains = {arm: interval(drawn['real+synthetic']['macro_f1'] - drawn[arm]['macro_f1'], groups) for arm in ('real', control)}
    change = {m: drawn['real+synthetic'][m] - drawn['real'][m] for m in ('recall', 'false_call_rate')}
    guards = [guard_recall(str(k), interval(change['recall'][..., k], groups), 100) for k in range(4)] + [guard_false_calls(interval(change['false_call_rate'], groups))]
    return decide_shipping(gains, guards, True)[0]


def test_no_effect_ships_by_chance_in_at_most_25_of_1000_studies():
    decisions = [decided({'real+synthetic': 0.}, i) for i in range(1000)]
    print({d: decisions.count(d) for d in set(decisions)})
    assert decisions.count('SHIP') <= 25


def test_without_safeguards_and_controls_the_gain_alone_is_sound_too():
    "The strictest reading: of 1,000 studies without effect at most 25 have a lower bound above 0 and a gain of a point over real."
    lucky = 0
    for i in range(1000):
        counts = simulate_counts(np.random.default_rng(i), {'real': 0., 'real+synthetic': 0.}, GROUPS, FITS)
        drawn = resample(counts, np.zeros(FITS, int), 400, i)
        mean, low, _ = interval(drawn['real+synthetic']['macro_f1'] - drawn['real']['macro_f1'], GROUPS)
        lucky += mean >= RULE['least_gain'] and low > 0
    print(lucky)
    assert lucky <= 25


def test_a_large_gain_ships_and_a_loss_does_not():
    quiet = dict(groups=60, per_group=200, spread=(.6, .05, .05, .02), shared=(.7, .2))
    ships = [decided({'real+synthetic': np.array([.5, 1.2, 1.2, 1.2, 1.2])}, i, **quiet) for i in range(40)]
    assert ships.count('SHIP') >= 30 and 'DO NOT SHIP' not in ships
    assert [decided({'real+synthetic': -.5}, i) for i in range(40)].count('DO NOT SHIP') >= 38


def test_a_gain_that_is_free_does_not_ship():
    assert 'SHIP' not in [decided({'real+synthetic': .8, 'real-augmented': .8}, i) for i in range(100)]


@pytest.mark.parametrize('guard, holds, fails, doubt', [
    (lambda x: guard_recall('crack', x, 100), (0, -.04, .1), (-.2, -.3, -.06), (-.04, -.1, .02)),
    (guard_false_calls, (0, -.01, .004), (.02, .006, .03), (.004, 0, .01)),
    (guard_brier, (1., .9, 1.09), (1.3, 1.2, 1.4), (1.05, .9, 1.2)),
    (lambda x: guard_film(x, 'two films'), (.01, -.01, .03), (-.1, -.2, -.03), (-.01, -.04, .02)),
    (guard_autoencoded, (0, -.01, .01), (.1, .03, .2), (.02, 0, .04)),
    (lambda x: guard_gate(dict(gate=x)), (.99, .975, 1.01), (.9, .85, .95), (.96, .93, 1.)),
    (lambda x: guard_fingerprint(dict(probe=x, probe_floor=(.5, .4, .6))), (.55, .5, .6), (.9, .8, .95), (.64, .6, .7))])
def test_each_interval_guard_can_hold_fail_and_doubt(guard, holds, fails, doubt):
    assert [guard(x).outcome for x in (holds, fails, doubt)] == ['holds', 'fails', 'in doubt']


def test_guards_without_interval():
    good = dict(exact_copies=0, near_copies=.01, heldout_near=.005)
    assert [g.outcome for g in guard_copies(good)] == ['holds', 'holds']
    assert [g.outcome for g in guard_copies(good | dict(exact_copies=1, near_copies=.02))] == ['fails', 'fails']
    assert {g.outcome for g in [*guard_copies({}), guard_gate(dict(gate=None)), guard_gate(dict(gate=(.9, np.nan, np.nan))), guard_fingerprint({}), guard_film(None, 'films'), guard_autoencoded(None)]} == {'not assessed'}


def test_a_floor_that_is_high_raises_the_limit_of_the_fingerprint():
    assert guard_fingerprint(dict(probe=(.75, .72, .78), probe_floor=(.7, .6, .8))).outcome == 'holds'


def test_few_items_are_not_assessed(): assert guard_recall('crack', (0, -.01, .01), RULE['least_items'] - 1).outcome == 'not assessed'


def test_reviews():
    assert guard_review({}).outcome == 'not assessed' and guard_review({}).measured == 'not reviewed' and guard_review(dict(reviewers=1)).measured == '1 of 3 reviews'
    assert guard_review(dict(reviewers=3, label_right=.95, artefacts=.02)).outcome == 'holds'
    assert guard_review(dict(reviewers=3, label_right=.85, artefacts=.02)).outcome == guard_review(dict(reviewers=3, label_right=.95, artefacts=.1)).outcome == 'fails'


def test_what_would_decide():
    wave = np.concatenate([[0], np.tile([-1., 1], 500)])
    draws = lambda gain, welds, fits: {'real': np.stack([gain + welds*wave, gain + fits*wave])}
    assert 'test welds instead of 16' in would_decide('INCONCLUSIVE', draws(.02, .02, .001), 16, 4)
    assert 'no number of welds' in would_decide('INCONCLUSIVE', draws(.02, .02, .03), 16, 4)
    assert 'would not change' in would_decide('DO NOT SHIP', draws(-.2, .01, .01), 16, 4)
    skewed = .03 + np.concatenate([[0], np.tile([-.01]*9 + [.09], 100)])  # clear of 0, with a variance that alone would ask for more welds
    assert 'the doubt is about safeguards' in would_decide('INCONCLUSIVE', {'real': np.stack([skewed, np.full_like(skewed, .03)])}, 16, 4)


@pytest.fixture
def verdict():
    guards = [guard_recall('crack', (0, -.01, .01), 50), guard_false_calls((0, -.001, .001)), guard_film((0, -.01, .01), 'welds'), *guard_copies(dict(exact_copies=0, near_copies=0., heldout_near=0.)),
              guard_fingerprint({}), guard_autoencoded((0, -.01, .01)), guard_review({})]
    return dict(decision='SHIP', provisional=True, reason='the gain is clear', best_control='cut-paste', gains={'real': [.05, .02, .08], 'cut-paste': [.04, .01, .07]}, guards=[g._asdict() for g in guards],
                not_covered=[], minimum_detectable=.02, would_decide='It is.', simulated=True, groups_known=True, test_images=100, test_groups=16, seeds=4, generators=1, profile='demo', plan='0'*32, rule=RULE,
                risks=risk_register(guards, .5, 16, {}), integration=integration_path((.7, .65, .75), .02))


def test_a_verdict_of_the_published_form(verdict): check_verdict(verdict)


@pytest.mark.parametrize('break_it', [lambda v: v.update(decision='MAYBE'), lambda v: v.pop('plan'), lambda v: v['gains'].pop('real'), lambda v: v['guards'][0].update(outcome='fine'),
                                      lambda v: v.update(extra=1), lambda v: v['gains'].update(real=[.1, .2]), lambda v: v.update(test_groups=0), lambda v: v['risks'][0].pop('owner')])
def test_a_broken_verdict_is_refused(verdict, break_it):
    broken = copy.deepcopy(verdict)
    break_it(broken)
    with pytest.raises(jsonschema.ValidationError): check_verdict(broken)


def test_the_register_names_the_worst_class():
    guards = [guard_recall('slag', (-.01, -.02, 0), 50), guard_recall('crack', (-.1, -.2, 0), 50)]
    others = [guard_false_calls((0, 0, 0)), guard_film(None, 'films'), *guard_copies({}), guard_fingerprint({}), guard_autoencoded(None), guard_review({})]
    assert 'crack' in risk_register(guards + others, .5, 16, {})[0]['measured']
    assert isinstance(guards[0], Guard)
