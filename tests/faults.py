"""Faults at chosen moments: a process killed, or out of disk space, at the n-th call that writes; and their record."""
import builtins
import errno
import io
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import safetensors.torch
from joblib.externals.loky import reusable_executor

from weldsynth.core.config import StudyError
from weldsynth.core.files import file_hash
from weldsynth.core.runtime import hardware, versions

PDF_DATE = rb'/(Creation|Mod)Date \(D:[^)]*\)'
RECORD = Path(__file__).parent.parent/'nbs'/'records'/'reliability.json'


def record(name, **figures):
    "Puts `figures` under `name` into the record that the chapter on reliability shows."
    entries = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    entries[name] = dict(figures, date=time.strftime('%Y-%m-%d'), hardware=hardware(), versions=versions())
    RECORD.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + '\n')
    print(json.dumps({name: figures}))


class HalfWritten:
    "An open file of which the first write writes half and then strikes."
    def __init__(self, file, strike):
        self.file = file
        self.strike = strike
        self.struck = False

    def __getattr__(self, name): return getattr(self.file, name)
    def __iter__(self): return iter(self.file)
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def writelines(self, lines): self.write(''.join(lines))

    def write(self, data):
        if self.struck or not data: return self.file.write(data)
        self.struck = True
        self.file.write(data[:len(data)//2])
        self.file.flush()
        self.strike()


def in_save_state():
    "Is a checkpoint, a batch of samples or a fit being saved?"
    frame = sys._getframe()
    while frame:
        if frame.f_code.co_name == 'save_state': return True
        frame = frame.f_back
    return False


class Injector:
    """Counts the calls that write below `root`; the `at`-th one strikes.

    'kill' is kill -9, before the call or in the middle of it; 'full' writes half, then there is no room."""
    def __init__(self, root, kind='', at=0, states_only=False, report=None):
        self.root = str(root)
        self.kind = kind
        self.at = at
        self.states_only = states_only  # only calls in `save_state` count
        self.report = report
        self.pid = os.getpid()
        self.calls = 0
        self.seen = {'kill': 0, 'kill, saving': 0, 'full': 0}

    def is_ours(self, path):
        return os.getpid() == self.pid and (path is None or str(path).startswith(self.root))

    def is_due(self, path=None, writes=True):
        "Is this the call that strikes?"
        if not self.is_ours(path): return False
        saving = in_save_state()
        self.seen['kill'] += 1
        self.seen['kill, saving'] += saving
        self.seen['full'] += writes
        if self.states_only and not saving: return False
        if self.kind == 'full' and not writes: return False
        self.calls += 1
        if self.calls != self.at: return False
        if self.report: self.report(dict(saving=saving))
        return True

    def strike(self):
        if self.kind == 'kill': os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, 'No space left on device')

    def wrap_open(self, real):
        def wrapped(file, mode='r', *args, **kwargs):
            opened = real(file, mode, *args, **kwargs)
            writes = not isinstance(file, int) and set(mode) & set('wax')
            return HalfWritten(opened, self.strike) if writes and self.is_due(file) else opened
        return wrapped

    def wrap_call(self, real):
        def wrapped(first, *args, **kwargs):
            path = None if isinstance(first, int) else first
            if self.is_due(path, writes=False): self.strike()
            return real(first, *args, **kwargs)
        return wrapped

    def wrap_serialize(self, real):
        def wrapped(tensors, file, *args, **kwargs):
            if not self.is_due(file): return real(tensors, file, *args, **kwargs)
            if self.kind == 'kill': self.strike()
            unlimited = resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited))
            try: return real(tensors, file, *args, **kwargs)
            finally: resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        return wrapped

    def install(self):
        "Wraps what opens, flushes, renames and serialises. For a process of its own: nothing is put back."
        builtins.open = self.wrap_open(builtins.open)
        io.open = self.wrap_open(io.open)
        os.replace = self.wrap_call(os.replace)
        os.rename = self.wrap_call(os.rename)
        os.fsync = self.wrap_call(os.fsync)
        safetensors.torch.serialize_file = self.wrap_serialize(safetensors.torch.serialize_file)
        return self


def run_and_exit(work, root, write, fault):
    "The child's part: runs `work` under a fault, writes lines of JSON about it, and ends the process."
    def report(facts): os.write(write, (json.dumps(facts) + '\n').encode())
    try:
        sys.stderr = open(os.devnull, 'w')
        os.dup2(sys.stderr.fileno(), 2)
        reusable_executor._executor = None  # a fork has none of the parent's threads, so it needs workers of its own
        injector = Injector(root, report=report, **fault).install()
        report(dict(began=True))
        work()
        report(dict(end='done', calls=injector.seen))
    except StudyError as e: report(dict(end=str(e)))
    except BaseException: report(dict(end='traceback: ' + traceback.format_exc()))
    finally: os._exit(0)


def child(work, root, kill_after=None, **fault):
    """Runs `work()` in a process of its own with a fault.

    Returns how it ended ('killed', 'done', or the line of a `StudyError`), the calls it made and what was struck."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        run_and_exit(work, root, write, fault)
    os.close(write)
    with os.fdopen(read) as lines:
        facts = json.loads(lines.readline() or '{}')
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        for line in lines: facts |= json.loads(line)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status): facts['end'] = 'killed'
    return facts


def is_result(path, folder):
    "Is a file of a study part of what it has made, and the same whenever it is made?"
    parts = path.relative_to(folder).parts
    if any(part.startswith(('.part-', '.study')) for part in parts) or path.suffix == '.lock': return False
    dated = path.name in ('study.json', 'test-opened.jsonl', 'artefact.json') or path.parent.name == 'notebooks'
    return path.is_file() and not dated


def state(folder):
    "File -> hash of all that a study has made, without times and dates, as a PDF has one."
    made = {str(p.relative_to(folder)): file_hash(p) for p in folder.rglob('*') if is_result(p, folder)}
    for name in [name for name in made if name.endswith('.pdf')]:
        made[name] = re.sub(PDF_DATE, b'', (folder/name).read_bytes())
    for path in folder.rglob('artefact.json'):
        name = str(path.relative_to(folder))
        if '.part-' in name: continue
        info = json.loads(path.read_text())
        made[name] = [info[k] for k in ('stage', 'version', 'key', 'args', 'config', 'inputs', 'files')]
    for path in folder.rglob('test-opened.jsonl'):
        if '.part-' in str(path.relative_to(folder)): continue
        events = [json.loads(line) for line in path.read_text().splitlines()]
        done = [e['event'] for e in events].count('done')
        made[path.name] = [{e['plan'] for e in events}, events[-1]['event'], done]
    return made
