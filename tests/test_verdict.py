"""A rule that can say yes, no and perhaps, and says yes by mere chance in at most 2.5 of 100 studies."""
import copy
import json

import jsonschema
import numpy as np
import pytest

from weldsynth.core.config import RuleConfig
from weldsynth.metrics.bootstrap import interval, resample, simulate_counts
from weldsynth.metrics.rule import (
    decide_shipping,
    guard_autoencoded,
    guard_brier,
    guard_copies,
    guard_false_calls,
    guard_film,
    guard_fingerprint,
    guard_gate,
    guard_recall,
    guard_review,
    sample_size_note,
)
from weldsynth.models.controls import best_control
from weldsynth.stages.arms import free_arms
from weldsynth.stages.verdict import check_verdict, evaluate, integration_path, recommend, risk_register

RULE = RuleConfig()
GROUPS, FITS = 16, 4
CONTROLS = {'real-repeated': 0., 'real-augmented': 0., 'cut-paste': 0.}

# --- the rule on made-up studies ---

def replicates_of(shifts, seed, groups=GROUPS, **more):
    "Replicates of a made-up study, and those of its gains."
    counts = simulate_counts(np.random.default_rng(seed), shifts, groups, FITS, **more)
    return resample(counts, np.zeros(FITS, int), 400, seed)


def decide(shifts, seed, groups=GROUPS, **more):
    "The rule's decision on a made-up study; safeguards that do not depend on predictions are left out."
    drawn = replicates_of(dict(real=0., **CONTROLS) | shifts, seed, groups, **more)
    control = best_control({arm: d['macro_f1'][0, 0] for arm, d in drawn.items()}, CONTROLS)
    synthetic = drawn['real+synthetic']
    gains = {arm: interval(synthetic['macro_f1'] - drawn[arm]['macro_f1'], groups) for arm in ('real', control)}
    found = synthetic['found'] - drawn['real']['found']
    false_calls = synthetic['false_call_rate'] - drawn['real']['false_call_rate']
    guards = [guard_recall(str(k), interval(found[..., k], groups), 100, RULE) for k in range(4)]
    return decide_shipping(gains, [*guards, guard_false_calls(interval(false_calls, groups), RULE)], True, RULE)[0]


def test_no_effect_ships_by_chance_in_at_most_25_of_1000_studies():
    decisions = [decide({'real+synthetic': 0.}, i) for i in range(1000)]
    print({d: decisions.count(d) for d in set(decisions)})
    assert decisions.count('SHIP') <= 25


def test_without_safeguards_and_controls_the_gain_alone_is_sound_too():
    "The strictest reading: of 1,000 studies without effect, at most 25 have a gain of a point that is clear of 0."
    lucky = 0
    for i in range(1000):
        drawn = replicates_of({'real': 0., 'real+synthetic': 0.}, i)
        mean, low, _ = interval(drawn['real+synthetic']['macro_f1'] - drawn['real']['macro_f1'], GROUPS)
        lucky += mean >= RULE.least_gain and low > 0
    print(lucky)
    assert lucky <= 25


def test_a_large_gain_ships():
    quiet = dict(groups=60, per_group=200, spread=(.6, .05, .05, .02), shared=(.7, .2))
    gain = np.array([.5, 1.2, 1.2, 1.2, 1.2])
    decisions = [decide({'real+synthetic': gain}, i, **quiet) for i in range(40)]
    assert decisions.count('SHIP') >= 30
    assert 'DO NOT SHIP' not in decisions


def test_a_loss_does_not_ship():
    assert [decide({'real+synthetic': -.5}, i) for i in range(40)].count('DO NOT SHIP') >= 38


def test_a_gain_that_is_free_does_not_ship():
    assert 'SHIP' not in [decide({'real+synthetic': .8, 'real-augmented': .8}, i) for i in range(100)]


# --- safeguards ---

@pytest.mark.parametrize(('guard', 'holds', 'fails', 'doubt'), [
    (lambda x: guard_recall('crack', x, 100, RULE), (0, -.04, .1), (-.2, -.3, -.06), (-.04, -.1, .02)),
    (lambda x: guard_false_calls(x, RULE), (0, -.01, .004), (.02, .006, .03), (.004, 0, .01)),
    (lambda x: guard_brier(x, RULE), (1., .9, 1.09), (1.3, 1.2, 1.4), (1.05, .9, 1.2)),
    (lambda x: guard_film(x, 'two films', RULE), (.01, -.01, .03), (-.1, -.2, -.03), (-.01, -.04, .02)),
    (lambda x: guard_autoencoded(x, RULE), (0, -.01, .01), (.1, .03, .2), (.02, 0, .04)),
    (lambda x: guard_gate(dict(gate=x), RULE), (.99, .975, 1.01), (.9, .85, .95), (.96, .93, 1.)),
    (lambda x: guard_fingerprint(dict(probe=x, probe_floor=(.5, .4, .6)), RULE), (.55, .5, .6), (.9, .8, .95),
     (.64, .6, .7))], ids=['recall', 'false calls', 'brier', 'film', 'autoencoded', 'gate', 'fingerprint'])
def test_each_interval_guard_can_hold_fail_and_doubt(guard, holds, fails, doubt):
    assert guard(holds).outcome == 'holds'
    assert guard(fails).outcome == 'fails'
    assert guard(doubt).outcome == 'in doubt'


NO_COPIES = dict(exact_copies=0, near_copies=.01, heldout_near=.005)


@pytest.mark.parametrize(('changes', 'exact', 'near'), [
    ({}, 'holds', 'holds'),
    (dict(exact_copies=1), 'fails', 'holds'),
    (dict(near_copies=.02), 'holds', 'fails')])
def test_copies_are_counted(changes, exact, near):
    assert [g.outcome for g in guard_copies(NO_COPIES | changes, RULE)] == [exact, near]


@pytest.mark.parametrize('guard', [
    *guard_copies({}, RULE),
    guard_gate(dict(gate=None), RULE),
    guard_gate(dict(gate=(.9, np.nan, np.nan)), RULE),
    guard_fingerprint({}, RULE),
    guard_film(None, 'films', RULE),
    guard_autoencoded(None, RULE)], ids=lambda g: g.name)
def test_what_was_not_measured_is_not_assessed(guard): assert guard.outcome == 'not assessed'


def test_a_floor_that_is_high_raises_the_limit_of_the_fingerprint():
    audit = dict(probe=(.75, .72, .78), probe_floor=(.7, .6, .8))
    assert guard_fingerprint(audit, RULE).outcome == 'holds'


def test_a_class_with_few_test_images_is_not_assessed():
    change = 0, -.01, .01
    assert guard_recall('crack', change, RULE.least_items - 1, RULE).outcome == 'not assessed'
    assert guard_recall('crack', change, RULE.least_items, RULE).outcome == 'holds'


@pytest.mark.parametrize(('review', 'measured'), [({}, 'not reviewed'), (dict(reviewers=1), '1 of 3 reviews')])
def test_fewer_than_three_reviews_are_not_assessed(review, measured):
    guard = guard_review(review, RULE)
    assert guard.outcome == 'not assessed'
    assert guard.measured == measured


@pytest.mark.parametrize(('right', 'artefacts', 'outcome'), [
    (.95, .02, 'holds'), (.85, .02, 'fails'), (.95, .1, 'fails')])
def test_three_reviews_are_held_against_both_limits(right, artefacts, outcome):
    review = dict(reviewers=3, label_right=right, artefacts=artefacts)
    assert guard_review(review, RULE).outcome == outcome


# --- how much more data ---

WAVE = np.concatenate([[0], np.tile([-1., 1], 500)])


def gain_over_real(gain, welds, fits):
    "Replicates of a gain over real whose standard errors are `welds` and `fits`."
    return {'real': np.stack([gain + welds*WAVE, gain + fits*WAVE])}


@pytest.mark.parametrize(('decision', 'gain', 'says'), [
    ('INCONCLUSIVE', gain_over_real(.02, .02, .001), 'test welds instead of 16'),
    ('INCONCLUSIVE', gain_over_real(.02, .02, .03), 'no number of welds'),
    ('DO NOT SHIP', gain_over_real(-.2, .01, .01), 'would not change')])
def test_what_would_decide(decision, gain, says):
    assert says in sample_size_note(decision, gain, 16, 4, RULE)


def test_a_clear_gain_leaves_the_doubt_to_safeguards():
    "The interval is clear of 0, with a variance that alone would ask for more welds."
    skewed = .03 + np.concatenate([[0], np.tile([-.01]*9 + [.09], 100)])
    gain = {'real': np.stack([skewed, np.full_like(skewed, .03)])}
    assert 'the doubt is about safeguards' in sample_size_note('INCONCLUSIVE', gain, 16, 4, RULE)


# --- the published form ---

@pytest.fixture
def verdict():
    guards = [guard_recall('crack', (0, -.01, .01), 50, RULE), guard_false_calls((0, -.001, .001), RULE),
              guard_film((0, -.01, .01), 'welds', RULE), *guard_copies(NO_COPIES, RULE), guard_fingerprint({}, RULE),
              guard_autoencoded((0, -.01, .01), RULE), guard_review({}, RULE)]
    return dict(
        decision='SHIP', provisional=True, reason='the gain is clear', best_control='cut-paste',
        gains={'real': [.05, .02, .08], 'cut-paste': [.04, .01, .07]}, guards=[g._asdict() for g in guards],
        not_covered=[], minimum_detectable=.02, sample_size_note='The gain is decided.', simulated=True,
        groups_known=True, test_images=100, test_groups=16, seeds=4, generators=1, profile='demo', plan='0'*32,
        rule=vars(RULE).copy(), risks=risk_register(guards, .5, 16, {}),
        integration=integration_path((.7, .65, .75), .02, RULE))


def test_a_verdict_of_the_published_form(verdict): check_verdict(verdict)


@pytest.mark.parametrize('damage', [
    lambda v: v.update(decision='MAYBE'),
    lambda v: v.pop('plan'),
    lambda v: v['gains'].pop('real'),
    lambda v: v['guards'][0].update(outcome='fine'),
    lambda v: v.update(extra=1),
    lambda v: v['gains'].update(real=[.1, .2]),
    lambda v: v.update(test_groups=0),
    lambda v: v['risks'][0].pop('owner')])
def test_a_broken_verdict_is_refused(verdict, damage):
    broken = copy.deepcopy(verdict)
    damage(broken)
    with pytest.raises(jsonschema.ValidationError): check_verdict(broken)


def test_the_register_names_the_worst_class():
    recalls = [guard_recall('slag', (-.01, -.02, 0), 50, RULE), guard_recall('crack', (-.1, -.2, 0), 50, RULE)]
    others = [guard_false_calls((0, 0, 0), RULE), guard_film(None, 'films', RULE), *guard_copies({}, RULE),
              guard_fingerprint({}, RULE), guard_autoencoded(None, RULE), guard_review({}, RULE)]
    assert 'crack' in risk_register(recalls + others, .5, 16, {})[0]['measured']


# --- a finished study ---

def test_a_finished_study_has_a_verdict_of_the_published_form(study):
    saved = json.loads((evaluate(study).path/'verdict.json').read_text())
    check_verdict(saved)
    assert saved['best_control'] in free_arms(study)


def test_the_recommendation_is_one_sentence_that_names_the_data(study):
    sentence = recommend(study)['sentence']
    assert sentence.startswith(('SHIP', 'DO NOT SHIP', 'INCONCLUSIVE'))
    assert 'on simulated radiographs, which say nothing about real welds' in sentence
    assert '\n' not in sentence
