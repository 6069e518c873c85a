"""The trained pipeline in other hands, and training shared between processes."""
import json, os, subprocess, sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.core.config import PROFILES

from weldsynth.core.store import Study, open_study
from weldsynth.stages.data import study_patches, training_fold
from weldsynth.models.denoiser import condition_ids_for, draw
from weldsynth.stages.ldm import load_pipeline, train_denoiser
from weldsynth.stages.ldm import load_sampler
from weldsynth.stages.sample import draw_samples, load_samples
from weldsynth.stages.sweep import score_sets


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A trained study of fixture size."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('WELDSYNTH_HOME', str(tmp_path_factory.mktemp('home')))
        study = open_study('shared', profile='fixture')
        train_denoiser(study)
        yield study


STRANGER = '''
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
rng = [torch.Generator().manual_seed(s) for s in (5, 6)]
labels = pipe.get_label_ids(['crack', 'porosity'])
images = pipe(class_labels=labels, generator=rng, guidance_scale=3., num_inference_steps=4, output_type='np').images
assert 'weldsynth' not in sys.modules
np.save(sys.argv[2], images)
'''


def test_diffusers_alone_loads_the_pipeline_in_a_process_of_its_own(study, tmp_path, monkeypatch):
    folder = train_denoiser(study).path/'pipeline'
    assert not [f for f in folder.rglob('*') if f.suffix in {'.bin', '.pt', '.pkl', '.ckpt'}], 'weights are safetensors only'
    subprocess.run([sys.executable, '-c', STRANGER, str(folder), str(tmp_path/'images.npy')], check=True, cwd=tmp_path)
    images = torch.from_numpy(np.load(tmp_path/'images.npy')).permute(0, 3, 1, 2).mul(255).round().byte()
    pipe = load_pipeline(study)
    monkeypatch.setattr('weldsynth.models.denoiser.GUIDANCE_INTERVAL', (0., 1.))  # the stock pipeline guides throughout
    ours = draw(pipe, [pipe.labels['crack'], pipe.labels['porosity']], [5, 6], 3., 4)
    assert (images.int() - ours.int()).abs().max() <= 2 and images.float().std() > 1


@pytest.mark.parametrize('cpu, dtype', [(dict(avx512_bf16=True, cpu_name='AMD EPYC'), torch.bfloat16), (dict(avx512_bf16=True, cpu_name='Intel(R) Xeon(R) Processor'), torch.float32),
                                        (dict(avx512_bf16=False, cpu_name='AMD EPYC'), torch.float32), ({}, torch.float32)])
def test_the_sampler_computes_with_what_its_processor_is_fast_at(cpu, dtype, study, monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: cpu, raising=False)
    pipe = load_sampler(study)
    assert pipe.transformer.dtype == dtype and pipe.vae.dtype == torch.float32
    drawn, exact = (draw(p, [1, 2], [5, 6], 2., 4).float() for p in (pipe, load_pipeline(study)))
    assert (drawn - exact).abs().mean() <= .02*exact.std() and (dtype == torch.bfloat16 or torch.equal(drawn, exact))


@pytest.mark.parametrize('fraction', [1., .5])  # with half of the defects, bent ones are learnt from too
def test_samples_are_told_what_real_defects_of_their_class_are_told(fraction, tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    monkeypatch.setattr('weldsynth.models.denoiser.MIN_IMAGES_PER_CONDITION', 3)
    study = open_study('welds', profile='fixture')
    fold = training_fold(study, fraction)
    told, names = condition_ids_for(fold)
    drawn = pd.read_csv(draw_samples(study, 2., 40, fraction=fraction).path/'manifest.csv')
    labels = load_pipeline(study, fraction=fraction).labels
    assert tuple(sorted(labels, key=labels.get)) == names and len(names) > len(fold.classes)
    for label, numbers in drawn.groupby('label').number: assert set(numbers) <= set(told[fold.labels == fold.classes.index(label)].tolist())
    assert (drawn.number >= len(fold.classes)).any()


def test_two_processes_train_the_same_network(study, tmp_path):
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'weldsynth', 'train', '--name', 'shared', '--profile', 'fixture']
    environment = dict(os.environ, WELDSYNTH_HOME=str(tmp_path), OMP_NUM_THREADS='1')
    subprocess.run(launch, check=True, env=environment, timeout=900)
    two = next((tmp_path/'studies'/'shared'/'ldm').glob('denoiser-*'))
    assert json.loads((two/'artefact.json').read_text())['processes'] == 2
    curves = [pd.read_csv(folder/'loss.csv').loss for folder in (train_denoiser(study).path, two)]
    assert len(curves[0]) == 20 and np.allclose(*curves, rtol=2e-4), 'one batch, cut in two'


def test_the_networks_of_the_full_profile_run(tmp_path):
    "Each at its own size, on few images and for a step or two."
    few = dict(defects=60, cleans=40, plates=6, ae_steps=1, ae_batch=4, ldm_steps=1, ldm_batch=4, solver_steps=2, fit_steps=2, fit_batch=12, sweep_seeds=1)
    study = Study('full', tmp_path, replace(PROFILES['full'], **few))
    assert load_pipeline(study).transformer.config.sample_size == 24
    drawn, real = load_samples(draw_samples(study, 2., 5), study_patches(study).classes), training_fold(study)
    scores = score_sets(study, {'real+synthetic': real + drawn}, 'fitting', tmp_path/'fits')
    assert drawn.images.shape == (5, 1, 96, 96) and scores.f1.between(0, 1).all()
