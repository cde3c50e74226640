"""`make bench`: run every benchmark, one after the other."""

import runpy
from pathlib import Path

for module in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    if module.stem not in ("holders", "load", "processes"):  # parts of the others
        runpy.run_module(f"benchmarks.{module.stem}", run_name="__main__")
