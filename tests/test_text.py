"""A pretrained pipeline with prompts and LoRA: tried on a tiny one with random weights."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.core.config import StudyError, with_overrides
from weldsynth.core.profiles import PROFILES
from weldsynth.core.store import Study
from weldsynth.data.sample_files import sample_issues
from weldsynth.models.layers import holes
from weldsynth.models.text import class_prompts, draw_by_text, embed_prompts, inpaints, kept_bytes, load_pretrained
from weldsynth.report import cards
from weldsynth.stages.audit import audit_samples
from weldsynth.stages.data import study_patches, training_fold
from weldsynth.stages.sample import draw_defects, load_samples
from weldsynth.stages.sweep import usable_patches
from weldsynth.stages.text import load_text, train_text

pytest.importorskip('transformers')
pytest.importorskip('peft')

SMALL = {'sampler.generator': 'text', 'text.px': 32, 'text.rank': 2, 'text.steps': 6, 'text.solver_steps': 2,
         'text.lr': 1e-2, 'autoencoder.steps': 2, 'data.defects': 120, 'data.cleans': 120}


def tiny_pipeline(folder, channels: int = 4):
    "A Stable Diffusion of minimal widths with random weights, saved by diffusers; 9 channels: one for inpainting."
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    torch.manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + '</w>' for letter in letters), '<|startoftext|>', '<|endoftext|>']
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=514, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                        num_attention_heads=2, projection_dim=16, bos_token_id=512, eos_token_id=513))
    unet = UNet2DConditionModel(sample_size=8, in_channels=channels, out_channels=4, layers_per_block=1,
                                block_out_channels=(8, 16), down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
                                up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'), cross_attention_dim=16,
                                norm_num_groups=4, attention_head_dim=4)
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), down_block_types=('DownEncoderBlock2D',)*3,
                        up_block_types=('UpDecoderBlock2D',)*3, layers_per_block=1, norm_num_groups=4)
    kind = StableDiffusionInpaintPipeline if channels == 9 else StableDiffusionPipeline
    pipe = kind(vae, text, tokenizer, unet, DDIMScheduler(), None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope='module', params=[4, 9], ids=['images', 'inpainting'])
def study(request, tmp_path_factory):
    "A study whose generator is adapted from a tiny pipeline."
    folder = tiny_pipeline(tmp_path_factory.mktemp('pretrained'), request.param)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv('WELDSYNTH_CORES', '1')
        config = with_overrides(PROFILES['fixture'], SMALL | {'text.pretrained': str(folder)})
        made = Study('text', tmp_path_factory.mktemp('text'), config)
        draw_defects(made, 2., 10)
        yield made


@pytest.fixture(scope='module')
def pipe(study): return load_text(study, train_text(study))


def drawn_by(study, pipe, labels, seeds, guidance=2.):
    fold = training_fold(study)
    text = embed_prompts(pipe, class_prompts(fold.classes, study.config.text))
    clean, masks = fold.of('clean').images[:len(labels)], fold.take((fold.labels > 0).numpy()).masks[:len(labels)]
    return draw_by_text(pipe, text, labels, seeds, guidance, 2, 32, clean, holes(masks))


def test_samples_are_grey_patches_with_marks(study):
    drawn = draw_defects(study, 2., 10)
    assert list(sample_issues(drawn.path)) == []
    samples = load_samples(drawn, training_fold(study).classes)
    assert samples.images.shape == (10, 1, 32, 32)
    manifest = pd.read_csv(drawn.path/'manifest.csv')
    assert set(manifest.steps) == {2}
    assert manifest.weights.nunique() == 1


def test_an_inpainting_model_changes_nothing_outside_the_hole(study, pipe):
    drawn = draw_defects(study, 2., 10)
    samples, manifest = load_samples(drawn, training_fold(study).classes), pd.read_csv(drawn.path/'manifest.csv')
    assert inpaints(pipe) == ('laid_on' in manifest)
    if not inpaints(pipe):
        assert samples.masks is None
        return
    patches = study_patches(study)
    clean = patches.images[[patches.table.id.tolist().index(i) for i in manifest.laid_on]]
    outside = holes(samples.masks) == 0
    assert torch.equal(samples.images[outside], clean[outside])
    assert not torch.equal(samples.images, clean)


def test_only_the_added_matrices_are_learnt_and_saved(study, pipe):
    model = train_text(study)
    assert {f.name for f in model.path.iterdir()} == {'lora.safetensors', 'loss.csv', 'artefact.json'}
    plain = load_pretrained(study.config.text.pretrained)
    learnt = {name: w for name, w in pipe.unet.named_parameters() if 'lora' in name}
    assert len(learnt) >= 16
    assert any(w.abs().max() > 0 for name, w in learnt.items() if 'lora_B' in name), 'they begin at 0'
    for name, w in plain.unet.named_parameters():
        same = dict(pipe.unet.named_parameters())
        kept = same[name] if name in same else same[name.replace('.weight', '.base_layer.weight').replace(
            '.bias', '.base_layer.bias')]
        assert torch.equal(w, kept), name


def test_what_was_learnt_and_the_prompt_change_the_picture(study, pipe):
    asked = drawn_by(study, pipe, [1, 1], [5, 6])
    assert not torch.allclose(asked, drawn_by(study, pipe, [2, 2], [5, 6]), atol=.05), 'the class matters'
    assert not torch.allclose(asked, drawn_by(study, pipe, [1, 1], [7, 8]), atol=.05), 'the seed matters'
    untrained = load_pretrained(study.config.text.pretrained)
    assert not torch.allclose(asked, drawn_by(study, untrained, [1, 1], [5, 6]), atol=.05), 'training matters'


def test_an_image_does_not_depend_on_its_company(study, pipe):
    both, one = drawn_by(study, pipe, [1, 2], [5, 6]), drawn_by(study, pipe, [1], [5])
    assert torch.allclose(both[:1], one, atol=.5)


def test_what_a_step_keeps_is_the_same_without_numbers(pipe):
    from torch._subclasses.fake_tensor import FakeTensorMode
    kept = kept_bytes(pipe.unet, 2, 8)
    with FakeTensorMode(): assert kept_bytes(pipe.unet, 2, 8) == kept
    assert kept < kept_bytes(pipe.unet, 4, 8) < 2*kept + 1000, 'all but the embedding of times grows with the batch'


def test_the_same_weights_elsewhere_are_the_same_weights(study, tmp_path):
    import shutil
    elsewhere = tmp_path/'moved'
    shutil.copytree(study.config.text.pretrained, elsewhere)
    other = Study('text', study.path, with_overrides(study.config, {'text.pretrained': str(elsewhere)}))
    assert train_text(other).key == train_text(study).key


def write_index(folder, kind, **parts):
    (folder/'model_index.json').write_text(json.dumps(dict(_class_name=kind, **parts)))


@pytest.mark.parametrize(('change', 'line'), [
    (lambda f: None, 'has no model_index.json'),
    (lambda f: write_index(f, 'FluxPipeline'), 'that of a FluxPipeline'),
    (lambda f: write_index(f, 'StableDiffusionPipeline', unet=['diffusers', 'UNet2DConditionModel']), 'cannot be read'),
], ids=['nothing', 'another kind', 'without weights'])
def test_a_folder_that_cannot_be_used_is_an_error_in_one_line(tmp_path, change, line):
    change(tmp_path)
    with pytest.raises(StudyError, match=line) as refused: load_pretrained(tmp_path)
    assert '\n' not in str(refused.value)


def test_pickled_weights_are_not_read(tmp_path):
    folder = tiny_pipeline(tmp_path/'pickled')
    for file in folder.rglob('*.safetensors'):
        torch.save(dict(weight=np.zeros(1)), file.with_suffix('.bin'))
        file.unlink()
    with pytest.raises(StudyError, match='cannot be read'): load_pretrained(folder)


def test_without_weights_the_generator_says_what_it_needs(study, tmp_path):
    bare = Study('bare', tmp_path, with_overrides(study.config, {'text.pretrained': ''}))
    with pytest.raises(StudyError, match='--set text.pretrained=FOLDER'): train_text(bare)


def test_what_a_text_model_draws_is_audited_and_has_a_card(study, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_CORES', '1')
    audit = audit_samples(study).path
    judged = pd.read_csv(audit/'filter.csv')
    assert judged.drawn.sum() == len(usable_patches(study)) >= 30
    assert pd.read_csv(audit/'fidelity.csv').value.notna().any()
    fingerprint = train_text(study).info['config']['pretrained']
    use = cards._use_text(study)
    assert f'fingerprint `{fingerprint}`' in use
    assert 'from_pretrained' not in use, 'the folder holds no pipeline'
    assert cards._licence(study) == dict(license='other', license_name='that-of-the-pretrained-weights')
