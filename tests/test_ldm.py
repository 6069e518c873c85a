"""The trained pipeline loaded by others, and training shared between processes."""
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.core.opening import open_study
from weldsynth.core.profiles import choose_profile
from weldsynth.core.store import Study
from weldsynth.models.denoiser import condition_ids_for, draw
from weldsynth.stages.data import study_patches, training_fold
from weldsynth.stages.ldm import load_pipeline, train_denoiser
from weldsynth.stages.sample import draw_defects, load_samples
from weldsynth.stages.sweep import score_sets

THROUGHOUT = (0., 1.)  # the stock pipeline guides at all times


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A trained study of fixture size."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WELDSYNTH_HOME', str(tmp_path_factory.mktemp('home')))
        study = open_study('shared', profile='fixture')
        train_denoiser(study)
        yield study


OTHER_PROGRAM = '''
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
rng = [torch.Generator().manual_seed(s) for s in (5, 6)]
labels = pipe.get_label_ids(['crack', 'porosity'])
images = pipe(class_labels=labels, generator=rng, guidance_scale=3., num_inference_steps=4, output_type='np').images
assert 'weldsynth' not in sys.modules
np.save(sys.argv[2], images)
'''


def test_weights_are_saved_as_safetensors_only(study):
    suffixes = {f.suffix for f in (train_denoiser(study).path/'pipeline').rglob('*')}
    assert not suffixes & {'.bin', '.pt', '.pkl', '.ckpt'}


def test_diffusers_alone_loads_the_pipeline_in_a_process_of_its_own(study, tmp_path):
    folder = train_denoiser(study).path/'pipeline'
    command = [sys.executable, '-c', OTHER_PROGRAM, str(folder), str(tmp_path/'images.npy')]
    subprocess.run(command, check=True, cwd=tmp_path)
    images = torch.from_numpy(np.load(tmp_path/'images.npy')).permute(0, 3, 1, 2).mul(255).round().byte()
    pipe = load_pipeline(study)
    ours = draw(pipe, [pipe.labels['crack'], pipe.labels['porosity']], [5, 6], 3., 4, THROUGHOUT)
    assert images.float().std() > 1
    assert (images.int() - ours.int()).abs().max() <= 2


@pytest.mark.parametrize('cpu', [
    dict(avx512_bf16=True, cpu_name='AMD EPYC'),
    dict(avx512_bf16=True, cpu_name='Intel(R) Xeon(R) Processor'),
    dict(avx512_bf16=False, cpu_name='AMD EPYC'),
    {}])
def test_samples_do_not_depend_on_the_brand_of_the_processor(cpu, study, monkeypatch):
    exact = draw(load_pipeline(study), [1, 2], [5, 6], 2., 4, THROUGHOUT)
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: cpu, raising=False)
    pipe = load_pipeline(study)
    assert pipe.transformer.dtype == torch.float32
    assert pipe.vae.dtype == torch.float32
    assert torch.equal(draw(pipe, [1, 2], [5, 6], 2., 4, THROUGHOUT), exact)


@pytest.mark.parametrize('fraction', [1., .5])  # with half of the defects, it also learns from distorted ones
def test_samples_have_the_conditions_of_real_defects_of_their_class(fraction, tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    study = open_study('welds', profile='fixture', overrides={'denoiser.min_images_per_condition': 3})
    fold = training_fold(study, fraction)
    ids, names = condition_ids_for(fold, 3)
    drawn = pd.read_csv(draw_defects(study, 2., 40, fraction=fraction).path/'manifest.csv')
    labels = load_pipeline(study, fraction=fraction).labels
    assert tuple(sorted(labels, key=labels.get)) == names
    assert len(names) > len(fold.classes)
    for label, numbers in drawn.groupby('label').number:
        real = ids[fold.labels == fold.classes.index(label)]
        assert set(numbers) <= set(real.tolist())
    assert (drawn.number >= len(fold.classes)).any()


def test_two_processes_train_the_same_network(study, tmp_path):
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
              '-m', 'weldsynth', 'train', '--name', 'shared', '--profile', 'fixture']
    environment = dict(os.environ, WELDSYNTH_HOME=str(tmp_path), OMP_NUM_THREADS='1')
    subprocess.run(launch, check=True, env=environment, timeout=900)
    two = next((tmp_path/'studies'/'shared'/'ldm').glob('denoiser-*'))
    assert json.loads((two/'artefact.json').read_text())['processes'] == 2
    curves = [pd.read_csv(folder/'loss.csv').loss for folder in (train_denoiser(study).path, two)]
    assert len(curves[0]) == 20
    assert np.allclose(*curves, rtol=2e-4), 'one batch, cut in two'


def test_the_networks_of_the_full_profile_run(tmp_path):
    "Each at its own size, on few images and for a step or two."
    small = {'data.defects': 60, 'data.cleans': 40, 'data.plates': 6, 'autoencoder.steps': 1, 'autoencoder.batch': 4,
             'denoiser.steps': 1, 'denoiser.batch': 4, 'denoiser.augment_copies': 1, 'inserter.batch': 4,
             'snapshots.images': 1, 'snapshots.steps': 2, 'sampler.steps': 2, 'classifier.steps': 2,
             'classifier.batch': 12, 'sweep.seeds': 1}
    study = Study('full', tmp_path, choose_profile('full', small))
    assert load_pipeline(study).transformer.config.sample_size == 24
    drawn = load_samples(draw_defects(study, 2., 5), study_patches(study).classes)
    scores = score_sets(study, {'real+synthetic': training_fold(study) + drawn}, 'fitting', tmp_path/'fits')
    assert drawn.images.shape == (5, 1, 96, 96)
    assert scores.f1.between(0, 1).all()
