"""Run the benchmarks: all of them, or those named: ``python -m benchmarks core``."""

from __future__ import annotations

import importlib
import sys

ALL = ["core", "serializers", "object_stores", "compaction"]

for name in sys.argv[1:] or ALL:
    importlib.import_module(f"benchmarks.{name}").main()
