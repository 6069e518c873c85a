"""A rule that can say yes, no and perhaps, and says yes by mere chance in at most 2.5 of 100 studies."""
import copy
import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from weldsynth.core.config import RuleConfig, SimulationConfig
from weldsynth.metrics.actions import integration_path, risk_register
from weldsynth.metrics.fidelity import nan_to_none
from weldsynth.metrics.intervals import Jackknife, interval, jackknife
from weldsynth.metrics.rule import (
    Evidence,
    Guard,
    assess_guards,
    decide_shipping,
    guard_autoencoded,
    guard_brier,
    guard_copies,
    guard_false_calls,
    guard_film,
    guard_fingerprint,
    guard_found,
    guard_gate,
    guard_review,
    holm,
    sample_size_note,
    unassessed,
)
from weldsynth.metrics.studies import count_guards, decide_counts, simulate_counts, simulate_sizes
from weldsynth.stages.arms import free_arms
from weldsynth.stages.verdict import check_verdict, evaluate, recommend

RULE = RuleConfig()
GROUPS, FITS = 16, 4

# --- the rule on made-up studies ---

def counts_of(shifts, seed, groups=GROUPS, per_group=80, alter=lambda sizes: sizes, **more):
    "Counts of a made-up study."
    rng = np.random.default_rng(seed)
    sizes = alter(simulate_sizes(rng, groups, per_group=per_group))
    return simulate_counts(rng, dict(real=0., control=0.) | shifts, sizes, FITS, **more)


def decide(shifts, seed, groups=GROUPS, **more):
    "The rule's decision on a made-up study; safeguards that do not depend on predictions are left out."
    return decide_counts(counts_of(shifts, seed, groups, **more), np.zeros(FITS, int), RULE).decision


def test_no_effect_ships_by_chance_in_at_most_25_of_1000_studies():
    decisions = [decide({'real+synthetic': 0.}, i) for i in range(1000)]
    print({d: decisions.count(d) for d in set(decisions)})
    assert decisions.count('SHIP') <= 25


def test_without_safeguards_and_controls_the_gain_alone_is_sound_too():
    "The strictest reading: of 1,000 studies without effect, at most 25 have a gain of a point that is clear of 0."
    lucky = 0
    for i in range(1000):
        result = jackknife(counts_of({'real+synthetic': 0.}, i), np.zeros(FITS, int))
        mean, low, _ = interval(result['real+synthetic']['macro_f1'] - result['real']['macro_f1'])
        lucky += mean >= RULE.least_gain and low > 0
    print(lucky)
    assert lucky <= 25


def last_class_on_one_weld(sizes):
    "All images of the last class on one weld."
    return np.c_[sizes[:, :-1], np.where(np.arange(len(sizes)) == 0, 60, 0)]


@pytest.mark.parametrize('alter', [lambda sizes: sizes, last_class_on_one_weld], ids=['all welds', 'a class on one'])
def test_no_effect_fails_a_safeguard_in_at_most_5_of_100_studies(alter):
    failed = 0
    for i in range(500):
        counts = counts_of({'real+synthetic': 0.}, i, alter=alter)
        result = jackknife(counts, np.zeros(FITS, int))
        guards = count_guards(result['real+synthetic'], result['real'], counts['real'], RULE)
        failed += any(g.outcome == 'fails' for g in guards)
    print(failed/500)
    assert failed <= 25


def test_a_class_on_one_weld_is_not_assessed():
    counts = counts_of({'real+synthetic': 0.}, 0, alter=last_class_on_one_weld)
    result = jackknife(counts, np.zeros(FITS, int))
    guards = count_guards(result['real+synthetic'], result['real'], counts['real'], RULE)
    assert guards[3].measured == 'too few welds (1, need 5)'


def test_two_welds_decide_nothing():
    decisions = {decide({'real+synthetic': shift}, i, groups=2) for i in range(20) for shift in (-1., 1.)}
    assert decisions == {'INCONCLUSIVE'}


def test_a_large_gain_ships():
    quiet = replace(SimulationConfig(), arm_weld=.05, fit=.05, arm_fit=.02, item=.7, item_in_arm=.2)
    gain = np.array([.5, 1.2, 1.2, 1.2, 1.2])
    decisions = [decide({'real+synthetic': gain}, i, 60, per_group=200, config=quiet) for i in range(40)]
    assert decisions.count('SHIP') >= 30
    assert 'DO NOT SHIP' not in decisions


def test_a_loss_does_not_ship():
    assert [decide({'real+synthetic': -.6}, i) for i in range(40)].count('DO NOT SHIP') >= 38


def test_a_gain_that_is_free_ships_by_chance_in_at_most_25_of_1000_studies():
    assert [decide({'real+synthetic': .8, 'control': .8}, i) for i in range(400)].count('SHIP') <= 10


# --- safeguards ---

USED = guard_autoencoded((.1, .03, .2), RULE)
UNUSED = guard_autoencoded((0, -.01, .01), RULE)


@pytest.mark.parametrize(('guard', 'holds', 'fails', 'doubt'), [
    (lambda x: guard_found('crack', x, 100, 16, RULE), (0, -.04, .1), (-.2, -.3, -.06), (-.04, -.1, .02)),
    (lambda x: guard_false_calls(x, 900, 16, RULE), (0, -.01, .004), (.02, .006, .03), (.004, 0, .01)),
    (lambda x: guard_brier(x, RULE), (1., .9, 1.09), (1.3, 1.2, 1.4), (1.05, .9, 1.2)),
    (lambda x: guard_film(x, 'two films', RULE), (.01, -.01, .03), (-.1, -.2, -.03), (-.01, -.04, .02)),
    (lambda x: guard_autoencoded(x, RULE), (0, -.01, .01), (.1, .03, .2), (.02, 0, .04)),
    (lambda x: guard_gate(dict(gate=x), RULE), (.99, .975, 1.01), (.9, .85, .95), (.96, .93, 1.)),
    (lambda x: guard_fingerprint(dict(probe=x, probe_floor=(.5, .4, .6)), RULE, USED), (.55, .5, .6), (.9, .8, .95),
     (.64, .6, .7))], ids=['found', 'false calls', 'brier', 'film', 'autoencoded', 'gate', 'fingerprint'])
def test_each_interval_guard_can_hold_fail_and_doubt(guard, holds, fails, doubt):
    assert guard(holds).outcome == 'holds'
    assert guard(fails).outcome == 'fails'
    assert guard(doubt).outcome == 'in doubt'


NO_COPIES = dict(exact_copies=0, near_copies=.01, heldout_near=.005, near_added=[.005, -.01, .02])


@pytest.mark.parametrize(('changes', 'exact', 'near'), [
    ({}, 'holds', 'holds'),
    (dict(exact_copies=1), 'fails', 'holds'),
    (dict(near_copies=.02, near_added=[.015, .012, .018]), 'holds', 'fails'),
    (dict(near_copies=.02, near_added=[.015, -.01, .04]), 'holds', 'in doubt')])
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


def test_a_value_without_an_interval_is_said_to_be_measured():
    nothing = (np.nan, np.nan)
    assert guard_gate(dict(gate=(.9, *nothing)), RULE).plain.endswith(
        'is open: measured (90.0 %), but too few welds for an interval.')
    assert guard_autoencoded((.037, *nothing), RULE).plain.endswith(
        'is open: measured (a change of +3.7 points), but too few welds for an interval.')
    assert guard_gate(dict(gate=(np.nan, *nothing)), RULE).measured == 'not measured'


def test_a_floor_that_is_high_raises_the_limit_of_the_fingerprint():
    audit = dict(probe=(.75, .72, .78), probe_floor=(.7, .6, .8))
    assert guard_fingerprint(audit, RULE).outcome == 'holds'


TRACE = dict(probe=(.9, .8, .95), probe_floor=(.5, .4, .6))

@pytest.mark.parametrize(('short_cut', 'outcome', 'says'), [
    (USED, 'fails', 'and the classifier uses the difference'),
    (UNUSED, 'holds', 'but the classifier does not use the difference'),
    (None, 'in doubt', 'may use the difference')])
def test_a_trace_is_judged_by_harm(short_cut, outcome, says):
    guard = guard_fingerprint(TRACE, RULE, short_cut)
    assert guard.outcome == outcome
    assert says in guard.plain


@pytest.mark.parametrize(('items', 'welds', 'measured'), [
    (29, 16, 'too few test images (29, need 30)'), (300, 4, 'too few welds (4, need 5)')])
def test_a_class_with_few_images_or_welds_is_not_assessed(items, welds, measured):
    guard = guard_found('crack', (-.2, -.3, -.1), items, welds, RULE)
    assert guard.outcome == 'not assessed'
    assert guard.measured == measured
    assert guard_found('crack', (0, -.01, .01), RULE.least_items, RULE.least_class_welds, RULE).outcome == 'holds'


def failing(p): return Guard(f'p {p}', 'Worse.', '', '', 'fails', p)


@pytest.mark.parametrize(('p', 'fails'), [
    ((.02,), [True]),
    ((.02, .9), [False, False]),
    ((.012, .024), [True, True]),
    ((.013, .024), [False, False]),
    ((.001, .012, .03), [True, True, False])])
def test_failures_are_corrected_by_hand(p, fails):
    "At .025: the smallest of m against .025/m, the next against .025/(m - 1), until one is larger."
    guards = [failing(x) if x < .025 else Guard('g', '', '', '', 'in doubt', x) for x in p]
    assert [g.outcome == 'fails' for g in holm(guards, .95)] == fails


def test_a_failure_that_may_be_chance_says_so():
    guards = holm([failing(.02), Guard('g', '', '', '', 'holds', 1.)], .95)
    assert guards[0].outcome == 'in doubt'
    assert 'one of 2 safety checks tested' in guards[0].plain


def test_what_is_no_interval_is_not_corrected():
    copies = guard_copies(dict(exact_copies=1, near_copies=.0, heldout_near=.0), RULE)
    assert holm([*copies, failing(.9)], .95)[0].outcome == 'fails'


def evidence(found_changes=None):
    return Evidence(RULE, found_changes or {}, ((0, -.001, .001), 900, 16), (1, 1, 1), None, 'films', {}, None)


def test_a_film_that_was_not_held_out_is_not_missed():
    assert 'held-out films' not in unassessed(assess_guards(evidence()))
    assert 'no shortcut' in unassessed(assess_guards(evidence()))


@pytest.mark.parametrize('outcome', ['fails', 'in doubt', 'not assessed'])
def test_a_classifier_that_is_not_good_enough_decides_nothing(outcome):
    entry = [Guard('well above guessing', '', '', '', outcome)]
    clear, loss = (.05, .03, .07), (-.2, -.3, -.1)
    for gain in (clear, loss):
        decision, reason = decide_shipping({'real': gain}, [failing(.001)], True, RULE, entry)
        assert decision == 'INCONCLUSIVE'
        assert reason == 'the classifier has not been shown to be well above guessing'
    held = [entry[0]._replace(outcome='holds')]
    assert decide_shipping({'real': clear}, [], True, RULE, held)[0] == 'SHIP'


@pytest.mark.parametrize(('review', 'measured'), [
    ({}, 'not reviewed'), (dict(reviewers=1, complete=1), '1 of 3 reviews')])
def test_fewer_than_three_reviews_are_not_assessed(review, measured):
    guard = guard_review(review, RULE)
    assert guard.outcome == 'not assessed'
    assert guard.measured == measured


FEW, MANY = (.02, 0, .07), (.2, .12, .3)  # shares of gross artefacts


@pytest.mark.parametrize(('change', 'artefacts', 'outcome'), [
    ((-.02, -.08, .04), FEW, 'holds'), ((-.02, -.12, .08), FEW, 'in doubt'), ((-.3, -.4, -.2), FEW, 'fails'),
    ((.02, -.05, .09), MANY, 'fails'), ((.02, -.05, .09), (.06, .02, .12), 'in doubt'),
    ([None]*3, FEW, 'not assessed')])
def test_three_reviews_are_held_against_both_limits(change, artefacts, outcome):
    review = dict(reviewers=3, complete=3, label_change=change, artefacts=artefacts)
    assert guard_review(review, RULE).outcome == outcome


def test_labels_that_are_hard_to_see_in_real_images_too_are_no_fault():
    "85 % right on synthetic and 81 % on real images: an absolute limit of 90 % would have failed it."
    review = dict(reviewers=3, complete=3, label_change=(.04, -.06, .14), artefacts=FEW, source='simulated')
    guard = guard_review(review, RULE)
    assert guard.outcome == 'holds'
    assert guard.plain == ('Three inspectors see the intended flaw in synthetic images about as often as in simulated '
                           'ones, and rarely a gross artefact.')


def test_who_was_too_fast_is_named_in_the_safeguard():
    guard = guard_review(dict(reviewers=3, complete=2, hasty=['B']), RULE)
    assert guard.outcome == 'not assessed'
    assert guard.plain.endswith('2 of 3 reviews. Reviewer B was too fast to have looked.')


# --- how much more data ---

def gain_over_real(gain, welds, fits, groups=16):
    "A gain over real whose standard errors are `welds` and `fits`."
    z = np.resize([-1., 1], groups)
    effects = gain + welds*groups**.5*z/z.std(ddof=1)
    offsets = fits*np.array([-1., 1])
    scored = offsets[:, None] + effects
    total = scored.sum(1, keepdims=True)
    values = np.concatenate([total/groups, (total - scored)/(groups - 1)], 1)
    return {'real': Jackknife(values, np.zeros(2, int), np.array(groups))}


@pytest.mark.parametrize(('decision', 'gain', 'says'), [
    ('INCONCLUSIVE', gain_over_real(.02, .02, .001), 'test welds instead of 16'),
    ('INCONCLUSIVE', gain_over_real(.02, .02, .03), 'More test welds alone will not settle'),
    ('INCONCLUSIVE', gain_over_real(.03, .001, .001), 'what is open is something else'),
    ('INCONCLUSIVE', gain_over_real(.03, .001, .001, groups=2), 'An interval needs 4 test welds with flaws, and '
     'there are 2.'),
    ('DO NOT SHIP', gain_over_real(-.2, .01, .01), 'would not change')])
def test_what_would_decide(decision, gain, says):
    assert says in sample_size_note(decision, gain, RULE)


# --- the published form ---

@pytest.fixture
def verdict():
    guards = [guard_found('crack', (0, -.01, .01), 50, 16, RULE), guard_false_calls((0, -.001, .001), 900, 16, RULE),
              guard_film((0, -.01, .01), 'welds', RULE), *guard_copies(NO_COPIES, RULE), guard_fingerprint({}, RULE),
              guard_autoencoded((0, -.01, .01), RULE), guard_review({}, RULE)]
    return dict(
        decision='SHIP', provisional=True, reason='the gain is clear', best_control='cut-paste',
        gains={'real': [.05, .02, .08], 'cut-paste': [.04, .01, .07]},
        entry=[Guard('trained long enough', 'It is.', '+0.2 points', 'at most 1.0 points more', 'holds')._asdict()],
        guards=nan_to_none([g._asdict() for g in guards]),
        not_covered=[], minimum_detectable=.02, sample_size_note='The gain is decided.', simulated=True,
        groups_known=True, test_images=100, test_groups=16, folds=1, seeds=4, generators=1, profile='demo', plan='0'*32,
        rule=vars(RULE).copy(), risks=risk_register(guards, evidence(), .5, 16),
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
    lambda v: v['risks'][0].pop('owner'),
    lambda v: v.pop('entry'),
    lambda v: v.update(folds=0)])
def test_a_broken_verdict_is_refused(verdict, damage):
    broken = copy.deepcopy(verdict)
    damage(broken)
    with pytest.raises(jsonschema.ValidationError): check_verdict(broken)


def test_the_register_names_the_worst_class_and_no_share_of_nothing():
    changes = {'slag': ((-.01, -.02, 0), 50, 16), 'crack': ((-.1, -.2, 0), 50, 16)}
    found = [guard_found(label, *change, RULE) for label, change in changes.items()]
    others = [guard_false_calls((0, 0, 0), 900, 16, RULE), guard_film(None, 'films', RULE), *guard_copies({}, RULE),
              guard_fingerprint({}, RULE), guard_autoencoded(None, RULE), guard_review({}, RULE)]
    rows = {row['risk']: row['measured'] for row in risk_register(found + others, evidence(changes), math.nan, 16)}
    assert 'crack' in rows['escape: a flaw passes']
    assert rows['wrong labels'].startswith('synthetic-only reaches an unknown share of a real-only score;')


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
