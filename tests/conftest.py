"""Fixtures and surroundings of all tests.

`home`        Path, made once per session and shared by all processes of pytest-xdist: a folder that holds
              `studies/fixture`. For reading only.
`study`       Study, made once per session in `home`: profile `fixture` with two generators and a learning curve at half
              of the defects (`OVERRIDES`), finished up to `recommend` and `learning_curve`. For reading only: the
              session ends with an error that names every file a test has added, changed or removed.
`study_copy`  Study, one for each test: a copy of `study` to change. `WELDSYNTH_HOME` is the folder that holds it, so
              that `find_study('fixture')` and the command find the copy.

A study that is opened without one of these, by `open_study(...)`, lies in a folder of the process that runs the test,
never in the checkout. One process, one thread: pytest-xdist keeps the cores busy. Progress bars are off; a test that
wants to see them runs a process without `TQDM_DISABLE` (`environment(bars=True)`).

Files with slow tests start first, so that no process is left alone with them at the end.
"""
import os
import shutil
from dataclasses import replace

import pytest
from filelock import FileLock

os.environ.update(WELDSYNTH_CORES='1', OMP_NUM_THREADS='1', TQDM_DISABLE='1')  # before torch and tqdm are imported

OVERRIDES = {'sampler.generators': 2, 'sweep.fractions': (.5,)}


def environment(bars=False, **variables):
    "The variables of a process that a test starts; with `bars`, it shows its progress."
    inherited = {k: v for k, v in os.environ.items() if not (bars and k == 'TQDM_DISABLE')}
    return inherited | {k: str(v) for k, v in variables.items()}


def pytest_collection_modifyitems(items):
    "Tests of a trained study are marked `study`; files with slow tests come first."
    for item in items:
        if {'study', 'study_copy'} & set(item.fixturenames): item.add_marker(pytest.mark.study)
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope='session', autouse=True)
def own_home(tmp_path_factory):
    "Studies that a test opens lie in a folder of this process."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WELDSYNTH_HOME', str(tmp_path_factory.mktemp('own-home')))
        yield


@pytest.fixture(scope='session')
def home(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
    (shared/'home').mkdir(exist_ok=True)
    return shared/'home'


@pytest.fixture(scope='session')
def study(home):
    "A finished study of fixture size, for reading only."
    from weldsynth.core.opening import open_study
    from weldsynth.stages.sweep import learning_curve
    from weldsynth.stages.verdict import recommend
    with FileLock(home/'study.lock'), pytest.MonkeyPatch.context() as patch:
        patch.setenv('WELDSYNTH_HOME', str(home))
        made = open_study('fixture', profile='fixture', overrides=OVERRIDES)
        recommend(made)
        learning_curve(made)
        before = _times(made.path)
    yield made
    changed = {str(file.relative_to(made.path)) for file, _ in before.items() ^ _times(made.path).items()}
    assert not changed, f'a test has changed the shared study (use `study_copy`): {sorted(changed)}'


def _times(folder):
    "File -> when it was last changed."
    return {file: file.stat().st_mtime_ns for file in folder.rglob('*') if file.is_file()}


@pytest.fixture
def study_copy(study, tmp_path, monkeypatch):
    "A copy of the finished study, to change."
    home = tmp_path/'home-of-the-copy'
    path = home/'studies'/study.name
    shutil.copytree(study.path, path)
    monkeypatch.setenv('WELDSYNTH_HOME', str(home))
    return replace(study, path=path)
