"Data as people have them: every case is tested, and on eight of them a study runs to its verdict."
import runpy
from pathlib import Path

import pytest

from weldsynth.core.opening import open_study
from weldsynth.stages.verdict import recommend

TESTS = Path(__file__).parent
CASES = sorted(file.stem for file in (TESTS/'cases').glob('[a-z]*.py'))
QUICK = {'autoencoder.steps': 5, 'denoiser.steps': 5, 'denoiser.augment_copies': 1, 'denoiser.heads': 1,
         'denoiser.layers': 1, 'sampler.synthetics': 24, 'sampler.synthetic_cleans': 12, 'sampler.steps': 2,
         'classifier.steps': 5, 'instrument.lengths': '1', 'instrument.rivals': '', 'sweep.guidances': '1.5',
         'sweep.shares': '.5', 'sweep.samples': 12, 'audit.fidelity_resamples': 5, 'audit.probe_repeats': 2,
         'rule.resamples': 50, 'rule.simulated_studies': 4}
STUDIES = {'mvtec': 'group', 'riawelc_splits': 'group', 'film_over_class': 'group', 'mask_suffix_beside': 'group',
           'yolo_det_roboflow': 'group', 'severstal_rle': 'group', 'hf_metadata_csv': 'film', 'dicom_no_ext': 'group'}


def test_every_case_is_tested():
    named = ''.join(file.read_text() for file in TESTS.glob('test_*.py') if file.name != Path(__file__).name)
    assert len(CASES) == 63
    assert not [case for case in CASES if f"'{case}'" not in named and f'{case}=' not in named]


@pytest.mark.slow
@pytest.mark.parametrize('case', STUDIES)
def test_a_study_of_a_case_ends_with_a_verdict(case, tmp_path, monkeypatch):
    monkeypatch.setenv('WELDSYNTH_HOME', str(tmp_path))
    runpy.run_path(str(TESTS/'cases'/f'{case}.py'))[case](tmp_path/'data')
    study = open_study('case', str(tmp_path/'data'), 'fixture', STUDIES[case], overrides=QUICK)
    recommendation = recommend(study)
    assert recommendation['decision'] in ('SHIP', 'DO NOT SHIP', 'INCONCLUSIVE')
    assert [e['event'] for e in study.test_log()] == ['opened', 'done']
