"""Speed: that what is measured is sane and recorded. How fast anything is, is never asserted."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from weldsynth import bench, cli
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.metrics import timing
from weldsynth.models import stock
from weldsynth.report import chapters
from weldsynth.stages.data import training_fold
from weldsynth.stages.ldm import load_pipeline, train_denoiser

@pytest.fixture(scope='module')
def study(tmp_path_factory): return Study('fast', tmp_path_factory.mktemp('fast'), PROFILES['fixture'])


POINTS = dict(images=((100, 32), (200, 32), (800, 32)), pixels=((100, 32), (100, 64), (100, 128)))
GROWN = pd.DataFrame([
    dict(axis=axis, images=n, px=px, stage=stage, seconds=1e-3*(n*px**2)**k, memory=2.*n*px**2)
    for stage, k in (('even', 1.), ('all pairs', 2.)) for axis, points in POINTS.items() for n, px in points])


@pytest.fixture(scope='module')
def entry(study):
    "What is measured on the fixture study in the least number of turns; growth is made up."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, 'growth', lambda *sizes: GROWN)
        return bench.measure(study, quick=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path/'nbs'/'records').mkdir(parents=True)
    monkeypatch.setattr(bench, 'checkout', lambda: tmp_path)
    return tmp_path


def test_all_comparisons_are_made_with_times_above_zero(entry):
    races = {r['what']: r for r in entry['races']}
    fits = {'features', 'classifier fits, small', 'classifier fits, features', 'reading images', 'pages'}
    assert fits | {'sampling', 'training step'} <= set(races)
    assert all(0 < r[side] < 100 for r in races.values() for side in ('stock', 'ours'))


def test_memory_is_measured_on_a_gpu_alone(entry):
    assert entry['gpu'] == torch.cuda.is_available()
    assert all((r['memory'] is None) != entry['gpu'] for r in entry['races'])


def test_both_sides_are_compared_by_kid_with_an_interval(entry):
    assert [q['what'] for q in entry['quality']] == ['stock', 'ours', 'ours, 2 steps']
    assert all(q['low'] <= q['value'] <= q['high'] for q in entry['quality'])
    assert all(q['images'] == 20 for q in entry['quality'])
    assert all(q['seconds'] > 0 for q in entry['quality'])


def test_the_share_of_the_machine_is_a_share(entry):
    used = entry['usage']
    assert 0 < used['share'] < 1.5
    assert 0 < used['matrix'] <= 1
    assert math.isclose(used['share'], used['rate']/used['peak'])
    assert used['operations'] > 1e6


def test_operations_are_those_of_a_linear_layer():
    "Forward, and backward to the weights alone: 2 x 2 x 8 x 16 x 32; the profiler sees matrix products."
    used = timing.usage(nn.Linear(16, 32, bias=False), lambda net, x: net(x).sum(), (torch.ones(8, 16),))
    assert used['operations'] == 2*2*8*16*32
    assert 0 < used['matrix'] <= 1


def test_a_studys_costs_are_read_from_its_artefacts(study, entry):
    costs = pd.DataFrame(entry['study']).set_index('stage')
    assert {'data/patches', 'ldm/autoencoder', 'ldm/denoiser', 'eval/judges'} <= set(costs.index)
    assert costs.seconds['ldm/denoiser'] == train_denoiser(study).info['seconds']
    assert (costs.longest <= costs.seconds).all()


def test_a_study_without_artefacts_has_no_costs(tmp_path):
    assert len(bench.study_costs(Study('none', tmp_path, PROFILES['fixture']))) == 0


def test_the_record_holds_one_entry_for_each_hardware(entry, checkout):
    assert bench.recorded() == dict(cpu={}, gpu={})
    for hardware, date in (('a', '2000-01-01'), ('b', '2000-01-01'), ('a', '2001-01-01')):
        bench.record(entry | dict(hardware=hardware, date=date, gpu=False))
    entries = bench.recorded()
    assert [*entries['cpu']] == ['b', 'a'], 'the newest last'
    assert entries['cpu']['a']['date'] == '2001-01-01'
    assert not entries['gpu']
    assert 'NaN' not in (checkout/bench.RECORD).read_text()
    assert entries['cpu']['a']['races'][0]['stock'] == pytest.approx(entry['races'][0]['stock'], rel=1e-3)


def test_exponents_of_made_up_growth_are_found():
    found = timing.exponents(GROWN).set_index(['axis', 'stage'])
    for axis in ('images', 'pixels'):
        assert np.allclose(found.loc[(axis, 'even')], 1)
        assert np.allclose(found.loc[(axis, 'all pairs'), ['time', 'time_last']].astype(float), 2)


def test_an_exponent_is_found_through_noise():
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 64, 50)
    assert abs(timing.exponent(x, 7*x**1.3*rng.lognormal(0, .1, 50)) - 1.3) < .05


def test_what_grows_faster_than_the_data_is_named(entry):
    named = [f'all pairs: time grows with {axis} to the power 2.00' for axis in ('images', 'pixels')]
    assert timing.superlinear(timing.exponents(GROWN)) == named
    assert named[0] in bench.summary(entry)


def test_the_summary_gives_kid(entry):
    assert 'KID, stock' in bench.summary(entry)


def test_the_stock_pipeline_samples_with_ddim_on_the_same_schedule(study):
    standard = stock.stock_pipeline(train_denoiser(study).path/'pipeline').scheduler
    assert isinstance(standard, DDIMScheduler)
    assert standard.config.prediction_type == 'v_prediction'
    assert torch.equal(standard.alphas_cumprod, load_pipeline(study).scheduler.alphas_cumprod)


def test_the_stock_loader_gives_the_patches(study, tmp_path):
    fold = training_fold(study).take(range(24))
    [(x, y)] = stock.image_loader(fold, tmp_path, 24)
    assert x.shape == (24, 1, 32, 32)
    assert x.dtype == torch.float32
    assert -1 <= x.min() < x.max() <= 1
    assert y.max() < fold.table.label.nunique()
    levels = ((x + 1)*127.5).round().flatten().sort()[0]
    assert torch.equal(levels, fold.images.float().flatten().sort()[0]), 'mirrored, and nothing else'


def test_memory_is_the_peak_of_a_job_and_not_what_went_before():
    before = torch.zeros(40*2**18)
    first, second = (timing.peak_memory(lambda n=n: torch.ones(n*2**18).sum()) for n in (64, 16))
    assert before is not None
    if math.isnan(first) or torch.cuda.is_available(): return
    assert 60 < first < 90
    assert 14 < second < 40


def test_stages_are_measured_in_a_process_of_their_own():
    grown = bench.growth(660, 16, 0, (), (1,))
    assert len(grown) == 10
    assert grown.stage.is_unique
    assert (grown.axis == 'images').all()
    assert (grown.seconds > 0).all()
    assert not (grown.memory < 0).any()


def test_the_command_measures_records_and_draws_the_chapter(study, entry, checkout, monkeypatch, capsys):
    done = []

    def execute(notebook, copy, parameters): done.append((notebook.name, parameters['profile']))
    monkeypatch.setenv('WELDSYNTH_HOME', str(checkout))
    monkeypatch.setattr(bench, 'measure', lambda s: done.append(s.config.profile) or entry)
    monkeypatch.setattr(chapters, 'execute_one', execute)
    monkeypatch.setattr(chapters, 'update_reference', lambda copy, notebook: done.append(copy.name))
    assert cli.main(['speed', '--profile', 'fixture']) == 0
    assert done == ['fixture', ('11_speed.ipynb', 'fixture'), '11_speed.ipynb']
    assert 'sampling: ' in capsys.readouterr().out
    assert bench.recorded()['gpu' if entry['gpu'] else 'cpu']
