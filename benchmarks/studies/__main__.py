"""``python -m fedvtc_edge.benchmarks.studies NAME [options]``; without a name, the names."""

from __future__ import annotations

import pkgutil
import runpy
import sys

from fedvtc_edge.benchmarks import studies

if __name__ == "__main__":
    names = {module.name for module in pkgutil.iter_modules(studies.__path__)}
    names -= {"runner", "__main__"}
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        known = ", ".join(sorted(names))
        sys.exit(f"usage: python -m {studies.__name__} NAME [options]\nNAME: {known}")
    runpy.run_module(f"{studies.__name__}.{sys.argv.pop(1)}", run_name="__main__")
