"""The command: what it prints, where, and its exit code."""
import signal
import subprocess
import sys
from contextlib import contextmanager
from inspect import unwrap

import pytest
import typer

from weldsynth import cli, cli_records
from weldsynth.cli import main
from weldsynth.core.config import StudyError, config_table
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import PROFILES, choose_profile

ANSWER = dict(decision='SHIP', sentence='Ship it.', figures=[['recall', '0.9'], ['false calls', '12.5']])


@contextmanager
def one_kernel(here=False): yield 'kernel'


@pytest.fixture
def steps(tmp_path, monkeypatch):
    "`weldsynth report` with its long steps replaced; the list of what was done."
    done = []
    def replace(name, result):
        def step(*args, **more):
            done.append((name.rsplit('.')[-1], *args, *([more] if more else [])))
            return result(*args) if callable(result) else result
        monkeypatch.setattr(f'weldsynth.{name}', step)
    monkeypatch.setattr('weldsynth.report.kernels.forked_kernels', one_kernel)
    replace('report.run.prepare_or_count', None)
    replace('report.run.recommend', ANSWER)
    replace('report.run.learning_curve', None)
    replace('report.run.execute', None)
    replace('report.run.render', lambda study: study.path/'report'/'index.html')
    replace('report.run.finish', None)
    monkeypatch.setattr('weldsynth.report.pages.page_issues', lambda folder: [])
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    return done


def test_report_ends_with_the_recommendation(steps, tmp_path, capsys):
    assert main(['report', '--profile', 'fixture', '--seed', '3', '--group', 'film', '--name', 'mine']) == 0
    study = steps[0][1]
    assert study.config == choose_profile('fixture')
    assert (study.name, study.seed, study.group, study.data) == ('mine', 3, 'film', 'simulated')
    names = [name for name, *_ in steps]
    assert names == ['prepare_or_count', 'recommend', 'learning_curve', 'execute', 'finish', 'render']
    assert steps[3] == ('execute', study, dict(kernel='kernel')), 'what a plant pays is left to the configuration'
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == ['', 'Ship it.', '', '  recall        0.9', '  false calls  12.5', '']
    assert lines[6:] == [f'Report: {tmp_path}/studies/mine/report/index.html']


@pytest.mark.parametrize('data', [['here'], ['--data', 'here']])
def test_data_is_an_argument_or_the_old_option(steps, tmp_path, monkeypatch, data):
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(['report', *data, '--profile', 'fixture']) == 0
    assert steps[0][1].data == str(tmp_path/'here')


@pytest.mark.parametrize('missed, false', [('--missed-cost', '--false-cost'), ('--missed_cost', '--false_cost')])
def test_costs_have_their_old_spelling_too(steps, missed, false):
    assert main(['report', '--profile', 'fixture', missed, '7', f'{false}=3', '--prevalence', '.1']) == 0
    assert steps[3][2] == dict(kernel='kernel', prevalence=.1, missed_cost=7., false_cost=3.)


def test_fields_are_changed_and_said_before_anything_is_made(steps, capsys):
    fields = ['--set', 'denoiser.steps=9000', '--set', 'sweep.shares=.5,1']
    assert main(['report', '--profile', 'smoke', *fields]) == 0
    assert steps[0][1].config == choose_profile('smoke', {'denoiser.steps': 9000, 'sweep.shares': (.5, 1.)})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('weldsynth: ')]
    assert lines == ['weldsynth: denoiser.steps = 9000 (smoke: 300)',
                     'weldsynth: sweep.shares = 0.5,1.0 (smoke: 0.4,0.8)']


def test_outdated_stages_are_said_before_anything_is_made(steps, monkeypatch, capsys):
    monkeypatch.setattr('weldsynth.report.run.outdated', lambda study: {'ldm/denoiser': (1, 2)})
    assert main(['report', '--profile', 'fixture']) == 0
    said = 'weldsynth: ldm/denoiser will be made anew: version 1 is there, the code has version 2\n'
    assert said in capsys.readouterr().err


def test_a_finished_study_is_not_made_anew(steps, monkeypatch, capsys):
    monkeypatch.setattr('weldsynth.report.run.outdated', lambda study: {'ldm/denoiser': (1, 2)})
    monkeypatch.setattr('weldsynth.core.store.Study.is_closed', lambda study: True)
    assert main(['report', '--profile', 'fixture']) == 0
    assert 'made anew' not in capsys.readouterr().err


@pytest.mark.parametrize('argv, message', [
    (['--profile', 'turbo'], "profile 'turbo' is unknown"),
    (['--profile', 'fixture', '--data', 'no/such/folder'], "data 'no/such/folder' does not exist"),
    (['--profile', 'fixture', 'no/such/folder'], "data 'no/such/folder' does not exist"),
    (['--prevalence', '2'], '--prevalence is a share above 0 and below 1, not 2: write 0.05 for 5 %'),
    (['--false-cost', '-1'], '--missed-cost and --false-cost must not be negative'),
    (['--profile', 'fixture', '--set', 'denoiser.stepps=9'], "'denoiser.stepps' is not a field of the configuration"),
    (['--profile', 'fixture', '--set', 'denoiser.steps'], "--set 'denoiser.steps' has no value"),
    (['--set', 'sampler.generator=inzert'], "sampler.generator='inzert' is unknown: choose one of ldm, "),
    (['--set', 'classifier.kind=foo'], "classifier.kind='foo' is unknown: choose one of features, "),
    (['--set', 'instrument.rivals=features,foo'], "instrument.rivals='foo' is unknown: choose one of features, "),
    (['--profile', 'fixture', '--name', 'a/b'], "study name 'a/b' is not a plain folder name")])
def test_bad_input_is_one_line_and_exit_code_1(steps, capsys, argv, message):
    assert main(['report', *argv]) == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'weldsynth: {message}')
    assert err.count('\n') == 1
    assert not steps


def test_check_knows_the_names_that_a_study_may_use(capsys):
    assert main(['check', 'simulated', '--set', 'sampler.generator=insert,inzert']) == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith("weldsynth: sampler.generator='inzert' is unknown: choose one of ldm, ")


def test_broken_pages_are_an_error(steps, capsys, monkeypatch):
    broken = ['index.html: has no verdict', 'x.html: has no title']
    monkeypatch.setattr('weldsynth.report.pages.page_issues', lambda folder: broken)
    assert main(['report', '--profile', 'fixture']) == 1
    message = 'weldsynth: the report has 2 broken places, the first: index.html: has no verdict\n'
    assert capsys.readouterr().err == message


def test_ctrl_c_says_that_nothing_is_lost(steps, capsys, monkeypatch):
    def interrupt(study): raise KeyboardInterrupt
    monkeypatch.setattr('weldsynth.report.run.recommend', interrupt)
    assert main(['report', '--profile', 'fixture']) == 130
    assert 'Finished steps are kept' in capsys.readouterr().err


def test_a_bug_is_not_dressed_up_as_bad_input(steps, monkeypatch):
    def broken(study): raise ValueError('a bug')
    monkeypatch.setattr('weldsynth.report.run.recommend', broken)
    with pytest.raises(ValueError, match='a bug'): main(['report', '--profile', 'fixture'])
    assert issubclass(StudyError, ValueError)


COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h']])
def test_help_lists_the_commands(capsys, argv):
    assert main(argv) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        if command.hidden: continue
        assert f'  {name} ' in out
        assert command.help.splitlines()[0] in out


def test_old_names_work_and_are_hidden(capsys):
    assert {name for name, command in COMMANDS.items() if command.hidden} == {'adopt', 'case'}
    assert unwrap(COMMANDS['adopt'].callback) is cli_records.update_reference
    assert unwrap(COMMANDS['case'].callback) is cli_records.gdxray
    assert main(['report', '--help']) == 0
    out = capsys.readouterr().out
    for old in ('--data', '--missed_cost', '--false_cost'): assert old not in out


@pytest.mark.parametrize('command', ['report', 'check', 'train', 'gdxray', 'speed', 'config'])
def test_help_lists_every_profile(capsys, command):
    assert main([command, '--help']) == 0
    out = ' '.join(capsys.readouterr().out.split())
    assert ', '.join(PROFILES) in out


def test_config_lists_every_field_as_it_can_be_set(capsys):
    assert main(['config', '--profile', 'smoke', '--set', 'denoiser.steps=9']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'denoiser.steps = 9' in lines
    config = choose_profile('smoke', dict(line.split(' = ', 1) for line in lines))
    assert len(lines) == len(config_table(config))
    assert config == choose_profile('smoke', {'denoiser.steps': 9})


def test_a_field_without_its_section_is_told_where_it_may_stand(capsys):
    assert main(['config', '--set', 'seeds=9']) == 1
    line = capsys.readouterr().err
    assert 'a name has its section before it: ' in line
    assert 'classifier.seeds' in line


def test_a_reader_of_the_output_may_stop_before_its_end():
    code = 'import sys; from weldsynth.cli import main; sys.exit(main(["config"]))'
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b''
    assert run.returncode == 128 + signal.SIGPIPE


def test_a_pipe_that_breaks_elsewhere_is_no_silent_end(monkeypatch):
    def broken(argv): raise BrokenPipeError
    monkeypatch.setattr(cli, '_run', broken)
    with pytest.raises(BrokenPipeError): main(['config'])


@pytest.mark.parametrize('argv, message', [
    (['reprot'], "No such command 'reprot'"), (['report', '--colour', 'red'], 'No such option: --colour'),
    (['report', '--seed', 'x'], "Invalid value for '--seed'"), (['check'], 'No data set is given'),
    (['verify'], "Missing argument 'STUDY'"), (['review'], 'Missing command')])
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, argv, message):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith(f'weldsynth: {message}')
    assert err.count('\n') == 1
    assert '--help`)' in err


def test_reviewers_answers_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    open_study('mine', profile='fixture')
    assert main(['review', 'score', 'mine']) == 1
    assert capsys.readouterr().err.startswith('weldsynth: no file of answers is given')


@pytest.mark.parametrize('option', ['--help', '--version'])
def test_help_and_version_import_nothing_heavy(option):
    code = ("import sys; from weldsynth.cli import main; main(sys.argv[1:]); "
            "sys.exit(sorted({'torch', 'diffusers', 'papermill', 'pandas'} & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, '-c', code, option], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    assert main(['--version']) == 0
    assert capsys.readouterr().out == f'weldsynth {cli.weldsynth.__version__}\n'


def test_the_installed_command_exits_with_the_code():
    code = 'import sys; from weldsynth.cli import main; sys.exit(main())'
    done = subprocess.run([sys.executable, '-c', code, 'reprot'], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ''
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(('field', 'says'), [
    ('rule.prevalence=10', 'rule.prevalence is a share, at least 0 and below 1, not 10: write 0.05 for 5 %'),
    ('rule.level=95', 'rule.level is a share'), ('data.px=33', 'data.px=33 is not the side of a patch'),
    ('data.px=8', 'give a multiple of 4, 16 or more'),
    ('denoiser.steps=0', 'denoiser.steps=0 is too few: give 1 or more'),
    ('classifier.seeds=-1', 'classifier.seeds=-1 is too few'), ('data.plates=-3', 'data.plates=-3 is negative')])
def test_a_value_that_no_study_can_have_is_refused_at_once(field, says, capsys):
    for command in (['config'], ['check', 'simulated']):
        assert main([*command, '--profile', 'fixture', '--set', field]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert 'Traceback' not in error
