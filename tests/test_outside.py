"""An outside set: read and checked before any training, opened once after the test, without a say in the verdict."""
import json
import shutil
from dataclasses import asdict, replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from conftest import OVERRIDES
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import f1_score

from weldsynth.cli import main
from weldsynth.core.config import DataConfig, StudyConfig, StudyError
from weldsynth.core.opening import open_study
from weldsynth.core.random import digest
from weldsynth.data.mapping import label_targets, map_labels, parse_map, shared_images
from weldsynth.data.patches import PatchSet
from weldsynth.data.simulate import simulate
from weldsynth.metrics.intervals import Jackknife, drop_elsewhere, interval, variance
from weldsynth.report.cards import finish
from weldsynth.report.chapters import CHAPTERS, OUTSIDE, execute, study_chapters
from weldsynth.report.pages import page_issues, render
from weldsynth.report.quarto_pages import quarto_project
from weldsynth.report.verification import verify
from weldsynth.stages.arms import (
    fit_arms,
    freeze,
    open_test,
    test_predictions as predictions_of,
    tested_patches as patches_of_test,
)
from weldsynth.stages.data import prepare
from weldsynth.stages.ood import _far
from weldsynth.stages.outside import (
    mean_results,
    open_outside,
    outside_figures,
    outside_scores,
    outside_sentence,
    percent_text,
)
from weldsynth.stages.outside_data import outside_patches, prepare_outside
from weldsynth.stages.verdict import evaluate, recommend

RENAMED = {
    'crack': 'CRACK', 'porosity': 'Gas Pores', 'lack_of_fusion': 'lack-of fusion', 'slag_inclusion': 'slag inclusion'}
MAP = 'Gas Pores=porosity,lack-of fusion=-'  # porosity by another name; lack of fusion is left out


def write_set(folder, seed=77, plates=8, px=48, renamed=RENAMED, keep=lambda label: True):
    "A data set from elsewhere: a manifest of simulated exposures under labels of another house."
    shots = simulate(200, 120, plates, px, seed)
    (folder/'images').mkdir(parents=True)
    rows = []
    for i, (image, label, plate) in enumerate(zip(shots.images, shots.labels, shots.plates, strict=True)):
        if label not in ('clean', *renamed) or not keep(label): continue
        low, high = image.min(), image.max()
        Image.fromarray(np.uint8(255*(image.astype(float) - low)/(high - low))).save(folder/'images'/f'{i:03d}.png')
        rows.append((f'images/{i:03d}.png', renamed.get(label, label), plate))
    pd.DataFrame(rows, columns=['image', 'label', 'group']).to_csv(folder/'manifest.csv', index=False)
    return folder


def shut(study):
    "Take away all that came after the fits, so that the test is shut again."
    for file in (study.path/'eval').iterdir():
        if file.name.startswith(('test', 'verdict')): shutil.rmtree(file) if file.is_dir() else file.unlink()


def reopen(study, **outside):
    "The study of the fixtures with an outside set."
    fields = {f'outside.{k}': v for k, v in outside.items()}
    return open_study('fixture', profile='fixture', overrides=OVERRIDES | fields)


def events(study): return [e['event'] for e in study.test_log()]


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory): return write_set(tmp_path_factory.mktemp('elsewhere')/'other-plant')


@pytest.fixture(scope='module')
def made(study, elsewhere, tmp_path_factory):
    "The shared study, shut and finished again with an outside set; for reading only."
    home = tmp_path_factory.mktemp('home-outside')
    shutil.copytree(study.path, home/'studies'/study.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WELDSYNTH_HOME', str(home))
        shut(replace(study, path=home/'studies'/study.name))
        with_set = reopen(study, data=str(elsewhere), map=MAP)
        recommend(with_set)
    return with_set


@pytest.fixture
def closed_copy(made, tmp_path, monkeypatch):
    "A copy of the finished study with an outside set, to change."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    shutil.copytree(made.path, tmp_path/'studies'/made.name)
    return replace(made, path=tmp_path/'studies'/made.name)


@pytest.fixture
def shut_copy(study_copy):
    "A copy of the finished study without its test."
    shut(study_copy)
    return study_copy


# --- a study without one ---

def test_the_plan_of_a_study_without_an_outside_set_does_not_mention_it(study):
    assert 'outside' not in study.plan()['config']
    assert set(asdict(study.config)) - {'profile', 'outside'} == set(study.plan()['config']) - {'profile'}
    frozen = json.loads((open_test(study).path/'plan.json').read_text())
    assert 'outside' not in frozen
    assert frozen['hash'] == digest({k: v for k, v in frozen.items() if k != 'hash'})


def test_a_study_without_an_outside_set_has_no_page_no_figure_and_no_event_of_one(study):
    assert study_chapters(study) == CHAPTERS
    assert open_outside(study) is None
    assert prepare_outside(study) is None
    assert outside_figures(study) == []
    assert not any('outside' in label for label, _ in recommend(study)['figures'])
    assert events(study) == ['opened', 'done']
    with pytest.raises(StudyError, match='has no outside set'): outside_patches(study)


def test_an_outside_set_changes_no_other_artefact_and_no_verdict(study, made):
    def artefacts(s): return {str(f.parent.relative_to(s.path)) for f in s.path.glob('*/*/artefact.json')}
    new = artefacts(made) - artefacts(study)
    assert {name.rsplit('-', 1)[0] for name in new} == {'data/outside', 'eval/outside'}
    assert artefacts(study) <= artefacts(made)
    verdicts = [json.loads((evaluate(s).path/'verdict.json').read_text()) for s in (study, made)]
    plans = [v.pop('plan') for v in verdicts]
    assert verdicts[0] == verdicts[1]
    assert plans[0] != plans[1], 'the frozen plan names the outside set'
    for table in ('tidy', 'effects', 'guards'):
        first, second = ((evaluate(s).path/f'{table}.csv').read_text() for s in (study, made))
        assert first == second


# --- what it was read as ---

def test_labels_of_one_spelling_match_a_map_renames_and_a_dash_leaves_out(made, elsewhere):
    patches = outside_patches(made)
    written = pd.read_csv(elsewhere/'manifest.csv').label.value_counts()
    counts = patches.table.label.value_counts()
    assert patches.classes == patches_of_test(made).classes
    assert counts['crack'] == written['CRACK']
    assert counts['porosity'] == written['Gas Pores']
    assert counts['slag_inclusion'] == written['slag inclusion']
    assert set(counts.index) == {'clean', 'crack', 'porosity', 'slag_inclusion'}
    assert patches.images.shape[1:] == (1, 32, 32), 'the size of the study'
    labels = pd.read_csv(prepare_outside(made).path/'labels.csv').set_index('label')
    assert labels.loc['lack-of fusion'].to_list() == ['-', written['lack-of fusion']]
    assert labels.images.sum() == len(pd.read_csv(elsewhere/'manifest.csv'))


def test_the_key_follows_contents_and_map(made, tmp_path, monkeypatch, elsewhere):
    info = prepare_outside(made).info
    assert info['config']['outside.map'] == MAP
    assert len(info['config']['fingerprint']) > 8
    assert open_outside(made).info['inputs'][0] == info['key']
    assert info['inputs'] == [prepare(made).key]
    listed = pd.read_csv(prepare_outside(made).path/'source.csv')
    assert len(listed) == 1 + len(pd.read_csv(elsewhere/'manifest.csv'))


# --- figures by hand ---

def test_the_outside_set_is_out_of_distribution_with_its_own_welds(made):
    images, welds = _far(made)['another source']
    outside = outside_patches(made)
    assert len(images) == len(welds) == min(len(outside), made.config.ood.images)
    assert {weld.split('/', 1)[1] for weld in welds} <= set(outside.table.group)
    assert {tuple(x.flatten().tolist()) for x in images} <= {tuple(x.flatten().tolist()) for x in outside.images}


@pytest.fixture(scope='module')
def seen(made):
    "What every fit has made of the outside set: its probabilities."
    return load_file(open_outside(made).path/'fold-1'/'probabilities.safetensors')


def by_hand(seen, fit, threshold):
    "Predictions of one fit on the outside set at a threshold."
    probs = seen[f'outside/{fit}'].numpy()
    return np.where(1 - probs[:, 0] >= np.float32(threshold), probs[:, 1:].argmax(1) + 1, 0)


@pytest.mark.parametrize('point', ['false calls', 'best F1'])
def test_thresholds_are_those_of_validation(made, seen, point):
    thresholds = json.loads((fit_arms(made).path/'thresholds.json').read_text())
    predicted = load_file(open_outside(made).path/'fold-1'/'predicted.safetensors')
    assert {name.split('/', 2)[2] for name in predicted} == set(thresholds)
    for fit, points in thresholds.items():
        assert np.array_equal(predicted[f'{point}/outside/{fit}'].numpy(), by_hand(seen, fit, points[point])), fit


def test_scores_of_each_fit_are_those_worked_out_by_hand(made, seen):
    tidy = pd.read_csv(open_outside(made).path/'tidy.csv')
    tidy = tidy.set_index(['arm', 'classifier_seed', 'class', 'metric']).value
    thresholds = json.loads((fit_arms(made).path/'thresholds.json').read_text())
    truth = outside_patches(made).labels.numpy()
    flawed, prevalence = truth > 0, made.config.rule.prevalence
    weights = np.where(flawed, 1, flawed.sum()*(1 - prevalence)/(prevalence*(~flawed).sum()))
    present = sorted(set(truth[flawed]))
    for fit, points in thresholds.items():
        arm, s = fit.rsplit('/', 1)
        called = by_hand(seen, fit, points['false calls'])
        f1 = f1_score(truth, called, labels=present, average='macro', sample_weight=weights, zero_division=0)
        assert tidy[arm, int(s), 'all', 'macro_f1'] == pytest.approx(f1)
        assert tidy[arm, int(s), 'all', 'found_any'] == pytest.approx((called[flawed] > 0).mean())
        assert tidy[arm, int(s), 'all', 'false_call_rate'] == pytest.approx((called[~flawed] > 0).mean())


def effects_of(made, point='false calls', metric='macro_f1'):
    table = pd.read_csv(open_outside(made).path/'effects.csv')
    rows = table[(table.point == point) & (table.metric == metric) & (table['class'] == 'all')]
    return rows.set_index(['on', 'kind', 'arm'])['mean'].sort_index()


def test_the_drop_is_the_own_test_on_the_same_classes_less_the_outside_set(made):
    means = effects_of(made)
    tidy = pd.read_csv(open_outside(made).path/'tidy.csv').query("metric == 'macro_f1'").groupby('arm').value.mean()
    fold = patches_of_test(made)
    kept = fold.table.label.isin(['clean', 'crack', 'porosity', 'slag_inclusion']).to_numpy()
    assert not kept.all(), 'the own test has other classes too'
    truth = fold.labels.numpy()[kept]
    flawed, prevalence = truth > 0, made.config.rule.prevalence
    weights = np.where(flawed, 1, flawed.sum()*(1 - prevalence)/(prevalence*(~flawed).sum()))
    present = sorted(set(truth[flawed]))
    for arm, p in predictions_of(made).items():
        own = np.mean([f1_score(truth, called[kept], labels=present, average='macro', sample_weight=weights,
                                zero_division=0) for called in p.predicted])
        assert means['test', 'score', arm] == pytest.approx(own)
        assert means['outside', 'score', arm] == pytest.approx(tidy[arm])
        assert means['both', 'drop', arm] == pytest.approx(own - tidy[arm])
        assert means['outside', 'difference', arm] == pytest.approx(tidy[arm] - tidy['real'])


def test_every_arm_has_the_scores_at_both_operating_points_with_intervals(made):
    table = pd.read_csv(open_outside(made).path/'effects.csv')
    drops = table[(table.kind == 'drop') & (table.metric == 'macro_f1')]
    assert len(drops) == 2*len(predictions_of(made))
    assert (drops.low <= drops['mean']).all()
    assert (drops['mean'] <= drops.high).all()
    missing = table[(table.on == 'outside') & (table['class'] == 'lack_of_fusion')]
    assert len(missing)
    assert missing[['mean', 'low', 'high']].isna().all().all(), 'a class that is not there has no figures'


def test_an_interval_of_a_drop_is_that_of_two_samples_of_welds():
    "One fit: the variances of both means add up, and Student's degrees of freedom are Welch's."
    def set_of(scores):
        without = (scores.sum() - scores)/(len(scores) - 1)
        return Jackknife(np.r_[scores.mean(), without][None], np.zeros(1, int), np.array(len(scores)))
    a, b = np.array([.1, .5, .3, .7, .4]), np.array([.2, .1, .4, .3])
    parts = variance(set_of(a), set_of(b))
    va, vb = a.var(ddof=1)/5, b.var(ddof=1)/4
    assert parts.welds == pytest.approx(va + vb)
    assert parts.df == pytest.approx((va + vb)**2/(va**2/4 + vb**2/3))
    drop, low, high = drop_elsewhere(set_of(a), set_of(b))
    assert (drop, (low + high)/2) == pytest.approx((.15, .15))
    assert np.isnan(drop_elsewhere(set_of(a), set_of(b[:3]))[1:]).all()
    assert interval(set_of(a)) == pytest.approx(interval(set_of(a)))


def test_an_interval_of_a_drop_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    def set_of(scores):
        without = (scores.sum(1, keepdims=True) - scores)/(scores.shape[1] - 1)
        return Jackknife(np.concatenate([scores.mean(1, keepdims=True), without], 1), np.zeros(3, int),
                         np.array(scores.shape[1]))
    def held():
        fits = rng.normal(0, .03, (3, 1))
        own, outside = (set_of(fits + rng.normal(0, .1, n) + rng.normal(0, .05, (3, n))) for n in (12, 6))
        _, low, high = drop_elsewhere(own, outside)
        return low <= 0 <= high
    assert .93 < np.mean([held() for _ in range(1_500)]) < .98


# --- words ---

def test_the_sentence_says_what_there_is_and_that_it_decides_nothing(made):
    text, scores = outside_sentence(made), outside_scores(made).set_index('arm')
    n, welds = len(outside_patches(made)), outside_patches(made).table.group.nunique()
    assert f'(other-plant: {n} images of {welds} welds)' in text
    assert f'a drop of {scores["drop"]["real+synthetic"]} points' in text
    assert f'by {scores["gain there"]["real+synthetic"]} points' in text
    assert 'no lack_of_fusion' in text
    assert text.endswith('with the thresholds chosen on validation, and does not enter the verdict.')
    labels = [label for label, _ in recommend(made)['figures'] if 'outside' in label]
    assert labels == ['outside set other-plant, real', 'outside set other-plant, real+synthetic',
                      'outside set other-plant, synthetic', 'outside set other-plant, gain over real']


def test_too_few_welds_are_said_in_place_of_an_interval():
    row = pd.Series(dict(mean=.123, low=np.nan, high=np.nan))
    assert percent_text(row) == '12.3 (too few welds)'
    assert percent_text(row, sign=True) == '+12.3 (too few welds)'
    assert percent_text(row*np.nan) == 'not measured'


def test_three_welds_elsewhere_are_too_few(shut_copy, tmp_path):
    few = reopen(shut_copy, data=str(write_set(tmp_path/'few', plates=3)), map='Gas Pores=porosity')
    scores = outside_scores(few).set_index('arm')
    assert scores.outside.str.endswith('(too few welds)').all()
    assert scores['drop'].str.endswith('(too few welds)').all()
    assert 'too few welds' in outside_sentence(few)
    assert not scores['own test'].str.contains('few').any()


def test_the_report_has_a_page_and_a_sentence(closed_copy):
    after = CHAPTERS.index('09_verdict') + 1
    assert study_chapters(closed_copy) == (*CHAPTERS[:after], OUTSIDE, *CHAPTERS[after:])
    assert OUTSIDE not in CHAPTERS
    chapters = ('04_eval', OUTSIDE)
    execute(closed_copy, chapters=chapters)
    index = render(closed_copy, chapters)
    assert page_issues(index.parent) == []
    first = BeautifulSoup(index.read_text(), 'html.parser')
    text = ' '.join(first.get_text(' ').split())
    assert 'On images from elsewhere (other-plant' in text
    assert 'does not enter the verdict' in text
    assert first.find('a', string='The outside set')['href'] == '15_outside.html'
    page = ' '.join(BeautifulSoup((index.parent/'15_outside.html').read_text(), 'html.parser').get_text(' ').split())
    assert 'does not enter the verdict' in page
    assert 'left out' in page


def test_quarto_is_told_of_the_page_where_there_is_one(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# Title')])
    quarto_project({page: notebook for page in ('index', '09_verdict', OUTSIDE)}, tmp_path)
    import yaml
    contents = yaml.safe_load((tmp_path/'_quarto.yml').read_text())['website']['sidebar']['contents']
    assert contents == ['index.ipynb', '09_verdict.ipynb', '15_outside.ipynb']


# --- opened once ---

def test_the_log_has_the_outside_set_after_the_test(made):
    assert events(made) == ['opened', 'done', 'outside opened', 'outside done']
    assert len({e['plan'] for e in made.test_log()}) == 1
    frozen = json.loads((open_test(made).path/'plan.json').read_text())
    assert frozen['outside'] == prepare_outside(made).key
    assert frozen == json.loads(json.dumps(freeze(made)))
    assert frozen['config']['outside']['map'] == MAP


def test_a_second_opening_is_refused_and_recorded(closed_copy):
    shutil.rmtree(open_outside(closed_copy).path)
    with pytest.raises(StudyError, match=r"^the outside set of study 'fixture' was used on .* is not used again"):
        recommend(closed_copy)
    assert events(closed_copy) == ['opened', 'done', 'outside opened', 'outside done', 'outside refused']


def test_an_opening_that_was_interrupted_is_finished(closed_copy):
    shutil.rmtree(open_outside(closed_copy).path)
    log = closed_copy.path/'eval'/'test-opened.jsonl'
    log.write_text(''.join(log.read_text().splitlines(True)[:3]))
    recommend(closed_copy)
    assert events(closed_copy) == ['opened', 'done', 'outside opened', 'outside opened', 'outside done']


def test_until_the_test_is_opened_the_outside_set_may_change(shut_copy, elsewhere, capsys):
    fits = fit_arms(shut_copy).path
    first = reopen(shut_copy, data=str(elsewhere), map='lof=-')
    with pytest.raises(StudyError, match="no label 'lof'"): recommend(first)
    corrected = reopen(shut_copy, data=str(elsewhere), map=MAP)
    assert "changed outside.map" in capsys.readouterr().err
    assert fit_arms(corrected).path == fits
    assert len(outside_patches(corrected))
    assert reopen(shut_copy).config.outside.data == ''


@pytest.mark.parametrize('change', [{}, dict(map=MAP.replace('-', 'crack'))])
def test_after_that_it_belongs_to_the_plan(closed_copy, elsewhere, change):
    outside = dict(data=str(elsewhere), map=MAP) | change if change else {}
    with pytest.raises(StudyError, match=r'was started with other settings \(outside\.(map|data)'):
        reopen(closed_copy, **outside)


def test_a_finished_study_takes_no_outside_set(study_copy, elsewhere):
    with pytest.raises(StudyError, match=r'was started with other settings \(outside\.data'):
        reopen(study_copy, data=str(elsewhere))
    assert events(study_copy) == ['opened', 'done']


def test_verify_looks_at_the_files_of_the_outside_set(closed_copy, elsewhere):
    finish(closed_copy)
    assert verify(closed_copy.path)[0].empty
    image = sorted((elsewhere/'images').iterdir())[0]
    before = image.read_bytes()
    try:
        image.write_bytes(before + b' ')
        [issue] = verify(closed_copy.path)[0].itertuples()
    finally: image.write_bytes(before)
    assert (issue.file, issue.what) == (f'images/{image.name}', 'was changed in the source')


# --- what is wrong with it stops a study before any training ---

@pytest.fixture
def refusal(tmp_path, monkeypatch):
    "A function from the fields of the section `outside` to the one line with which a new study ends."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))
    def line(**outside):
        with pytest.raises(StudyError) as e:
            started = open_study('new', profile='fixture', overrides={f'outside.{k}': v for k, v in outside.items()})
            recommend(started)
        assert not list((tmp_path/'home').glob('studies/*/ldm')), 'nothing was trained'
        assert '\n' not in str(e.value)
        return str(e.value)
    return line


CLASSES = 'crack, lack_of_fusion, lack_of_penetration, porosity, slag_inclusion'


def test_labels_that_do_not_match_are_one_line_with_both_sets(refusal, elsewhere):
    text = refusal(data=str(elsewhere))
    assert text.startswith("outside set 'other-plant': has images labelled 'Gas Pores', and the study no such class (")
    assert 'its labels are clean, CRACK, Gas Pores, lack-of fusion, slag inclusion' in text
    assert 'the classes of the study are clean, crack, ' in text
    assert text.endswith("--outside-map 'Gas Pores=-'")


@pytest.mark.parametrize(('text', 'message'), [
    ('crack', "outside.map: 'crack' is not a label and a class: write it like crack=crack,other=-"),
    ('=crack', "outside.map: '=crack' is not a label and a class"),
    ('a=b,a=c', "outside.map gives 'a' two classes, b and c"),
    ('Gas Pores=pore', "outside set 'other-plant': has 'Gas Pores' mapped to 'pore', no class (its labels are clean, "),
    ('pores=porosity', "outside set 'other-plant': has no label 'pores', which the map names (its labels are clean, "),
    ('Gas Pores=-,crack=-,lack of fusion=-,slag_inclusion=-', "outside set 'other-plant': has no flaw of the study ("),
    ('Gas Pores=porosity,clean=-', "outside set 'other-plant': has no clean image of the study (")])
def test_a_map_that_does_not_fit_is_one_line(refusal, elsewhere, text, message):
    assert refusal(data=str(elsewhere), map=text).startswith(message)


def test_a_set_that_is_not_there_is_one_line(refusal, tmp_path):
    assert refusal(data='no/such') == ("outside set 'no/such' does not exist: give a folder of images, a manifest CSV, "
                                       "or 'simulated'")
    assert refusal(map='a=-') == 'outside.map is given without an outside set: name the set as outside.data'
    assert not (tmp_path/'home'/'studies').exists()


def test_a_file_that_cannot_be_read_is_named_with_the_set(refusal, tmp_path):
    folder = write_set(tmp_path/'broken')
    sorted((folder/'images').iterdir())[3].write_bytes(b'no image')
    text = refusal(data=str(folder), map=MAP)
    assert text.startswith("outside set 'broken': images/")
    assert text.endswith(f"(`weldsynth check '{folder}'` lists what else is wrong with its files)")


def test_the_column_of_the_weld_is_a_field_of_its_own(refusal, tmp_path, monkeypatch):
    folder = write_set(tmp_path/'plates')
    table = pd.read_csv(folder/'manifest.csv').rename(columns=dict(group='film'))
    table.to_csv(folder/'manifest.csv', index=False)
    assert '--set outside.group=film' in refusal(data=str(folder), map=MAP)
    named = open_study('named', profile='fixture', overrides={
        'outside.data': str(folder), 'outside.map': MAP, 'outside.group': 'film'})
    assert outside_patches(named).table.group.nunique() == 8


def test_a_copy_of_an_own_image_is_an_error_that_names_both(tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))
    own, outside = write_set(tmp_path/'own', seed=5, plates=16), write_set(tmp_path/'outside')
    mine, theirs = (pd.read_csv(f/'manifest.csv') for f in (own, outside))
    row = mine[mine.label == 'CRACK'].iloc[0]
    shutil.copy(own/row.image, outside/'images'/'again.png')
    copied = pd.concat([theirs, theirs.iloc[:1].assign(image='images/again.png', label='CRACK')])
    copied.to_csv(outside/'manifest.csv', index=False)
    started = open_study('own', str(own), 'fixture', overrides={'outside.data': str(outside)})
    with pytest.raises(StudyError) as e: prepare_outside(started)
    assert str(e.value) == (f"outside set 'outside': its 'images/again.png' and the study's own '{row.image}' are the "
                            'same image (1 such pair): take such images out of one of the two')


def test_the_simulator_and_own_images_may_each_serve_as_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))
    own = write_set(tmp_path/'own', seed=5, plates=16)
    reverse = {'outside.data': 'simulated', 'outside.map': 'porosity=Gas Pores,lack_of_penetration=-'}
    study = open_study('films', str(own), 'fixture', overrides=reverse)
    patches = outside_patches(study)
    assert set(patches.table.label) == {'clean', *RENAMED.values()}
    assert patches.table.group.nunique() == study.config.data.plates
    shots = simulate(300, 300, 16, 32, study.config.outside.seed)
    assert sorted(patches.table.group.unique()) == sorted(set(shots.plates)), "at the outside set's own seed"


def test_a_simulation_of_the_same_seed_is_the_same_set(refusal):
    text = refusal(data='simulated', seed=0)
    assert text.startswith("outside set 'simulated': its '")
    assert "' are the same image (600 such pairs)" in text


# --- the command ---

@pytest.mark.parametrize('command', ['report', 'train'])
def test_the_command_has_the_options(command, monkeypatch):
    given = {}
    def stop(name, data, profile, group, seed, overrides):
        given.update(overrides)
        raise StudyError('enough')
    monkeypatch.setattr('weldsynth.core.opening.open_study', stop)
    assert main([command, '--outside', 'films', '--outside-map', 'crack=crack,other=-', '--set', 'data.px=32']) == 1
    assert given == {'data.px': '32', 'outside.data': 'films', 'outside.map': 'crack=crack,other=-'}
    given.clear()
    assert main([command]) == 1
    assert given == {}


# --- labels ---

def test_names_match_without_capitals_blanks_and_underscores():
    classes = ('clean', 'lack_of_fusion', 'Riß')
    assert label_targets(['clean', 'Lack-of Fusion', 'RISS'], classes) == {
        'clean': 'clean', 'Lack-of Fusion': 'lack_of_fusion', 'RISS': 'Riß'}
    assert label_targets(['ok-part', 'riss'], classes, 'OK_PART=Good') == {'ok-part': 'clean', 'riss': 'Riß'}
    assert parse_map(' a = b , c=- ,') == {'a': 'b', 'c': '-'}


def flat(labels, levels):
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    table = pd.DataFrame(dict(id=[f'{x}.png' for x in levels], label=labels, group='w', film='w', size=np.nan))
    return PatchSet(images, table, ('clean', *sorted({*labels} - {'clean'})))


def test_two_labels_may_be_one_class():
    mapped, counts = map_labels(flat(['clean', 'pore', 'worm hole'], [1, 2, 3]), ('clean', 'pore'), 'worm hole=pore')
    assert mapped.labels.tolist() == [0, 1, 1]
    assert counts.images.tolist() == [1, 1, 1]


def test_copies_within_one_set_are_none_between_the_two():
    own, outside = flat(['clean', 'pore', 'pore'], [1, 2, 2]), flat(['clean', 'pore', 'pore'], [4, 5, 5])
    assert not list(shared_images(own, outside, DataConfig()))
    [issue] = shared_images(own, flat(['clean', 'pore', 'pore'], [4, 2, 2]), DataConfig(), 'b')
    assert "its '2.png' and the study's own '2.png' are the same image (2 such pairs)" in str(issue)


# --- outer folds ---

def test_the_mean_over_outer_folds_is_that_of_every_value():
    def of(*values): return {'real': {'f1': Jackknife(np.array([values]), np.zeros(1, int), np.array(2))}}
    mean = mean_results([of(.2, .1, .3), of(.4, .5, .3), of(.6, .6, .6)])['real']['f1']
    assert mean.values.tolist() == [pytest.approx([.4, .4, .4])]
    assert mean.estimate == pytest.approx(.4)


@pytest.mark.slow
def test_the_classifiers_of_every_outer_fold_score_the_whole_set(tmp_path, monkeypatch, elsewhere):
    from test_folds import TWO_FOLDS
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    folds = open_study('folds', profile='fixture', overrides=TWO_FOLDS | {
        'outside.data': str(elsewhere), 'outside.map': MAP})
    recommend(folds)
    outside, folder = outside_patches(folds), open_outside(folds).path
    for i in (1, 2):
        probs = load_file(folder/f'fold-{i}'/'probabilities.safetensors')
        assert len(probs['outside/real/0']) == len(outside)
    tidy = pd.read_csv(folder/'tidy.csv').query("metric == 'macro_f1' and arm == 'real'")
    assert sorted(tidy.part) == [0, 1]
    assert effects_of(folds)['outside', 'score', 'real'] == pytest.approx(tidy.value.mean())
    assert 'means over the classifiers of 2 outer folds' in outside_sentence(folds)
    assert events(folds) == ['opened', 'opened', 'done', 'outside opened', 'outside done']


def test_the_default_configuration_has_no_outside_set(): assert StudyConfig().outside.data == ''
