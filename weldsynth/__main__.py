"""`python -m weldsynth` is the `weldsynth` command."""
from weldsynth.cli import main

raise SystemExit(main())
