"""The classifier, measured on real images before it measures: its scores, what it must beat, and what follows."""
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from weldsynth.core.config import OptimiserConfig, RuleConfig
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
from weldsynth.metrics.classification import choose_threshold, clean_weight, decide, macro_f1, trivial_scores
from weldsynth.metrics.rule import Guard, decide_shipping
from weldsynth.models.fits import fit_all
from weldsynth.stages import instrument
from weldsynth.stages.data import study_patches
from weldsynth.stages.instrument import SCORE_COLUMNS, _trained, check_instrument, entry_conditions
from weldsynth.stages.verdict import evaluate, recommend

RULE = RuleConfig()
NAMED = 'everything flawed, named by the classifier'


# --- scores of the fixture study ---

@pytest.fixture(scope='module')
def scores(study): return pd.read_csv(check_instrument(study).path/'scores.csv')


@pytest.fixture(scope='module')
def trivial(study): return pd.read_csv(check_instrument(study).path/'trivial.csv').set_index('rule').f1


def test_every_length_is_trained_once_for_each_seed(study, scores):
    assert list(scores) == ['classifier', 'training', *SCORE_COLUMNS]
    rows = sorted(scores[['classifier', 'training', 'seed']].itertuples(index=False, name=None))
    assert rows == [('small', x, s) for x in study.config.instrument.lengths for s in range(2)]
    assert scores[SCORE_COLUMNS[1:]].stack().between(0, 1).all()


def test_the_scores_by_hand(study, scores, tmp_path):
    train, validation = (study_patches(study).fold(f) for f in ('train', 'validation'))
    [(_, _, _, probs)] = fit_all(dict(real=train), [('real', 1)], study.config.classifier, OptimiserConfig(),
                                 validation, 'by hand', tmp_path)
    truth = validation.labels
    weight = clean_weight(truth.numpy(), study.config.rule.prevalence)
    at_best = decide(probs, choose_threshold(probs, truth, weight))
    weights = np.where(truth > 0, 1., weight)
    by_hand = (macro_f1(truth, at_best, probs.shape[1], weight),
               average_precision_score(truth > 0, 1 - probs[:, 0], sample_weight=weights),
               macro_f1(truth, probs[:, 1:].argmax(1) + 1, probs.shape[1], weight))
    row = scores[(scores.training == 1) & (scores.seed == 1)].iloc[0]
    assert row[['validation_f1', 'average_precision', 'flawed_f1']].tolist() == pytest.approx(by_hand, abs=1e-4)


def test_the_trivial_scores_are_those_of_the_metrics(study, scores, trivial):
    truth = study_patches(study).fold('validation').labels.numpy()
    known = trivial_scores(truth, 6, clean_weight(truth, study.config.rule.prevalence))
    assert trivial.drop(NAMED).to_dict() == pytest.approx(known)
    assert trivial[NAMED] == pytest.approx(scores.flawed_f1.mean())


def test_the_test_fold_is_still_shut_when_the_classifier_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    fresh = open_study('fresh', profile='fixture', overrides={'classifier.steps': 2, 'instrument.seeds': 1})
    entry_conditions(fresh)
    assert {f.name for f in fresh.path.iterdir() if f.is_dir()} == {'data', 'eval'}, 'no generator was trained'
    assert not fresh.is_closed()


def test_lengths_are_of_the_own_training_and_rivals_have_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    asked, folders = [], set()
    def scores_of(study, config, seeds, resume):
        asked.append((config.kind, config.steps, config.lr, seeds))
        folders.add(resume)
        return pd.DataFrame([(0, .5, .5, .5, .1)], columns=SCORE_COLUMNS)
    monkeypatch.setattr(instrument, 'real_scores', scores_of)
    changes = {'classifier.kind': 'features', 'classifier.steps': 10, 'instrument.lengths': (2., .25),
               'instrument.rivals': ('features', 'small', 'resnet18'), 'instrument.seeds': 4}
    check_instrument(open_study('rivals', profile='fixture', overrides=changes))
    assert asked == [('features', 2, 2e-3, 4), ('features', 10, 2e-3, 4), ('features', 20, 2e-3, 4),
                     ('small', 500, 5e-3, 4), ('resnet18', 3_000, 1e-3, 4)]
    assert len(folders) == 5, 'no training resumes from another'


# --- conditions ---

GOOD = {('features', .5): .60, ('features', 1.): .62, ('features', 2.): .625, ('small', 1.): .40}


@pytest.fixture
def conditions(tmp_path, monkeypatch):
    "Made-up scores -> (name -> condition), with trivial scores of .34 and .20."
    def assess(f1, **rule):
        rows = [(kind, x, s, f1 + d) for (kind, x), f1 in f1.items() for s, d in enumerate((-.02, .02))]
        table = pd.DataFrame(rows, columns=['classifier', 'training', 'seed', 'validation_f1'])
        table.to_csv(tmp_path/'scores.csv', index=False)
        pd.Series({'guessing': .2, NAMED: .34}, name='f1').rename_axis('rule').to_csv(tmp_path/'trivial.csv')
        monkeypatch.setattr(instrument, 'check_instrument', lambda study: SimpleNamespace(path=tmp_path))
        config = choose_profile('demo', {f'rule.{k}': v for k, v in rule.items()})
        return {g.name: g for g in entry_conditions(Study('made-up', tmp_path, config))}
    return assess


def outcomes(conditions): return {name: g.outcome for name, g in conditions.items()}


def test_a_good_classifier_fulfils_all_conditions(conditions):
    assert outcomes(conditions(GOOD)) == {
        'trained long enough': 'holds', 'better than no training': 'holds',
        'as good as the classifiers compared': 'holds'}


FAILURES = {
    'trained long enough': ({('features', 2.): .64}, 'Training 2 times as long changes the validation score by +2.0 '
                           'points (standard error 0.0).'),
    'better than no training': ({('features', 1.): .43, ('features', 2.): .43},
                                'Macro F1 on validation is 43.0 % at its best threshold; without training the best '
                                f'rule ("{NAMED}") has 34.0 %.'),
    'as good as the classifiers compared': ({('small', 1.): .65},
                                     'Macro F1 on validation is 62.0 % at its best threshold, and 65.0 % with '
                                     'another classifier (small). Not compared: finetune, resnet18.')}


@pytest.mark.parametrize('name', FAILURES)
def test_each_condition_fails_alone(conditions, name):
    changed, plain = FAILURES[name]
    found = conditions(GOOD | changed)
    assert [n for n, outcome in outcomes(found).items() if outcome == 'fails'] == [name]
    assert found[name].plain == plain


def test_longer_training_may_make_it_worse(conditions):
    found = conditions(GOOD | {('features', 2.): .5})['trained long enough']
    assert found.outcome == 'holds'
    assert found.measured == ('macro F1 changes by −12.0 points (standard error 0.0), −12.0 points after one standard '
                              'error is taken off')


def test_a_change_within_its_standard_error_of_the_limit_is_no_failure():
    def outcome(*changes): return _trained(pd.Series(changes), 2., RULE).outcome
    assert outcome(.0168, .0164, .0024) == 'holds', 'on average 1.2 points more, give or take half a point'
    assert outcome(.0168, .0164, .0154) == 'fails'
    assert outcome(.02) == 'fails', 'one seed has no standard error'
    assert outcome(.06, -.01, .04) == 'in doubt', 'a standard error of two points lets anything pass'


def test_the_best_rival_counts(conditions):
    found = conditions(GOOD | {('resnet18', 1.): .7})['as good as the classifiers compared']
    assert found.outcome == 'fails'
    assert found.plain.endswith('another classifier (resnet18). Not compared: finetune.')


def test_the_limits_are_those_of_the_rule(conditions):
    lenient = conditions(GOOD | {('features', 2.): .64, ('small', 1.): .65}, most_from_training=.03,
                         most_under_rival=.04, least_over_trivial=.29)
    assert outcomes(lenient) == {
        'trained long enough': 'holds', 'better than no training': 'fails',
        'as good as the classifiers compared': 'holds'}
    assert lenient['better than no training'].threshold == 'at least 63.0 %'


def test_where_no_other_classifier_is_at_hand_none_is_better(conditions):
    alone = {key: f1 for key, f1 in GOOD.items() if key[0] == 'features'}
    condition = conditions(alone)['as good as the classifiers compared']
    assert condition.outcome == 'holds'
    assert condition.plain == 'This profile compares with no other classifier.'


# --- what follows ---

def test_a_failing_condition_comes_before_everything_else():
    gains = {'real': (.05, .03, .07), 'real-repeated': (.05, .03, .07)}
    holding, failing = (Guard('trained long enough', '', '', '', result) for result in ('holds', 'fails'))
    broken = Guard('false calls', '', '', '', 'fails', 1e-9)
    assert decide_shipping(gains, [], True, RULE, [holding])[0] == 'SHIP'
    assert decide_shipping(gains, [broken], True, RULE, [holding])[0] == 'DO NOT SHIP'
    answer = ('INCONCLUSIVE', 'the classifier has not been shown to be trained long enough')
    assert decide_shipping(gains, [], True, RULE, [failing, holding]) == answer
    assert decide_shipping(gains, [broken], True, RULE, [failing]) == answer


@pytest.fixture
def verdict_with(study_copy, monkeypatch):
    "Condition's outcome -> the verdict of the fixture study with that one condition."
    def decide_again(result):
        condition = Guard('a condition', 'Something is so.', '1', 'at least 2', result)
        monkeypatch.setattr('weldsynth.stages.verdict.entry_conditions', lambda study: [condition])
        for folder in (study_copy.path/'eval').glob('verdict-*'): shutil.rmtree(folder)
        return recommend(study_copy)
    return decide_again


def test_the_verdict_of_a_classifier_that_is_not_good_enough_says_so(verdict_with):
    good, bad = verdict_with('holds'), verdict_with('fails')
    assert 'not shown to be' not in good['reason']
    assert bad['decision'] == 'INCONCLUSIVE'
    assert bad['reason'] == 'the classifier has not been shown to be a condition'
    assert bad['reason'] in bad['sentence']
    assert bad['entry'] == [dict(name='a condition', plain='Something is so.', measured='1', threshold='at least 2',
                                 outcome='fails', p=None, closing='')]
    assert good['gains'] == bad['gains']


def test_the_conditions_stand_in_the_verdict(study):
    conditions = [g.name for g in entry_conditions(study)]
    assert [g['name'] for g in recommend(study)['entry']] == conditions
    assert check_instrument(study).key in evaluate(study).info['inputs']
