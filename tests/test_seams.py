"""From outside the package one line in a table adds a source, generator, classifier, arm, metric, safeguard, ..."""
import io
import json
import math
import re
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from weldsynth.core.config import DataConfig, OodConfig, RobustnessConfig, StudyError, with_overrides
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import PROFILES
from weldsynth.core.random import numpy_stream
from weldsynth.core.store import STAGES, Study, outdated, stage
from weldsynth.data.check import check_data
from weldsynth.data.images import raise_if_error
from weldsynth.data.loading import assemble
from weldsynth.data.patches import PatchSet
from weldsynth.data.sample_files import sample_issues
from weldsynth.data.sources import SOURCES, open_source
from weldsynth.metrics.fidelity import METRICS, Metric
from weldsynth.metrics.rule import GUARDS, Guard
from weldsynth.models.attacks import ATTACKS, Attack
from weldsynth.models.classifier import CLASSIFIERS
from weldsynth.models.ood import OOD_SCORES, Seen
from weldsynth.models.stress import CORRUPTIONS, Corruption
from weldsynth.report.cards import model_card
from weldsynth.stages import arms
from weldsynth.stages.arms import ARMS, Arm, fit_arms, study_arms
from weldsynth.stages.audit import audit_samples
from weldsynth.stages.data import prepare, study_patches, study_source, training_fold
from weldsynth.stages.filters import CRITERIA, try_filters
from weldsynth.stages.ood import measure_ood
from weldsynth.stages.robustness import attack_classifiers, measure_robustness
from weldsynth.stages.sample import GENERATORS, draw_defects, study_generator, weights_hash
from weldsynth.stages.sweep import draw_study_samples
from weldsynth.stages.verdict import evaluate

EXAMPLE = Path(__file__).parent.parent/'examples'/'own_folder'

SMALL = {
    'autoencoder.steps': 2, 'classifier.kind': 'flat', 'classifier.steps': 4, 'classifier.seeds': 2,
    'sampler.generator': 'brightness', 'sampler.synthetics': 40, 'sampler.synthetic_cleans': 20,
    'sweep.guidances': (2.,), 'sweep.shares': (.2,), 'rule.resamples': 50,
    'audit.fidelity_resamples': 4, 'audit.probe_repeats': 2, 'audit.filter_min_kept': 4,
    'robustness.attacked': 8, 'robustness.pgd_steps': 1, 'robustness.square_queries': 2, 'filters.seeds': 1,
    'filters.shares': (.5,), 'ood.seeds': 1, 'ood.images': 10}


@dataclass(frozen=True)
class DrawnWelds:
    "A source: 300 grey bands with noise, a third of them with a dot, a third with a line."
    data: str
    config: DataConfig
    seed: int = 0
    is_simulated: ClassVar[bool] = True
    title: ClassVar[str] = 'drawn welds'
    root: ClassVar = None

    @classmethod
    def accepts(cls, data: str) -> bool: return data == 'drawn'

    def files(self) -> list: return []

    def fingerprint(self) -> str: return 'drawn welds, first edition'

    def read(self, px: int, group: str, report=raise_if_error) -> PatchSet:
        labels = ['clean', 'dot', 'line']*100
        rng = numpy_stream('drawn welds', self.seed)
        images = [torch.from_numpy(_weld(label, px, rng)) for label in labels]
        rows = [(f'weld-{i//25:02d}/{i}', label, f'weld-{i//25:02d}', np.nan) for i, label in enumerate(labels)]
        return assemble(images, pd.DataFrame(rows, columns=['id', 'label', 'group', 'size']), report=report)


def _weld(label: str, px: int, rng: np.random.Generator) -> np.ndarray:
    "A patch, uint8, 1 x px x px."
    image = 120 + 30*np.sin(np.linspace(0, np.pi, px))[:, None] + rng.normal(0, 12, (px, px))
    y, x = rng.integers(4, px - 8, 2)
    if label == 'dot': image[y:y + 4, x:x + 4] -= 70
    if label == 'line': image[y:y + 2] -= 70
    return image.clip(0, 255).astype(np.uint8)[None]


def declare_brightness():
    "A generator with a stage of its own: real patches of the training fold, rolled and brightened."
    @stage('brightness/gain', version=1, reads=('sampler.generator',), needs=lambda study, **_: [prepare(study)])
    def measure_gain(study: Study, folder, generator: int = 0, fraction: float = 1.):
        brightest = training_fold(study, fraction).images.float().quantile(.99).item()
        (folder/'gain.json').write_text(json.dumps((250 - brightest)/10))

    class Brightness:
        def train(self, study: Study, seed: int, fraction: float): return measure_gain(study, seed, fraction)

        def sample(self, study: Study, model, rows: pd.DataFrame, guidance: float, resume) -> PatchSet:
            fold = training_fold(study, model.info['args']['fraction'])
            gain = guidance*json.loads((model.path/'gain.json').read_text())
            images = torch.stack([_brightened(fold.of(row.label).images, row.seed, gain) for row in rows.itertuples()])
            table = rows.assign(checkpoint=model.key, weights='', guidance=guidance, steps=1, solver='brightness')
            return PatchSet(images, table, fold.classes)
    return Brightness()


def _brightened(images: torch.Tensor, seed: int, gain: float) -> torch.Tensor:
    "One of `images`, uint8, 1 x H x W."
    rng = np.random.default_rng(seed)
    image = images[rng.integers(len(images))].roll(tuple(rng.integers(4, 12, 2).tolist()), (-2, -1))
    return (image.float() + gain).clamp(0, 255).to(torch.uint8)


def linear_classifier(classes: int, config) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64, classes))


def mean_distance(real, other, neighbours: int) -> float: return float(np.linalg.norm(real.mean(0) - other.mean(0)))


def guard_classes(evidence) -> list:
    n = len(evidence.found_changes)
    return [Guard('kinds of flaw', f'The data have {n} kinds of flaw.', str(n), 'at least 2', 'holds')]


def rolled(x: torch.Tensor, pixels: float, rng) -> torch.Tensor: return x.roll(int(pixels), -1)


def darken(decision, images: torch.Tensor, flawed, bound: float, config) -> torch.Tensor:
    return (images.float() - bound).clamp(min=0)


def hidden_length(known, labels, seen, config) -> torch.Tensor: return seen.hidden.norm(dim=1)


def brightness(study: Study, drawn: PatchSet) -> torch.Tensor: return drawn.images.float().mean((1, 2, 3))


TOY_ARM = Arm(lambda pool: pool.real + pool.synthetic.of('dot'), 'would dots alone do?', '#123456')


def with_toys(stack: ExitStack):
    "Add one member to each table until `stack` is closed."
    stack.enter_context(patch.dict(STAGES))
    for table, member in [(SOURCES, {'drawn': DrawnWelds}), (GENERATORS, {'brightness': declare_brightness()}),
                          (CLASSIFIERS, {'flat': linear_classifier}), (ARMS, {'real+dots': TOY_ARM}),
                          (METRICS, {'mean distance': Metric(mean_distance, 0, math.inf, 'lower')}),
                          (GUARDS, {'classes': guard_classes}),
                          (CORRUPTIONS, {'roll': Corruption(rolled, 'px', (2., 4.))}),
                          (ATTACKS, {'darken': Attack(darken, (3., 6.))}), (OOD_SCORES, {'length': hidden_length}),
                          (CRITERIA, {'brightness': brightness})]:
        stack.enter_context(patch.dict(table, member))


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A finished study in which everything that can be added was added."
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv('WELDSYNTH_CORES', '1')
        with_toys(stack)
        config = with_overrides(PROFILES['fixture'], SMALL)
        made = Study('toys', tmp_path_factory.mktemp('toys'), config, data='drawn')
        evaluate(made)
        yield made


def verdict_table(study, name: str) -> pd.DataFrame: return pd.read_csv(evaluate(study).path/f'{name}.csv')


def test_the_patches_come_from_the_added_source(study):
    patches = study_patches(study)
    assert len(patches) == 300
    assert patches.classes == ('clean', 'dot', 'line')


def test_the_added_source_is_known_by_its_fingerprint(study):
    assert prepare(study).info['config']['fingerprint'] == 'drawn welds, first edition'


def test_the_added_source_says_whether_it_is_simulated(study):
    assert study_source(study).is_simulated
    assert json.loads((evaluate(study).path/'verdict.json').read_text())['simulated'] is True


def test_a_check_reads_the_added_source(study):
    assert (check_data('drawn', study.config).severity == 'warning').all()


def test_the_manifest_names_the_added_generator(study):
    model = GENERATORS['brightness'].train(study, 0, 1.)
    rows = pd.read_csv(draw_study_samples(study).path/'manifest.csv')
    assert len(rows) == 40
    assert set(rows.checkpoint) == {model.key}
    assert set(rows.solver) == {'brightness'}


def test_the_stage_of_the_added_generator_is_an_artefact_like_any_other(study):
    info = GENERATORS['brightness'].train(study, 0, 1.).info
    assert info['stage'] == 'brightness/gain'
    assert info['args'] == dict(generator=0, fraction=1.)
    assert info['inputs'] == [prepare(study).key]
    assert outdated(study) == {}


def test_no_denoiser_is_trained_for_another_generator(study):
    assert not list((study.path/'ldm').glob('denoiser-*'))


def test_the_fits_are_those_of_the_added_classifier(study):
    weights = load_file(fit_arms(study).path/'weights'/'real-0.safetensors')
    assert {name: tuple(w.shape) for name, w in weights.items()} == {'2.weight': (3, 64), '2.bias': (3,)}


def test_the_added_arm_is_one_of_the_study(study):
    assert study_arms(study)[-1] == 'real+dots'


def test_an_arm_that_needs_masks_is_left_out_where_the_source_has_none(study):
    assert 'cut-paste' not in study_arms(study)


def test_the_added_arm_has_predictions(study):
    n = len(study_patches(study).fold('test'))
    assert arms.test_predictions(study)['real+dots'].probs.shape == (2, n, 3)


def test_the_added_arm_is_scored(study):
    tidy = verdict_table(study, 'tidy')
    f1 = tidy[(tidy.arm == 'real+dots') & (tidy.metric == 'macro_f1')]
    assert f1.classifier_seed.tolist() == [0, 1]
    assert f1.value.between(0, 1).all()


def test_the_added_arm_has_effects(study):
    effects = verdict_table(study, 'effects')
    assert {'score', 'difference'} == set(effects.kind[effects.arm == 'real+dots'])


def test_the_added_metric_is_measured_for_each_class(study):
    fidelity = pd.read_csv(audit_samples(study).path/'fidelity.csv')
    rows = fidelity[fidelity.metric == 'mean distance']
    assert rows['class'].tolist() == ['dot', 'line', 'all']
    assert (rows.low <= rows.value).all()
    assert (rows.value <= rows.high).all()


def test_the_added_disturbance_is_tried_on_every_arm(study):
    disturbed = pd.read_csv(measure_robustness(study).path/'disturbed.csv')
    rows = disturbed[disturbed.kind == 'roll']
    assert set(rows.strength) == {1, 2}
    assert set(rows.arm) == set(study_arms(study))


def test_the_added_attack_is_tried_on_every_arm(study):
    attacks = pd.read_csv(attack_classifiers(study).path/'attacks.csv')
    rows = attacks[attacks.attack == 'darken']
    assert set(rows.bound) == {3, 6}
    assert set(rows.arm) == set(study_arms(study))


def test_the_added_score_is_measured(study, tmp_path, monkeypatch):
    alone = dict(study_arms=('real',), arm_inputs=[prepare(study)], arm_facts={})  # the other arms take minutes
    for name, value in alone.items():
        monkeypatch.setattr(f'weldsynth.stages.ood.{name}', lambda study, value=value: value)
    frozen = with_overrides(study.config, {'classifier.kind': 'features', 'classifier.steps': 4,
                                           'classifier.backbone_px': 32})
    ood = pd.read_csv(measure_ood(replace(study, path=tmp_path, config=frozen)).path/'ood.csv')
    assert set(ood.images[ood.score == 'length']) == set(ood.images) > {'dot', 'line'}


def test_the_added_criterion_filters(study):
    rows = pd.read_csv(try_filters(study).path/'scores.csv')
    assert rows.share[rows.criterion == 'brightness'].tolist() == [.5]


def test_the_added_safeguard_is_assessed(study):
    guards = verdict_table(study, 'guards').set_index('name')
    assert guards.outcome['kinds of flaw'] == 'holds'
    assert guards.measured['kinds of flaw'] == '2'


def test_the_added_safeguard_is_in_the_verdict(study):
    guards = json.loads((evaluate(study).path/'verdict.json').read_text())['guards']
    assert guards[-1]['name'] == 'kinds of flaw'


def test_the_tables_are_as_before_when_the_additions_end():
    tables = (SOURCES, GENERATORS, CLASSIFIERS, ARMS, METRICS, GUARDS, CORRUPTIONS, ATTACKS, OOD_SCORES,
              CRITERIA, STAGES)
    before = [dict(table) for table in tables]
    with ExitStack() as stack: with_toys(stack)
    assert [dict(table) for table in tables] == before


def test_another_metric_makes_the_audit_anew(study, tmp_path):
    other = replace(study, path=tmp_path)
    before = audit_samples(other).key
    with patch.dict(METRICS, {'twice the distance': METRICS['mean distance']}):
        assert audit_samples(other).key != before


def test_an_unknown_generator_is_an_error_in_one_line(study, tmp_path):
    config = with_overrides(study.config, {'sampler.generator': 'flow'})
    other = replace(study, path=tmp_path, config=config)
    line = "'flow' is unknown: choose one of ldm, ldm-refined, insert, insert-1step, vary, text, ldm-guided, " \
           'brightness'
    with pytest.raises(StudyError, match=line):
        draw_defects(other, 2., 10)


def test_a_study_is_opened_on_the_added_source(study, tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    monkeypatch.setattr('weldsynth.core.opening.DATA_NAMES', {'simulated', 'drawn'})
    opened = open_study('mine', 'drawn', 'fixture')
    assert study_source(opened).title == 'drawn welds'


def snippets() -> list:
    text = (Path(__file__).parent.parent/'CONTRIBUTING.md').read_text(encoding='utf-8')
    return re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)


def test_each_snippet_of_contributing_adds_a_member():
    tables = (STAGES, GENERATORS, ARMS, METRICS, GUARDS, SOURCES, CLASSIFIERS, CORRUPTIONS, ATTACKS, OOD_SCORES,
              CRITERIA)
    members = [snippet for snippet in snippets() if 'recommend(' not in snippet]
    with ExitStack() as stack:
        for table in tables: stack.enter_context(patch.dict(table))
        for table, snippet in zip(tables, members, strict=True):
            before = len(table)
            exec(snippet, dict(__name__='snippet'))
            assert len(table) == before + 1, snippet


@pytest.fixture(scope='module')
def mixed(study, tmp_path_factory):
    "A study by the generator of CONTRIBUTING, made by the two snippets as they stand, and what they print."
    config, printed = with_overrides(study.config, {'sampler.generator': 'mixed'}), io.StringIO()
    other = replace(study, path=tmp_path_factory.mktemp('mixed'), config=config)
    with patch.dict(GENERATORS), patch('weldsynth.core.opening.open_study', lambda *_, **__: other):
        with redirect_stdout(printed):
            for snippet in snippets():
                if 'GENERATORS' in snippet or 'recommend(' in snippet: exec(snippet, dict(__name__='snippet'))
        yield other, printed.getvalue()


def test_the_generator_of_contributing_gets_an_answer(mixed): assert re.search('gain|decided', mixed[1])


def test_the_generator_of_contributing_says_what_it_needs(mixed):
    assert study_generator(mixed[0]).needs == 'flawed patches'


def test_the_chapter_on_samples_takes_a_generator_without_weights(mixed):
    cells = nbformat.read(Path(__file__).parent.parent/'nbs'/'03_sample.ipynb', 4).cells
    cell = next(c.source for c in cells if c.source.startswith('manifests = '))
    study = mixed[0]
    tried = {('mixed', 2.): draw_defects(study, 2., 6)}
    known = dict(study=study, tried=tried, n=6, pd=pd, GENERATORS=GENERATORS, weights_hash=weights_hash)
    exec(cell, known | dict(sample_issues=sample_issues))
    wrong = patch.dict(known, weights_hash=lambda model: 'other')
    with wrong, pytest.raises(AssertionError, match='mixed: its samples were not drawn with its weights'):
        exec(cell, known | dict(sample_issues=sample_issues))


def test_the_source_of_contributing_reads_class_folders():
    snippet = next(s for s in snippets() if 'SOURCES' in s)
    with patch.dict(SOURCES):
        exec(snippet.replace('/srv/welds', str(EXAMPLE)), dict(__name__='snippet'))
        patches = open_source('shared:images', DataConfig()).read(32, 'group')
    assert len(patches) == 80


def test_the_attack_of_contributing_keeps_to_its_bound():
    images = torch.full((3, 1, 8, 8), 254, dtype=torch.uint8)
    with patch.dict(ATTACKS):
        exec(next(s for s in snippets() if 'ATTACKS' in s), dict(__name__='snippet'))
        moved = ATTACKS['specks'].move(None, images, torch.tensor([True, False, True]), 4., RobustnessConfig())
    assert moved.unique().tolist() == [250, 255]


def test_the_score_of_contributing_is_higher_where_no_class_is_likely():
    seen = Seen(torch.zeros(2, 4), torch.tensor([[9., 0.], [1., 0.]]))
    with patch.dict(OOD_SCORES):
        exec(next(s for s in snippets() if 'OOD_SCORES' in s), dict(__name__='snippet'))
        far = OOD_SCORES['largest logit'](seen, torch.tensor([0, 1]), seen, OodConfig())
    assert far[1] > far[0]


def test_the_criterion_of_contributing_has_a_number_for_each_image(study):
    defects = training_fold(study).of('dot')
    with patch.dict(CRITERIA):
        exec(next(s for s in snippets() if 'CRITERIA' in s), dict(__name__='snippet'))
        assert CRITERIA['contrast'](study, defects).shape == (len(defects),)


def test_the_cards_train_no_denoiser_for_another_generator(study):
    model_card(study)
    assert not list((study.path/'ldm').glob('denoiser-*'))


def test_the_card_says_of_the_added_generator_only_what_is_known(study):
    card = model_card(study)
    assert 'It is loaded by weldsynth alone.' in card
    assert 'from_pretrained' not in card
    assert 'LoRA' not in card
