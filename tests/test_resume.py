"""What a run survives: it goes on where it was left, and says in one line what it cannot do."""
import errno, json, os, resource, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import mse_loss

from weldsynth import classify, core, ldm, sample
from weldsynth.core.config import StudyError, choose_profile
from weldsynth.core.store import Study, file_hashes, load_state, write_atomic
from weldsynth.stages.data import prepare, study_patches
from weldsynth.models.training import train
from weldsynth.stages.ldm import load_film_noise, load_pipeline, train_autoencoder, train_denoiser
from weldsynth.stages.sample import draw_samples
from weldsynth.stages.sweep import sweep_guidance

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A study of fixture size that was never interrupted, up to its first sweep."
    study = Study('whole', tmp_path_factory.mktemp('whole'), choose_profile('fixture'))
    sweep_guidance(study)
    return study


@pytest.fixture
def study(tmp_path): return Study('whole', tmp_path/'cut', choose_profile('fixture'))


def same(made, other):
    "Whether two artefacts have the same key and the same bytes."
    return made.key == other.key and file_hashes(made.path) == file_hashes(other.path)


def parts(study): return [p for p in study.path.rglob('*') if p.name.startswith('.part-')]


class Killed(BaseException):
    "Stands for a process that is gone: nothing catches it."


def dies_at(monkeypatch, module, name, n):
    "The n-th call of `module.name` ends the run."
    real, calls = getattr(module, name), []
    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == n: raise Killed
        return real(*args, **kwargs)
    monkeypatch.setattr(module, name, wrapped)
    return calls


# --- going on ---

@pytest.mark.parametrize('stage, make', [('autoencoder', train_autoencoder), ('denoiser', train_denoiser)])
@pytest.mark.parametrize('step', [1, 11])
def test_a_training_goes_on_bit_by_bit(whole, study, monkeypatch, stage, make, step):
    "Weights, averaged weights, loss curve and snapshots."
    prepare(study) if stage == 'autoencoder' else train_autoencoder(study)
    with monkeypatch.context() as patch:
        dies_at(patch, ldm, 'save_checkpoint', step + 1)
        with pytest.raises(Killed): make(study)
    [part] = [p for p in parts(study) if p.parent.name == 'ldm']
    assert sorted(p.name for p in (part/'resume').glob('*.json')) == [f'step-{s:07d}.json' for s in (step - 1, step) if s]
    with monkeypatch.context() as patch:
        steps = dies_at(patch, ldm, 'gradients', 0)
        made = make(study)
    assert len(steps) == 20 - step and same(made, make(whole)) and not parts(study)
    assert {'.safetensors', '.json', '.csv'} >= {p.suffix for p in made.path.rglob('*') if p.is_file()}, 'checkpoints are no part of it'


def test_a_damaged_checkpoint_is_passed_over(whole, study, monkeypatch, capsys):
    prepare(study)
    with monkeypatch.context() as patch:
        dies_at(patch, ldm, 'save_checkpoint', 9)
        with pytest.raises(Killed): train_autoencoder(study)
    newest = sorted(study.path.glob('ldm/.part-*/resume/step-*.safetensors'))[-1]
    data = bytearray(newest.read_bytes())
    data[len(data)//2] ^= 1
    newest.write_bytes(data)
    assert same(train_autoencoder(study), train_autoencoder(whole))
    said = capsys.readouterr().err
    assert f'{newest.name} is damaged and passed over' in said and 'goes on from step 7 of 20' in said


def test_sampling_goes_on_with_the_next_batch(whole, study, monkeypatch):
    prepare(study), train_denoiser(study)
    small = lambda patch: patch.setattr(sample, 'draw_batches', lambda pipe, grain, rows, g, s, batch, resume, real=sample.draw_batches: real(pipe, grain, rows, g, s, 5, resume))
    with monkeypatch.context() as patch:
        small(patch)
        calls = dies_at(patch, sample, 'generate', 3)
        with pytest.raises(Killed): draw_samples(study, 1.5, 20)
        again = dies_at(patch, sample, 'generate', 0)
        cut = draw_samples(study, 1.5, 20)
    assert len(calls) == 3 + 2 and len(again) == 2, 'two batches were kept'
    other = Study('other', study.path.parent/'other', study.profile)
    with monkeypatch.context() as patch:
        small(patch)
        assert same(cut, draw_samples(other, 1.5, 20))


def test_fits_go_on_with_the_next(whole, study, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(classify, 'cores', lambda: 1)
        calls = dies_at(patch, classify, 'fit_job', 2)
        with pytest.raises(Killed): sweep_guidance(study)
        made = sweep_guidance(study)
    assert len(calls) == 3 and same(made, sweep_guidance(whole))


def test_a_part_of_another_run_is_swept(whole, tmp_path):
    study = Study('swept', tmp_path/'swept', choose_profile('fixture'))
    (study.path/'ldm'/'.part-autoencoder-0123456789'/'resume').mkdir(parents=True)
    prepare(study)
    assert not parts(study)


# --- being stopped ---

def cli(home, *argv, **more):
    return subprocess.Popen([sys.executable, '-m', 'weldsynth', *argv], env=dict(os.environ, WELDSYNTH_HOME=str(home), OMP_NUM_THREADS='1', **more), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'it takes too long'
        time.sleep(.005)


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_last_step(tmp_path, number, code):
    run = cli(tmp_path, 'report', '--profile', 'fixture')
    folder = tmp_path/'studies'/'simulated-fixture'
    wait_for(lambda: list(folder.glob('ldm/.part-autoencoder-*/resume/step-*.json')), run)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == code and err.strip().endswith('Finished steps are kept: the same command goes on from there.') and 'Traceback' not in err
    steps = sorted(int(p.stem[5:]) for p in folder.glob('ldm/.part-autoencoder-*/resume/step-*.json'))
    assert steps and not list(folder.glob('ldm/autoencoder-*')), 'a checkpoint at the step at which it came'


def test_a_signal_ends_the_chapters_too(tmp_path, monkeypatch):
    "A kernel that trains keeps its step as well: here one that sleeps is ended, and the command leaves at once."
    code = f'''
import sys, signal
from pathlib import Path
from unittest.mock import patch
import nbformat
from nbformat import v4
from weldsynth import cli
from weldsynth.core.config import choose_profile
from weldsynth.core.store import Study
from weldsynth.report.pages import execute
nbs = Path({str(tmp_path)!r})/'nbs'
nbs.mkdir()
nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("from pathlib import Path; Path({str(tmp_path)!r}, 'begun').touch(); import time; time.sleep(600)")]), nbs/'04_eval.ipynb')
def nap():
    "Sleeps."
    execute(Study('nap', Path({str(tmp_path)!r})/'nap', choose_profile('fixture')), nbs, ('04_eval',))
with patch.dict(cli.COMMANDS, nap=nap): sys.exit(cli.main(['nap']))
'''
    (tmp_path/'nap.py').write_text(code)
    run = subprocess.Popen([sys.executable, tmp_path/'nap.py'], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path/'begun').exists(), run)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 143 and 'the same command goes on from there' in err and 'Traceback' not in err


# --- one run at a time ---

def test_the_second_run_is_told_who_the_first_is(study):
    study.path.mkdir()
    code = f"import time; from weldsynth.core import *; from pathlib import Path\nwith Study('whole', Path({str(study.path)!r}), choose_profile('fixture')).exclusive(): print('held', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == 'held\n'
    with pytest.raises(StudyError, match=rf"study 'whole' is being made by process {first.pid} on \S+ since 20\d\d-") as refused: prepare(study)
    assert '\n' not in str(refused.value)
    first.kill(), first.wait()
    with study.exclusive():
        child = subprocess.run([sys.executable, '-c', code.replace('60', '0')], capture_output=True, text=True)
    assert child.stdout == 'held\n', 'a process that the run starts belongs to it, and a lock does not outlive kill -9'


def test_what_is_finished_is_read_without_the_lock(whole):
    with core.held(whole.path/'.lock', wait=False) as got:
        assert got and train_denoiser(whole).info['stage'] == 'ldm/denoiser'


# --- a full disk ---

@pytest.fixture
def full():
    "Ends the room for files beyond a size, as a full disk does."
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_and_the_state_before_loads(whole, study, full):
    prepare(study), train_autoencoder(study)
    full(100_000)
    with pytest.raises(StudyError, match=r'no room to write \S+step-0000001\S+ \([\d,.]+ MiB are free there\): make room and run the same command again') as refused: train_denoiser(study)
    full(-1)
    assert '\n' not in str(refused.value) and same(train_autoencoder(study), train_autoencoder(whole)) and same(train_denoiser(study), train_denoiser(whole))


def test_no_room_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path/'a.txt', 'old')
    def no_room(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', no_room)
    with pytest.raises(StudyError, match=r'no room to write \S+/a\.txt'): write_atomic(tmp_path/'a.txt', 'new')
    assert (tmp_path/'a.txt').read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == ['a.txt']


# --- bad numbers ---

def line(batch=8):
    torch.manual_seed(0)
    x = torch.randn(100, batch, 3)
    return torch.nn.Linear(3, 1), lambda net, x, y: mse_loss(net(x), y), lambda step: (x[step], x[step].sum(1, keepdim=True))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_step(tmp_path):
    net, loss, batch = line()
    broken = lambda step: tuple(b*(float('nan') if step == 33 else 1) for b in batch(step))
    with pytest.raises(StudyError, match='no finite number at step 33 of 60'): train(net, loss, broken, 60, .1, resume=tmp_path)
    assert [p.stem for p in sorted(tmp_path.glob('step-*.json'))] == ['step-0000027', 'step-0000030']
    for p in tmp_path.glob('step-*.json'):
        tensors, facts = load_state(tmp_path, p.stem)
        assert facts['step'] < 33 and all(t.isfinite().all() for t in tensors.values())


def test_a_gradient_that_is_no_number_is_found(tmp_path):
    net, _, batch = line()
    loss = lambda net, x, y: (net(x) - net(x)).square().sum().sqrt()  # 0, with a gradient that is none
    with pytest.raises(StudyError, match='no finite number at step 1 of 60'): train(net, loss, batch, 60, .1)


def test_samples_that_are_no_numbers_are_named(whole, monkeypatch):
    pipe = load_pipeline(whole)
    real = pipe.vae.decode
    def broken(x):
        out = real(x)
        out.sample[1, 0, 0] = np.nan
        return out
    monkeypatch.setattr(pipe.vae, 'decode', broken)
    with pytest.raises(StudyError, match='the image of class crack with seed 6 has values that are no finite numbers'): ldm.draw(pipe, [pipe.labels['crack']]*2, [5, 6], 1.5, 2)


# --- memory ---

def tight(loss, most):
    "`loss` on a device into which `most` items fit."
    def wrapped(net, x, *rest):
        if len(x) > most: raise torch.OutOfMemoryError('CUDA out of memory')
        return loss(net, x, *rest)
    return wrapped


def test_a_batch_that_does_not_fit_is_cut_up(capsys):
    "12 items where 4 fit: in four pieces, and the curve is that of the whole batch."
    curves = []
    for most in (12, 4):
        net, loss, batch = line(12)
        curves.append(train(net, tight(loss, most), batch, 60, .1)[1].loss.to_numpy())
    assert np.allclose(*curves, rtol=1e-5) and curves[0][-1] < curves[0][0]
    assert 'batches of 12 are worked through in 4 pieces' in capsys.readouterr().err


def test_what_never_fits_is_one_line():
    net, loss, batch = line(12)
    with pytest.raises(StudyError, match='image.s. at a time do not fit into the memory of process 0'): train(net, tight(loss, 0), batch, 60, .1)


def test_the_denoiser_in_pieces_has_the_same_curve(whole, study, monkeypatch):
    monkeypatch.setattr(ldm, 'denoiser_loss', tight(ldm.denoiser_loss, 5))
    curves = [pd.read_csv(train_denoiser(s).path/'loss.csv').loss for s in (whole, study)]
    assert np.allclose(*curves, rtol=1e-4)


def test_samples_that_do_not_fit_are_drawn_in_halves(whole, tmp_path, monkeypatch):
    pipe, grain, real = load_pipeline(whole), load_film_noise(whole), sample.generate
    rows = sample.sample_rows(study_patches(whole).classes, dict(crack=6, porosity=5), 0)
    def small(pipe, grain, labels, *rest):
        if len(labels) > 3: raise torch.OutOfMemoryError
        return real(pipe, grain, labels, *rest)
    at_once = real(pipe, grain, rows.number.tolist(), rows.seed.tolist(), 1.5, 2)
    monkeypatch.setattr(sample, 'generate', small)
    pieces = sample.draw_batches(pipe, grain, rows, 1.5, 2, 128, tmp_path)
    assert (pieces.int() - at_once.int()).abs().max() <= 2, 'to within rounding'


# --- what hangs ---

def test_a_fit_that_hangs_is_named(monkeypatch):
    monkeypatch.setattr(classify, 'cores', lambda: 2)
    assert sorted(classify.side_by_side(lambda name, seed: seed, [('real', 0), ('real', 1)])) == [('real', 0, 0), ('real', 1, 1)]
    monkeypatch.setattr(classify, 'PATIENCE', 3.)
    def f(name, seed):
        if (name, seed) == ('real', 1): import time; time.sleep(300)
        return seed
    with pytest.raises(StudyError, match=r'fit real, seed 1, process \d+, has not ended in 3 s') as refused: list(classify.side_by_side(f, [('real', 0), ('real', 1), ('real', 2)]))
    assert '\n' not in str(refused.value)


def test_a_fit_whose_process_dies_is_one_line(monkeypatch):
    monkeypatch.setattr(classify, 'cores', lambda: 2)
    def f(name, seed):
        import os, signal
        if seed == 1: os.kill(os.getpid(), signal.SIGKILL)
        return seed
    with pytest.raises(StudyError, match=r'fit real, seed \d, process \d+, or one beside it was ended by the system'): list(classify.side_by_side(f, [('real', s) for s in range(4)]))


LATE = '''
import sys, time
from weldsynth.core.config import StudyError
from weldsynth.core.runtime import barrier, process
if process().process_index == 1: time.sleep(float(sys.argv[1]))
try: meet('the test')
except StudyError as e: print('told:', e, flush=True)
'''


def launch(*command, processes=2, **more):
    start = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)]
    return subprocess.run([*start, *map(str, command)], env=dict(os.environ, OMP_NUM_THREADS='1', **more), capture_output=True, text=True, timeout=300)


def test_a_process_that_hangs_is_named(tmp_path):
    (tmp_path/'late.py').write_text(LATE)
    done = launch(tmp_path/'late.py', 12, WELDSYNTH_PATIENCE='4')
    assert 'told: process 1 of the 2 has ended, or did not come to the test within 4 s' in done.stdout, done.stderr[-2000:]


# --- several processes ---

SHARED = '''
import sys
from pathlib import Path
from weldsynth.core.config import choose_profile
from weldsynth.core.store import Study
from weldsynth.stages.sweep import sweep_guidance
sweep_guidance(Study('whole', Path(sys.argv[1]), choose_profile('fixture')))
'''


def test_two_processes_draw_the_same_samples_and_fit_the_same_classifiers(whole, study, tmp_path):
    "From the same generator, so that what differs could only come from sharing."
    shutil.copytree(whole.path, study.path, ignore=lambda folder, names: ['samples', 'eval'] if Path(folder) == whole.path else [])
    (tmp_path/'shared.py').write_text(SHARED)
    done = launch(tmp_path/'shared.py', study.path)
    assert done.returncode == 0, done.stderr[-2000:]
    for stage in ('samples/defects', 'eval/guidance'):
        ours, theirs = sorted(whole.path.glob(f'{stage}-*')), sorted(study.path.glob(f'{stage}-*'))
        assert [p.name for p in ours] == [p.name for p in theirs] and all(file_hashes(a) == file_hashes(b) for a, b in zip(ours, theirs)), stage
        assert all(json.loads((p/'artefact.json').read_text())['processes'] == 2 for p in theirs)


# --- what is damaged ---

def test_a_damaged_pipeline_is_one_line(tmp_path):
    folder = tmp_path/'denoiser-0'/'pipeline'
    folder.mkdir(parents=True)
    (folder/'model_index.json').write_text('{')
    with pytest.raises(StudyError, match=r'pipeline cannot be read \(.*\): remove the folder denoiser-0, and the next run makes it again') as refused: ldm.from_folder(ldm.DiffusionPipeline, folder)
    assert '\n' not in str(refused.value)
