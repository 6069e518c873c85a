"""Every synthetic image says what it is, the hashes of a study hold, and any change of it is told."""
import json
import shutil

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from weldsynth.cli import main
from weldsynth.core.config import StudyError
from weldsynth.core.files import file_hash, file_hashes, write_atomic
from weldsynth.core.opening import open_study
from weldsynth.core.profiles import choose_profile
from weldsynth.core.random import digest
from weldsynth.core.store import STAGES, artefact_key
from weldsynth.data.check import check_data
from weldsynth.data.sample_files import MARK_FIELDS, TRAINED, marked_png, sample_issues, write_samples
from weldsynth.data.sources import read_folder
from weldsynth.report.cards import data_card, finish, model_card
from weldsynth.report.verification import verify
from weldsynth.stages.data import prepare
from weldsynth.stages.ldm import train_denoiser
from weldsynth.stages.sample import load_samples, sample_rows, weights_hash
from weldsynth.stages.sweep import draw_study_samples
from weldsynth.stages.verdict import recommend

CLASSES = ('clean', 'crack', 'lack_of_fusion', 'porosity', 'slag_inclusion')


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A finished study of fixture size on images in folders, so that there is a source to verify."
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp('home')
        patch.setenv('WELDSYNTH_HOME', str(home))
        for i in range(240):
            file = home/'welds'/('clean', 'crack', 'porosity')[i % 3]/f'weld-{i//12:02d}'/f'{i:03d}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)).save(file)
        study = open_study('mine', str(home/'welds'), 'fixture')
        recommend(study)
        finish(study)
        yield study


def images(study): return sorted(study.path.glob('samples/*/*/*.png'))


# --- marks ---

def test_all_samples_of_the_full_profile_carry_their_mark(tmp_path):
    "4,000 images, as many as `full` draws: each has its row, its hash and its mark, and none is taken as real."
    rows = sample_rows(CLASSES, {c: 1000 for c in CLASSES[1:]}, 0)
    rows = rows.assign(checkpoint='c'*32, weights='w'*64, guidance=3., steps=20, solver='DPMSolverMultistepScheduler')
    pixels = torch.randint(0, 256, (len(rows), 1, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(0))
    write_samples(tmp_path, pixels, rows)
    assert not [*sample_issues(tmp_path)]
    assert len(pd.read_csv(tmp_path/'manifest.csv').sha256.unique()) == 4000
    (tmp_path/'manifest.csv').unlink()
    for i in range(20):
        (tmp_path/'clean').mkdir(exist_ok=True)
        Image.fromarray(pixels[i, 0].numpy()[::-1].copy()).save(tmp_path/'clean'/f'{i}.png')
    found = check_data(str(tmp_path), choose_profile('fixture'), every=True)
    refused = set(found.file[found.what == 'is marked as synthetic but given as a real image'])
    print(f'{len(refused)} of {len(rows)} marked images refused as real')
    assert refused == set(rows.image)


def test_a_mark_is_standard_xmp(study):
    "Pillow's own XMP reader finds the IPTC's term, the model's hash, seed and class, and the pixels are untouched."
    folder, made = draw_study_samples(study).path, train_denoiser(study)
    rows = pd.read_csv(folder/'manifest.csv', dtype=str, keep_default_na=False)
    for row in rows.to_dict('records'):
        with Image.open(folder/row['image']) as image:
            about = image.getxmp()['xmpmeta']['RDF']['Description']
            assert image.mode == 'L'
            assert image.info['xmp'].startswith(b'<?xpacket')
        assert about['DigitalSourceType'] == TRAINED
        assert TRAINED == 'http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia'
        assert about['AISystemUsed'] == 'weldsynth'
        assert about['AISystemVersionUsed'] == about['weights'] == weights_hash(made)
        assert {c: about[c] for c in MARK_FIELDS} == {c: row[c] for c in MARK_FIELDS}
        assert row['checkpoint'] == made.key
        assert file_hash(folder/row['image']) == row['sha256']
    assert len(load_samples(draw_study_samples(study), tuple(['clean', 'crack', 'porosity']))) == len(rows)


def test_marked_files_are_refused_as_real_under_any_name(study, tmp_path):
    welds = shutil.copytree(study.data, tmp_path/'welds')
    shutil.copy(images(study)[0], tmp_path/'welds'/'crack'/'weld-00'/'IMG_0001.png')
    message = r'crack/weld-00/IMG_0001\.png: is marked as synthetic but given as a real image: remove it'
    with pytest.raises(StudyError, match=message): read_folder(welds, 32)


# --- what a study records ---

def test_an_artefact_has_the_hash_of_each_of_its_files(study):
    for folder in study.path.glob('*/*/artefact.json'):
        info = json.loads(folder.read_text())
        files = {str(p.relative_to(folder.parent)) for p in folder.parent.rglob('*') if p.is_file()} - {'artefact.json'}
        assert set(info['files']) == files
        assert all(file_hash(folder.parent/f) == h for f, h in info['files'].items())
        key = artefact_key(info['stage'], info['version'], info['args'], info['config'], info['inputs'])
        assert key == info['key']


def test_study_json_says_what_decided_the_outcome(study):
    record = json.loads((study.path/'study.json').read_text())
    assert {'plan', 'hashes', 'versions', 'hardware', 'started'} <= set(record)
    assert {'python', 'torch', 'diffusers', 'weldsynth'} <= set(record['versions'])
    assert {'data', 'plan', 'stages', 'artefacts', 'cards'} == set(record['hashes'])
    made = ('data/patches', 'ldm/autoencoder', 'ldm/denoiser', 'samples/defects', 'eval/verdict')
    assert {name: STAGES[name].version for name in made}.items() <= record['hashes']['stages'].items()
    source = pd.read_csv(prepare(study).path/'source.csv')
    assert len(source) == 240
    assert record['hashes']['data'] == file_hash(prepare(study).path/'source.csv')
    assert open_study('mine', study.data, 'fixture').plan() == record['plan'], 'the record leaves the study open'


# --- verification ---

@pytest.fixture
def copy(study, tmp_path): return shutil.copytree(study.path, tmp_path/'copy')


def record(folder, change):
    "Change a study's `study.json`."
    saved = json.loads((folder/'study.json').read_text())
    change(saved)
    write_atomic(folder/'study.json', json.dumps(saved))


def flip(file):
    "Change one bit in the middle of a file."
    data = bytearray(file.read_bytes())
    data[len(data)//2] ^= 1
    file.write_bytes(data)


def one(folder, pattern): return sorted(folder.glob(pattern))[0]


def forged(folder):
    "Replace a sample, and correct its hash in the artefact's record, but not the hash of that record."
    image = one(folder, 'samples/*/*/*.png')
    image.write_bytes(marked_png(torch.zeros(1, 32, 32, dtype=torch.uint8)))
    info = json.loads((image.parents[1]/'artefact.json').read_text())
    info['files'][str(image.relative_to(image.parents[1]))] = file_hash(image)
    (image.parents[1]/'artefact.json').write_text(json.dumps(info))


def replace_text(file, *pairs):
    "Replace text in a file."
    text = file.read_text()
    for old, new in pairs: text = text.replace(old, new)
    file.write_text(text)


def foreign_weights(folder):
    file = one(folder, 'ldm/denoiser-*/pipeline')/'transformer'/'diffusion_pytorch_model.bin'
    file.write_bytes(b'?')


def better_verdict(folder):
    replace_text(one(folder, 'eval/verdict-*/verdict.json'), ('DO NOT SHIP', 'SHIP'), ('INCONCLUSIVE', 'SHIP'))


def more_steps(folder): replace_text(one(folder, 'ldm/denoiser-*/artefact.json'), ('"steps": 20', '"steps": 20000'))


def blank(file): Image.new('L', (32, 32)).save(file)


SAMPLE = 'samples/*/*/*.png'
WEIGHTS = 'ldm/denoiser-*/pipeline/transformer/*.safetensors'
CHANGES = {
    'a bit of the weights':  (lambda f: flip(one(f, WEIGHTS)), r'diffusion_pytorch_model\.safetensors$', 'was changed'),
    'a bit of the patches':  (lambda f: flip(one(f, 'data/patches-*/images.safetensors')), r'images\.safetensors$',
                              'was changed'),
    'a bit of a sample':     (lambda f: flip(one(f, SAMPLE)), r'\.png$', 'was changed'),
    'a sample without mark': (lambda f: blank(one(f, SAMPLE)), r'samples/', 'its hash is not the one in manifest.csv'),
    'a sample deleted':      (lambda f: one(f, SAMPLE).unlink(), r'\.png$', 'is missing'),
    'a sample added':        (lambda f: blank(one(f, SAMPLE).with_name('x.png')), r'x\.png$',
                              'was not made by the study'),
    'a sample forged':       (forged, r'artefact\.json$', 'was changed'),
    'foreign weights':       (foreign_weights, r'\.bin$', 'was not made by the study'),
    'a verdict':             (better_verdict, r'verdict\.json$', 'was changed'),
    'a configuration':       (more_steps, r'artefact\.json$', 'the key is not that of'),
    'an artefact deleted':   (lambda f: shutil.rmtree(one(f, 'ldm/autoencoder-*')), r'^ldm/', 'is missing'),
    'the plan':              (lambda f: record(f, lambda r: r['plan'].update(seed=1)), r'study\.json',
                              'the plan was changed'),
    'a card':                (lambda f: (f/'cards'/'data'/'README.md').write_text('Fit for anything.'),
                              r'cards/data/README\.md', 'was changed'),
}


def test_an_untouched_study_is_as_recorded(study, capsys):
    problems, counts = verify(study.path)
    assert problems.empty
    assert counts['images'] == len(images(study))
    assert counts['files'] > counts['images']
    assert main(['verify', str(study.path)]) == 0
    hashed = file_hash(study.path/'study.json')
    line = f"{counts['images']} marked images among them, are as recorded. study.json: {hashed}"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize('what', CHANGES)
def test_each_change_is_found(what, copy, capsys):
    change, file, message = CHANGES[what]
    change(copy)
    problems, _ = verify(copy)
    names_file = problems.file.str.contains(file) | problems.what.str.contains(file)
    assert names_file.any(), problems.to_string()
    assert problems.what.str.contains(message).any(), problems.to_string()
    assert main(['verify', str(copy)]) == 1
    assert 'is not as recorded, in ' in capsys.readouterr().err


def test_a_changed_or_moved_source_is_found(study, copy, tmp_path):
    welds = shutil.copytree(study.data, tmp_path/'welds')
    def move(saved):
        saved['plan'].update(data=str(welds))
        saved['hashes'].update(plan=digest(saved['plan']))
    record(copy, move)
    assert verify(copy)[0].empty, 'the same files elsewhere'
    flip(welds/'crack'/'weld-00'/'001.png')
    (welds/'crack'/'weld-01'/'013.png').unlink()
    assert verify(copy)[0].to_numpy().tolist() == [['crack/weld-00/001.png', 'was changed in the source'],
                                                   ['crack/weld-01/013.png', 'is missing from the source']]
    shutil.rmtree(welds)
    assert verify(copy)[0].what.tolist() == ['the source is no longer there']


def test_no_study_no_verification(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    open_study('begun', profile='fixture')
    assert main(['verify', 'nowhere']) == 1
    assert "'nowhere' is not a study" in capsys.readouterr().err
    assert main(['verify', 'begun']) == 1
    assert 'holds no finished study' in capsys.readouterr().err


def test_artefacts_of_version_0_1_verify_before_and_after_they_are_taken_over(tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    study = open_study('old', profile='fixture')
    folder = study.path/'eval'/'scores'
    folder.mkdir(parents=True)
    (folder/'scores.csv').write_text('f1\n0.5\n')
    info = dict(stage='eval/scores', config={}, inputs=[], code=dict(core='c'), files=file_hashes(folder))
    key = digest('eval/scores', {}, [], 'c')
    name = f'eval/scores-{key[:10]}'
    (folder/'artefact.json').write_text(json.dumps(dict(info, key=key)))
    folder.rename(study.path/name)
    def finish_old(name):
        hashes = dict(plan=digest(study.plan()), artefacts={name: file_hash(study.path/name/'artefact.json')}, cards={})
        record(study.path, lambda saved: saved.update(hashes=hashes))
    finish_old(name)
    assert verify(study.path)[0].empty
    taken_over = artefact_key('eval/scores', 1, {}, {}, [])
    new = f'eval/scores-{taken_over[:10]}'
    (study.path/name).rename(study.path/new)
    info.update(version=1, args={}, key=taken_over, key_0_1=key, config_0_1={})
    (study.path/new/'artefact.json').write_text(json.dumps(info))
    finish_old(new)
    assert verify(study.path)[0].empty


# --- cards ---

SECTIONS = dict(model=('## Use', '## Training', '## Evaluation', '## Limits'),
                data=('## Synthetic images', '## Real images behind them', '## Use'))


@pytest.mark.parametrize('kind', ['model', 'data'])
def test_cards_are_in_the_format_of_the_hub(study, kind):
    text = (study.path/'cards'/kind/'README.md').read_text()
    assert text == dict(model=model_card, data=data_card)[kind](study)
    card = (huggingface_hub.ModelCard if kind == 'model' else huggingface_hub.DatasetCard)(text)
    front = yaml.safe_load(text.split('---')[1])
    assert front['license'] == 'other'
    assert front['license_name']
    assert front['tags']
    assert card.text.strip().startswith('# ')
    for section in SECTIONS[kind]: assert section in card.text


def test_the_model_card_says_in_plain_words_what_the_model_is(study):
    text = (study.path/'cards'/'model'/'README.md').read_text()
    assert 'Its autoencoder is linear' in text
    assert 'initialised by principal component analysis' in text


def test_figures_of_the_cards_are_those_of_the_study(study):
    advice, drawn = recommend(study), pd.read_csv(draw_study_samples(study).path/'manifest.csv')
    model, data = ((study.path/'cards'/k/'README.md').read_text() for k in ('model', 'data'))
    assert advice['headline'] in model
    assert weights_hash(train_denoiser(study)) in model
    assert all(g['measured'] in model for g in advice['guards'])
    for label, n in drawn.label.value_counts().items(): assert f'| {label} | {n} |' in data
    assert 'The 240 source files' in data
    assert f'{len(drawn)} synthetic patches' in data
