"""Hashes of the code behind each stage: what its build function reaches in the package, as a syntax tree.

`code_hash(build)` starts at a function and follows the names that it uses to functions, classes and constants of the
package, through imports. It stops at other stages, whose artefacts carry versions of their own, and at the plumbing
(`PLUMBING`), which moves results but does not shape them. Docstrings, comments, annotations, the wording of errors, the
version in `@stage(...)` and the module a function lies in do not count.
"""
import ast
import hashlib
import importlib
import json
import pkgutil
import platform
from functools import lru_cache
from pathlib import Path

FILE = Path(__file__).with_name('stage_hashes.json')
PYTHON = '.'.join(platform.python_version_tuple()[:2])  # the text of a syntax tree may differ between these
PACKAGE = 'weldsynth'
PLUMBING = {f'{PACKAGE}.core.{name}' for name in ('store', 'files', 'runtime', 'display', 'legacy')}


def all_stages() -> dict:
    "name -> stage, of all modules in `weldsynth.stages`."
    import weldsynth.stages
    from weldsynth.core.store import STAGES
    modules = [module.name for module in pkgutil.iter_modules(weldsynth.stages.__path__)]
    for name in modules: importlib.import_module(f'weldsynth.stages.{name}')
    return {name: s for name, s in sorted(STAGES.items()) if s.build.__module__.startswith('weldsynth.stages.')}


# --- what a module defines ---

def _module_file(module: str) -> Path | None:
    root = Path(importlib.import_module(PACKAGE).__path__[0]).parent
    path = root/Path(*module.split('.'))
    return next((f for f in (path.with_suffix('.py'), path/'__init__.py') if f.exists()), None)


def _statements(body: list):
    "The statements of a module, those under a condition included."
    for node in body:
        if isinstance(node, ast.If): yield from _statements([*node.body, *node.orelse])
        else: yield node


@lru_cache(maxsize=None)
def _definitions(module: str) -> tuple:
    "What a module of the package defines (name -> syntax tree), and what it imports (name -> module, name)."
    defined: dict = {}
    imported: dict = {}
    for node in _statements(ast.parse(_module_file(module).read_text()).body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef): defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
            defined.update(dict.fromkeys(names, node))
        elif isinstance(node, ast.ImportFrom): imported.update(_imports(node, module))
    return defined, imported


def _imports(node: ast.ImportFrom, module: str) -> dict:
    "name -> (module, name there) of an import from the package."
    base = module.split('.')[:-node.level] if node.level else []
    source = '.'.join([*base, node.module or '']).strip('.')
    if source.split('.')[0] != PACKAGE: return {}
    return {a.asname or a.name: (source, a.name) for a in node.names}


# --- what is left of a definition ---

def _is_stage(decorator) -> bool:
    "Is it `@stage(...)`?"
    return isinstance(decorator, ast.Call) and getattr(decorator.func, 'id', '') == 'stage'


class _Stripped(ast.NodeTransformer):
    "A syntax tree without what does not shape a result."
    def visit_FunctionDef(self, node):
        node.body = self._without_docstring(node.body)
        node.returns = None
        for decorator in filter(_is_stage, node.decorator_list):
            decorator.args = decorator.args[:1]
            decorator.keywords = [k for k in decorator.keywords if k.arg != 'version']
        return self.generic_visit(node)

    def visit_ClassDef(self, node):
        node.body = self._without_docstring(node.body)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node):
        if node.value is None: return ast.Expr(node.target)
        return ast.Assign([node.target], self.visit(node.value))

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_Raise(self, node):
        if isinstance(node.exc, ast.Call): node.exc = node.exc.func
        return node

    def _without_docstring(self, body: list) -> list:
        first = body[0]
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        return (body[1:] or [ast.Pass()]) if is_text else body


def _stripped(node): return ast.fix_missing_locations(_Stripped().visit(ast.parse(ast.unparse(node)).body[0]))


# --- what it reaches ---

def _resolve(module: str, name: str, imported: dict) -> tuple | None:
    "Where the package defines `name` as `module` sees it: (module, name); the name is '' for a module."
    if name in _definitions(module)[0]: return module, name
    source, there = imported.get(name) or _definitions(module)[1].get(name) or (None, None)
    if source is None: return None
    if _module_file(f'{source}.{there}'): return f'{source}.{there}', ''
    return _resolve(source, there, {})


def _used(node, module: str):
    "Yields (module, name) of what a definition uses in the package."
    inner = [n for n in ast.walk(node) if isinstance(n, ast.ImportFrom)]
    imported = {name: place for n in inner for name, place in _imports(n, module).items()}
    for n in ast.walk(node):
        if isinstance(n, ast.Name): place = _resolve(module, n.id, imported)
        elif isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name):
            owner = _resolve(module, n.value.id, imported)
            place = _resolve(owner[0], n.attr, {}) if owner and not owner[1] else None
        else: continue
        if place and place[1]: yield place


def _defines_stage(module: str, name: str) -> bool:
    return any(map(_is_stage, getattr(_definitions(module)[0][name], 'decorator_list', [])))


@lru_cache(maxsize=None)
def _read(module: str, name: str) -> tuple:
    "The text of a definition, and what it uses in the package."
    stripped = _stripped(_definitions(module)[0][name])
    return ast.unparse(stripped), tuple(_used(stripped, module))


def forget():
    "Read every module anew."
    for remembered in (_definitions, _read): remembered.cache_clear()


def reached(module: str, name: str) -> dict:
    "(module, name) -> text of all that a function reaches in the package, itself included."
    found: dict = {}
    to_follow = [(module, name)]
    while to_follow:
        place = to_follow.pop()
        if place in found or place[0] in PLUMBING: continue
        if place != (module, name) and _defines_stage(*place): continue
        found[place], used = _read(*place)
        to_follow += used
    return found


def code_hash(build) -> str:
    "The hash of all the code that `build` reaches."
    texts = sorted(reached(build.__module__, build.__name__).values())
    return hashlib.sha256('\n\n'.join(texts).encode()).hexdigest()[:16]


# --- the record ---

def current() -> dict:
    "name -> version and hash of each stage."
    return {name: dict(version=s.version, hash=code_hash(s.build)) for name, s in all_stages().items()}


def confirm():
    "Write down that the stages, as they are, give the results of their versions."
    FILE.write_text(json.dumps(dict(python=PYTHON, stages=current()), indent=1) + '\n')
