"""Tables as Excel, pandas and Windows write them."""
import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weldsynth.core.profiles import PROFILES
from weldsynth.data.check import check_and_read
from weldsynth.data.images import DataError
from weldsynth.data.names import read_image_table
from weldsynth.data.sources import open_source
from weldsynth.data.tables import read_table

CASES = Path(__file__).parent/'cases'
CONFIG = PROFILES['fixture']


@pytest.fixture
def case(tmp_path, monkeypatch):
    "A function that writes a case of that name, and returns its table."
    monkeypatch.syspath_prepend(str(CASES))
    def write(name):
        getattr(importlib.import_module(name), name)(tmp_path/'set')
        return tmp_path/'set'/'manifest.csv'
    return write


def read(data, group='group'):
    "The patches of a set, and what is said about its table and files."
    issues, patches = check_and_read(str(data), CONFIG, group)
    about_set = ('groups only', 'test image', 'defects are too few')
    return patches, issues[~issues.what.str.contains('|'.join(about_set))].iloc[:, :3].to_numpy().tolist()


READ = ['csv_semicolon', 'csv_utf16', 'csv_backslash', 'csv_no_ext', 'csv_pandas_index', 'csv_absolute_inside']


@pytest.mark.parametrize('name', READ)
def test_a_table_is_read_without_a_word(name, case):
    data = case(name)
    patches, issues = read(data)
    assert issues == []
    assert patches.table.label.value_counts().to_dict() == dict(clean=48, crack=24, porosity=24)
    assert patches.table.group.nunique() == 6
    assert patches.table.id[0] == 'images/clean_0000.png', 'no name of a machine goes into the study'
    assert len(open_source(str(data), CONFIG.data).files()) == 97, 'all are hashed'


def test_decimal_commas_are_read_and_said(case):
    patches, issues = read(case('csv_decimal_comma'))
    assert issues == [['warning', 'manifest.csv', "'size_mm' is written with decimal commas"]]
    assert patches.size_unit == 'mm'
    assert patches.table['size'].dropna().between(.1, 9).all()


def test_another_code_page_is_refused_with_a_way_to_save(case):
    data = case('csv_gbk')
    with pytest.raises(DataError, match="is not UTF-8 .*GBK.*: save it as 'CSV UTF-8'"): read_table(data)
    assert len(read(data)[1]) == 1


def table(tmp_path, text, encoding='utf-8', newline='\n'):
    (tmp_path/'manifest.csv').write_bytes(text.replace('\n', newline).encode(encoding))
    return read_table(tmp_path/'manifest.csv')


WANT = {'image': ['a b.png', 'c.png'], 'label': ['Größe', '裂纹'], 'size_mm': ['1.5', ''], 'weld': ['007', 'NA']}
DIALECTS = {
    'commas': 'image,label,size_mm,weld\na b.png,Größe,1.5,007\nc.png,裂纹,,NA\n',
    'quotes': '"image","label","size_mm","weld"\n"a b.png","Größe","1,5","007"\n"c.png","裂纹","","NA"\n',
    'semicolons': 'image;label;size_mm;weld\na b.png;Größe;1,5;007\nc.png;裂纹;;NA\n',
    'tabs': 'image\tlabel\tsize_mm\tweld\na b.png\tGröße\t1.5\t007\nc.png\t裂纹\tnan\tNA\n',
    'bars': 'image|label|size_mm|weld\na b.png|Größe|1.5|007\nc.png|裂纹||NA\n',
    'sep=': 'sep=;\nimage;label;size_mm;weld\na b.png;Größe;1,5;007\nc.png;裂纹;;NA\n',
    'sep= in quotes': '"sep=;"\nimage;label;size_mm;weld\na b.png;Größe;1,5;007\nc.png;裂纹;;NA\n',
    'capitals': 'Image,LABEL,Size mm,weld\na b.png,Größe,1.50,007\nc.png,裂纹,N/A,NA\n',
    'index of pandas': ',image,label,size_mm,weld\n0,a b.png,Größe,1.5,007\n1,c.png,裂纹,,NA\n',
    'index written twice': 'Unnamed: 0,image,label,size_mm,weld\n0.0,a b.png,Größe,1.5,007\n1.0,c.png,裂纹,,NA\n',
    'trailing separators': 'image;label;size_mm;weld;;\na b.png;Größe;1,5;007;;\nc.png;裂纹;;NA;;\n;;;;;\n',
    'longer lines': 'image,label,size_mm,weld\na b.png,Größe,1.5,007,\nc.png,裂纹,,NA,,\n'}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('dialect', DIALECTS)
def test_dialects_say_the_same(dialect, encoding, tmp_path):
    text = DIALECTS[dialect]
    for newline in ('\n', '\r\n'):
        got = table(tmp_path, text, encoding, newline).to_dict('list')
        if '1.50' in text: got['size_mm'][0] = got['size_mm'][0].rstrip('0')
        assert got == WANT


@pytest.mark.parametrize('text, message', [
    ('image,label\n"a.png,crack\n', 'cannot be read as a table'), ('image label\na.png crack\n', 'does not separate'),
    ('PK\3\4', 'is an Excel workbook'), ('image;label\na;b;c\n', 'has 3 fields, and the header 2')])
def test_what_is_no_dialect_is_one_line(text, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught: table(tmp_path, text)
    assert '\n' not in str(caught.value)


def test_whole_numbers_lose_their_point(tmp_path):
    rows = table(tmp_path, 'film,x,y,size\na,48.0,0.0,64.0\nb,1e3,7,64\n')
    assert rows.x.tolist() == ['48', '1e3']
    assert rows['size'].tolist() == ['64', '64']


def test_thousands_are_not_taken_for_decimals(tmp_path):
    assert table(tmp_path, 'image;label;size_mm\na;crack;1,500\n').size_mm.tolist() == ['1,500']


def test_the_weld_column_is_found_in_other_capitals(case):
    data = case('csv_semicolon')
    data.write_text(data.read_text().replace('group', 'Weld No', 1))
    patches, issues = read(data, 'weld_no')
    assert issues == []
    assert patches.table.group.nunique() == 6


NAMED = {
    'images/one.png': 'images/one.png', './images/one.png': 'images/one.png', r'images\one.png': 'images/one.png',
    r'.\images\one.png': 'images/one.png', 'images/one': 'images/one.png', 'one.png': 'images/one.png',
    'two': 'sub/x/two.TIF', 'x/two.TIF': 'sub/x/two.TIF', '{root}/images/one.png': 'images/one.png',
    r'C:\Users\me\{name}\images\one.png': 'images/one.png', '/home/me/{name}/sub/x/two': 'sub/x/two.TIF',
    '1.2.840.7': 'sub/1.2.840.7.dcm', 'IM_0001': 'sub/IM_0001'}
KEPT = ['../images/one.png', '/etc/hosts', r'C:\one.png', r'..\..\one.png', 'twice.png', 'twice', 'gone.png', 'images',
        '']


@pytest.fixture
def tree(tmp_path):
    root = tmp_path/'welds'
    for name in ('images/one.png', 'masks/one.png', 'sub/x/two.TIF', 'sub/1.2.840.7.dcm', 'sub/IM_0001', 'a/twice.png',
                 'b/twice.png'):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(root/name, 'PNG')
    return root


@pytest.mark.parametrize('name', [*NAMED, *KEPT])
def test_a_name_means_one_file_of_the_folder_or_stays(name, tree):
    text = name.format(root=tree, name=tree.name)
    (tree/'manifest.csv').write_text(f'image;label\n"{text}";crack\n')
    want = NAMED.get(name, text)
    assert read_image_table(tree/'manifest.csv').image.tolist() == [want]


def test_a_bare_name_of_a_mask_means_the_mask(tree):
    (tree/'manifest.csv').write_text('image,mask\none,one\n')
    assert read_image_table(tree/'manifest.csv').iloc[0].tolist() == ['images/one.png', 'masks/one.png']


@pytest.mark.parametrize('suffix', ['tsv', 'txt', 'CSV'])
def test_a_table_may_have_another_ending(suffix, case):
    data = case('csv_utf16')
    data = data.rename(data.with_name(f'welds.{suffix}'))
    assert open_source(str(data), CONFIG.data).title == 'images listed in a table'
