"""What a run survives: it resumes where it was left, and says in one line what it cannot do."""
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import environment
from nbformat import v4
from torch.nn.functional import mse_loss

from weldsynth.core.config import StudyError
from weldsynth.core.files import file_hashes, file_lock, load_state, write_atomic
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
from weldsynth.models import fits, training
from weldsynth.models.denoiser import draw, from_folder
from weldsynth.models.fits import fit_parallel
from weldsynth.models.training import train
from weldsynth.report.chapters import execute
from weldsynth.stages import ldm, sample
from weldsynth.stages.data import prepare, study_patches
from weldsynth.stages.ldm import load_film_noise, load_pipeline, train_autoencoder, train_denoiser
from weldsynth.stages.refining import train_refiner
from weldsynth.stages.sample import draw_batches, draw_defects, sample_rows
from weldsynth.stages.sweep import sweep_guidance

@pytest.fixture
def cut(study, tmp_path): return begun(study, tmp_path/'cut')


def begun(study, path, *stages):
    "A study like `study` in another folder, with the artefacts of `stages` alone."
    for stage in stages:
        for made in study.path.glob(f'{stage}-*'): shutil.copytree(made, path/made.relative_to(study.path))
    return replace(study, path=path)


def same(made, other):
    "Whether two artefacts have the same key and the same bytes."
    return (made.key, file_hashes(made.path)) == (other.key, file_hashes(other.path))


def staged(study): return [p for p in study.path.rglob('*') if p.name.startswith('.part-')]


class Killed(BaseException):
    "Stands for a process that is gone: nothing catches it."


def dies_at(monkeypatch, module, name, n):
    "The n-th call of `module.name` ends the run; returns a list that grows by one with each call."
    real, calls = getattr(module, name), []
    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == n: raise Killed
        return real(*args, **kwargs)
    monkeypatch.setattr(module, name, wrapped)
    return calls


# --- resuming ---

@pytest.mark.parametrize(('stages', 'make'), [
    (('data/patches',), train_autoencoder),
    (('data/patches', 'ldm/autoencoder'), train_denoiser),
    (('data/patches', 'ldm/autoencoder', 'ldm/denoiser'), train_refiner)], ids=['autoencoder', 'denoiser', 'refiner'])
@pytest.mark.parametrize('step', [1, 11])
def test_a_training_resumes_bit_by_bit(study, tmp_path, monkeypatch, stages, make, step):
    "Weights, averaged weights, loss curve and snapshots."
    cut, whole = (begun(study, tmp_path/name, *stages) for name in ('cut', 'whole'))
    with monkeypatch.context() as patch:
        dies_at(patch, training, 'save_checkpoint', step + 1)
        with pytest.raises(Killed): make(cut)
    [part] = cut.path.glob('ldm/.part-*/')
    saved = [f'step-{s:07d}.json' for s in (step - 1, step) if s]
    assert sorted(p.name for p in (part/'resume').glob('*.json')) == saved
    steps = dies_at(monkeypatch, training, 'backward_with_oom_retry', 0)
    made = make(cut)
    assert len(steps) == 20 - step
    assert same(made, make(whole))
    assert not staged(cut)


def test_checkpoints_are_not_a_part_of_the_result(study):
    files = [p for p in train_denoiser(study).path.rglob('*') if p.is_file()]
    assert {p.suffix for p in files} == {'.safetensors', '.json', '.csv'}
    assert not [p for p in files if p.name.startswith('step-')]


def test_a_damaged_checkpoint_is_passed_over(study, cut, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        dies_at(patch, training, 'save_checkpoint', 9)
        with pytest.raises(Killed): train_autoencoder(cut)
    newest = sorted(cut.path.glob('ldm/.part-autoencoder-*/resume/step-*.safetensors'))[-1]
    data = bytearray(newest.read_bytes())
    data[len(data)//2] ^= 1
    newest.write_bytes(data)
    assert same(train_autoencoder(cut), train_autoencoder(study))
    lines = capsys.readouterr().err
    assert f'{newest.name} is damaged and was skipped' in lines
    assert 'goes on from step 7 of 20' in lines


def in_batches_of_5(study):
    "The same study, which draws five images at a time."
    return replace(study, config=replace(study.config, sampler=replace(study.config.sampler, batch=5)))


def test_sampling_resumes_with_the_next_batch(study, tmp_path, monkeypatch):
    ready = 'data/patches', 'ldm/autoencoder', 'ldm/denoiser'
    cut, other = (in_batches_of_5(begun(study, tmp_path/name, *ready)) for name in ('cut', 'other'))
    with monkeypatch.context() as patch:
        dies_at(patch, sample, 'generate', 3)
        with pytest.raises(Killed): draw_defects(cut, 1.5, 20)
    with monkeypatch.context() as patch:
        calls = dies_at(patch, sample, 'generate', 0)
        resumed = draw_defects(cut, 1.5, 20)
    assert len(calls) == 2, 'two batches of four were saved'
    assert same(resumed, draw_defects(other, 1.5, 20))


def test_fits_resume_with_the_next(study, tmp_path, monkeypatch):
    cut = begun(study, tmp_path/'cut', 'data/patches', 'ldm/autoencoder', 'ldm/denoiser', 'samples/defects')
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 1)
    with monkeypatch.context() as patch:
        dies_at(patch, fits, 'fit_job', 2)
        with pytest.raises(Killed): sweep_guidance(cut)
    calls = dies_at(monkeypatch, fits, 'fit_job', 0)
    assert same(sweep_guidance(cut), sweep_guidance(study))
    assert len(calls) == 1, 'one fit of two was saved'


def test_what_another_run_has_left_is_removed(cut):
    (cut.path/'ldm'/'.part-autoencoder-0123456789'/'resume').mkdir(parents=True)
    prepare(cut)
    assert not staged(cut)


# --- being stopped ---

def start_command(home, *argv):
    command = [sys.executable, '-m', 'weldsynth', *argv]
    return subprocess.Popen(command, env=environment(WELDSYNTH_HOME=home), stderr=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'it takes too long'
        time.sleep(.005)


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_last_step(tmp_path, number, code):
    run = start_command(tmp_path, 'report', '--profile', 'fixture')
    folder = tmp_path/'studies'/'simulated-fixture'
    def checkpoints(): return list(folder.glob('ldm/.part-autoencoder-*/resume/step-*.json'))
    wait_for(checkpoints, run)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == code
    assert err.strip().endswith('Finished steps are kept: the same command resumes from there.')
    assert 'Traceback' not in err
    assert checkpoints()
    assert not list(folder.glob('ldm/autoencoder-*'))


NAP = '''
import sys
from pathlib import Path

import nbformat
from nbformat import v4

from weldsynth import cli
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
from weldsynth.report.chapters import execute

root = Path(sys.argv[1])
nbs = root/'nbs'
nbs.mkdir()
code = f"from pathlib import Path; Path({str(root)!r}, 'begun').touch(); import time; time.sleep(600)"
nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(code)]), nbs/'04_eval.ipynb')

@cli.app.command()
def nap(): execute(Study('nap', root/'nap', choose_profile('fixture')), nbs, ('04_eval',))

sys.exit(cli.main(['nap']))
'''


def test_a_signal_ends_the_chapters_too(tmp_path):
    "A kernel that trains saves its step as well: here one that sleeps is ended, and the command leaves at once."
    (tmp_path/'nap.py').write_text(NAP)
    run = subprocess.Popen([sys.executable, tmp_path/'nap.py', tmp_path], stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path/'begun').exists, run)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 143
    assert 'the same command resumes from there' in err
    assert 'Traceback' not in err


def test_half_written_chapters_of_a_killed_run_are_swept(tmp_path):
    study = Study('swept', tmp_path/'swept', choose_profile('fixture'))
    left = study.path/'notebooks'/'.part-left'
    left.mkdir(parents=True)
    left.with_name('.part-left.lock').touch()
    (tmp_path/'nbs').mkdir()
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell('1 + 1')]), tmp_path/'nbs'/'04_eval.ipynb')
    execute(study, tmp_path/'nbs', ('04_eval',))
    assert [p.name for p in (study.path/'notebooks').iterdir()] == ['04_eval.ipynb']


# --- one run at a time ---

OWNER = '''
import sys, time
from pathlib import Path
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
with Study('fixture', Path(sys.argv[1]), choose_profile('fixture')).exclusive():
    print('owned', flush=True)
    time.sleep(float(sys.argv[2]))
'''


def start_owner(study, seconds):
    command = [sys.executable, '-c', OWNER, study.path, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def owned(study, tmp_path_factory):
    "A study, and another process that works on it."
    begun_study = begun(study, tmp_path_factory.mktemp('owned'))
    owner = start_owner(begun_study, 600)
    assert owner.stdout.readline() == 'owned\n'
    yield begun_study, owner
    owner.kill()
    owner.communicate()


def owned_by(process): return rf"study 'fixture' is in use by process {process.pid} on \S+ since 20\d\d-"


def test_a_second_run_is_refused_at_once_with_the_name_of_the_first(owned):
    study, owner = owned
    with pytest.raises(StudyError, match=owned_by(owner)) as refused, study.exclusive(): pass
    assert '\n' not in str(refused.value)


def test_a_stage_waits_for_the_first_run_for_a_while(owned, monkeypatch):
    study, owner = owned
    monkeypatch.setenv('WELDSYNTH_LOCK_TIMEOUT', '.5')
    start = time.monotonic()
    with pytest.raises(StudyError, match=owned_by(owner)): prepare(study)
    assert time.monotonic() - start >= .5


def test_a_lock_does_not_outlive_the_process(owned):
    study, owner = owned
    owner.kill()
    owner.wait()
    with study.exclusive(): pass


def test_a_process_that_a_run_starts_belongs_to_it(cut):
    with cut.exclusive():
        output, _ = start_owner(cut, 0).communicate()
    assert output == 'owned\n'


def test_what_is_finished_is_read_without_the_lock(study_copy):
    with file_lock(study_copy.path/'.study') as free:
        assert free
        assert train_denoiser(study_copy).info['stage'] == 'ldm/denoiser'


# --- a full disk ---

@pytest.fixture
def full():
    "Leaves no room for files beyond a size, as a full disk does."
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_and_the_state_before_loads(study, tmp_path, full):
    cut = begun(study, tmp_path/'cut', 'data/patches', 'ldm/autoencoder')
    line = (r'no room to write \S+step-0000001\S+ \([\d,.]+ MiB are free there\): '
            'free some space and run the same command again')
    full(100_000)
    with pytest.raises(StudyError, match=line) as refused: train_denoiser(cut)
    full(-1)
    assert '\n' not in str(refused.value)
    assert same(train_autoencoder(cut), train_autoencoder(study))
    assert same(train_denoiser(cut), train_denoiser(study))


def test_no_room_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path/'a.txt', 'old')
    def no_room(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', no_room)
    with pytest.raises(StudyError, match=r'no room to write \S+/a\.txt'): write_atomic(tmp_path/'a.txt', 'new')
    assert (tmp_path/'a.txt').read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


# --- numbers that are not finite ---

def line(batch=8):
    "A network, its loss and its batches: a sum of three numbers is to be learnt."
    torch.manual_seed(0)
    x = torch.randn(100, batch, 3)
    def loss(net, x, y): return mse_loss(net(x), y)
    def draw_batch(step): return x[step], x[step].sum(1, keepdim=True)
    return torch.nn.Linear(3, 1), loss, draw_batch


def test_a_loss_that_is_not_finite_stops_and_the_last_good_step_stays(tmp_path):
    net, loss, batch = line()
    def broken(step): return tuple(b*(float('nan') if step == 33 else 1) for b in batch(step))
    with pytest.raises(StudyError, match='not a finite number at step 33 of 60'):
        train(net, loss, broken, 60, .1, resume=tmp_path)
    saved = [p.stem for p in sorted(tmp_path.glob('step-*.json'))]
    assert saved == ['step-0000027', 'step-0000030']
    for name in saved:
        tensors, facts = load_state(tmp_path, name)
        assert facts['step'] < 33
        assert all(t.isfinite().all() for t in tensors.values())


def test_a_gradient_that_is_not_finite_is_found():
    net, _, batch = line()
    def loss(net, x, y): return (net(x) - net(x)).square().sum().sqrt()  # 0, whose gradient is not defined
    with pytest.raises(StudyError, match='not a finite number at step 1 of 60'): train(net, loss, batch, 60, .1)


def test_samples_that_are_not_finite_are_named(study, monkeypatch):
    pipe = load_pipeline(study)
    real = pipe.vae.decode
    def broken(x):
        out = real(x)
        out.sample[1, 0, 0] = np.nan
        return out
    monkeypatch.setattr(pipe.vae, 'decode', broken)
    message = 'the image of class crack with seed 6 has values that are not finite'
    with pytest.raises(StudyError, match=message): draw(pipe, [pipe.labels['crack']]*2, [5, 6], 1.5, 2, (0., 1.))


# --- memory ---

def tight(loss, most):
    "`loss` on a device into which `most` items fit."
    def wrapped(net, x, *rest):
        if len(x) > most: raise torch.OutOfMemoryError('CUDA out of memory')
        return loss(net, x, *rest)
    return wrapped


def test_a_batch_that_does_not_fit_is_worked_through_in_pieces(capsys):
    "12 items where 4 fit: the curve is that of the whole batch."
    curves = []
    for most in (12, 4):
        net, loss, batch = line(12)
        curves.append(train(net, tight(loss, most), batch, 60, .1)[1].loss.to_numpy())
    assert np.allclose(*curves, rtol=1e-5)
    assert curves[0][-1] < curves[0][0]
    assert 'batches of 12 are processed in 4 pieces' in capsys.readouterr().err


def test_what_never_fits_is_one_line():
    net, loss, batch = line(12)
    with pytest.raises(StudyError, match=r'image\(s\) at a time do not fit into the memory of process 0') as refused:
        train(net, tight(loss, 0), batch, 60, .1)
    assert '\n' not in str(refused.value)


def test_the_denoiser_in_pieces_has_the_same_curve(study, tmp_path, monkeypatch):
    cut = begun(study, tmp_path/'cut', 'data/patches', 'ldm/autoencoder')
    monkeypatch.setattr(ldm, 'denoiser_loss', tight(ldm.denoiser_loss, 5))
    curves = [pd.read_csv(train_denoiser(s).path/'loss.csv').loss for s in (study, cut)]
    assert np.allclose(*curves, rtol=1e-4)


def test_samples_that_do_not_fit_are_drawn_in_halves(study, tmp_path):
    pipe, film_noise = load_pipeline(study), load_film_noise(study)
    rows = sample_rows(study_patches(study).classes, dict(crack=6, porosity=5), 0)
    numbers, seeds = rows.number.tolist(), rows.seed.tolist()
    def at_once(labels, seeds): return sample.generate(pipe, film_noise, labels, seeds, 1.5, study.config.sampler)
    def small(labels, seeds):
        if len(labels) > 3: raise torch.OutOfMemoryError
        return at_once(labels, seeds)
    pieces = draw_batches(small, numbers, seeds, 128, tmp_path)
    difference = pieces.int() - at_once(numbers, seeds).int()
    assert difference.abs().max() <= 2, 'to within rounding'


# --- what hangs or dies ---

def test_fits_run_side_by_side(monkeypatch):
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 2)
    def f(name, seed): return seed
    assert sorted(fit_parallel(f, [('real', 0), ('real', 1)])) == [('real', 0, 0), ('real', 1, 1)]


def test_a_fit_that_hangs_is_named(monkeypatch):
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 2)
    monkeypatch.setattr(fits, 'TIMEOUT_S', 3.)
    def f(name, seed):
        import time
        if seed == 1: time.sleep(300)
        return seed
    message = r'fit real, seed 1, process \d+, has not ended in 3 s'
    with pytest.raises(StudyError, match=message) as refused: list(fit_parallel(f, [('real', s) for s in range(3)]))
    assert '\n' not in str(refused.value)


def test_a_fit_whose_process_dies_is_one_line(monkeypatch):
    monkeypatch.setattr(fits, 'cores', lambda on_cpu=False: 2)
    def f(name, seed):
        import os
        import signal
        if seed == 1: os.kill(os.getpid(), signal.SIGKILL)
        return seed
    message = r'fit real, seed \d, process \d+, or one beside it was ended by the system'
    with pytest.raises(StudyError, match=message): list(fit_parallel(f, [('real', s) for s in range(4)]))


LATE = '''
import sys, time
from weldsynth.core.config import StudyError
from weldsynth.core.runtime import barrier, process
if process().process_index == 1: time.sleep(float(sys.argv[1]))
try: barrier('the test')
except StudyError as e: print('refused:', e, flush=True)
'''


def launch(*command, **variables):
    start = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    return subprocess.run([*start, *map(str, command)], env=environment(**variables), capture_output=True, text=True,
                          timeout=300)


def test_a_process_that_hangs_is_named(tmp_path):
    (tmp_path/'late.py').write_text(LATE)
    done = launch(tmp_path/'late.py', 12, WELDSYNTH_TIMEOUT=4)
    expected = 'refused: process 1 of the 2 has ended, or did not reach the test within 4 s'
    assert expected in done.stdout, done.stderr[-2000:]


# --- several processes ---

SHARED = '''
import sys
from pathlib import Path
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
from weldsynth.stages.sweep import sweep_guidance
sweep_guidance(Study('fixture', Path(sys.argv[1]), choose_profile('fixture')))
'''


def test_two_processes_draw_the_same_samples_and_fit_the_same_classifiers(study, tmp_path):
    "From the same generator, so that what differs could only come from sharing."
    shared = begun(study, tmp_path/'shared', 'data/patches', 'ldm/autoencoder', 'ldm/denoiser')
    (tmp_path/'shared.py').write_text(SHARED)
    done = launch(tmp_path/'shared.py', shared.path)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [*shared.path.glob('samples/defects-*'), *shared.path.glob('eval/guidance-*')]
    assert len(made) == 3
    for theirs in made:
        ours = study.path/theirs.relative_to(shared.path)
        assert file_hashes(theirs) == file_hashes(ours)
        assert json.loads((theirs/'artefact.json').read_text())['processes'] == 2


# --- what is damaged ---

def test_a_damaged_pipeline_is_one_line(tmp_path):
    from diffusers import DiffusionPipeline
    folder = tmp_path/'denoiser-0'/'pipeline'
    folder.mkdir(parents=True)
    (folder/'model_index.json').write_text('{')
    message = r'pipeline cannot be read \(.*\): remove the folder denoiser-0, and the next run makes it again'
    with pytest.raises(StudyError, match=message) as refused: from_folder(DiffusionPipeline, folder)
    assert '\n' not in str(refused.value)
