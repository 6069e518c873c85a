"""Studies that an older version has finished: what they say can still be read, and nothing is added to them.

Such a study opens under its name, its `verdict.json` is as it was, and `weldsynth verify` passes. It lacks what is
measured today (the check of the classifier, two operating points), and its test fold has been seen: what needs more
than it has ends with one line that points to a new NAME. A study of version 0.1 is left as it is, byte for byte.
"""
import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch

from weldsynth.cli import main
from weldsynth.core import store
from weldsynth.core.config import RuleConfig, StudyError, config_table
from weldsynth.core.files import file_hash, file_hashes
from weldsynth.core.legacy import FIELDS_0_1, config_of_plan
from weldsynth.core.opening import find_study
from weldsynth.core.random import digest
from weldsynth.core.store import Artefact, artefact_folders, artefact_key
from weldsynth.report.verification import verify
from weldsynth.stages.arms import open_test, times_opened
from weldsynth.stages.audit import fidelity
from weldsynth.stages.data import prepare, study_patches
from weldsynth.stages.ldm import load_pipeline
from weldsynth.stages.sweep import learning_curve, selected
from weldsynth.stages.verdict import recommend

REFUSED = "study 'fixture' was finished by an older version of weldsynth .* or start a study with another --name"
CODE = dict(ldm='0'*32)  # of version 0.1: the hash of each module's syntax tree

# --- a study of today, translated back ---

def strip(path):
    "Remove what older versions did not make."
    for folder in path.glob('eval/instrument-*'): shutil.rmtree(folder)
    for file in path.glob('eval/test-*/predicted.safetensors'): file.unlink()


def rewrite(path, record_of):
    "Give each artefact the record and the folder that `record_of` makes of its record of today."
    for folder in artefact_folders(path):
        record = record_of(Artefact(folder, '').info)
        (folder/'artefact.json').write_text(json.dumps(dict(record, files=file_hashes(folder))))
        folder.rename(path/f'{record["stage"]}-{record["key"][:10]}')


def finish(path, plan):
    "Record the plan, and the hashes of all artefacts."
    hashes = {str(f.relative_to(path)): file_hash(f/'artefact.json') for f in artefact_folders(path)}
    record = json.loads((path/'study.json').read_text())
    record.update(plan=plan, hashes=dict(plan=digest(plan), artefacts=hashes, cards={}))
    (path/'study.json').write_text(json.dumps(record))


def plan_0_1(study):
    "The plan as version 0.1 wrote it: a flat profile, and the rule, with a limit that has gone since."
    fields = config_table(study.config)
    profile = {old: fields[new] for old, new in FIELDS_0_1.items()}
    rule = dict(vars(study.config.rule), most_recall_lost=.05)
    plan = dict(data=study.data, group=study.group, seed=study.seed, rule=rule,
                profile=dict(profile, name=study.config.profile))
    return json.loads(json.dumps(plan))


def record_0_1(infos):
    "Returns record of today -> record of version 0.1."
    by_key = {info['key']: info for info in infos}
    @cache
    def key(k): return digest(by_key[k]['stage'], by_key[k]['args'], inputs(k), *CODE.values())
    def inputs(k): return [key(i) for i in by_key[k]['inputs'] if i in by_key]
    return lambda info: dict(stage=info['stage'], key=key(info['key']), config=info['args'], inputs=inputs(info['key']),
                             code=CODE, seconds=info['seconds'])


def record_1(infos):
    "Returns record of today -> record of the first versions of stages."
    by_key = {info['key']: info for info in infos}
    @cache
    def key(k): return artefact_key(by_key[k]['stage'], 1, by_key[k]['args'], {}, inputs(k))
    def inputs(k): return [key(i) for i in by_key[k]['inputs'] if i in by_key]
    return lambda info: dict(info, version=1, key=key(info['key']), config={}, inputs=inputs(info['key']))


@pytest.fixture
def made(monkeypatch):
    "The names of the stages that are made anew, in order."
    names, real = [], store._build
    def build(study, path, build, shared, info):
        names.append(info['stage'])
        return real(study, path, build, shared, info)
    monkeypatch.setattr(store, '_build', build)
    return names


def translated(study, record, plan):
    "A study with what older versions made and recorded, found by its name."
    strip(study.path)
    infos = [Artefact(folder, '').info for folder in artefact_folders(study.path)]
    rewrite(study.path, record([i for i in infos if i['stage'] != 'eval/instrument']))
    for frozen in study.path.glob('eval/test-*/plan.json'): frozen.write_text(json.dumps(plan))
    for frozen in study.path.glob('eval/test-*/artefact.json'):
        info = json.loads(frozen.read_text())
        frozen.write_text(json.dumps(dict(info, files=file_hashes(frozen.parent))))
    finish(study.path, plan)
    return find_study('fixture')


@pytest.fixture
def of_0_1(study_copy): return translated(study_copy, record_0_1, plan_0_1(study_copy))


@pytest.fixture
def of_1(study_copy): return translated(study_copy, record_1, study_copy.plan())


@pytest.fixture(params=['of_0_1', 'of_1'])
def old(request): return request.getfixturevalue(request.param)


# --- what stays ---

def test_it_opens_with_its_plan(old, study):
    assert old.config == study.config
    assert times_opened(old) == 1
    assert old.is_closed()


def test_its_verdict_can_be_read(old, study):
    [ours] = study.path.glob('eval/verdict-*/verdict.json')
    [theirs] = old.path.glob('eval/verdict-*/verdict.json')
    assert theirs.read_text() == ours.read_text()


def test_its_hashes_are_right(old, capsys):
    issues, counts = verify(old.path)
    assert issues.empty, issues
    assert counts['artefacts'] == len(artefact_folders(old.path))
    assert main(['verify', 'fixture']) == 0


# --- what it lacks ---

@pytest.mark.parametrize('page', [open_test, recommend])
def test_what_needs_more_ends_with_one_line_and_changes_nothing(old, made, page):
    before = file_hashes(old.path)
    with pytest.raises(StudyError, match=REFUSED) as refused: page(old)
    assert '\n' not in str(refused.value)
    assert made == []
    assert file_hashes(old.path) == before
    assert verify(old.path)[0].empty


def test_the_command_says_so(of_1, capsys):
    overrides = ['--set', 'sampler.generators=2', '--set', 'sweep.fractions=0.5']
    assert main(['report', '--name', 'fixture', '--profile', 'fixture', *overrides]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("weldsynth: study 'fixture' was finished by an older version")


def test_a_study_of_versions_shows_its_patches_samples_and_networks(of_1, study, made):
    assert study_patches(of_1).table.equals(study_patches(study).table)
    assert selected(of_1) == selected(study)
    assert fidelity(of_1).equals(fidelity(study))
    assert learning_curve(of_1).equals(learning_curve(study))
    theirs, ours = (load_pipeline(s, 1).transformer.state_dict() for s in (of_1, study))
    assert all(torch.equal(theirs[name], weights) for name, weights in ours.items())
    assert made == []


def test_a_study_of_version_0_1_shows_nothing_more(of_0_1, made):
    with pytest.raises(StudyError, match=REFUSED): prepare(of_0_1)
    assert made == []


def test_an_unfinished_study_of_version_0_1_goes_on(of_0_1, made):
    "Its artefacts are made anew, as all have a newer version."
    shutil.rmtree(of_0_1.path/'eval')
    prepare(of_0_1)
    assert made == ['data/patches']


# --- its plan ---

def test_a_plan_of_version_0_1_has_the_numbers_it_named(study):
    plan = plan_0_1(replace(study, config=replace(study.config, rule=RuleConfig(least_gain=.02))))
    assert config_of_plan(plan).rule.least_gain == .02
    assert config_of_plan(plan).data == study.config.data
