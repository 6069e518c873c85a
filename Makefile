# weldsynth: `make report` answers the question, `make test` runs what CI runs. Each installs what it needs, once.
PYTHON  ?= python3.11
BIN     := .venv/bin
READY   := .venv/.ready
given    = $(foreach o,$1,$(if $($(lastword $(subst :, ,$o))),--$(firstword $(subst :, ,$o)) '$($(lastword $(subst :, ,$o)))'))
STUDY    = $(call given,data:DATA name:NAME profile:PROFILE group:GROUP seed:SEED)
OPTIONS  = $(STUDY) $(call given,prevalence:PREVALENCE missed_cost:MISSED_COST false_cost:FALSE_COST)

.PHONY: report check verify test soak review lab case speed reference readme clean

$(READY): setup.py settings.ini pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

report: $(READY)  ## the study and its report: DATA=folder NAME=x PROFILE=demo GROUP=film SEED=0 PREVALENCE=0.02 MISSED_COST=100 FALSE_COST=1
	@$(BIN)/weldsynth report $(OPTIONS)

check: $(READY)  ## all that is wrong with a data set: DATA=folder PROFILE=demo GROUP=film SEED=0
	@$(BIN)/weldsynth check '$(DATA)' $(if $(PROFILE),--profile '$(PROFILE)') $(if $(GROUP),--group '$(GROUP)') $(if $(SEED),--seed '$(SEED)')

verify: $(READY)  ## are all hashes of a finished study right? NAME=x
	@$(BIN)/weldsynth verify '$(NAME)'

test: $(READY)  ## what CI runs; the browser tests want Debian's chromium, which is installed where that can be done
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -y -qq chromium > /dev/null; } || echo 'no chromium here: the browser tests are skipped'
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 1
	OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT=2 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

review: $(READY)  ## the page for three reviewers, or their score: NAME=study ANSWERS='a.json b.json c.json'
	@$(BIN)/weldsynth review $(if $(ANSWERS),score,export) '$(NAME)' $(ANSWERS)

soak: $(READY)  ## the long variants of the tests; their figures go to nbs/reliability.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak -s

lab: $(READY)  ## the notebooks, to read and run
	$(BIN)/jupyter lab nbs

case: $(READY)  ## the case on real radiographs: GDXRAY=folder PROFILE=demo
	@$(BIN)/weldsynth case '$(GDXRAY)' --profile '$(PROFILE)'
	$(BIN)/nbdev_clean

speed: $(READY)  ## the speed of this machine against the stock way, into nbs/07_speed.ipynb: NAME=x PROFILE=demo
	@$(BIN)/weldsynth speed $(STUDY)
	$(BIN)/nbdev_clean

reference: PROFILE = thorough
reference: report  ## the outputs that the committed notebooks carry: an hour or more on 4 cores
	$(BIN)/weldsynth adopt
	$(BIN)/nbdev_clean

readme: $(READY)  ## README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace nbs/index.ipynb
	$(BIN)/nbdev_clean --fname nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to markdown --no-input --stdout nbs/index.ipynb | sed 's#](\([0-9a-z_]*\.ipynb\))#](nbs/\1)#g' > README.md

clean:  ## everything but studies
	rm -rf .venv *.egg-info .pytest_cache
