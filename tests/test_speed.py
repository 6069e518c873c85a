"""Speed: that what is measured is sane and kept. How fast anything is, is never asserted."""
import json, math

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from weldsynth import cli, report, speed
from weldsynth.core.config import PROFILES
from weldsynth.core.store import Study
from weldsynth.stages.data import training_fold
from weldsynth.stages.ldm import load_pipeline, train_denoiser


@pytest.fixture(scope='module')
def study(tmp_path_factory): return Study('fast', tmp_path_factory.mktemp('fast'), PROFILES['fixture'])


GROWN = pd.DataFrame([dict(axis=axis, images=n, px=px, stage=stage, seconds=1e-3*(n*px**2)**k, memory=2.*n*px**2) for stage, k in (('even', 1.), ('all pairs', 2.))
                      for axis, points in dict(images=((100, 32), (200, 32), (800, 32)), pixels=((100, 32), (100, 64), (100, 128))).items() for n, px in points])


@pytest.fixture(scope='module')
def entry(study):
    "What is measured on the fixture study in the least number of turns; growth is made up."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, 'growth', lambda *sizes: GROWN)
        return speed.measure(study, quick=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path/'nbs').mkdir()
    monkeypatch.setattr(speed, 'checkout', lambda: tmp_path)
    return tmp_path


def test_all_races_are_run_with_times_above_zero(entry):
    races = {r['what']: r for r in entry['races']}
    assert {'sampling', 'training step', 'classifier fits'} <= set(races) and all(0 < r[side] < 100 for r in races.values() for side in ('stock', 'ours'))
    assert entry['gpu'] == torch.cuda.is_available() and all((r['memory'] is None) != entry['gpu'] for r in races.values())


def test_both_sides_are_compared_by_kid_with_an_interval(entry):
    in_bf16 = 'in bf16' in entry['races'][0]['about']
    assert [q['what'] for q in entry['quality']] == ['stock', 'ours', 'ours, 2 steps', *['ours, in fp32']*in_bf16]
    assert all(q['low'] <= q['value'] <= q['high'] and q['images'] == 20 and q['seconds'] > 0 for q in entry['quality'])


def test_the_share_of_the_machine_is_one(entry):
    used = entry['usage']
    assert 0 < used['share'] < 1.5 and 0 < used['matrix'] <= 1 and math.isclose(used['share'], used['rate']/used['peak'])
    assert used['operations'] > 1e6


def test_operations_are_those_of_a_linear_layer():
    "Forward, and backward to the weights alone: 2 x 2 x 8 x 16 x 32; the profiler sees matrix products."
    used = speed.usage(nn.Linear(16, 32, bias=False), lambda net, x: net(x).sum(), (torch.ones(8, 16),))
    assert used['operations'] == 2*2*8*16*32 and 0 < used['matrix'] <= 1


def test_a_study_s_costs_are_read_from_its_artefacts(study, entry, tmp_path):
    costs = pd.DataFrame(entry['study']).set_index('stage')
    assert {'data/patches', 'ldm/autoencoder', 'ldm/denoiser', 'eval/judges'} <= set(costs.index)
    assert costs.seconds['ldm/denoiser'] == train_denoiser(study).info['seconds'] and (costs.longest <= costs.seconds).all()
    assert len(speed.study_costs(Study('none', tmp_path, PROFILES['fixture']))) == 0


def test_the_record_holds_one_entry_for_each_hardware(entry, checkout):
    assert speed.recorded() == dict(cpu={}, gpu={})
    for hardware, date in (('a', '2000-01-01'), ('b', '2000-01-01'), ('a', '2001-01-01')): speed.record(entry | dict(hardware=hardware, date=date, gpu=False))
    kept = speed.recorded()
    assert [*kept['cpu']] == ['b', 'a'] and kept['cpu']['a']['date'] == '2001-01-01' and not kept['gpu']
    assert 'NaN' not in (checkout/speed.RECORD).read_text() and kept['cpu']['a']['races'][0]['stock'] == pytest.approx(entry['races'][0]['stock'], rel=1e-3)


def test_exponents_are_found_and_what_grows_too_fast_is_named(entry):
    found = speed.exponents(GROWN).set_index(['axis', 'stage'])
    for axis in ('images', 'pixels'):
        assert np.allclose(found.loc[(axis, 'even')], 1) and np.allclose(found.loc[(axis, 'all pairs'), ['time', 'time_last']].astype(float), 2)
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 64, 50)
    assert abs(speed.exponent(x, 7*x**1.3*rng.lognormal(0, .1, 50)) - 1.3) < .05
    assert speed.faster(speed.exponents(GROWN)) == [f'all pairs: time grows with {axis} to the power 2.00' for axis in ('images', 'pixels')]
    assert 'all pairs: time grows with images' in speed.summary(entry) and 'KID, stock' in speed.summary(entry)


def test_the_stock_pipeline_samples_with_ddim_on_the_same_schedule(study):
    stock, ours = speed.stock_pipeline(study).scheduler, load_pipeline(study).scheduler
    assert isinstance(stock, DDIMScheduler) and stock.config.prediction_type == 'v_prediction' and torch.equal(stock.alphas_cumprod, ours.alphas_cumprod)


def test_the_stock_loader_gives_the_patches(study, tmp_path):
    fold = training_fold(study).take(range(24))
    [(x, y)] = speed.picture_loader(fold, tmp_path, 24)
    assert x.shape == (24, 1, 32, 32) and x.dtype == torch.float32 and -1 <= x.min() < x.max() <= 1 and y.max() < fold.table.label.nunique()
    assert torch.equal(((x + 1)*127.5).round().flatten().sort()[0], fold.images.float().flatten().sort()[0]), 'mirrored, and nothing else'


def test_memory_is_the_peak_of_a_job_and_not_what_went_before():
    held = torch.zeros(40*2**18)
    first, second = (speed.peak_memory(lambda: torch.ones(n*2**18).sum()) for n in (64, 16))
    if not (math.isnan(first) or torch.cuda.is_available()): assert 60 < first < 90 and 14 < second < 40 and held is not None


def test_stages_are_measured_in_a_process_of_their_own():
    grown = speed.growth(660, 16, 0, (), (1,))
    assert len(grown) == 10 and grown.stage.is_unique and (grown.axis == 'images').all() and (grown.seconds > 0).all() and not (grown.memory < 0).any()


def test_the_command_measures_records_and_draws_the_chapter(study, entry, checkout, monkeypatch, capsys):
    done = []
    monkeypatch.setenv('WELDSYNTH_HOME', str(checkout))
    monkeypatch.setattr(speed, 'measure', lambda s: done.append(s.profile.name) or entry)
    monkeypatch.setattr(report, 'execute_one', lambda notebook, copy, parameters: done.append((notebook.name, parameters['profile'])))
    monkeypatch.setattr(report, 'adopt', lambda copy, notebook: done.append(copy.name))
    assert cli.main(['speed', '--profile', 'fixture']) == 0
    assert done == ['fixture', ('07_speed.ipynb', 'fixture'), '07_speed.ipynb'] and 'sampling: ' in capsys.readouterr().out
    assert speed.recorded()['gpu' if entry['gpu'] else 'cpu']
