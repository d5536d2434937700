"""What every test needs before probkit is imported: types checked, small machines respected.

The set-up must come before JAX starts and before the first import of probkit, hence at the top of
this file and not in a fixture.
"""

from __future__ import annotations

import os
from pathlib import Path

# The tests' computations are small. Threads of their own would only fight with the second worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# Most of the time of the tests is XLA's. What was compiled once is read back the next time.
# (Both caches stay in the repository: the tests leave the user's own cache folder alone.)
_CACHE = Path(__file__).resolve().parent.parent / ".cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("PROBKIT_CACHE", str(_CACHE / "probkit"))

# The annotations are checked at every call (shapes too) in the tests, and only there.
# PROBKIT_TYPECHECK=0 leaves it out, to see whether a failure has to do with it.
if os.environ.get("PROBKIT_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook("probkit", "beartype.beartype")
