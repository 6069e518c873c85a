"""Faults at chosen moments: a process that is killed or finds its disk full at the n-th call of what writes, and the record of what came of it."""
import builtins, errno, io, json, os, resource, signal, sys, time, traceback
from pathlib import Path

import safetensors.torch
from joblib.externals.loky import reusable_executor

from weldsynth.core.config import StudyError

from weldsynth.core.runtime import hardware, versions

from weldsynth.core.store import file_hash

ROOT = Path(__file__).parent.parent
RECORD = ROOT/'nbs'/'reliability.json'


def record(name, **figures):
    "Put `figures` under `name` into the record that the chapter on reliability shows."
    told = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    told[name] = dict(figures, date=time.strftime('%Y-%m-%d'), hardware=hardware(), versions=versions())
    RECORD.write_text(json.dumps(dict(sorted(told.items())), indent=1) + '\n')
    print(json.dumps({name: figures}))


class Half:
    "An open file of which the first write writes half and then strikes."
    def __init__(self, file, strike): self.file, self.strike, self.struck = file, strike, False
    def __getattr__(self, name): return getattr(self.file, name)
    def __iter__(self): return iter(self.file)
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, data):
        if self.struck: return self.file.write(data)
        self.struck = True
        self.file.write(data[:len(data)//2])
        self.file.flush()
        self.strike()


def in_checkpoint():
    "Is a checkpoint, a batch of samples or a fit just being kept?"
    frame = sys._getframe()
    while frame:
        if frame.f_code.co_name == 'keep': return True
        frame = frame.f_back
    return False


class Injector:
    "Counts the calls that write below `root`; the `at`-th one strikes: 'kill' (kill -9, before or in the middle of it) or 'full' (half is written, then there is no room)."
    def __init__(self, root, kind='', at=0, kept_only=False, report=None):
        self.root, self.kind, self.at, self.kept_only, self.report, self.pid = str(root), kind, at, kept_only, report, os.getpid()
        self.calls, self.seen = 0, {'kill': 0, 'kill, kept': 0, 'full': 0}

    def due(self, path=None, writes=True):
        "Is this the call that strikes?"
        if os.getpid() != self.pid or path is not None and not str(path).startswith(self.root): return False
        for kind, counts in (('kill', True), ('kill, kept', in_checkpoint()), ('full', writes)): self.seen[kind] += counts
        if self.kept_only and not in_checkpoint() or self.kind == 'full' and not writes: return False
        self.calls += 1
        if self.calls != self.at: return False
        if self.report: self.report(dict(kept=in_checkpoint()))
        return True

    def strike(self):
        if self.kind == 'kill': os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, 'No space left on device')

    def install(self):
        "Wrap what opens, flushes, renames and serialises. For a process of its own: nothing is put back."
        def opening(real):
            def wrapped(file, mode='r', *args, **kwargs):
                made = real(file, mode, *args, **kwargs)
                return Half(made, self.strike) if not isinstance(file, int) and set(mode) & set('wax') and self.due(file) else made
            return wrapped
        def calling(real):
            def wrapped(first, *args, **kwargs):
                if self.due(None if isinstance(first, int) else first, writes=False): self.strike()
                return real(first, *args, **kwargs)
            return wrapped
        def serialising(real):
            def wrapped(tensors, file, *args, **kwargs):
                if not self.due(file): return real(tensors, file, *args, **kwargs)
                if self.kind == 'kill': self.strike()
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
                try: return real(tensors, file, *args, **kwargs)
                finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return wrapped
        builtins.open, io.open = opening(builtins.open), opening(io.open)
        os.replace, os.rename, os.fsync = calling(os.replace), calling(os.rename), calling(os.fsync)
        safetensors.torch.serialize_file = serialising(safetensors.torch.serialize_file)
        return self


def child(work, root, kill_after=None, **fault):
    "Run `work()` in a process of its own with a fault; returns how it ended: 'killed', 'done', or the line of a `StudyError`; with the calls that it made and what was struck."
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.close(read)
        tell = lambda told: os.write(write, (json.dumps(told) + '\n').encode())
        try:
            sys.stderr = open(os.devnull, 'w')
            os.dup2(sys.stderr.fileno(), 2)
            reusable_executor._executor = None  # a fork has none of the parent's threads, and workers of its own
            injector = Injector(root, report=tell, **fault).install()
            tell(dict(began=True))
            work()
            tell(dict(end='done', calls=injector.seen))
        except StudyError as e: tell(dict(end=str(e)))
        except BaseException: tell(dict(end='traceback: ' + traceback.format_exc()))
        finally: os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        told = json.loads(said.readline() or '{}')
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        for line in said: told |= json.loads(line)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status): told['end'] = 'killed'
    return told


def state(folder):
    "File -> hash of all that a study has made, less times and dates."
    whole = lambda p: not any(part.startswith('.part-') for part in p.relative_to(folder).parts)
    plain = lambda p: whole(p) and p.name != '.lock' and p.parts[-2] != 'notebooks' and p.name not in ('study.json', 'test-opened.jsonl', 'artefact.json')
    made = {str(p.relative_to(folder)): file_hash(p) for p in folder.rglob('*') if p.is_file() and plain(p)}
    for p in filter(whole, folder.rglob('artefact.json')):
        info = json.loads(p.read_text())
        made[str(p.relative_to(folder))] = [info[k] for k in ('stage', 'key', 'config', 'inputs', 'code', 'files')]
    for p in folder.rglob('test-opened.jsonl'):
        events = [json.loads(line) for line in p.read_text().splitlines()]
        made[p.name] = [{e['plan'] for e in events}, events[-1]['event'], [e['event'] for e in events].count('done')]
    return made
