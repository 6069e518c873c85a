"""A reminder for developers: a stage whose code has changed needs a newer version, or a confirmation.

`make confirm`, which is `python tests/test_stage_versions.py`, says that results stay as they are."""
import json
import textwrap

import pytest
import stage_hashes
from stage_hashes import FILE, PYTHON, all_stages, code_hash, confirm, reached

RECORD = json.loads(FILE.read_text()) if FILE.exists() else dict(python=PYTHON, stages={})
same_python = pytest.mark.skipif(RECORD['python'] != PYTHON, reason=(
    f'the hashes are those of Python {RECORD["python"]}, whose syntax trees differ from those of {PYTHON}'))


@same_python
@pytest.mark.parametrize('name', all_stages())
def test_a_stage_whose_code_has_changed_has_a_newer_version(name):
    stage, recorded = all_stages()[name], RECORD['stages'].get(name)
    if recorded is None: pytest.fail(f'{name} has no hash yet: run `make confirm`')
    if stage.version != recorded['version']:
        pytest.fail(f'{name} has version {stage.version} now, not {recorded["version"]}: run `make confirm`')
    if code_hash(stage.build) != recorded['hash']:
        pytest.fail(f'{name} changed: bump its version, or run `make confirm` if its results stay')


@same_python
def test_no_hash_is_left_of_a_stage_that_is_gone(): assert set(RECORD['stages']) <= set(all_stages())


# --- what a hash sees ---

BASE = {
    'stages/made.py': '''
        from weldsynth.core.store import stage
        from weldsynth.models.net import SIZE, layer
        from .other import other_stage

        @stage('made/it', version=1, reads=('data',))
        def it(study, folder, n: int = 2):
            "Makes it."
            if n < 0: raise ValueError('n is negative')
            return layer(n), SIZE, other_stage(study)
        ''',
    'stages/other.py': '''
        from weldsynth.core.store import stage

        @stage('made/other', version=1)
        def other_stage(study, folder): return 1
        ''',
    'models/net.py': '''
        SIZE: int = 3
        UNUSED = 4

        def layer(n): return _deeper(n) + 1

        def _deeper(n):
            from weldsynth.models.deep import depth
            return depth(n)
        ''',
    'models/deep.py': '''
        def depth(n): return n
        ''',
    'core/store.py': '''
        def stage(*args, **kwargs): pass
        '''}


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    "The hash of the stage in a small package, some of whose text is replaced."
    def find(module):
        path = tmp_path/f'{"/".join(module.split(".")[1:])}.py'
        return path if path.exists() else None
    monkeypatch.setattr(stage_hashes, '_module_file', find)
    def hash_with(*replacements):
        stage_hashes.forget()
        for name, text in BASE.items():
            for old, new in replacements: text = text.replace(old, new)
            (tmp_path/name).parent.mkdir(exist_ok=True)
            (tmp_path/name).write_text(textwrap.dedent(text))
        return sorted(reached('weldsynth.stages.made', 'it').values())
    yield hash_with
    stage_hashes.forget()


@pytest.mark.parametrize(('old', 'new'), [
    ('return layer(n)', 'return layer(n + 1)'),
    ('SIZE: int = 3', 'SIZE: int = 5'),
    ('_deeper(n) + 1', '_deeper(n) + 2'),
    ('def depth(n): return n', 'def depth(n): return 2*n'),
    ("reads=('data',)", "reads=('data', 'rule')"),
    ('n: int = 2', 'n: int = 3')],
    ids=['the function', 'a constant', 'a function', 'an import within', 'what is read', 'a default'])
def test_what_shapes_a_result_changes_the_hash(hash_of, old, new): assert hash_of((old, new)) != hash_of()


@pytest.mark.parametrize(('old', 'new'), [
    ('"Makes it."', '"Makes it in other words."'),
    ('n is negative', 'n must be 0 or more'),
    ('n: int = 2', 'n: float = 2'),
    ('SIZE: int = 3', 'SIZE: float = 3'),
    ("'made/it', version=1", "'made/it', version=2"),
    ('UNUSED = 4', 'UNUSED = 5'),
    ('folder): return 1', 'folder): return 2'),
    ('kwargs): pass', 'kwargs): return 1')],
    ids=['a docstring', 'a message', 'an annotation', 'the type of a constant', 'the version', 'what is not used',
         'another stage', 'plumbing'])
def test_what_does_not_shape_a_result_leaves_the_hash(hash_of, old, new): assert hash_of((old, new)) == hash_of()


def test_a_function_that_has_moved_leaves_the_hash(hash_of):
    before = hash_of()
    BASE_DEPTH = 'from weldsynth.models.deep import depth\n            return', 'return'
    moved = hash_of(BASE_DEPTH, ('def layer(n)', 'def depth(n): return n\n\n        def layer(n)'))
    expected = [t.replace('    from weldsynth.models.deep import depth\n', '') for t in before]
    assert moved == sorted(expected)


def test_the_training_of_the_denoiser_reaches_its_loss_and_not_the_data():
    places = {name for _, name in reached('weldsynth.stages.ldm', 'train_denoiser')}
    assert {'denoiser_loss', 'denoiser_batch', 'train', 'torch_stream'} <= places
    assert not {'_prepare', 'split'} & places
    assert 'train_autoencoder' not in places


if __name__ == '__main__': confirm()
