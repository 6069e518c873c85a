"""Folders as people have them: junk, links, what is shut, many faults at once, names of studies, labels, speed."""
import errno
import json
import os
import re
import runpy
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from weldsynth.cli import main
from weldsynth.core import fonts
from weldsynth.core.config import DataConfig, StudyError
from weldsynth.core.display import patch_rows
from weldsynth.core.opening import find_study, open_study
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import only_makes
from weldsynth.data.check import check_data
from weldsynth.data.deal import Deal, deal_groups
from weldsynth.data.images import DataError, Issue, to_patch, window
from weldsynth.data.loading import files_below
from weldsynth.data.messages import fold_issues, in_order
from weldsynth.data.patches import PatchSet
from weldsynth.data.readers import read_folder
from weldsynth.data.split import split
from weldsynth.stages.data import prepare, prepare_or_count, study_patches

CASES = Path(__file__).parent/'cases'
CONFIG = PROFILES['fixture']


def write_case(name, folder):
    runpy.run_path(str(CASES/f'{name}.py'))[name](folder)
    return folder


def check(folder, **more): return check_data(str(folder), CONFIG, **more)


def names(files, root): return [f.relative_to(root).as_posix() for f in files]


def images(root, *found):
    "Files of noise, each of its own."
    for i, name in enumerate(found):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (24, 24), np.uint8)).save(root/name)
    return root


@pytest.fixture
def toy(tmp_path):
    "A folder that makes a study: two classes on eight welds."
    return images(tmp_path/'toy', *(f'{label}/weld-{i % 8}/{i:02d}.png' for label in ('clean', 'crack')
                                    for i in range(24)))


@pytest.fixture(autouse=True)
def own_studies(tmp_path, monkeypatch): monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))


# --- what lies below a folder ---

@pytest.mark.parametrize('case', ['ipynb_checkpoints', 'junk_files'])
def test_files_of_systems_are_left_out_in_one_line(case, tmp_path):
    root = write_case(case, tmp_path/'set')
    patches = read_folder(root, 48, report=lambda issue: None)
    assert patches.table.label.value_counts().to_dict() == {'clean': 48, 'crack': 24, 'porosity': 24}
    assert set(patches.table.group) == {f'film-0{i}' for i in range(1, 7)}
    issues = check(root)
    assert not (issues.severity == 'error').any(), issues.to_string()
    [line] = issues.what[issues.what.str.contains('left out')]
    assert re.match(r'\d+ hidden or system files and folders left out \(.*\)$', line)


@pytest.mark.parametrize('junk', [
    '.git/config', '@eaDir/1.png', '__MACOSX/crack/._1.png', 'crack/THUMBS.DB', 'crack/Desktop.ini', 'crack/._1.png',
    'crack/.AppleDouble/1.png', 'crack/w/@EADIR/1.png@SynoEAThumb/1.png', '$RECYCLE.BIN/1.png', '.hidden/w/1.png',
    'System Volume Information/1.png', 'crack/~$notes.docx', 'lost+found/1.png', 'crack/.ipynb_checkpoints/1.png'])
def test_junk_of_every_kind(junk, tmp_path):
    root = images(tmp_path/'.data', 'crack/w/1.png')
    (root/junk).parent.mkdir(parents=True, exist_ok=True)
    (root/junk).write_bytes(b'')
    files, left_out = files_below(root)
    assert names(files, root) == ['crack/w/1.png']
    assert not left_out.error
    assert '1 hidden or system file or folder left out' in left_out.what


def test_a_folder_without_junk_says_nothing(toy): assert files_below(toy)[1] is None


def test_links_inside_are_followed(tmp_path):
    root = images(tmp_path/'set', 'store/w1/1.png', 'crack/w2/2.png')
    (root/'clean').mkdir()
    (root/'clean'/'w1').symlink_to(root/'store'/'w1')
    (root/'crack'/'3.png').symlink_to('../store/w1/1.png')
    (root/'crack'/'all').symlink_to(root)  # holds itself
    files, _ = files_below(root)
    assert names(files, root) == ['clean/w1/1.png', 'crack/3.png', 'crack/w2/2.png', 'store/w1/1.png']


def test_links_out_are_one_line(tmp_path):
    issues = check(write_case('symlink_files', tmp_path/'set'))
    assert issues.what.tolist() == ['is a link that leads out of the folder of the data']
    assert issues.file[0].endswith(' and 93 more')
    assert issues.fix[0] == 'put the file itself there'


def test_linked_folders_out_are_one_line(tmp_path):
    root = images(tmp_path/'set', 'crack/w/1.png')
    for i in range(5): (root/'crack'/f'out-{i}').symlink_to('/etc')
    with pytest.raises(DataError) as caught: files_below(root)
    assert str(caught.value) == ('crack/out-0, crack/out-1, crack/out-2 and 2 more: is a link that leads out of the '
                                 'folder of the data: put the folder itself there')


def shut(monkeypatch, *closed):
    "The system refuses to open what lies there, as it does for all but root."
    def refuse(real):
        def opened(path, *args, **more):
            if str(path).endswith(closed): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
            return real(path, *args, **more)
        return opened
    monkeypatch.setattr(os, 'scandir', refuse(os.scandir))
    monkeypatch.setattr(Path, 'read_bytes', refuse(Path.read_bytes))


@pytest.mark.parametrize('closed', ['crack/weld-3', 'crack/weld-3/03.png', 'toy'])
def test_what_is_shut_is_named(toy, monkeypatch, capsys, closed):
    shut(monkeypatch, closed)
    issues = check(toy)
    assert issues.iloc[0].tolist() == ['error', closed, 'cannot be opened (no permission)',
                                       'change its permissions']
    assert (issues.severity == 'error').sum() == 1, 'nothing follows from it'
    assert main(['report', str(toy), '--profile', 'fixture']) == 1
    err = capsys.readouterr().err.splitlines()
    assert f'{closed}: cannot be opened (no permission)' in err[-1]
    assert not [line for line in err if 'Traceback' in line]


def test_many_shut_files_are_one_line(toy, monkeypatch):
    shut(monkeypatch, '.png')
    issues = check(toy)
    assert issues.what.tolist() == ['cannot be opened (no permission)']
    assert issues.file[0] == 'clean/weld-0/00.png, clean/weld-0/08.png, clean/weld-0/16.png and 45 more'


def test_no_right_to_write_is_said_before_any_work(toy, tmp_path, monkeypatch, capsys):
    real = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: not mode & os.W_OK and real(path, mode))
    monkeypatch.setattr('weldsynth.data.readers.read_folder', None)
    for command in ('report', 'train'):
        assert main([command, str(toy), '--profile', 'fixture']) == 1
        assert capsys.readouterr().err == (
            f'weldsynth: {tmp_path} cannot be written (no permission): change its permissions, or set '
            'WELDSYNTH_HOME to a folder of yours\n')
    assert not (tmp_path/'studies').exists()


# --- messages ---

def test_a_fault_of_many_files_is_one_line(toy, capsys):
    for file in sorted(toy.rglob('*.png')): file.write_bytes(b'')
    issues = check(toy)
    assert len(issues) == 1
    assert issues.file[0] == 'clean/weld-0/00.png, clean/weld-0/08.png, clean/weld-0/16.png and 45 more'
    assert len(check(toy, every=True)) == 48
    for option, lines in ([], 2), (['--all'], 49):
        assert main(['check', str(toy), '--profile', 'fixture', *option]) == 1
        assert len(capsys.readouterr().out.splitlines()) == lines
    study = open_study('', str(toy), 'fixture')
    with pytest.raises(StudyError) as caught: prepare_or_count(study)
    row = issues.iloc[0]
    assert str(caught.value).startswith(f'{row.file}: {row.what}: {row.fix} (one of 1 error, which `weldsynth check')


def test_three_of_a_kind_stay_three_lines():
    issues = [Issue(f'{i}.png', 'is empty', 'copy it') for i in range(3)]
    assert fold_issues(issues) == issues


def test_texts_are_merged_and_errors_come_first():
    tiny = [Issue(f'{i}.png', f"is {i + 1} x 7 pixels, not as '{i}.tif'", 'give larger ones', False) for i in range(9)]
    [error, warning] = fold_issues([*tiny, Issue('a', 'is empty', 'copy it')])
    assert error.file == 'a'
    assert warning == Issue('0.png, 1.png, 2.png and 6 more', "is 1 to 9 x 7 pixels, not as '...'", 'give larger ones',
                            False)


def test_lines_of_a_table_are_in_order():
    issues = [Issue(f'windows.csv, line {n}', 'is cut off', 'correct it') for n in (10, 9, 100, 2, 11)]
    [one] = fold_issues(in_order(issues))
    assert one.file == 'windows.csv, lines 2, 9, 10 and 2 more'


@pytest.mark.parametrize('case, file', [
    ('tif16_rgb', 'clean/film-01/0000.tif'), ('films_float_xy', 'windows.csv, lines '),
    ('mask_inverted', 'masks/'), ('csv_backslash', 'manifest.csv'), ('csv_decimal_comma', 'manifest.csv')])
def test_a_case_of_many_files_is_few_lines(case, file, tmp_path):
    "Whatever it says or does about them, it does not say it of each file."
    root = tmp_path/'set'
    runpy.run_path(str(CASES/f'{case}.py'))[case](root)
    issues = check(root)
    assert len(issues) <= 8, issues.to_string()
    assert not issues.file.str.count(r'\.(?:png|tif|csv)').gt(3).any()


def test_kinds_with_other_texts_are_not_merged():
    issues = [Issue(f'{i}.png', what, 'x') for i in range(4) for what in ('is empty', 'is huge')]
    assert [i.what for i in fold_issues(issues)] == ['is empty', 'is huge']


def test_the_order_is_the_same_every_time(toy):
    for i, file in enumerate(sorted(toy.rglob('*.png'))):
        if i % 3 == 0: file.write_bytes(b'')
        if i % 3 == 1: file.write_bytes(b'no image')
    tables = [check(toy, every=every).to_csv() for every in (False, True) for _ in range(4)]
    assert len(set(tables)) == 2


def test_nothing_follows_from_files_that_cannot_be_read(toy):
    "Without its images a class is small, and its welds are few: that says nothing new."
    for file in sorted((toy/'crack').rglob('*.png'))[:22]: file.write_bytes(b'')
    issues = check(toy)
    assert issues.what.unique().tolist() == ['is empty (zero bytes)']


# --- names of studies, and commands that only read ---

def table_in(folder, toy):
    "A manifest of the toy's images in another folder."
    shutil.copytree(toy, folder)
    files = sorted(folder.rglob('*.png'))
    table = pd.DataFrame(dict(image=names(files, folder), label=[f.parts[-3] for f in files],
                              group=[f.parts[-2] for f in files], film=[f.parts[-2] for f in files]))
    table.to_csv(folder/'manifest.csv', index=False)
    return folder/'manifest.csv'


def test_tables_in_different_folders_are_different_studies(toy, tmp_path):
    tables = [table_in(tmp_path/name, toy) for name in ('line-1', 'line-2', 'old/line-1')]
    found = [open_study('', str(table), 'fixture').name for table in tables]
    assert found[:2] == ['line-1-manifest-fixture', 'line-2-manifest-fixture']
    assert re.fullmatch(r'line-1-manifest-[0-9a-f]{6}-fixture', found[2])
    assert [open_study('', str(table), 'fixture').name for table in tables] == found, 'and stay so'


def test_folders_of_one_name_are_different_studies(tmp_path):
    for place in ('a', 'b'): images(tmp_path/place/'welds.v2', 'crack/1.png')
    one, two = (open_study('', str(tmp_path/place/'welds.v2'), 'fixture').name for place in ('a', 'b'))
    assert one == 'welds.v2-fixture'
    assert re.fullmatch(r'welds\.v2-[0-9a-f]{6}-fixture', two)


def test_a_study_under_its_old_name_stays_open(toy, tmp_path):
    table = table_in(tmp_path/'line-1', toy)
    old = open_study('manifest-fixture', str(table), 'fixture')
    assert open_study('', str(table), 'fixture') == old


@pytest.mark.parametrize('name', ['', 'mine'])
def test_a_failed_first_try_does_not_block_the_next(toy, tmp_path, name, capsys):
    table = table_in(tmp_path/'line-1', toy)
    rows = pd.read_csv(table, dtype=str)
    rows.drop(columns='group').to_csv(table, index=False)
    with pytest.raises(StudyError, match="has no column 'group'"): prepare(open_study(name, str(table), 'fixture'))
    study = open_study(name, str(table), 'fixture', 'film', overrides={'denoiser.batch': 4})
    assert json.loads((study.path/'study.json').read_text())['plan']['group'] == 'film'
    line = 'has made only patches so far; changed: group, denoiser.batch. It goes on with the new settings'
    assert line in capsys.readouterr().err
    assert len(study_patches(study)) == 48
    again = open_study(name, str(table), 'fixture', 'film', 1, overrides={'denoiser.batch': 4})
    assert again.path == study.path, 'nothing but patches was made'


def test_an_imported_table_needs_no_group_and_the_message_says_so(toy, capsys):
    assert main(['import', str(toy), '--profile', 'fixture']) == 0
    assert main(['check', str(toy/'manifest.csv'), '--profile', 'fixture', '--group', 'film']) == 1
    out = capsys.readouterr().out
    assert "has no column 'film' (it has image, label, group)" in out
    assert "leave --group out: an imported table has its welds in column 'group' (with make, GROUP=group)" in out


@pytest.mark.parametrize('group', ['group', 'film'])
def test_a_group_that_class_folders_cannot_have_is_said_to_be_ignored(toy, group, capsys):
    main(['check', str(toy), '--profile', 'fixture', '--group', group])
    lines = [line for line in capsys.readouterr().err.splitlines() if 'toy has no columns' in line]
    assert len(lines) == (group == 'film')
    assert all('--group film is ignored: its folders or films say what is one weld' in line for line in lines)


def test_a_study_that_is_being_made_keeps_its_plan(toy):
    study = open_study('mine', str(toy), 'fixture')
    (study.path/'ldm'/'denoiser-0123456789').mkdir(parents=True)
    (study.path/'ldm'/'denoiser-0123456789'/'artefact.json').write_text('{}')
    with pytest.raises(StudyError, match=r"was started with other settings \(seed\): choose another --name"):
        open_study('mine', str(toy), 'fixture', seed=1)


@pytest.mark.parametrize('data', ['', ' '])
@pytest.mark.parametrize('command', ['check', 'report', 'train'])
def test_data_without_a_name(command, data, capsys):
    assert main([command, data, '--profile', 'fixture']) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ''
    assert re.fullmatch(r'weldsynth: .*(No data set is given|does not exist).*\n', err)


@pytest.mark.parametrize('wrong', ['{tmp}/no/such/place', '{tmp}/toy/clean/weld-0/00.png'])
@pytest.mark.parametrize('argv', [['check', '{tmp}/toy'], ['report', '{tmp}/toy'], ['verify', 'mine'],
                                  ['review', 'export', 'mine'], ['update-reference']])
def test_a_wrong_home_is_said_at_once(toy, tmp_path, monkeypatch, capsys, wrong, argv):
    monkeypatch.setenv('WELDSYNTH_HOME', wrong.format(tmp=tmp_path))
    assert main([a.format(tmp=tmp_path) for a in argv]) == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert re.fullmatch(r'weldsynth: WELDSYNTH_HOME=.* (is not a folder|lies in .*): correct it, .*\n', err)


READS = {
    'check': (['check', '{toy}', '--profile', 'fixture', '--set', 'denoiser.batch=4'], 0, None),
    'config': (['config', '--profile', 'fixture'], 0, None),
    'verify': (['verify', 'begun'], 1, 'holds no finished study'),
    'review export': (['review', 'export', 'begun'], 1, 'and this command does not train'),
    'review score': (['review', 'score', 'begun', 'answers.json'], 1, 'and this command does not train'),
    'update-reference': (['update-reference', '--name', 'begun'], 1, 'has no executed notebooks')}


@pytest.mark.parametrize('command', READS)
def test_a_command_that_only_reads_makes_nothing(command, toy, tmp_path, capsys):
    "With a study of which nothing but the plan is there."
    argv, code, said = READS[command]
    open_study('begun', str(toy), 'fixture')
    before = sorted(str(p) for p in tmp_path.rglob('*'))
    assert main([a.format(toy=toy) for a in argv]) == code
    err = capsys.readouterr().err
    if said: assert said in err.splitlines()[-1]
    made = set(map(str, tmp_path.rglob('*'))) - set(before)
    assert not [p for p in made if Path(p).is_dir()], made


def test_only_named_rooms_are_made(toy):
    study = open_study('begun', str(toy), 'fixture', overrides={'denoiser.batch': 4})
    with pytest.raises(StudyError, match='has no data/patches yet'), only_makes('review/'): prepare(study)
    with only_makes('data/'): prepare(study)
    with only_makes('review/'): assert prepare(find_study('begun')).path.is_dir(), 'what is there is read'


# --- labels in any script ---

@pytest.fixture
def labels(monkeypatch):
    monkeypatch.setattr(fonts, '_CLASS_NAMES', {})
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # of a letter that no font has
        yield


def ticks(fig): return [t.get_text() for t in fig.axes[0].get_yticklabels()]


@pytest.fixture
def own_font(tmp_path):
    "A font that has the letters of one label."
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib.font_manager import fontManager
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (500, 700), (500, 0)): pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(['.notdef', 'box'])
    builder.setupCharacterMap({ord(c): 'box' for c in '裂纹'})
    builder.setupGlyf(dict.fromkeys(('.notdef', 'box'), pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(('.notdef', 'box'), (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(dict(familyName='Own Script', styleName='Regular'))
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(tmp_path/'own.ttf')
    before = list(fontManager.ttflist)
    fontManager.addfont(tmp_path/'own.ttf')
    fonts._letters.cache_clear()
    yield 'Own Script'
    fontManager.ttflist[:] = before


@pytest.fixture
def no_fonts(monkeypatch):
    "A machine with no font but matplotlib's."
    from matplotlib.font_manager import fontManager
    monkeypatch.setattr(fontManager, 'ttflist', [f for f in fontManager.ttflist if f.name.startswith('DejaVu')])


def test_labels_show_in_a_font_that_has_them(labels, no_fonts, own_font):
    fonts.name_labels(('clean', '裂纹'))
    fig = patch_rows({'clean': torch.zeros(2, 1, 8, 8), '裂纹': torch.zeros(2, 1, 8, 8)}, 2)
    assert fonts.make_readable(fig) == ''
    fig.draw_without_rendering()
    assert ticks(fig) == ['clean', '裂纹']
    assert own_font in fig.axes[0].get_yticklabels()[1].get_fontfamily()


def test_labels_without_a_font_are_numbered_and_told(labels, no_fonts):
    fonts.name_labels(('clean', '气孔', '裂_纹'))
    fig = patch_rows({'clean': torch.zeros(2, 1, 8, 8), '裂_纹': torch.zeros(2, 1, 8, 8)}, 2)
    fig.axes[0].set_title('气孔, 7 of 9')
    note = fonts.make_readable(fig)
    fig.draw_without_rendering()
    assert ticks(fig) == ['clean', 'class 2']
    assert fig.axes[0].get_title() == 'class 1, 7 of 9'
    assert note == 'No installed font has the characters of some labels: class 1 is 气孔, class 2 is 裂 纹.'


@pytest.mark.parametrize('label', ['трещина', 'Riß', 'ρωγμή', 'شرخ', 'crack'])
def test_scripts_that_the_font_has_stay(labels, no_fonts, label):
    fonts.name_labels(('clean', label))
    fig = patch_rows({'clean': torch.zeros(2, 1, 8, 8), label: torch.zeros(2, 1, 8, 8)}, 2)
    assert fonts.make_readable(fig) == ''
    assert ticks(fig) == ['clean', label]


def test_the_case_of_chinese_labels(labels, no_fonts, tmp_path):
    "Figures of the data chapter, by number, without a warning."
    import matplotlib.pyplot as plt
    import seaborn as sns
    patches = read_folder(write_case('chinese_labels', tmp_path/'set'), 48, report=lambda issue: None)
    assert patches.classes == ('clean', '气孔', '裂纹')
    fonts.name_labels(patches.classes)
    grid = sns.catplot(patches.table, x='label', col='group', hue='label', kind='count', height=1.5)
    assert 'class 2 is 裂纹' in fonts.make_readable(grid.figure)
    grid.figure.draw_without_rendering()
    plt.close('all')


# --- speed, with the same results ---

def test_windows_in_batches_are_those_of_one_image():
    x = torch.rand(40, 1, 33, 33, generator=torch.Generator().manual_seed(0))*900
    low, high = (torch.stack([torch.quantile(i.flatten(), q) for i in x]).view(-1, 1, 1, 1) for q in (.01, .99))
    one = ((x - low)/(high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    assert torch.equal(window(x), one)
    assert torch.equal(torch.stack([to_patch(i[0].numpy(), 33) for i in x]), one)


@pytest.mark.parametrize('seed', range(12))
def test_welds_are_dealt_as_by_scikit_learn(seed):
    from sklearn.model_selection import StratifiedGroupKFold
    rng = np.random.default_rng(seed)
    n, classes, groups, parts = rng.integers(40, 400), rng.integers(2, 6), rng.integers(6, 60), rng.integers(2, 6)
    labels, group = rng.integers(0, classes, n), rng.choice(groups, n, p=rng.dirichlet(np.ones(groups)))
    parts = min(parts, len(set(group)))
    deals = [Deal(labels, group, s) for s in range(4)]
    for s, part in enumerate(deal_groups(deals, parts)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            folds = list(StratifiedGroupKFold(parts, shuffle=True, random_state=s).split(labels, labels, group))
        for i, (_, rows) in enumerate(folds): assert (part[rows] == i).all()


def test_what_cannot_be_dealt(): assert deal_groups([Deal(np.zeros(3, int), np.zeros(3, int), 0)], 4) == [None]


def test_the_case_of_many_groups_is_checked_in_time(tmp_path):
    root = write_case('many_groups', tmp_path/'set')
    start = time.process_time()
    issues = check(root)
    assert time.process_time() - start < 20
    assert not (issues.severity == 'error').any(), issues.to_string()


def test_3000_groups_are_split_in_time_with_a_bar(monkeypatch):
    bars = []
    monkeypatch.setattr('weldsynth.data.deal.progress', lambda items, label: bars.append(label) or items)
    groups = [f'w{i:05d}' for i in range(3000)]
    table = pd.DataFrame(dict(id=groups, label=['clean', 'clean', 'crack', 'pore']*750, group=groups, film=groups))
    start = time.process_time()
    [done] = split(PatchSet(torch.zeros(3000, 1, 8, 8), table, ('clean', 'crack', 'pore')), DataConfig())
    assert time.process_time() - start < 5
    assert bars == ['dealing welds']*2
    assert done.table.groupby('label').fold.nunique().eq(3).all()
