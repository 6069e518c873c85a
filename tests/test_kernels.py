"""Small notebooks through papermill, in ordinary kernels and in kernels forked from one process."""
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import papermill
import psutil
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat import v4
from papermill import PapermillExecutionError

from weldsynth.report.kernels import can_fork, forked_kernels, ordinary_kernel

needs_fork = pytest.mark.skipif(not can_fork(), reason='kernels are not forked here')


@pytest.fixture(scope='module')
def forked():
    "A class of forked kernels that have imported little."
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('OMP_NUM_THREADS', raising=False)
        with forked_kernels(['seaborn', 'joblib', 'scipy.linalg']) as kernel: yield kernel


@pytest.fixture
def kernel(request, forked): return forked if request.param == 'forked' else ordinary_kernel()


both = pytest.mark.parametrize('kernel', ['forked', 'ordinary'], indirect=True)


def execute(folder, kernel, *cells, name='a'):
    "Run `cells`; the executed notebook."
    cells = [v4.new_code_cell(textwrap.dedent(c)) for c in cells]
    nbformat.write(v4.new_notebook(cells=cells), folder/f'{name}.ipynb')
    papermill.execute_notebook(folder/f'{name}.ipynb', folder/f'{name}-done.ipynb', kernel_name='python3',
                               language='python', kernel_manager_class=kernel, progress_bar=False)
    return nbformat.read(folder/f'{name}-done.ipynb', 4)


def printed(notebook):
    "What the last cell wrote to stdout."
    return ''.join(o.text for o in notebook.cells[-1].outputs if o.get('name') == 'stdout').strip()


def noting(kernel, seen):
    "`kernel`, whose managers are appended to `seen` as they start."
    class Noting(kernel):
        async def start_kernel(self, **kwargs):
            seen.append(self)
            await super().start_kernel(**kwargs)
    return Noting


def becomes_true(condition, seconds=20):
    "Is it true within some seconds?"
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end: return False
        time.sleep(.05)
    return True


def descendants(): return {p.pid for p in psutil.Process().children(recursive=True)}


# --- outputs ---

@both
def test_outputs_of_every_kind_are_recorded(kernel, tmp_path, monkeypatch):
    monkeypatch.delenv('PYTEST_CURRENT_TEST')  # with it, ipykernel does not record what comes from below Python
    done = execute(tmp_path, kernel, '1 + 1',
                   "print('out'); import os, time; os.system('echo low'); time.sleep(.5)",
                   "import sys; print('err', file=sys.stderr)",
                   "from IPython.display import Markdown; Markdown('**b**')")
    assert done.cells[0].outputs[0].data['text/plain'] == '2'
    text = ''.join(o.text for o in done.cells[1].outputs if o.output_type == 'stream')
    assert 'out\n' in text
    assert 'low\n' in text
    assert (done.cells[2].outputs[0].name, done.cells[2].outputs[0].text) == ('stderr', 'err\n')
    assert done.cells[3].outputs[0].data['text/markdown'] == '**b**'


@both
def test_a_figure_is_shown_inline(kernel, tmp_path):
    done = execute(tmp_path, kernel, 'import seaborn, matplotlib.pyplot as plt; plt.plot([1, 2]);',
                   'import matplotlib; print(matplotlib.get_backend())')
    assert 'image/png' in done.cells[0].outputs[0].data
    assert 'inline' in printed(done)


def test_an_error_ends_the_notebook(forked, tmp_path):
    with pytest.raises(PapermillExecutionError) as e:
        execute(tmp_path, forked, '1', "raise ValueError('bad luck')", '2')
    assert (e.value.ename, e.value.evalue) == ('ValueError', 'bad luck')


@pytest.mark.parametrize('end', ['os._exit(3)', 'os.kill(os.getpid(), 9)'])
def test_a_kernel_that_dies_takes_no_other_with_it(forked, tmp_path, end):
    with pytest.raises(DeadKernelError): execute(tmp_path, forked, f'import os; {end}')
    assert printed(execute(tmp_path, forked, "print('next')")) == 'next'


# --- a fork is like a fresh Python ---

def test_environment_folder_and_threads_are_those_of_the_caller(forked, tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_RUN', 'now')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.delenv('HOSTNAME', raising=False)
    monkeypatch.chdir(tmp_path)
    done = execute(tmp_path, forked, '''
        import ctypes, os, torch, numpy, scipy.linalg, threadpoolctl
        c = ctypes.CDLL(None).getenv
        c.restype = ctypes.c_char_p
        print(os.environ['WELDSYNTH_RUN'], c(b'WELDSYNTH_RUN').decode(), os.environ.get('HOSTNAME'), os.getcwd(),
              torch.get_num_threads(), {p['num_threads'] for p in threadpoolctl.threadpool_info()})''')
    assert printed(done) == f'now now None {tmp_path} 1 {{1}}'


STATE = '''
import numpy, random, signal, torch, sys, threadpoolctl, scipy.linalg, sklearn
print(random.random(), numpy.random.rand(), torch.rand(1).item(), sep='|', end='|')
print(torch.get_num_threads(), sorted(p['num_threads'] for p in threadpoolctl.threadpool_info()),
      [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGCHLD)],
      sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
      sys.modules['__main__'].__spec__, hasattr(sys.modules['__main__'], '__file__'))'''


def test_a_fork_has_the_state_of_a_fresh_python_and_its_own_random_numbers(forked, tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    kernels = (forked, forked, ordinary_kernel())
    *drawn, states = zip(*(printed(execute(tmp_path, k, STATE)).split('|') for k in kernels), strict=True)
    assert len(set(states)) == 1
    assert [len(set(d)) for d in drawn] == [3, 3, 3]


def test_threads_and_children_of_its_own_work_in_a_fork(forked, tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    done = execute(tmp_path, forked, '''
        import joblib, multiprocessing, os, numpy as np, subprocess, sys, torch
        a = np.random.rand(600, 600)
        t = torch.tensor(a, requires_grad=True)
        (t @ t).sum().backward()
        pids = joblib.Parallel(2)(joblib.delayed(os.getpid)() for _ in range(4))
        with multiprocessing.get_context('fork').Pool(1) as pool: doubled = pool.map(abs, [-1])
        child = subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True, text=True)
        print(np.allclose(a @ a, (t @ t).detach()), os.getpid() in pids, doubled, child.stdout.strip())''')
    assert printed(done) == 'True False [1] 5'


# --- signals ---

TRAINING = '''
import pathlib, signal, time
received = []
signal.signal(signal.SIGTERM, lambda *a: received.append(1))
pathlib.Path({ready!r}).touch()
while not received: time.sleep(.01)
time.sleep(2)
pathlib.Path({saved!r}).write_text('saved')
raise KeyboardInterrupt'''


@both
def test_sigterm_reaches_a_kernel_which_can_save_its_state(kernel, tmp_path):
    seen, ready, saved = [], tmp_path/'ready', tmp_path/'saved'
    source = TRAINING.format(ready=str(ready), saved=str(saved))
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(execute, tmp_path, noting(kernel, seen), source)
        assert becomes_true(ready.exists)
        seen[0].provisioner.process.send_signal(signal.SIGTERM)
        with pytest.raises(PapermillExecutionError): run.result(30)
    assert saved.read_text() == 'saved'


@pytest.mark.parametrize('number, error', [(signal.SIGTERM, DeadKernelError), (signal.SIGINT, PapermillExecutionError)])
def test_a_signal_ends_a_fork_without_handler(forked, tmp_path, number, error):
    seen, ready = [], tmp_path/'ready'
    source = f'open({str(ready)!r}, "w"); import time; time.sleep(60)'
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(execute, tmp_path, noting(forked, seen), source)
        assert becomes_true(ready.exists)
        seen[0].provisioner.process.send_signal(number)
        with pytest.raises(error): run.result(30)


@needs_fork
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_fork_server_outlives_a_signal_for_every_process(forked, tmp_path, number):
    assert printed(execute(tmp_path, forked, 'print(1)')) == '1'
    forked.server.process.send_signal(number)
    source = "import sys; print('seaborn' in sys.modules)"
    assert printed(execute(tmp_path, forked, source)) == 'True'


# --- several kernels, and their end ---

def test_kernels_run_side_by_side_and_end(forked, tmp_path):
    "Each waits for the other."
    waiting = '''
        import os, pathlib, time
        pathlib.Path({mine!r}).touch()
        while not os.path.exists({other!r}): time.sleep(.01)
        print(os.getpid())'''
    a, b = str(tmp_path/'1'), str(tmp_path/'2')
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(execute, tmp_path, forked, waiting.format(mine=m, other=o), name=n)
                for m, o, n in [(a, b, 'x'), (b, a, 'y')]]
        pids = {int(printed(r.result(60))) for r in runs}
    assert len(pids) == 2
    alive = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != 'zombie']
    assert not alive


def test_many_threads_may_ask_at_once(forked, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(execute, tmp_path, forked, f'print({i})', name=f'n{i}') for i in range(4)]
    assert [printed(r.result()) for r in runs] == ['0', '1', '2', '3']


@both
@pytest.mark.skipif(sys.platform != 'linux', reason='names of sockets are a matter of Linux')
def test_a_kernel_listens_on_sockets_of_its_own(kernel, tmp_path):
    seen = []
    listed = printed(execute(tmp_path, noting(kernel, seen), "print(open('/proc/net/unix').read())"))
    [manager] = seen
    assert all(f'{manager.ip}-{channel}' in listed for channel in range(1, 6))
    assert manager.transport == 'ipc'
    assert manager.ip.startswith('@weldsynth-')
    assert manager.ip != kernel().ip


@needs_fork
def test_nothing_is_left_at_the_end(tmp_path):
    before = descendants()
    with forked_kernels([]) as kernel:
        assert printed(execute(tmp_path, kernel, 'print(1)')) == '1'
        started = descendants() - before  # of `before` some may end meanwhile, such as idle workers
        assert started
    assert not started & descendants()


@needs_fork
def test_a_fork_server_that_nobody_asked_does_not_import_to_the_end():
    with forked_kernels(['torchvision', 'diffusers', 'sklearn']) as kernel: pass
    assert kernel.server.process.returncode == -signal.SIGKILL


KILLED = '''
import papermill, sys
from weldsynth.report.kernels import forked_kernels
print('script', flush=True)
with forked_kernels([], here={here}) as kernel:
    papermill.execute_notebook(sys.argv[1], sys.argv[1], kernel_name='python3', language='python',
                               kernel_manager_class=kernel, progress_bar=False)
'''


@needs_fork
@pytest.mark.parametrize('here', [False, True])
def test_nothing_outlives_a_script_that_is_killed(tmp_path, here):
    "Nor is a script without `if __name__ == '__main__'` run again."
    (tmp_path/'script.py').write_text(KILLED.format(here=here))
    pid = tmp_path/'pid'
    cell = v4.new_code_cell(f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    nbformat.write(v4.new_notebook(cells=[cell]), tmp_path/'a.ipynb')
    command = [sys.executable, tmp_path/'script.py', tmp_path/'a.ipynb']
    script = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert becomes_true(lambda: pid.exists() and pid.read_text(), 60)
    kernel = psutil.Process(int(pid.read_text()))
    processes = (kernel, kernel.parent())
    script.kill()
    assert becomes_true(lambda: all(not p.is_running() or p.status() == 'zombie' for p in processes))
    assert script.communicate()[0] == 'script\n'


HERE = '''
import papermill, sys
import weldsynth.report.kernels as kernels
sys.modules['only_here'] = sys
with kernels.forked_kernels(['json'], here=True) as kernel:
    done = papermill.execute_notebook(sys.argv[1], sys.argv[1], kernel_name='python3', language='python',
                                      kernel_manager_class=kernel, progress_bar=False)
print(done.cells[-1].outputs[0].text.strip())
'''


@needs_fork
def test_a_fork_of_this_process_has_its_modules(tmp_path):
    (tmp_path/'script.py').write_text(HERE)
    source = "import sys, torch; (torch.ones(600, 600) @ torch.ones(600, 600)).sum(); print('only_here' in sys.modules)"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(source)]), tmp_path/'a.ipynb')
    done = subprocess.run([sys.executable, tmp_path/'script.py', tmp_path/'a.ipynb'], capture_output=True, text=True)
    assert done.stdout.strip() == 'True', done.stderr[-2000:]


# --- where there is no fork ---

@needs_fork
def test_an_ordinary_kernel_steps_in_for_a_fork_server_that_has_ended(tmp_path):
    with forked_kernels(['colorsys']) as kernel:
        kernel.server.process.kill()
        source = "import sys; print('colorsys' in sys.modules)"
        assert printed(execute(tmp_path, kernel, source)) == 'False'


def test_no_fork_without_linux(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    with forked_kernels() as kernel: assert kernel is ordinary_kernel()


def test_no_fork_beside_a_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    with forked_kernels() as kernel: assert kernel is ordinary_kernel()
