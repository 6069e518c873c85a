"""The review: a blind set, answers that are checked, and figures that are defined or say that they are not. All answers here are marked as simulated."""
import base64
import json
import warnings
from pathlib import Path

import krippendorff
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from scipy.stats import beta
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from weldsynth import review
from weldsynth.cli import main
from weldsynth.core.config import RULE, StudyError
from weldsynth.core.store import open_study
from weldsynth.data.patches import PatchSet
from weldsynth.stages.data import study_patches
from weldsynth.stages.audit import find_copies, usable_patches
from weldsynth.report.pages import execute, page_issues, render
from weldsynth.metrics.agreement import cliffs_delta, exact_share, fleiss, krippendorff_alpha, signal_detection
from weldsynth.stages.review import REVIEWERS, answer_table, answers_folder, answers_issue, artefact_list, by_class, by_reviewer, checksum, choose_items, count_answers, even_shares, exported, load_set, pooled_scores, read_answers, review_page, review_sentence, reviewed, score_review, seal, sealed_set, share_text, shortage, simulated_answers
from weldsynth.stages.verdict import evaluate, recommend

HOSTILE = '<script>alert(1)</script> ![x](http://example.org/x.png) $x$ | `b` **c**'


def noise(per_source=80, px=16, classes=('clean', 'crack', 'lack_of_fusion', 'pore'), seed=0):
    "Training fold, validation fold and synthetic images, of noise."
    rng = np.random.default_rng(seed)
    def patches(what):
        images = torch.from_numpy(rng.integers(0, 256, (per_source, 1, px, px), dtype=np.uint8))
        table = pd.DataFrame(dict(id=[f'{what}/{i}.png' for i in range(per_source)], label=[classes[1 + i % (len(classes) - 1)] for i in range(per_source)], group='g', film='g', size=np.nan, origin='synthetic' if what == 'made' else 'real'))
        return PatchSet(images, table, classes)
    return [patches(what) for what in ('train', 'validation', 'made')]


def made_set(seed=0, **how):
    rng = np.random.default_rng(seed)
    return seal(choose_items(*noise(**how), rng), rng, simulated=True)


@pytest.fixture(scope='module')
def sealed(): return made_set()


@pytest.fixture(scope='module')
def three(sealed):
    rng = np.random.default_rng(0)
    return [simulated_answers(*sealed, r, rng) for r in REVIEWERS]


def signed(answers, /, **changes):
    "Answers with changes and the checksum that the page would have put there."
    body = {k: v for k, v in (answers | changes).items() if k != 'checksum'}
    return dict(body, checksum=checksum(body))


# --- the set ---

def test_the_set_is_balanced_and_of_the_right_size(sealed):
    data, key = sealed
    assert key.groupby(['part', 'origin']).size().to_dict() == {('practice', 'real'): 3, ('practice', 'synthetic'): 3, ('repeat', 'real'): 6, ('repeat', 'synthetic'): 6, ('scored', 'real'): 60, ('scored', 'synthetic'): 60}
    scored = key[key.part == 'scored']
    assert set(pd.crosstab(scored.label, scored.origin).to_numpy().ravel()) == {20} and shortage(key) == '' and scored.id.is_unique
    assert scored[scored.origin == 'real'].id.str.startswith('validation/').all() and set(key.id[key.part == 'practice']).isdisjoint(scored.id)
    assert all(data['items'][k.item] == data['items'][k.of] for k in key[key.part == 'repeat'].itertuples())


def test_a_short_class_is_said_and_both_sources_stay_even():
    train, validation, made = noise()
    few = validation.take(~(validation.table.label.eq('pore') & (validation.table.index > 20)).to_numpy())
    _, key = seal(choose_items(train, few, made, np.random.default_rng(0)), np.random.default_rng(0))
    scored = key[key.part == 'scored']
    counts = pd.crosstab(scored.label, scored.origin)
    assert counts.real.tolist() == counts.synthetic.tolist() and counts.real['pore'] == (few.table.label == 'pore').sum() < 20
    assert f'pore {counts.real["pore"]}' in shortage(key)
    assert even_shares(dict(a=1, b=50, c=50), 60) == dict(a=1, b=30, c=29)
    with pytest.raises(StudyError, match='there is nothing to review'): choose_items(train, few.take(few.table.label == 'pore'), made.take(made.table.label == 'crack'), np.random.default_rng(0))


def features_of_bytes(data):
    "What can be known of each item of a page without looking at the picture: how long, how it begins and ends, where it stands, its id, its place in each order."
    rows = []
    for place, (item, text) in enumerate(data['items'].items()):
        raw = base64.b64decode(text)
        rows.append([len(text), len(raw), text.count('='), place, int(item, 16), *(int(c, 16) for c in item), *(o.index(item) for o in data['orders'].values()), raw[:4] in (b'\x89PNG', b'GIF8', b'\xff\xd8\xff\xe0'), len(raw) % 3])
    return np.array(rows, float)


def test_nothing_but_the_picture_tells_real_from_synthetic(monkeypatch):
    "A classifier on sizes, headers, ids and places, with 2,000 items so that chance alone cannot reach the limit."
    monkeypatch.setattr(review, 'EACH', 1000)
    data, key = made_set(per_source=1010, px=8)
    truth = key.set_index('item').reindex(data['items']).pipe(lambda t: t[t.part == 'scored'])
    rows = features_of_bytes(data)[[i for i, item in enumerate(data['items']) if item in truth.index]]
    said = cross_val_predict(RandomForestClassifier(200, min_samples_leaf=10, random_state=0, n_jobs=1), rows, truth.origin == 'synthetic', cv=5, method='predict_proba')[:, 1]
    auc = roc_auc_score(truth.origin == 'synthetic', said)
    print(f'AUC {auc:.3f} on {len(truth)} items')
    assert len(truth) == 2000 and abs(auc - .5) < .05
    assert len({len(t) for t in data['items'].values()}) == 1


def test_the_page_holds_no_key(sealed):
    data, key = sealed
    page = review_page(data)
    assert not [i for i in key.id if i in page] and 'origin' not in page and 'made/' not in page and '.png' not in page
    found = json.loads(BeautifulSoup(page, 'html.parser').find(id='data').get_text())
    assert found == data and set(found) == {'answers_format', 'px', 'classes', 'practice', 'pause_every', 'simulated', 'items', 'orders', 'set', 'hash'}


def test_a_label_cannot_leave_its_place(sealed):
    page = review_page(dict(sealed[0], classes=['clean', '</script><script>alert(1)</script>']))
    soup = BeautifulSoup(page, 'html.parser')
    assert len(soup('script')) == 3 and json.loads(soup.find(id='data').get_text())['classes'][1].startswith('</script>')
    policy = soup.find('meta', attrs={'http-equiv': 'Content-Security-Policy'})['content']
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and 'unsafe' not in policy and 'http' not in policy


def test_a_changed_set_is_found_out(sealed, tmp_path):
    data, key = sealed
    def write(data, key): (tmp_path/'set.json').write_text(json.dumps(data)), key.to_csv(tmp_path/'key.csv', index=False)
    write(data, key)
    assert load_set(tmp_path)[0] == data and load_set(tmp_path)[1].equals(key.astype(load_set(tmp_path)[1].dtypes))
    for wrong in ((data, key.assign(label='pore')), (dict(data, px=8), key), (data, key.assign(origin=key.origin[::-1].to_numpy()))):
        write(*wrong)
        with pytest.raises(StudyError, match='was changed after it was sealed'): load_set(tmp_path)


# --- answers ---

def test_answers_of_the_page_are_accepted(sealed, three):
    assert [answers_issue(a, sealed[0]) for a in three] == [''] * 3


def drop(answers, n): return signed(answers, answers=answers['answers'][:-n])


def first(answers, **fields): return signed(answers, answers=[answers['answers'][0] | fields, *answers['answers'][1:]])


DAMAGED = {
    'empty': (lambda a: '', 'is no file that the review page saved'),
    'no JSON': (lambda a: 'reviewer A was here', 'is no file that the review page saved'),
    'cut off': (lambda a: json.dumps(a)[:-100], 'is no file that the review page saved'),
    'not text': (lambda a: b'\xff\xfe\x00\x81', 'is no file that the review page saved'),
    'nested without end': (lambda a: '['*200_000, 'is no file that the review page saved'),
    'a list': (lambda a: json.dumps([a]), 'is no file that the review page saved (file:'),
    'another format': (lambda a: json.dumps(signed(a, format='answers 2')), "(format: 'weldsynth review answers 1' was expected)"),
    'a field missing': (lambda a: json.dumps({k: v for k, v in a.items() if k != 'reviewer'}), "'reviewer' is a required property"),
    'no such reviewer': (lambda a: json.dumps(signed(a, reviewer='D')), '(reviewer: '),
    'out of range': (lambda a: json.dumps(first(a, realism=6)), '(answers / 0 / realism: 6 is greater than the maximum of 5)'),
    'a yes where a number was': (lambda a: json.dumps(first(a, confidence=True)), '(answers / 0 / confidence: '),
    'not a number': (lambda a: json.dumps(first(a, confidence=float('nan'))), '(answers / 0 / confidence: '),
    'a field more': (lambda a: json.dumps(first(a, truth='real')), "'truth' was unexpected"),
    'a long note': (lambda a: json.dumps(first(a, artefact=True, note='x'*301)), '(answers / 0 / note: '),
    'edited': (lambda a: json.dumps(a | dict(answers=[a['answers'][0] | dict(realism=a['answers'][0]['realism'] % 5 + 1), *a['answers'][1:]])), 'was changed after the page saved it'),
    'mark taken off': (lambda a: json.dumps(a | dict(simulated=False)), 'was changed after the page saved it'),
    'reordered': (lambda a: json.dumps(a | dict(answers=a['answers'][::-1])), 'was changed after the page saved it'),
    'another set': (lambda a: json.dumps(signed(a, set='0'*8, hash='0'*32)), "answers another set ('00000000', and this study"),
    'the same name, another set': (lambda a: json.dumps(signed(a, hash='0'*32)), 'answers another set'),
    'unfinished': (lambda a: json.dumps(drop(a, 12)), 'lacks 12 of 138 images: reviewer A can load it on the page'),
    'an image twice': (lambda a: json.dumps(signed(a, answers=[*a['answers'], a['answers'][3]])), 'twice: ask reviewer A'),
    'an image of elsewhere': (lambda a: json.dumps(first(a, item='ffffffff')), 'answers image ffffffff, which is not in the set'),
    'a class of elsewhere': (lambda a: json.dumps(first(a, label='<b>')), "names a class that the set has not ('<b>')"),
    'half a character': (lambda a: json.dumps(first(a, artefact=True, note='\ud83d')), 'has half a character in the note'),
    'a place outside': (lambda a: json.dumps(first(a, artefact=True, x=16, y=0)), 'marks a place that image'),
    'half a place': (lambda a: json.dumps(first(a, artefact=True, x=1, y=None)), 'marks a place that image'),
    'a place without artefact': (lambda a: json.dumps(first(a, artefact=False, x=1, y=1)), 'marks a place that image'),
    'simulated': (lambda a: json.dumps(a), 'holds simulated answers, which never count'),
}


@pytest.mark.parametrize('damage', DAMAGED)
def test_a_damaged_file_is_one_clear_line(sealed, three, tmp_path, damage):
    write, said = DAMAGED[damage]
    text = write(three[0])
    (file := tmp_path/'answers.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StudyError) as e: read_answers(file, sealed[0])
    assert str(e.value).startswith(str(file)) and said in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 500 + len(str(file))


def test_a_missing_file_and_a_folder_are_named(sealed, tmp_path):
    for path in (tmp_path/'none.json', tmp_path):
        with pytest.raises(StudyError, match='cannot be opened'): read_answers(path, sealed[0])


# --- figures ---

def test_alpha_of_the_published_example_and_of_the_package():
    gap = np.nan
    paper = np.array([[1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3], [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap]])
    assert krippendorff_alpha(paper) == pytest.approx(.815, abs=5e-4), 'Krippendorff 2011, ordinal'
    for seed in range(30):
        rng = np.random.default_rng(seed)
        ratings = np.clip(rng.normal(3, 1, 40) + rng.normal(0, seed/10, (2 + seed % 3, 40)), 1, 5).round()
        ratings[rng.random(ratings.shape) < .2*(seed % 2)] = gap
        assert krippendorff_alpha(ratings) == pytest.approx(krippendorff.alpha(ratings, level_of_measurement='ordinal'), abs=1e-12)


def test_kappa_of_the_published_example():
    "Fleiss 1971 as in the textbooks: ten subjects, fourteen raters, five categories, kappa .210."
    counts = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    said = pd.DataFrame([[str(k) for k, n in enumerate(row) for _ in range(n)] for row in counts])
    assert kappa(said) == pytest.approx(.210, abs=5e-4)


def test_exact_intervals_are_those_of_clopper_and_pearson():
    for right, n in ((0, 10), (7, 10), (60, 120), (120, 120)):
        low, high = beta.ppf(.025, right, n - right + 1) if right else 0., beta.ppf(.975, right + 1, n - right) if right < n else 1.
        assert exact_share([True]*right + [False]*(n - right)) == pytest.approx((right/n, low, high), abs=1e-9)
    assert np.isnan(exact_share([])).all()


def test_signal_detection_recovers_what_was_put_in():
    rng = np.random.default_rng(0)
    for d, c in ((0, 0), (1, .5), (2, -.3)):
        made, real = rng.normal(d/2, 1, 200_000) > c, rng.normal(-d/2, 1, 200_000) > c
        assert signal_detection(made.sum(), len(made), real.sum(), len(real)) == pytest.approx((d, c), abs=.02)
    assert np.isfinite([signal_detection(h, 60, f, 60) for h in (0, 60) for f in (0, 60)]).all() and np.isnan(signal_detection(3, 6, 0, 0)).all()


def test_cliffs_delta_by_counting_pairs():
    rng = np.random.default_rng(0)
    real, made = rng.integers(1, 6, 30).astype(float), rng.integers(1, 6, 20).astype(float)
    pairs = np.mean([[np.sign(a - b) for b in made] for a in real])
    assert cliffs_delta(real, made, (np.ones((1, 30)), np.ones((1, 20))))[0] == pytest.approx(pairs)


def test_figures_are_those_that_were_put_in(sealed):
    rng = np.random.default_rng(3)
    table = answer_table([simulated_answers(*sealed, r, rng, skill=1.5, names=.8, sees=.2) for r in REVIEWERS], sealed[1])
    whole, each = together(table, 2000, 0), by_reviewer(table)
    assert len(table) == 3*138 and whole['items'] == 120 and (each['items'] == 120).all()
    assert each.dprime.mean() == pytest.approx(1.5, abs=.3) and whole['accuracy'][1] < .773 < whole['accuracy'][2] and (each.auc > .7).all()
    assert whole['label_right'] == pytest.approx(.85, abs=.06) and whole['artefacts'] == pytest.approx(.2, abs=.08) and whole['artefacts_real'] == 0
    assert whole['delta'][1] > 0 and whole['realism_real'] > whole['realism_synthetic'] and each.same_source.between(.6, 1).all()
    assert by_class(table).images.sum() == 120


def test_intervals_of_the_accuracy_cover(sealed):
    "Reviewers of known skill, images drawn anew: the item bootstrap covers the truth in about 95 of 100 cases."
    truth, hits = review.norm.cdf(.5), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        _, low, high = together(answer_table([simulated_answers(*sealed, 'A', rng)], sealed[1]), 400, seed)['accuracy']
        hits += low <= truth <= high
    print(hits)
    assert hits >= 89


def defined_or_said(table):
    "All figures of a table: no crash, no warning, and what is not defined says so."
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        whole, each, classes = together(table, 50, 0), by_reviewer(table), by_class(table)
    text = review_sentence(whole) + ' '.join(share_text(v) for v in whole.values() if not isinstance(v, int)) + ' '.join(share_text(v) for v in each.drop(columns='reviewer').to_numpy(float).ravel())
    assert 'nan' not in text.lower()
    assert json.loads(json.dumps(review.no_nan(whole), allow_nan=False))
    return whole, each, classes


@pytest.mark.parametrize('edge', ['all say real', 'all right', 'all wrong', 'one class is never named', 'one class is absent', 'nothing synthetic', 'nothing real', 'no repeats', 'one reviewer', 'all the same realism'])
def test_edge_cases_have_a_value_or_say_not_defined(sealed, three, edge):
    t = answer_table(three, sealed[1])
    other = t.origin.map(dict(real='synthetic', synthetic='real'))
    t = {'all say real': t.assign(said='real'), 'all right': t.assign(said=t.origin, named=t.label, as_labelled=True), 'all wrong': t.assign(said=other), 'one class is never named': t.assign(named=t.named.replace('pore', 'crack')),
         'one class is absent': t[t.label != 'pore'], 'nothing synthetic': t[t.origin == 'real'], 'nothing real': t[t.origin == 'synthetic'], 'no repeats': t[t.part != 'repeat'], 'one reviewer': t[t.reviewer == 'A'],
         'all the same realism': t.assign(realism=3)}[edge]
    whole, each, _ = defined_or_said(t)
    missing = {k for k, v in whole.items() if np.isnan(v[0] if isinstance(v, tuple) else v)}
    assert missing == {'all say real': {'kappa_source'}, 'nothing synthetic': {'realism_synthetic', 'delta', 'label_right', 'artefacts'}, 'nothing real': {'realism_real', 'delta', 'label_right_real', 'artefacts_real'},
                       'one reviewer': {'kappa_source', 'kappa_class', 'alpha_realism'}, 'all the same realism': {'alpha_realism'}}.get(edge, set())
    assert each.same_source.isna().all() == (edge == 'no repeats')


def test_artefacts_are_listed_by_agreement(sealed, three):
    t = answer_table(three, sealed[1])
    item = t.item[t.part == 'scored'].iloc[0]
    t.loc[t.item == item, ['artefact', 'x', 'y', 'note']] = [True, 3, 4, HOSTILE]
    top = artefact_list(t).iloc[0]
    assert top['item'] == item and top.seen == 3 and top.places == [(3, 4)]*3 and top.notes == [HOSTILE]*3 and top.reviewers == 'A B C'


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
    assert reviewed(study) == {} and exported(study) is None
    with pytest.raises(StudyError, match='has sent out no review of its present images'): count_answers(study, [])
    assert main(['review', 'export', 'plates']) == 0
    return study


@pytest.fixture
def sent(study, tmp_path):
    "Files as three reviewers would send them, marked as simulated, with a hostile note in each."
    data, key = load_set(exported(study).path)
    rng, files = np.random.default_rng(0), []
    for r in REVIEWERS:
        answers = simulated_answers(data, key, r, rng, names=.99, sees=0)
        scored = next(i for i, a in enumerate(answers['answers']) if key.set_index('item').part[a['item']] == 'scored')
        answers['answers'][scored] |= dict(artefact=True, x=1, y=2, note=HOSTILE)
        (file := tmp_path/f'answers-{r}.json').write_text(json.dumps(signed(answers)))
        files.append(file)
    return files


@pytest.mark.slow
def test_the_set_is_of_unseen_real_and_usable_synthetic_images(study):
    _, key = load_set(exported(study).path)
    patches, copies = study_patches(study).table.set_index('id'), pd.read_csv(find_copies(study).path/'copies.csv').set_index('image')
    scored = key[key.part == 'scored']
    assert (patches.fold[scored.id[scored.origin == 'real']] == 'validation').all() and not copies.near[scored.id[scored.origin == 'synthetic']].any()
    assert set(key.id[key.origin == 'synthetic']) <= set(usable_patches(study).table.id) and 'clean' not in set(scored.label)


@pytest.mark.slow
def test_exporting_again_gives_the_same_set_and_tells_where(study, tmp_path, capsys):
    page = next((study.path/'review').glob('review-*.html'))
    before = page.read_bytes(), sorted(p.name for p in (study.path/'review').iterdir())
    assert main(['review', 'export', 'plates', '--to', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (tmp_path/page.name).read_bytes() == before[0] and str(tmp_path/page.name) in out and 'There were not enough images to be even' in out
    assert sorted(p.name for p in (study.path/'review').iterdir()) == before[1]
    assert main(['review', 'export', 'plates', '--to', str(tmp_path/'nowhere'/'page.html')]) == 1 and 'does not exist' in capsys.readouterr().err


@pytest.mark.slow
def test_simulated_answers_are_refused_by_the_command(study, sent, capsys):
    assert main(['review', 'score', 'plates', *map(str, sent)]) == 1
    out, err = capsys.readouterr()
    assert err.count('which never count') == 3 and err.count('\n') == 3 and 'not reviewed' in out
    assert reviewed(study) == {} and not list(answers_folder(study, load_set(exported(study).path)[0]).iterdir())


@pytest.mark.parametrize('argv, said', [(['export', 'nothing'], "there is no study 'nothing'"), (['export', '../plates'], "there is no study '../plates'"), (['score', 'plates'], 'no file of answers is given')])
@pytest.mark.slow
def test_bad_arguments_are_one_line(study, capsys, argv, said):
    assert main(['review', *argv]) == 1
    assert said in (err := capsys.readouterr().err) and err.count('\n') == 1


@pytest.fixture
def countable(monkeypatch, study):
    "Lets simulated answers count, for one test, and takes them away after it."
    monkeypatch.setattr(review, 'counts', lambda answers: True)
    yield
    for file in answers_folder(study, load_set(exported(study).path)[0]).glob('*.json'): file.unlink()


@pytest.mark.slow
def test_good_files_count_and_bad_ones_are_told(study, sent, countable, capsys, tmp_path):
    a, b, c = sent
    (other := tmp_path/'b-again.json').write_text(json.dumps(signed(json.loads(b.read_text()), answers=json.loads(b.read_text())['answers'][::-1])))
    (broken := tmp_path/'c.json').write_text(c.read_text()[:-50])
    assert main(['review', 'score', 'plates', *map(str, (a, b, other, broken))]) == 1
    out, err = capsys.readouterr()
    assert err.count('\n') == 2 and f'{b} and {other} are both by reviewer B' in err and f'{broken} is no file' in err
    assert 'Realism: 1 of 3 reviews' in out and reviewed(study)['reviewers'] == 1
    assert main(['review', 'score', 'plates', str(a), str(b)]) == 0 and 'Realism: 2 of 3 reviews' in capsys.readouterr().out
    assert main(['review', 'score', 'plates', str(other)]) == 1 and 'of whom other answers were counted before' in capsys.readouterr().err
    assert main(['review', 'score', 'plates', str(c), str(c)]) == 0
    assert 'Three reviewers saw the intended flaw' in capsys.readouterr().out
    kept = answers_folder(study, load_set(exported(study).path)[0])/'A.json'
    kept.write_text(kept.read_text().replace('"confidence": 1', '"confidence": 2', 1))
    with pytest.raises(StudyError, match='A.json was changed after the page saved it'): reviewed(study)


@pytest.mark.slow
def test_three_reviews_make_a_new_verdict_under_the_same_plan(study, sent, countable):
    before, log = evaluate(study), (study.path/'eval'/'test-opened.jsonl').read_text()
    guard = lambda: next(g for g in recommend(study)['guards'] if g['name'] == 'realism, three reviewers')
    assert guard()['measured'] == 'not reviewed' and any('not reviewed' in r['measured'] for r in recommend(study)['risks'])
    assert count_answers(study, sent[:1]) == [] and guard()['measured'] == '1 of 3 reviews' and guard()['outcome'] == 'not assessed'
    assert count_answers(study, sent[1:]) == []
    found = reviewed(study)
    assert found['label_right'] >= RULE['least_labels_right'] and found['artefacts'] <= RULE['most_artefacts'] and guard()['outcome'] == 'holds'
    assert evaluate(study).key != before.key and before.path.exists() and (study.path/'eval'/'test-opened.jsonl').read_text() == log
    assert json.loads((evaluate(study).path/'verdict.json').read_text())['plan'] == json.loads((before.path/'verdict.json').read_text())['plan']
    for file in answers_folder(study, load_set(exported(study).path)[0]).glob('*.json'): file.unlink()
    assert evaluate(study).key == before.key and score_review(study) is None


@pytest.mark.slow
@pytest.mark.parametrize('n, chapters', [(1, ('03ea_review',)), (3, ('04_eval', '03ea_review'))])
def test_the_chapter_and_the_first_page(study, sent, countable, n, chapters, monkeypatch):
    "With the answers of one and of three. The chapter runs in a process of its own, so simulated answers are let in there as well."
    count_answers(study, sent[:n])
    (nbs := study.path/'nbs').mkdir(exist_ok=True)
    for c in chapters:
        notebook = nbformat.read(Path(review.__file__).parents[1]/'nbs'/f'{c}.ipynb', 4)
        notebook.cells.insert(1, nbformat.v4.new_code_cell('from weldsynth import review as _r\n_r.counts = lambda answers: True'))
        for cell in notebook.cells: cell.source = cell.source.replace("return not answers['simulated']", 'return True').replace("raise AssertionError('simulated answers must be refused')", 'pass')
        nbformat.write(notebook, nbs/f'{c}.ipynb')
    execute(study, nbs, chapters)
    monkeypatch.setattr('weldsynth.report.quarto.path', lambda: None)
    pages = render(study, chapters).parent
    read = lambda name: BeautifulSoup((pages/f'{name}.html').read_text(), 'html.parser')
    page = read('index' if n == 1 else '03ea_review')
    for code in page('details', 'code'): code.decompose()
    said, text = 'Realism: 1 of 3 reviews' if n == 1 else 'Three reviewers saw the intended flaw', page.main.get_text()
    assert said in text and ('To have it reviewed' in text) == ('stay sealed until three reviewers' in text) == (n == 1)
    assert len(page('img')) == (2 if n == 1 else 4) and 'told right' in text and (HOSTILE in text) == (n == 3)
    assert text.count('saw the intended flaw') == 1, 'nothing made up stands in a report'
    assert not page('script') and not any(i['src'].startswith('http') for i in page('img')) and 'nan' not in text.split() and page.main.find('math') is None
    if n == 3: assert page_issues(pages) == [] and said in read('index').main.get_text() and 'not reviewed' not in read('index').main.get_text()
