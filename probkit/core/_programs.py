"""Compiled programs: built once a Program, kept on disk for the next process.

Small models wait for the compiler, not for the sampler. Two caches remove that wait:

* in memory, on the `Program` (so that a second fit with new data of the same shapes and a new
  seed compiles nothing);
* on disk, as serialised executables. A method that touches a Target through its log density only
  is keyed by a fingerprint of the density's *lowered* program (value and gradient, constants
  included), so that the much larger sampler around it need not even be traced. Everything else is
  keyed by its own lowered text, which saves the compilation.

The key also holds the versions of JAX and of this package (its sources), the device, the
processor's features, the flags and the static fields of the method. The folder is
``$PROBKIT_CACHE``, or ``probkit`` in the user's cache folder; ``PROBKIT_CACHE=off`` switches it
off. Files are executable code: the folder is created for its owner alone.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import inspect
import math
import os
import pickle
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from probkit.core._config import setting
from probkit.core._one_kernel import fits_one_kernel
from probkit.core._target import Program, Target
from probkit.core._trees import shapes_of

#: Faster to compile, measured equal to run on CPUs (see benchmarks); other platforms use defaults.
_CPU_OPTIONS: dict[str, Any] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 1,
    # In one piece: what is divided among threads costs more than they save.
    "xla_cpu_parallel_codegen_split_count": 1,
}
#: XLA's library of reductions off. In jaxlib 0.10.2 it gives wrong sums over a short last axis in
#: batched programs (the log likelihoods of Beta and Dirichlet terms, off by whole nats), and
#: nothing of a library may stand inside one kernel.
NO_LIBRARY: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
#: For programs with large products of doubles (see `_has_large_product`): the same library's
#: products of matrices alone, twice as fast as what XLA takes otherwise; and sums in one go, where
#: XLA divides each into three kernels (a fifth of the time to compile such a program).
_PRODUCTS: dict[str, Any] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_disable_hlo_passes": "tree_reduction_rewriter",
}
#: For what runs once and briefly: compiled in half the time, and some milliseconds slower.
BRIEF: dict[str, Any] = {"xla_backend_optimization_level": 0}
_LARGE = 1 << 20  # multiplications of one product
_PRODUCT = re.compile(
    r"stablehlo\.dot_general [^\n]*?(?:batching_dims = \[([\d, ]*)\] x [^\n]*?)?"
    r"contracting_dims = \[([\d, ]*)\] x [^\n]*?: "
    r"\(tensor<([\dx]+)xf64>, tensor<([\dx]+)xf64>\)"
)
_MAX_FILES = 200


def compiled(
    program: Program,
    name: str,
    variant: Any,
    fn: Callable,
    args: tuple,
    parts: tuple | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable:
    """The executable of ``fn`` for arguments shaped like ``args``; made at most once.

    Args:
        program: whose memory cache holds the executable.
        name: what the executable is.
        variant: hashable; what else ``fn`` depends on (with ``name`` and the shapes of ``args`` it
            is the key in memory).
        fn: traceable; takes and returns built-in containers of arrays.
        args: example arguments.
        parts: strings that determine ``fn`` completely, or None to key by its lowered text.
        options: of the compiler, on CPUs, before those that every program has. A program that is
            one kernel as a whole needs `NO_LIBRARY`.
    """
    key = (name, variant, shapes_of(args), setting("jax_enable_x64"))

    def make() -> Callable:
        with _without_collections():
            return _load_or_compile(name, fn, args, parts, options or {})

    return program.cached(key, make)


@contextmanager
def _without_collections() -> Iterator[None]:
    """No collection of garbage within the block.

    A trace makes many objects and keeps them to its end. Python takes that for growth and looks
    through all objects of the process, in vain: a tenth of a second with a few libraries loaded.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def density_fingerprint(target: Target, batch: Any = None) -> str:
    """A digest of the lowered value and gradient of the log density (constants included)."""
    return _lowered_density(target, batch)[0]


def latent_fingerprint(target: Target) -> str:
    """A digest of the lowered parts of ``gaussian_latent``: for methods that need no more.

    (The log density itself has the covariance matrix of all rows in it.)
    """

    def parts(theta, f, arrays):
        latent = target.program.gaussian_latent(arrays)
        x = latent.points(arrays)[:2]
        kernel = latent.cross_covariance(theta, x, x, arrays)
        terms = latent.log_likelihood(theta, f, arrays)
        return latent.log_prior(theta, arrays), latent.mean(theta, arrays), kernel, terms

    def make() -> str:
        latent, dtype = target.gaussian_latent, target.dtype
        theta, f = np.zeros(latent.theta.size, dtype), np.zeros(latent.size, dtype)
        text = jax.jit(parts).lower(theta, f, target.arrays).as_text()
        return hashlib.sha256((repr(list(latent.theta.shapes.items())) + text).encode()).hexdigest()

    key = ("latent_fingerprint", shapes_of(target.arrays), setting("jax_enable_x64"))
    return target.program.cached(key, make)


def density_is_small(target: Target, batch: Any = None) -> bool:
    """Whether the log density and its gradient may and should stand in one kernel."""
    return _lowered_density(target, batch)[1]


def _lowered_density(target: Target, batch: Any) -> tuple[str, bool]:
    def value_and_grad(vector, arrays, rows):
        one = Target(target.program, arrays)
        return jax.value_and_grad(lambda v: one.flat_log_density(v, rows))(vector)

    def make() -> tuple[str, bool]:
        point = np.zeros(target.program.flat.size, target.program.dtype)
        lowered = jax.jit(value_and_grad).lower(point, target.arrays, batch)
        text = lowered.as_text()
        shapes = repr(list(target.program.shapes.items()))
        digest = hashlib.sha256((shapes + text).encode()).hexdigest()
        return digest, fits_one_kernel(lowered, text)

    key = ("fingerprint", shapes_of((target.arrays, batch)), setting("jax_enable_x64"))
    return target.program.cached(key, make)


def describe(tree: Any) -> str | None:
    """A text that determines a tree's static half, or None where it holds unnamed objects."""
    text = repr(jax.tree.structure(tree)) + repr(shapes_of(tree)[1])
    return None if " at 0x" in text else text


def _load_or_compile(
    name: str, fn: Callable, args: tuple, parts: tuple | None, options: Mapping[str, Any]
) -> Callable:
    folder = cache_folder()
    lowered = None
    if folder is not None and parts is None:
        lowered = jax.jit(fn).lower(*args)
        parts = (lowered.as_text(),)
    path = None
    if folder is not None and parts is not None:
        digest = hashlib.sha256(repr((name, parts, shapes_of(args), _environment())).encode())
        path = folder / f"{digest.hexdigest()}.bin"
        executable = _load(path)
        if executable is not None:
            return executable
    lowered = jax.jit(fn).lower(*args) if lowered is None else lowered
    text = lowered.as_text()
    with _jax_cache_hits() as hits:
        executable = _compile(lowered, text, options)
    # What JAX's own persistent cache served lacks parts when it is serialised a second time.
    if path is not None and not hits:
        _store(path, executable, "lapack" in text)
    return executable


def _compile(lowered: Any, text: str, options: Mapping[str, Any]) -> Callable:
    if jax.default_backend() != "cpu":
        return lowered.compile()
    library = _PRODUCTS if _has_large_product(text) else NO_LIBRARY
    # Another XLA may lack an option: one without that library has no need to switch it off.
    for choice in ({**_CPU_OPTIONS, **library, **options}, NO_LIBRARY, _CPU_OPTIONS):
        try:
            return lowered.compile(compiler_options=choice)
        except jax.errors.JaxRuntimeError as error:
            if "compile option" not in str(error):
                raise
    return lowered.compile()


def _has_large_product(text: str) -> bool:
    """Whether a lowered program multiplies large matrices of doubles."""
    for batched, summed, left, right in _PRODUCT.findall(text):
        a, b = ([int(k) for k in shape.split("x")] for shape in (left, right))
        shared = math.prod(a[int(k)] for k in f"{batched},{summed}".split(",") if k.strip())
        batch = math.prod(a[int(k)] for k in batched.split(",") if k.strip())
        if math.prod(a) * math.prod(b) >= _LARGE * shared * batch:
            return True
    return False


@contextmanager
def _jax_cache_hits() -> Iterator[list[str]]:
    """Collects the hits of JAX's own persistent compilation cache within the block."""
    hits: list[str] = []

    def listen(event: str, **details: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    # Registered for the block alone: an application may clear all listeners at any time.
    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        try:
            jax.monitoring.unregister_event_listener(listen)
        except (AssertionError, ValueError):
            pass  # the block cleared them all


def cache_folder() -> Path | None:
    """Where serialised executables are kept, or None when that is switched off or impossible."""
    choice = os.environ.get("PROBKIT_CACHE", "")
    if choice.lower() in ("off", "0", "none"):
        return None
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base else Path.home() / ".cache"
    folder = Path(choice) if choice else root / "probkit"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _load(path: Path) -> Callable | None:
    from jax.experimental import serialize_executable

    try:
        payload = path.read_bytes()
    except OSError:
        return None
    try:
        needs_lapack, count, *parts = pickle.loads(payload)
        if needs_lapack:
            _ready_lapack()
        # By default a program is loaded for all devices that there are.
        own = jax.local_devices()[:count]
        executable = serialize_executable.deserialize_and_load(*parts, execution_devices=own)
        os.utime(path)
        return executable
    except Exception:
        # Written by an incompatible build, or cut short: throw it away and compile.
        path.unlink(missing_ok=True)
        return None


@functools.cache
def _ready_lapack() -> None:
    # JAX fetches the addresses of LAPACK's routines when it first lowers a call to one of them;
    # an executable that was loaded without that would jump to address zero.
    jax.jit(jax.numpy.linalg.cholesky).lower(np.eye(1, dtype=np.float32))


def _store(path: Path, executable: Any, needs_lapack: bool) -> None:
    from jax.experimental import serialize_executable

    try:
        parts = serialize_executable.serialize(executable)
        payload = pickle.dumps((needs_lapack, _device_count(executable), *parts))
    except Exception:
        # Host callbacks and custom containers cannot be serialised; that costs a compilation
        # in the next process and nothing else.
        return
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as handle:
            handle.write(payload)
        os.replace(handle.name, path)
        _prune(path.parent)
    except OSError:
        return


def _device_count(executable: Any) -> int:
    """How many devices a compiled program runs on."""
    shardings = jax.tree.leaves((executable.input_shardings, executable.output_shardings))
    return max((len(s.device_set) for s in shardings), default=1)


def _prune(folder: Path) -> None:
    files = sorted(folder.glob("*.bin"), key=lambda p: p.stat().st_mtime)
    for old in files[: max(0, len(files) - _MAX_FILES)]:
        old.unlink(missing_ok=True)


@functools.cache
def source_digest(kind: type) -> str | None:
    """A digest of the file that defines a method, or None where there is no such file.

    The package's own sources are in every key anyway; a method from elsewhere may change between
    two processes without its structure changing.
    """
    if kind.__module__.startswith("probkit."):
        return ""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return None


@functools.cache
def _package_digest() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return hashlib.sha256(line.encode()).hexdigest()
    except OSError:
        pass
    return platform.processor() + platform.machine()


def _environment() -> tuple:
    devices = jax.devices()
    return (
        *(metadata.version(name) for name in ("jax", "jaxlib", "numpyro", "blackjax")),
        platform.python_version(),
        _package_digest(),
        _processor(),
        tuple((d.platform, d.device_kind) for d in devices),
        os.environ.get("XLA_FLAGS", ""),
        setting("jax_enable_x64"),
        setting("jax_default_prng_impl"),
        setting("jax_threefry_partitionable"),
        str(setting("jax_default_matmul_precision")),
    )
