"""The review: a blind set, answers that are checked, and scores that are defined or say that they are not.

All answers here are marked as simulated."""
import base64
import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from scipy.stats import norm
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

import weldsynth
from weldsynth.cli import main
from weldsynth.core.config import ReviewConfig, RuleConfig, StudyConfig, StudyError, with_overrides
from weldsynth.core.opening import open_study
from weldsynth.core.store import Study
from weldsynth.data.patches import PatchSet
from weldsynth.metrics.agreement import share_difference
from weldsynth.metrics.fidelity import nan_to_none
from weldsynth.metrics.review_scores import (
    REVIEWERS,
    answer_table,
    answers_issue,
    artefact_list,
    by_class,
    by_reviewer,
    checksum,
    pooled_scores,
    repeat_agreement,
    review_sentence,
    share_by_origin,
    share_text,
    simulated_answers,
)
from weldsynth.report.chapters import execute
from weldsynth.report.pages import page_issues, render
from weldsynth.stages import data as data_stage, review, review_set
from weldsynth.stages.arms import draw_study_cleans
from weldsynth.stages.audit import study_copies
from weldsynth.stages.data import study_patches
from weldsynth.stages.sweep import usable_patches
from weldsynth.stages.verdict import evaluate, recommend

HOSTILE = '<script>alert(1)</script> ![x](http://example.org/x.png) $x$ | `b` **c**'
CLASSES = ('clean', 'crack', 'lack_of_fusion', 'pore')
CONFIG = ReviewConfig()


def noise(origin, n=96, px=16, seed=0):
    "Images of noise; ids begin with `origin`: 'real' or 'synthetic'."
    rng = np.random.default_rng([seed, len(origin)])
    images = torch.from_numpy(rng.integers(0, 256, (n, 1, px, px), dtype=np.uint8))
    table = pd.DataFrame(dict(
        id=[f'{origin}/{i}.png' for i in range(n)], label=[CLASSES[i % 4] for i in range(n)],
        group=[f'weld-{i//12}' for i in range(n)], film='g', size=np.nan, origin=origin))
    return PatchSet(images, table, CLASSES)


def both_sources(**kwargs): return [noise(origin, **kwargs) for origin in ('real', 'synthetic')]


def sealed_noise(config=CONFIG, **kwargs):
    rng = np.random.default_rng(0)
    chosen = review_set.choose_items(*both_sources(**kwargs), config, rng)
    return review_set.seal(chosen, config, rng, simulated=True)


@pytest.fixture(scope='module')
def sealed(): return sealed_noise()


@pytest.fixture(scope='module')
def three(sealed):
    rng = np.random.default_rng(0)
    return [simulated_answers(*sealed, r, rng) for r in REVIEWERS]


@pytest.fixture
def table(sealed, three): return answer_table(three, sealed[1])


def signed(answers, /, **changes):
    "Answers with changes and the checksum that the page would have put there."
    body = {k: v for k, v in (answers | changes).items() if k != 'checksum'}
    return dict(body, checksum=checksum(body))


# --- the set ---

def test_the_set_has_the_configured_numbers_of_images(sealed):
    _, key = sealed
    assert key.groupby(['part', 'origin']).size().to_dict() == {
        ('catch', 'real'): 10, ('catch', 'synthetic'): 10, ('practice', 'real'): 3, ('practice', 'synthetic'): 3,
        ('repeat', 'real'): 6, ('repeat', 'synthetic'): 6, ('scored', 'real'): 50, ('scored', 'synthetic'): 50}


def test_both_sources_have_equally_many_images_of_each_class(sealed):
    scored = sealed[1][sealed[1].part == 'scored']
    counts = pd.crosstab(scored.label, scored.origin)
    assert counts.real.tolist() == counts.synthetic.tolist() == [17, 17, 16]
    assert review_set.shortage(sealed[1], 50) == ''


def test_cleans_are_shown_of_both_sources_and_none_is_scored_as_a_flaw(sealed):
    _, key = sealed
    assert set(key.label[key.part == 'catch']) == {'clean'}
    assert 'clean' not in set(key.label[key.part == 'scored'])


def test_without_synthetic_cleans_the_real_ones_are_shown_alone():
    real, synthetic = both_sources()
    chosen = review_set.choose_items(real, synthetic.take(synthetic.table.label != 'clean'), CONFIG,
                                     np.random.default_rng(0))
    catch = chosen.table[chosen.table.part == 'catch']
    assert set(catch.origin) == {'real'}
    assert len(catch) == 10


def test_the_images_are_of_many_welds(sealed):
    "Each class of real flaws comes from all eight welds, as evenly as can be."
    _, key = sealed
    real = key[(key.part == 'scored') & (key.origin == 'real')]
    per_weld = real.groupby('label').group.value_counts().unstack()
    assert per_weld.shape == (3, 8)
    assert (per_weld.min(axis=1) >= 1).all()


def test_a_weld_on_which_a_shown_flaw_was_laid_is_no_clean():
    real, synthetic = both_sources()
    cleans = real.table.id[real.table.label == 'clean'].tolist()
    synthetic.table['laid_on'] = [cleans[i % 12] for i in range(len(synthetic))]
    chosen = review_set.choose_items(real, synthetic, CONFIG, np.random.default_rng(0)).table
    shown = chosen[(chosen.part == 'catch') & (chosen.origin == 'real')]
    laid_on = chosen.laid_on[chosen.origin == 'synthetic']
    assert set(shown.id).isdisjoint(laid_on)


@pytest.mark.parametrize(('pitches', 'mm'), [([.05, .05], .1), ([.05, .06], 0), ([.05, np.nan], 0), (None, 0)])
def test_the_scale_is_that_of_the_files_if_all_say_the_same(tmp_path, monkeypatch, pitches, mm):
    "Of 64 pixels 32 are left, each twice as large; a patch that is not shown counts for nothing."
    config = with_overrides(StudyConfig(), {'data.px': 32})
    study = Study('mine', tmp_path/'study', config, data=str(tmp_path))
    facts = dict(side=64., pitch=[*pitches, 1.]) if pitches else {}
    table = pd.DataFrame(dict(id=['a', 'b', 'other'])).assign(**facts)
    monkeypatch.setattr(data_stage, 'study_patches', lambda study: SimpleNamespace(table=table))
    assert data_stage.pixel_mm(study, ['a', 'b']) == pytest.approx(mm)
    told = replace(study, config=with_overrides(config, {'review.mm_per_px': .07}))
    assert data_stage.pixel_mm(told, ['a', 'b']) == .07


def test_two_sets_of_the_same_images_are_not_the_same(sealed):
    "Nobody can make the key from the study's seed: ids and order are the computer's own dice."
    chosen = review_set.choose_items(*both_sources(), CONFIG, np.random.default_rng(0))
    other, key = review_set.seal(chosen, CONFIG, np.random.default_rng(1))
    assert other['set'] != sealed[0]['set']
    assert set(key.item).isdisjoint(sealed[1].item)


def test_no_image_is_scored_twice_and_none_of_the_practice_images_is(sealed):
    data, key = sealed
    scored = key[key.part == 'scored']
    assert scored.id.is_unique
    assert set(key.id[key.part == 'practice']).isdisjoint(scored.id)
    assert all(data['items'][k.item] == data['items'][k.of] for k in key[key.part == 'repeat'].itertuples())


def test_a_short_class_is_reported_and_both_sources_stay_even():
    real, synthetic = both_sources()
    is_late_pore = real.table.label.eq('pore') & (real.table.index > 20)
    short = real.take(~is_late_pore.to_numpy())
    rng = np.random.default_rng(0)
    _, key = review_set.seal(review_set.choose_items(short, synthetic, CONFIG, rng), CONFIG, rng)
    scored = key[key.part == 'scored']
    counts = pd.crosstab(scored.label, scored.origin)
    assert counts.real.tolist() == counts.synthetic.tolist()
    assert counts.real['pore'] <= (short.table.label == 'pore').sum() < 16
    assert f'pore {counts.real["pore"]}' in review_set.shortage(key, 50)


def test_shares_are_as_even_as_the_images_allow():
    assert review_set.even_shares(dict(a=1, b=50, c=50), 60) == dict(a=1, b=30, c=29)


def test_a_set_without_a_common_class_is_refused():
    real, synthetic = both_sources()
    with pytest.raises(StudyError, match='there is nothing to review'):
        review_set.choose_items(real.of('pore'), synthetic.of('crack'), CONFIG, np.random.default_rng(0))


def test_few_flaws_are_all_scored_and_none_is_spent_on_practice():
    real, synthetic = both_sources()
    flaws = np.flatnonzero(real.table.label != 'clean')
    few = real.take(np.r_[flaws[:6], np.flatnonzero(real.table.label == 'clean')])
    chosen = review_set.choose_items(few, synthetic, CONFIG, np.random.default_rng(0)).table
    assert not (chosen.part == 'practice').any()
    assert ((chosen.part == 'scored') & (chosen.origin == 'real')).sum() == 6


def test_repeats_keep_the_configured_gap_in_every_order():
    data, key = sealed_noise(replace(CONFIG, repeat_gap=.2, repeats=4))
    for order in data['orders'].values():
        place = {item: i for i, item in enumerate(order)}
        assert min(place[k.item] - place[k.of] for k in key[key.part == 'repeat'].itertuples()) >= int(.2*124)


def features_of_bytes(data):
    """What is known of each item of a page without its picture: length, beginning and end of the data, position,
    id, and position in each order."""
    rows = []
    for place, (item, text) in enumerate(data['items'].items()):
        raw = base64.b64decode(text)
        is_image_file = raw[:4] in (b'\x89PNG', b'GIF8', b'\xff\xd8\xff\xe0')
        digits = [int(c, 16) for c in item]
        places = [order.index(item) for order in data['orders'].values()]
        rows.append([len(text), len(raw), text.count('='), place, int(item, 16), *digits, *places,
                     is_image_file, len(raw) % 3])
    return np.array(rows, float)


def test_nothing_but_the_picture_tells_real_from_synthetic():
    "A classifier on sizes, headers, ids and places, with 2,000 items so that chance alone cannot reach the limit."
    data, key = sealed_noise(replace(CONFIG, items_per_source=1010), n=1400, px=8)
    truth = key.set_index('item').reindex(data['items']).pipe(lambda t: t[t.part == 'scored'])
    rows = features_of_bytes(data)[[i for i, item in enumerate(data['items']) if item in truth.index]]
    forest = RandomForestClassifier(200, min_samples_leaf=10, random_state=0, n_jobs=1)
    is_synthetic = truth.origin == 'synthetic'
    predicted = cross_val_predict(forest, rows, is_synthetic, cv=5, method='predict_proba')[:, 1]
    auc = roc_auc_score(is_synthetic, predicted)
    print(f'AUC {auc:.3f} on {len(truth)} items')
    assert len(truth) == 2000
    assert abs(auc - .5) < .05
    assert len({len(t) for t in data['items'].values()}) == 1


def test_the_page_holds_no_key(sealed):
    data, key = sealed
    page = review.review_page(data)
    assert not [i for i in key.id if i in page]
    assert 'origin' not in page
    assert 'synthetic/' not in page
    assert '.png' not in page
    found = json.loads(BeautifulSoup(page, 'html.parser').find(id='data').get_text())
    assert found == data
    assert set(found) == {'answers_format', 'px', 'mm_per_px', 'source', 'classes', 'practice', 'pause_every',
                          'seconds', 'least_px', 'simulated', 'items', 'orders', 'deviation', 'set',
                          'hash'}
    assert 'weld-' not in page


@pytest.mark.parametrize(('px', 'least', 'said'), [
    (16, 96, 'patches of 16 px, without surroundings: below the 96 px that are asked for'), (16, 16, '')])
def test_a_set_of_small_images_records_the_deviation(px, least, said):
    data, _ = sealed_noise(ReviewConfig(least_px=least), px=px)
    assert data['deviation'] == said
    assert ('Deviation' in review._size_text(data)) == bool(said)


def test_a_label_cannot_leave_its_place(sealed):
    page = review.review_page(dict(sealed[0], classes=['clean', '</script><script>alert(1)</script>']))
    soup = BeautifulSoup(page, 'html.parser')
    assert len(soup('script')) == 3
    assert json.loads(soup.find(id='data').get_text())['classes'][1].startswith('</script>')


def test_the_policy_of_the_page_allows_one_script_and_no_request(sealed):
    soup = BeautifulSoup(review.review_page(sealed[0]), 'html.parser')
    policy = soup.find('meta', attrs={'http-equiv': 'Content-Security-Policy'})['content']
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert 'unsafe' not in policy
    assert 'http' not in policy


def write_set(folder, data, key):
    (folder/'set.json').write_text(json.dumps(data))
    key.to_csv(folder/'key.csv', index=False)


def test_a_sealed_set_is_read_as_it_was_written(sealed, tmp_path):
    write_set(tmp_path, *sealed)
    data, key = review_set.load_set(tmp_path)
    assert data == sealed[0]
    assert key.equals(sealed[1].astype(key.dtypes))


@pytest.mark.parametrize('change', [
    lambda data, key: (data, key.assign(label='pore')),
    lambda data, key: (dict(data, px=8), key),
    lambda data, key: (data, key.assign(origin=key.origin[::-1].to_numpy()))], ids=['label', 'px', 'origin'])
def test_a_changed_set_is_refused(sealed, tmp_path, change):
    write_set(tmp_path, *change(*sealed))
    with pytest.raises(StudyError, match='was changed after it was sealed'): review_set.load_set(tmp_path)


# --- answers ---

def test_answers_of_the_page_are_accepted(sealed, three):
    assert [answers_issue(a, sealed[0]) for a in three] == [''] * 3


def first(answers, **fields):
    head, *rest = answers['answers']
    return signed(answers, answers=[head | fields, *rest])


def edited(answers):
    "Another rating of the first image under the old checksum."
    head, *rest = answers['answers']
    return answers | dict(answers=[head | dict(realism=head['realism'] % 6 + 1), *rest])


def without_reviewer(answers): return {k: v for k, v in answers.items() if k != 'reviewer'}


def doubled(answers): return signed(answers, answers=[*answers['answers'], answers['answers'][3]])


NOT_SAVED = 'was not saved by the review page'
DAMAGED = {
    'empty': (lambda a: '', NOT_SAVED),
    'no JSON': (lambda a: 'reviewer A was here', NOT_SAVED),
    'cut off': (lambda a: json.dumps(a)[:-100], NOT_SAVED),
    'not text': (lambda a: b'\xff\xfe\x00\x81', NOT_SAVED),
    'nested without end': (lambda a: '['*200_000, NOT_SAVED),
    'a list': (lambda a: [a], f'{NOT_SAVED}: give the file that its button saves'),
    'nothing': (lambda a: {}, f'{NOT_SAVED}: give the file that its button saves'),
    'another format': (lambda a: signed(a, format='answers 3'), f'{NOT_SAVED}: give the file that its button saves'),
    'an earlier page': (lambda a: signed(a, format='weldsynth review answers 1'),
                        'was saved by the page of an earlier version, which asked other questions: run `weldsynth'),
    'a field missing': (without_reviewer, "'reviewer' is a required property"),
    'no such reviewer': (lambda a: signed(a, reviewer='D'), '(reviewer: '),
    'out of range': (lambda a: first(a, realism=7), '(answers / 0 / realism: 7 is greater than the maximum of 6)'),
    'a boolean for a number': (lambda a: first(a, realism=True), '(answers / 0 / realism: '),
    'not a number': (lambda a: first(a, seconds=float('nan')), NOT_SAVED),
    'a field more': (lambda a: first(a, truth='real'), "'truth' was unexpected"),
    'a long note': (lambda a: first(a, artefact=True, note='x'*301), '(answers / 0 / note: '),
    'edited': (edited, 'was changed after the page saved it'),
    'mark taken off': (lambda a: a | dict(simulated=False), 'was changed after the page saved it'),
    'reordered': (lambda a: a | dict(answers=a['answers'][::-1]), 'was changed after the page saved it'),
    'another set': (lambda a: signed(a, set='0'*8, hash='0'*32), "answers another set ('00000000', this study's"),
    'the same name, another set': (lambda a: signed(a, hash='0'*32), 'answers another set'),
    'practice alone': (lambda a: signed(a, answers=a['answers'][:6]), 'answers no image after those for practice'),
    'a light that is none': (lambda a: signed(a, about=a['about'] | dict(light='<b>')), '(about / light: '),
    'an image twice': (doubled, 'twice: ask reviewer A'),
    'an unknown image': (lambda a: first(a, item='ffffffff'), 'answers image ffffffff, which is not in the set'),
    'an unknown class': (lambda a: first(a, label='<b>'), "names a class that is not in the set ('<b>')"),
    'half a character': (lambda a: first(a, artefact=True, note='\ud83d'), 'has half a character in the note'),
    'a place outside': (lambda a: first(a, artefact=True, x=16, y=0), 'marks a place that image'),
    'half a place': (lambda a: first(a, artefact=True, x=1, y=None), 'marks a place that image'),
    'a place without artefact': (lambda a: first(a, artefact=False, x=1, y=1), 'marks a place that image'),
    'simulated': (lambda a: a, 'holds simulated answers, which never count'),
}


@pytest.mark.parametrize('damage', DAMAGED)
def test_a_damaged_file_is_one_clear_line(sealed, three, tmp_path, damage):
    damaged, message = DAMAGED[damage]
    content = damaged(three[0])
    if isinstance(content, (dict, list)): content = json.dumps(content)
    file = tmp_path/'answers.json'
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StudyError) as e: review.read_answers(file, sealed[0])
    error = str(e.value)
    assert error.startswith(str(file))
    assert message in error
    assert '\n' not in error
    assert len(error) < 500 + len(str(file))


def test_a_missing_file_and_a_folder_are_named(sealed, tmp_path):
    for path in (tmp_path/'none.json', tmp_path):
        with pytest.raises(StudyError, match='cannot be opened'): review.read_answers(path, sealed[0])


# --- scores ---

@pytest.fixture(scope='module')
def known(sealed):
    "Answers of three reviewers of d' 1.5, who name 80 % of classes and see an artefact in 20 % of synthetic images."
    rng = np.random.default_rng(3)
    skill = dict(skill=1.5, label_rate=.8, artefact_rate=.2)
    return answer_table([simulated_answers(*sealed, r, rng, **skill) for r in REVIEWERS], sealed[1])


def test_every_answer_is_in_the_table(known):
    assert len(known) == 3*138
    assert by_class(known).images.sum() == 120
    assert set(by_class(known).label) == set(CLASSES)


def test_pooled_scores_are_those_that_were_put_in(known):
    pooled = pooled_scores(known, RuleConfig(resamples=2000), 0)
    assert pooled['items'] == 100
    assert pooled['images'] == 120
    assert pooled['answered'] == [120]*3
    assert pooled['accuracy'][1] < .773 < pooled['accuracy'][2]
    assert pooled['label_right'][0] == pytest.approx(.85, abs=.06)
    assert pooled['label_change'][1] < 0 < pooled['label_change'][2]
    assert pooled['artefacts'][0] == pytest.approx(.2, abs=.08)
    assert pooled['artefacts_real'][0] == 0
    assert pooled['false_alarms_real'][0] == pytest.approx(.15, abs=.15)
    assert pooled['delta'][1] > 0
    assert pooled['realism_real'] > pooled['realism_synthetic']


def test_scores_of_each_reviewer_are_those_that_were_put_in(known):
    each = by_reviewer(known, RuleConfig())
    assert (each['items'] == 120).all()
    assert each.seconds.between(20, 35).all()
    assert each.dprime.mean() == pytest.approx(1.5, abs=.3)
    assert (each.auc > .7).all()
    assert each.same_source.between(.6, 1).all()


def test_shares_by_hand():
    "Two images and a repeat of one of them, answered by one reviewer."
    scored = dict(reviewer='A', part='scored', of='')
    table = pd.DataFrame([
        dict(scored, item='a', origin='real', answered_source='real', answered_label='pore', realism=4, artefact=False),
        dict(scored, item='b', origin='real', answered_source='real', answered_label='pore', realism=4, artefact=True),
        dict(reviewer='A', part='repeat', of='a', item='c', origin='real', answered_source='synthetic',
             answered_label='pore', realism=2, artefact=False)])
    assert share_by_origin(table[table.part == 'scored'], 'artefact', 'real') == .5
    assert repeat_agreement(table) == dict(same_source=0, same_class=1, close_realism=0)


def test_intervals_of_the_accuracy_cover(sealed):
    "Reviewers of known skill, images drawn anew: the item bootstrap covers the truth in about 95 of 100 cases."
    truth = norm.cdf(.5)
    hits = 0
    for seed in range(100):
        answers = simulated_answers(*sealed, 'A', np.random.default_rng(seed))
        table = answer_table([answers], sealed[1])
        _, low, high = pooled_scores(table, RuleConfig(resamples=400), seed)['accuracy']
        hits += low <= truth <= high
    print(hits)
    assert hits >= 89


@pytest.mark.parametrize(('right', 'margin'), [(.95, .1), (.8, .1), (.6, .1)])
def test_intervals_of_the_change_of_labels_cover_and_a_loss_at_the_limit_seldom_holds(sealed, right, margin):
    """Three reviewers who share how hard an image is: the change is covered, and if synthetic labels are right just
    `margin` less often, the safeguard holds in about one study of forty."""
    rng = np.random.default_rng(0)

    def shares(p):
        hard = rng.beta(2*p, 2*(1 - p), 50)
        return rng.binomial(3, hard)/3

    changes = [share_difference(shares(right - margin), shares(right), .95) for _ in range(1000)]
    covered = np.mean([low <= -margin <= high for _, low, high in changes])
    holds = np.mean([low >= -margin for _, low, _ in changes])
    print(covered, holds)
    assert covered >= .93
    assert holds <= .04


def test_intervals_with_more_images_are_those_of_statsmodels():
    from statsmodels.stats.proportion import confint_proportions_2indep
    expected = confint_proportions_2indep(40, 50, 45, 50, method='agresti-caffo')
    found = share_difference([1]*40 + [0]*10, [1]*45 + [0]*5, .95)
    assert found[0] == pytest.approx(-.1)
    assert found[1:] == pytest.approx(expected)


def test_a_reviewer_who_stops_early_counts_for_what_was_answered(sealed, three):
    data, key = sealed
    half = signed(three[0], answers=three[0]['answers'][:60])
    few = signed(three[1], answers=three[1]['answers'][:20])
    assert [answers_issue(a, data) for a in (half, few)] == ['', '']
    pooled = pooled_scores(answer_table([half, few, three[2]], key), RuleConfig(resamples=50), 0)
    assert pooled['reviewers'] == 3
    assert pooled['complete'] == 1, 'less than half of the images is no full review'
    assert pooled['answered'][2] == 120
    assert pooled['answered'][1] < pooled['answered'][0] < 60
    assert '**1 of 3 reviews**' in review_sentence(dict(pooled, source='real'))


def test_who_is_too_fast_to_look_is_named(sealed):
    answers = [simulated_answers(*sealed, r, np.random.default_rng(0), seconds=s) for r, s in (('A', 27.), ('B', 1.))]
    pooled = pooled_scores(answer_table(answers, sealed[1]), RuleConfig(resamples=50), 0)
    assert pooled['hasty'] == ['B']
    assert pooled['complete'] == 1, 'who did not look has not reviewed'
    assert 'Reviewer B was too fast' in review_sentence(dict(pooled, source='real'))


def test_a_sentence_on_simulated_images_does_not_call_them_real(known):
    pooled = pooled_scores(known, RuleConfig(resamples=50), 0)
    assert 'of simulated ones' in review_sentence(dict(pooled, source='simulated'))
    assert ' real ' not in review_sentence(dict(pooled, source='simulated'))


def all_scores(table):
    "All scores of a table: no crash, no warning, and what is not defined says so."
    rule = RuleConfig(resamples=50)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pooled, each, classes = pooled_scores(table, rule, 0), by_reviewer(table, rule), by_class(table)
    shares = [share_text(v) for v in pooled.values() if not isinstance(v, (int, list))]
    shares += [share_text(v) for v in each.drop(columns='reviewer').to_numpy(float).ravel()]
    assert 'nan' not in (review_sentence(dict(pooled, source='real')) + ' '.join(shares)).lower()
    assert json.dumps(nan_to_none(pooled), allow_nan=False)
    assert len(classes)
    return pooled, each


def other_source(table): return table.origin.map(dict(real='synthetic', synthetic='real'))


NO_SYNTHETIC = {'realism_synthetic', 'delta', 'label_right', 'label_change', 'artefacts', 'false_alarms'}
NO_REAL = {'realism_real', 'delta', 'label_right_real', 'label_change', 'artefacts_real', 'false_alarms_real'}
EDGES = {  # name -> change of the answers, scores that are not defined then
    'all answer real': (lambda t: t.assign(answered_source='real'), {'kappa_source'}),
    'all correct': (lambda t: t.assign(answered_source=t.origin, answered_label=t.label, label_agrees=True), set()),
    'all wrong': (lambda t: t.assign(answered_source=other_source(t)), set()),
    'one class is never named': (lambda t: t.assign(answered_label=t.answered_label.replace('pore', 'crack')), set()),
    'one class is absent': (lambda t: t[t.label != 'pore'], set()),
    'nothing synthetic': (lambda t: t[t.origin == 'real'], NO_SYNTHETIC),
    'nothing real': (lambda t: t[t.origin == 'synthetic'], NO_REAL),
    'no repeats': (lambda t: t[t.part != 'repeat'], set()),
    'no cleans': (lambda t: t[t.part != 'catch'], {'false_alarms', 'false_alarms_real'}),
    'one reviewer': (lambda t: t[t.reviewer == 'A'], {'kappa_source', 'kappa_class', 'alpha_realism'}),
    'all the same realism': (lambda t: t.assign(realism=3), {'alpha_realism'}),
}


@pytest.mark.parametrize('edge', EDGES)
def test_edge_cases_have_a_value_or_say_not_defined(table, edge):
    change, undefined = EDGES[edge]
    pooled, each = all_scores(change(table))
    missing = {k for k, v in pooled.items()
               if not isinstance(v, list) and np.isnan(v[0] if isinstance(v, tuple) else v)}
    assert missing == undefined
    assert each.same_source.isna().all() == (edge == 'no repeats')


def test_artefacts_are_listed_by_agreement(table):
    item = table.item[table.part == 'scored'].iloc[0]
    table.loc[table.item == item, ['artefact', 'x', 'y', 'note']] = [True, 3, 4, HOSTILE]
    top = artefact_list(table).iloc[0]
    assert top['item'] == item
    assert top.n_reviewers == 3
    assert top.places == [(3, 4)]*3
    assert top.notes == [HOSTILE]*3
    assert top.reviewers == 'A B C'


# --- a study ---

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WELDSYNTH_HOME', str(home := tmp_path_factory.mktemp('home')))
        yield home


@pytest.fixture(scope='module')
def study(home):
    "A finished study of the size of a fixture, whose page has been exported by the command."
    study = open_study('plates', profile='fixture')
    recommend(study)
    assert review.reviewed(study) == {}
    assert review_set.exported(study) is None
    with pytest.raises(StudyError, match='has exported no review of its present images'):
        review.count_answers(study, [])
    assert main(['review', 'export', 'plates']) == 0
    return study


@pytest.fixture
def current(study):
    "Data, key and folder of answers of the exported set."
    data, key = review_set.load_set(review_set.exported(study).path)
    return data, key, review.answers_folder(study, data)


@pytest.fixture
def sent(current, tmp_path):
    "Files as three reviewers would send them, marked as simulated, with a hostile note in each."
    data, key, _ = current
    part = key.set_index('item').part
    rng = np.random.default_rng(0)
    files = []
    for r in REVIEWERS:
        answers = simulated_answers(data, key, r, rng, label_rate=.99, artefact_rate=0)
        answers['about']['certificate'] = HOSTILE
        scored = next(a for a in answers['answers'] if part[a['item']] == 'scored')
        scored |= dict(artefact=True, x=1, y=2, note=HOSTILE)
        file = tmp_path/f'answers-{r}.json'
        file.write_text(json.dumps(signed(answers)))
        files.append(file)
    return files


@pytest.mark.slow
def test_the_set_is_of_unseen_real_and_usable_synthetic_images(study, current):
    _, key, _ = current
    fold = study_patches(study).table.set_index('id').fold
    is_copy = study_copies(study)[0].set_index('image').near
    scored = key[key.part == 'scored']
    real = key[key.origin == 'real']
    assert set(fold[real.id]) == {'train', 'validation'}, 'the test fold stays closed'
    assert real.group.nunique() > study_patches(study).fold('validation').table.group.nunique()
    assert not is_copy[scored.id[scored.origin == 'synthetic']].any()
    flaws = key[(key.origin == 'synthetic') & (key.label != 'clean')]
    assert set(flaws.id) <= set(usable_patches(study).table.id)
    cleans = key[(key.origin == 'synthetic') & (key.part == 'catch')]
    drawn = pd.read_csv(draw_study_cleans(study).path/'manifest.csv').image
    assert set(cleans.id) <= set('synthetic/' + drawn)
    assert len(cleans) == 10


def review_files(study): return sorted(p.name for p in (study.path/'review').iterdir())


@pytest.mark.slow
def test_exporting_again_gives_the_same_set_and_says_where(study, tmp_path, capsys):
    page = next((study.path/'review').glob('review-*.html'))
    before = review_files(study)
    assert main(['review', 'export', 'plates', '--to', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (tmp_path/page.name).read_bytes() == page.read_bytes()
    assert str(tmp_path/page.name) in out
    assert 'Too few images for equal classes' in out
    assert review_files(study) == before


@pytest.mark.slow
def test_a_page_for_a_missing_folder_is_refused(study, tmp_path, capsys):
    assert main(['review', 'export', 'plates', '--to', str(tmp_path/'nowhere'/'page.html')]) == 1
    assert 'does not exist' in capsys.readouterr().err


@pytest.mark.slow
def test_a_set_that_was_sent_out_stays_when_the_configuration_changes(study):
    changed = replace(study, config=with_overrides(study.config, {'review.break_every': 5, 'review.repeats': 2}))
    assert review_set.sealed_set(changed) == review_set.exported(study)


@pytest.mark.slow
def test_a_set_of_an_earlier_version_is_left_where_it_is(study):
    "Its page asked other questions, so that a new one has to be exported."
    now = review_set.exported(study).path
    before = now.rename(now.with_name(now.name.replace('images', 'set')))
    try: assert review_set.exported(study) is None
    finally: before.rename(now)


@pytest.mark.slow
def test_simulated_answers_are_refused_by_the_command(study, current, sent, capsys):
    assert main(['review', 'score', 'plates', *map(str, sent)]) == 1
    out, err = capsys.readouterr()
    assert err.count('which never count') == 3
    assert err.count('\n') == 3
    assert 'not reviewed' in out
    assert review.reviewed(study) == {}
    assert not list(current[2].iterdir())


@pytest.mark.parametrize(('argv', 'message'), [
    (['export', 'nothing'], "there is no study 'nothing'"),
    (['export', '../plates'], "there is no study '../plates'"),
    (['score', 'plates'], 'no file of answers is given')])
@pytest.mark.slow
def test_bad_arguments_are_one_line(study, capsys, argv, message):
    assert main(['review', *argv]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count('\n') == 1


@pytest.mark.parametrize(('made', 'line'), [
    ('samples/defects-1', 'choose one of begun'),
    ('data/patches-1', 'start one with `weldsynth report`')])
def test_only_studies_with_synthetic_images_are_offered(tmp_path, monkeypatch, capsys, made, line):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    (tmp_path/'studies'/'begun'/made).mkdir(parents=True)
    (tmp_path/'studies'/'begun'/'study.json').write_text('{}')
    assert main(['review', 'export', 'nope']) == 1
    assert capsys.readouterr().err.rstrip().endswith(line)


@pytest.fixture
def countable(monkeypatch, current):
    "Lets simulated answers count, for one test, and removes them after it."
    monkeypatch.setattr(review, 'may_count', lambda answers: True)
    yield
    for file in current[2].glob('*.json'): file.unlink()


@pytest.mark.slow
def test_good_files_count_and_bad_ones_are_named(study, sent, countable, capsys, tmp_path):
    a, b, c = sent
    answers_b = json.loads(b.read_text())
    other = tmp_path/'b-again.json'
    other.write_text(json.dumps(first(answers_b, realism=answers_b['answers'][0]['realism'] % 6 + 1)))
    early = tmp_path/'b-early.json'
    early.write_text(json.dumps(signed(answers_b, answers=answers_b['answers'][:50])))
    broken = tmp_path/'c.json'
    broken.write_text(c.read_text()[:-50])

    assert main(['review', 'score', 'plates', *map(str, (a, b, other, broken))]) == 1
    out, err = capsys.readouterr()
    assert err.count('\n') == 2
    assert f'{b} and {other} are both by reviewer B' in err
    assert f'{broken} {NOT_SAVED}' in err
    assert 'Realism: 1 of 3 reviews' in out
    assert review.reviewed(study)['reviewers'] == 1

    assert main(['review', 'score', 'plates', str(early)]) == 0
    assert 'Realism: 1 of 3 reviews' in capsys.readouterr().out, 'too few answers for a review'
    assert main(['review', 'score', 'plates', str(a), str(b), str(early)]) == 0, 'what continues it takes its place'
    assert 'Realism: 2 of 3 reviews' in capsys.readouterr().out
    assert main(['review', 'score', 'plates', str(other)]) == 1
    assert 'whose other answers were counted before' in capsys.readouterr().err
    assert main(['review', 'score', 'plates', str(c), str(c)]) == 0
    assert 'Three reviewers saw the intended flaw' in (out := capsys.readouterr().out)
    assert 'Deviation: patches of' in out
    assert review.reviewed(study)['deviation'].startswith('patches of')


@pytest.mark.slow
def test_a_counted_file_that_was_edited_is_refused(study, current, sent, countable):
    assert review.count_answers(study, sent[:1]) == []
    counted = current[2]/'A.json'
    counted.write_text(counted.read_text().replace('"realism": 3', '"realism": 2', 1))
    with pytest.raises(StudyError, match='A.json was changed after the page saved it'): review.reviewed(study)


def realism_guard(study): return next(g for g in recommend(study)['guards'] if g['name'] == 'realism, three reviewers')


def plan_of(verdict): return json.loads((verdict.path/'verdict.json').read_text())['plan']


@pytest.mark.slow
def test_three_reviews_make_a_new_verdict_under_the_same_plan(study, current, sent, countable):
    log = study.path/'eval'/'test-opened.jsonl'
    before, log_before = evaluate(study), log.read_text()
    assert realism_guard(study)['measured'] == 'not reviewed'
    assert any('not reviewed' in r['measured'] for r in recommend(study)['risks'])

    assert review.count_answers(study, sent[:1]) == []
    assert realism_guard(study)['measured'] == '1 of 3 reviews'
    assert realism_guard(study)['outcome'] == 'not assessed'

    assert review.count_answers(study, sent[1:]) == []
    scores = review.reviewed(study)
    assert scores['label_change'][1] >= -study.config.rule.most_labels_lost
    assert scores['artefacts'][0] <= study.config.rule.most_artefacts
    assert realism_guard(study)['outcome'] == 'holds'
    assert evaluate(study).key != before.key
    assert before.path.exists()
    assert log.read_text() == log_before
    assert plan_of(evaluate(study)) == plan_of(before)

    for file in current[2].glob('*.json'): file.unlink()
    assert evaluate(study).key == before.key
    assert review.score_review(study) is None


def copy_chapters(chapters, folder):
    "Notebooks whose kernels let simulated answers count, in the chapter's own code and in the module."
    folder.mkdir(exist_ok=True)
    for name in chapters:
        notebook = nbformat.read(Path(weldsynth.__path__[0]).parent/'nbs'/f'{name}.ipynb', 4)
        count_all = 'from weldsynth.stages import review as _review\n_review.may_count = lambda answers: True'
        notebook.cells.insert(1, nbformat.v4.new_code_cell(count_all))
        for cell in notebook.cells: cell.source = cell.source.replace("return not answers['simulated']", 'return True')
        nbformat.write(notebook, folder/f'{name}.ipynb')


@pytest.mark.slow
@pytest.mark.parametrize(('n', 'chapters'), [(1, ('08_review',)), (3, ('04_eval', '08_review'))])
def test_the_chapter_and_the_first_page(study, sent, countable, n, chapters, monkeypatch):
    "With the answers of one and of three; the chapter runs in a process of its own."
    review.count_answers(study, sent[:n])
    copy_chapters(chapters, study.path/'nbs')
    execute(study, study.path/'nbs', chapters)
    monkeypatch.setattr('quarto.path', lambda: None)
    pages = render(study, chapters).parent

    def read(name): return BeautifulSoup((pages/f'{name}.html').read_text(), 'html.parser')

    page = read('index' if n == 1 else '08_review')
    for code in page('details', 'code'): code.decompose()
    text = page.main.get_text()
    sentence = 'Realism: 1 of 3 reviews' if n == 1 else 'Three reviewers saw the intended flaw'
    assert sentence in text
    assert ('To have it reviewed' in text) == (n == 1)
    assert ('stay sealed until three reviewers' in text) == (n == 1)
    assert len(page('img')) == (2 if n == 1 else 4)
    assert 'simulated or synthetic, correct' in text
    assert (HOSTILE in text) == (n == 3)
    assert text.count('saw the intended flaw') == 1, 'nothing made up stands in a report'
    assert not page.main('script')
    assert not any(i['src'].startswith('http') for i in page('img'))
    assert 'nan' not in text.split()
    assert page.main.find('math') is None
    if n == 3:
        first_page = read('index').main.get_text()
        assert page_issues(pages) == []
        assert sentence in first_page
        assert 'not reviewed' not in first_page
