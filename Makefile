# weldsynth: `make report` answers the question, `make test` runs what CI runs. Each installs what it needs, once.
PYTHON  ?= python3.11
BIN     := .venv/bin
READY   := .venv/.ready
given    = $(foreach o,$1,$(if $($(lastword $(subst :, ,$o))),--$(firstword $(subst :, ,$o)) '$($(lastword $(subst :, ,$o)))'))
STUDY    = $(if $(DATA),'$(DATA)') $(call given,name:NAME profile:PROFILE group:GROUP seed:SEED clean:CLEAN split:SPLIT)
OPTIONS  = $(STUDY) $(call given,prevalence:PREVALENCE missed-cost:MISSED_COST false-cost:FALSE_COST outside:OUTSIDE outside-map:OUTSIDE_MAP) $(if $(PRETRAINED),--set sampler.generator=text --set 'text.pretrained=$(PRETRAINED)') $(foreach s,$(SET),--set '$s')

# where a recipe may call quarto: that of the environment first
WITH_BIN = PATH="$(CURDIR)/$(BIN):$$PATH"

# one process per test worker; the smallest profile
TESTING  = OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=2 WELDSYNTH_CORES=1 WELDSYNTH_PROFILE=fixture

.PHONY: report check import verify test lint quick notebooks confirm soak review lab case speed reference readme docs clean

$(READY): setup.py settings.ini pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

report: $(READY)  ## the study and its report: DATA=folder NAME=x PROFILE=demo GROUP=film SEED=0 CLEAN=name SPLIT=given PREVALENCE=0.02 MISSED_COST=100 FALSE_COST=1 OUTSIDE=folder OUTSIDE_MAP='crack=crack,other=-' PRETRAINED=folder SET='denoiser.steps=9000 data.px=96'
	@$(WITH_BIN) $(BIN)/weldsynth report $(OPTIONS)

check: $(READY)  ## all that is wrong with a data set: DATA=folder PROFILE=demo GROUP=film SEED=0 CLEAN=name SPLIT=given
	@$(BIN)/weldsynth check $(if $(DATA),'$(DATA)') $(call given,profile:PROFILE group:GROUP seed:SEED clean:CLEAN split:SPLIT)

import: $(READY)  ## a folder's manifest.csv or windows.csv, written down: DATA=folder TO=folder CLEAN=name
	@$(BIN)/weldsynth import '$(DATA)' $(if $(TO),'$(TO)') $(call given,profile:PROFILE clean:CLEAN)

verify: $(READY)  ## are all hashes of a finished study right? NAME=x
	@$(BIN)/weldsynth verify '$(NAME)'

test: lint notebooks  ## what CI runs; the browser tests want Debian's chromium, which is installed where that can be done
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -y -qq chromium > /dev/null; } || echo 'no chromium here: the browser tests are skipped'
	$(TESTING) $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder --durations=15

lint: $(READY)  ## style, types, and that no room imports upward
	$(BIN)/ruff check weldsynth nbs tests examples docs setup.py
	$(BIN)/mypy
	$(BIN)/lint-imports

notebooks: $(READY)  ## every notebook runs by itself
	$(TESTING) TQDM_DISABLE=1 $(BIN)/nbdev_test --n_workers 2

QUICK    = intervals scores metrics_fidelity agreement diffusion_math classifier controls stress data check store stage_versions

quick: $(READY)  ## under a minute, for an edit in the library: lint, and the tests that need no trained study
	$(BIN)/ruff check weldsynth nbs tests
	$(BIN)/lint-imports
	$(TESTING) $(BIN)/python -m pytest -q -n logical -m 'not study and not slow and not soak' $(QUICK:%=tests/test_%.py)

confirm: $(READY)  ## the results of all stages stay: record the hashes of their code
	$(BIN)/python tests/test_stage_versions.py

review: $(READY)  ## the page for three reviewers, or their score: NAME=study ANSWERS='a.json b.json c.json'
	@$(BIN)/weldsynth review $(if $(ANSWERS),score,export) '$(NAME)' $(ANSWERS)

soak: $(READY)  ## the long variants of the tests; their figures go to nbs/records/reliability.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak -s

lab: $(READY)  ## the notebooks, to read and run
	$(BIN)/jupyter lab nbs

case: $(READY)  ## the case on real radiographs: GDXRAY=folder PROFILE=demo SPLITS='section film' SET='classifier.seeds=5'
	@$(BIN)/weldsynth gdxray '$(GDXRAY)' $(call given,profile:PROFILE splits:SPLITS) $(foreach s,$(SET),--set '$s')
	$(BIN)/nbdev_clean

speed: $(READY)  ## the speed of this machine against the standard implementation, into nbs/11_speed.ipynb: NAME=x PROFILE=demo
	@$(BIN)/weldsynth speed $(if $(DATA),'$(DATA)') $(call given,name:NAME profile:PROFILE group:GROUP seed:SEED)
	$(BIN)/nbdev_clean

reference: PROFILE = thorough
reference: SET     = sampler.generator=ldm,insert,insert-1step,vary
reference: report  ## the outputs that the committed notebooks carry: an evening on 2 cores
	$(BIN)/weldsynth update-reference --name simulated-$(PROFILE)
	$(BIN)/nbdev_clean

readme: $(READY)  ## README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace nbs/index.ipynb
	$(BIN)/nbdev_clean --fname nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to markdown --no-input --stdout nbs/index.ipynb | sed 's#](\([0-9a-z_/]*\.\(ipynb\|png\)\))#](nbs/\1)#g' > README.md

docs:  ## all notebooks as a site, in _docs; needs quarto in .venv/bin or on the PATH
	@$(WITH_BIN) && command -v quarto > /dev/null || { echo 'no quarto here, so no site: .venv/bin/pip install quarto-cli downloads it'; exit 1; }
	@rm -rf _docs quarto.log && $(WITH_BIN) QUARTO_LOG=quarto.log quarto render && ! grep -sE 'Unable to resolve|\b(WARN|WARNING|ERROR|CRITICAL)\b' quarto.log

clean:  ## everything but studies
	rm -rf .venv *.egg-info .pytest_cache
