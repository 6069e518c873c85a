"""The command: what it prints, where, and its exit code."""
import subprocess
import sys
import types

import pytest

from weldsynth import cli, core, report, sweep
from weldsynth.cli import main

@pytest.fixture
def steps(tmp_path, monkeypatch):
    "`weldsynth report` with its long steps replaced; the list of what was done."
    done = []
    verdict = types.ModuleType('weldsynth.verdict')
    verdict.recommend = lambda study: done.append(study) or dict(decision='SHIP', sentence='Ship it.', figures=[['recall', '0.9'], ['false calls', '12.5']])
    monkeypatch.setitem(sys.modules, 'weldsynth.verdict', verdict)
    cards, check = types.ModuleType('weldsynth.cards'), types.ModuleType('weldsynth.check')
    cards.finish, check.prepare_or_count = lambda study: done.append('finish'), lambda study: None
    monkeypatch.setitem(sys.modules, 'weldsynth.cards', cards), monkeypatch.setitem(sys.modules, 'weldsynth.check', check)
    monkeypatch.setattr(sweep, 'learning_curve', lambda study: done.append('learning curve'))
    monkeypatch.setattr(report, 'execute', lambda study, **more: done.append(('execute', more)))
    monkeypatch.setattr(report, 'render', lambda study: done.append('render') or study.path/'report'/'index.html')
    monkeypatch.setattr(report, 'page_problems', lambda folder: [])
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    return done


def test_report_ends_with_the_recommendation(steps, tmp_path, capsys):
    assert main(['report', '--profile', 'fixture', '--seed', '3', '--group', 'film', '--name', 'mine']) == 0
    study = steps[0]
    assert (study.name, study.profile.name, study.seed, study.group, study.data) == ('mine', 'fixture', 3, 'film', 'simulated')
    assert steps[1:] == ['learning curve', ('execute', dict(prevalence=.02, missed_cost=100., false_cost=1.)), 'render', 'finish']
    assert capsys.readouterr().out.splitlines() == ['', 'Ship it.', '', '  recall        0.9', '  false calls  12.5', '',
                                                    f'Report: {tmp_path}/studies/mine/report/index.html']


@pytest.mark.parametrize('argv, said', [(['--profile', 'turbo'], "profile 'turbo' is unknown"),
                                        (['--profile', 'fixture', '--data', 'no/such/folder'], "data 'no/such/folder' does not exist"),
                                        (['--prevalence', '2'], 'prevalence lies between 0 and 1'),
                                        (['--profile', 'fixture', '--name', 'a/b'], "study name 'a/b' is not a plain folder name")])
def test_bad_input_is_one_line_and_exit_code_1(steps, capsys, argv, said):
    assert main(['report', *argv]) == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'weldsynth: {said}')
    assert err.count('\n') == 1
    assert not steps


def test_broken_pages_are_an_error(steps, capsys, monkeypatch):
    monkeypatch.setattr(report, 'page_problems', lambda folder: ['index.html: has no verdict', 'x.html: has no title'])
    assert main(['report', '--profile', 'fixture']) == 1
    assert capsys.readouterr().err == 'weldsynth: the report has 2 broken places, the first: index.html: has no verdict\n'


def test_ctrl_c_says_that_nothing_is_lost(steps, capsys, monkeypatch):
    def interrupt(study): raise KeyboardInterrupt
    monkeypatch.setattr(sys.modules['weldsynth.verdict'], 'recommend', interrupt)
    assert main(['report', '--profile', 'fixture']) == 130
    assert 'Finished steps are kept' in capsys.readouterr().err


def test_a_bug_is_not_dressed_up_as_bad_input(steps, monkeypatch):
    def broken(study): raise ValueError('a bug')
    monkeypatch.setattr(sys.modules['weldsynth.verdict'], 'recommend', broken)
    with pytest.raises(ValueError, match='a bug'): main(['report', '--profile', 'fixture'])
    assert issubclass(core.StudyError, ValueError)


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h']])
def test_help_lists_the_commands(capsys, argv):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(name in out and f.__doc__.splitlines()[0] in out for name, f in cli.COMMANDS.items())


def test_unknown_command_and_option_exit_with_2(capsys):
    assert main(['reprot']) == 2
    assert capsys.readouterr().err == f"weldsynth: 'reprot' is no command: choose one of {', '.join(cli.COMMANDS)}\n"
    with pytest.raises(SystemExit) as e: main(['report', '--colour', 'red'])
    assert e.value.code == 2


def test_help_imports_nothing_heavy():
    code = "import sys; from weldsynth.cli import main; main(['--help']); sys.exit(sorted({'torch', 'diffusers', 'papermill', 'pandas'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).returncode == 0


def test_the_installed_command_exits_with_the_code():
    done = subprocess.run([sys.executable, '-c', 'import sys; from weldsynth.cli import main; sys.exit(main())', 'reprot'], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ''
    assert 'Traceback' not in done.stderr
