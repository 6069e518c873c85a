"""Every kind of bad data: the check reports its place and a fix, a study refuses it, and the data stay as they were."""
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bad_data import FAULTS, MAKE, SIDE, WELDS, E, W, array, bomb, dicom, noise, put
from faults import record
from PIL import Image

from weldsynth.cli import main
from weldsynth.core.config import StudyError, with_overrides
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import PROFILES
from weldsynth.core.random import digest
from weldsynth.data.check import check_data, count_text
from weldsynth.data.images import read_grey, read_picture, to_patch
from weldsynth.data.sources import read_manifest
from weldsynth.stages.data import prepare, prepare_or_count

ONE_SHUFFLE = {'data.shuffles': 1}  # is enough for a split here
CONFIG = with_overrides(PROFILES['fixture'], ONE_SHUFFLE)
reported_kinds = set()


def study_of(name, root): return open_study(name, str(root), 'fixture', overrides=ONE_SHUFFLE)


@pytest.fixture(scope='session')
def good(tmp_path_factory):
    "kind -> a good set of it."
    return {kind: make(tmp_path_factory.mktemp('good')/kind) for kind, make in MAKE.items()}


@pytest.fixture(autouse=True)
def studies(tmp_path, monkeypatch):
    "Studies go to a folder of the test's own."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))


def state(root):
    "What must not change: every file's path, bytes and time."
    def file_state(path):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
        return path.lstat().st_mtime_ns, content
    return {str(path): file_state(path) for path in sorted(root.rglob('*'))}


@pytest.mark.parametrize('kind', MAKE)
def test_a_good_set_has_no_errors_and_makes_a_study(kind, good):
    issues = check_data(str(good[kind]), CONFIG)
    assert set(issues.severity) <= {'warning'}, issues.to_string()
    kinds = set(issues.what.str.replace(r'\d+', 'n', regex=True))
    assert kinds <= {'has n test images'}, issues.to_string()
    assert len(prepare(study_of(f'good-{kind}', good[kind])).info['files']) == 3


def check_fault(kind, good, folder):
    "A kind of bad data is planted in a good set: the check reports it, a study refuses it, the set stays as it is."
    fault = FAULTS[kind]
    root = Path(shutil.copytree(good[fault.source], folder/'mine'/fault.source, symlinks=True))
    fault.plant(root)
    before = state(root)
    issues = check_data(str(root), CONFIG)
    rows = issues[(issues.severity == fault.severity) & issues.file.str.startswith(fault.place)]
    rows = rows[rows.what.str.contains(fault.what, regex=False)]
    assert len(rows), issues.to_string()
    assert rows.fix.str.len().gt(3).all(), issues.to_string()
    assert issues.map(lambda cell: cell.isprintable()).all(axis=None)
    if fault.severity == E: check_refusal(root, issues, folder)
    elif not (issues.severity == E).any(): prepare(study_of('mine', root))
    assert state(root) == before, 'the source is never written to'
    reported_kinds.add(kind)


def check_refusal(root, issues, folder):
    "A study of bad data ends in one of the issues and leaves nothing half made."
    with pytest.raises(StudyError) as caught: prepare(study_of('mine', root))
    assert '\n' not in str(caught.value), 'one line'
    assert not [p for p in (folder/'home').rglob('patches-*') if p.is_dir()], 'nothing half made'
    assert str(caught.value) in {f'{p.file}: {p.what}: {p.fix}' for p in issues.itertuples()}


@pytest.mark.parametrize('kind', FAULTS)
def test_the_check_reports_it_and_a_study_refuses_it(kind, good, tmp_path): check_fault(kind, good, tmp_path)


def test_how_many_kinds():
    errors, warnings = (sum(f.severity == severity for f in FAULTS.values()) for severity in (E, W))
    print(f'{len(FAULTS)} kinds of bad data planted, {len(reported_kinds)} reported with place and fix; '
          f'{errors} are errors, {warnings} warnings')
    assert len(FAULTS) >= 40


@pytest.mark.soak
def test_all_kinds_for_the_record(good, tmp_path, monkeypatch):
    for kind in FAULTS:
        folder = tmp_path/digest(kind)
        folder.mkdir()
        monkeypatch.setenv('WELDSYNTH_HOME', str(folder/'home'))
        check_fault(kind, good, folder)
    errors, warnings = (sum(f.severity == severity for f in FAULTS.values()) for severity in (E, W))
    record('bad data: kinds planted', tried=len(FAULTS), reported=len(reported_kinds), errors=errors, warnings=warnings)


@pytest.fixture
def many_faults(good, tmp_path):
    "A folder with six kinds of bad data: its path, and kind -> the file reported."
    root = Path(shutil.copytree(good['folder'], tmp_path/'many'))
    places = {'zero bytes': 'crack/weld-07/29.png', 'decompression bomb': 'crack/weld-08/33.png'}
    put(places['zero bytes'], b'')(root)
    put(places['decompression bomb'], bomb())(root)
    others = 'link out of the folder', 'label without images', 'label in another case', 'image outside the classes'
    for kind in others:
        FAULTS[kind].plant(root)
        places[kind] = FAULTS[kind].place
    return root, places


def test_all_issues_are_reported_at_once(many_faults, capsys):
    root, places = many_faults
    issues = check_data(str(root), PROFILES['fixture'])
    for kind, place in places.items():
        assert ((issues.file == place) & issues.what.str.contains(FAULTS[kind].what, regex=False)).any(), kind
    assert main(['check', str(root), '--profile', 'fixture']) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ['severity', 'file', 'what', 'fix']
    assert len(out.splitlines()) == len(issues) + 1
    assert f'weldsynth: {count_text(issues)}: ' in err


def test_a_refused_study_says_how_many_issues_there_are(many_faults):
    root, _ = many_faults
    issues = check_data(str(root), PROFILES['fixture'])
    message = rf'one of {count_text(issues)}, which `weldsynth check .*many'
    with pytest.raises(StudyError, match=message): prepare_or_count(open_study('many', str(root), 'fixture'))


@pytest.mark.parametrize('data, code, said', [
    ('{good}', 0, 'a study can start'),
    ('nowhere', 1, 'does not exist'),
    ('simulated', 0, ''),
    ('{good}/images/00.png', 1, 'is neither a folder nor a CSV')])
def test_exit_codes(good, capsys, data, code, said):
    assert main(['check', data.format(good=good['manifest']), '--profile', 'fixture']) == code
    assert said in capsys.readouterr().out


def test_the_check_says_what_gain_a_study_can_see(capsys):
    assert main(['check', 'simulated', '--profile', 'fixture', '--set', 'data.plates=20']) == 0
    power, least = capsys.readouterr().out.splitlines()[-2:]
    assert power.startswith('Power: with about 5 test welds and 2 trainings the study can detect gains of ')
    assert least.startswith("The rule's least gain, 1 point, ")


def test_no_power_is_given_where_welds_are_guessed(good, tmp_path, capsys):
    table = pd.read_csv(good['manifest']/'manifest.csv')
    for file, label in zip(table.image, table.label, strict=True):
        (tmp_path/'flat'/label).mkdir(parents=True, exist_ok=True)
        shutil.copy(good['manifest']/file, tmp_path/'flat'/label)
    assert main(['check', str(tmp_path/'flat'), '--profile', 'fixture']) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith('Power: not known')


def test_a_column_with_a_spelling_mistake_is_to_be_renamed(good, tmp_path):
    shutil.copytree(good['manifest'], tmp_path/'wrong')
    file = tmp_path/'wrong'/'manifest.csv'
    pd.read_csv(file).rename(columns=dict(label='lable')).to_csv(file, index=False)
    found = check_data(str(tmp_path/'wrong'), CONFIG, 'group')
    assert "rename 'lable' to 'label', or add it" in set(found.fix)


@pytest.mark.parametrize(('kind', 'clean', 'warned'), [
    ('manifest', 'nix', True), ('manifest', 'CLEAN', False), ('folder', 'nix', True), ('folder', 'crack, nix', True),
    ('folder', '', False)])
def test_a_name_for_clean_that_no_class_has_is_reported(good, kind, clean, warned):
    config = with_overrides(CONFIG, {'data.clean': clean})
    found = check_data(str(good[kind]), config, 'group')
    lines = found[found.file.str.startswith('--clean')]
    assert (lines.file == "--clean 'nix'").tolist() == [True]*warned
    assert (lines.severity == 'warning').all()


def test_a_table_of_windows_needs_no_import(good, capsys):
    assert main(['import', str(good['windows'])]) == 1
    assert 'is described by windows.csv already: use it as it is' in capsys.readouterr().err


def test_the_check_says_that_an_interval_needs_welds(capsys):
    assert main(['check', 'simulated', '--profile', 'fixture', '--set', 'data.plates=12']) == 0
    assert 'an interval needs 4 with flaws: the answer will be INCONCLUSIVE' in capsys.readouterr().out.splitlines()[-1]


def test_an_archive_is_not_unpacked(tmp_path):
    (tmp_path/'welds.zip').write_bytes(b'PK')
    assert check_data(str(tmp_path/'welds.zip'), CONFIG).what.tolist() == ['is an archive']


# --- what is read, and how ---

def test_sixteen_bits_are_windowed_in_every_format(tmp_path):
    deep = noise(3, top=60_000)
    for name, values in (('a.png', deep), ('a.tif', deep), ('b.tif', deep.astype(np.float32)/60_000)):
        array(name, values)(tmp_path)
    dicom(tmp_path/'a.dcm', deep)
    want = to_patch(deep.astype(np.float32), 24)
    assert len(want.unique()) > 100
    for name in ('a.png', 'a.tif', 'b.tif', 'a.dcm'):
        assert (to_patch(read_grey(tmp_path/name), 24).int() - want.int()).abs().max() <= 1, name


def test_monochrome1_is_inverted(tmp_path):
    deep = noise(4, top=60_000)
    scale = dict(RescaleSlope=2, RescaleIntercept=-5)
    dicom(tmp_path/'one.dcm', deep, 'MONOCHROME1', ImagerPixelSpacing=[.05, .05], **scale)
    dicom(tmp_path/'two.dcm', 65_535 - deep, 'MONOCHROME2', **scale)
    dicom(tmp_path/'signed.dcm', deep.astype(np.int16), 'MONOCHROME1', PixelRepresentation=1)
    assert np.array_equal(read_grey(tmp_path/'one.dcm'), read_grey(tmp_path/'two.dcm'))
    assert read_grey(tmp_path/'two.dcm').max() > 65_535
    assert np.array_equal(read_grey(tmp_path/'signed.dcm'), -1. - deep.astype(np.int16))
    assert read_picture(tmp_path/'one.dcm').pitch == .05


def test_white_is_zero_is_inverted(tmp_path):
    deep = noise(4, top=60_000)
    Image.fromarray(deep).save(tmp_path/'a.tif', tiffinfo={262: 0})
    assert np.array_equal(read_grey(tmp_path/'a.tif'), 65_535. - deep)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise(5)).save(tmp_path/'turned.png', exif=exif)
    assert np.array_equal(read_grey(tmp_path/'turned.png'), np.rot90(noise(5), -1))


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA', 'P'])
def test_grey_in_other_modes_is_read(tmp_path, mode):
    Image.fromarray(noise(5)).convert(mode).save(tmp_path/'a.png')
    assert np.array_equal(read_grey(tmp_path/'a.png'), noise(5))


def test_one_bit_is_read(tmp_path):
    Image.fromarray(noise(5) > 99).save(tmp_path/'1.png')
    assert set(np.unique(read_grey(tmp_path/'1.png'))) == {0, 255}


def test_a_table_by_a_spreadsheet_is_read(good, tmp_path):
    "With a byte order mark, blanks around fields, blank lines, and a weld called NA."
    root = Path(shutil.copytree(good['manifest'], tmp_path/'m'))
    table = (root/'manifest.csv').read_text().replace('weld-01', 'NA').replace(',', ' , ')
    (root/'manifest.csv').write_bytes(b'\xef\xbb\xbf' + table.replace('\n', '\r\n').encode() + b'\r\n,,,,\r\n')
    patches = read_manifest(root/'manifest.csv', SIDE, 'group')
    assert len(patches) == 4*WELDS
    assert 'NA' in set(patches.table.group)
    assert set(patches.table.label) == {'clean', 'crack'}
