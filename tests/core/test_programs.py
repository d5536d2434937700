"""Compiled programs: found again where they are the same, and never where they are not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

import probkit as pk
from probkit.core import Target, run
from probkit.core import _programs as programs
from probkit.core._programs import compiled, density_fingerprint, describe
from tests.core import cached
from tests.core.walk import Walk, normal_target

_JAX_CACHE = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def jax_cache_off():
    """What JAX's own persistent cache serves is not stored a second time; here nothing is."""
    jax.config.update("jax_enable_compilation_cache", False)
    jax_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    jax_cache.reset_cache()


@pytest.fixture
def folder(tmp_path, monkeypatch, jax_cache_off):
    monkeypatch.setenv("PROBKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _files(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("*.bin")} if folder.exists() else set()


def _fit(scale: float = 1.0) -> str:
    """A fit of a Model made anew, as another process would make it."""
    return cached.digest(
        pk.fit(cached.model(scale), cached.DATA, method=cached.method(), seed=3, progress=False)
    )


def _walk() -> np.ndarray:
    return run(normal_target(), Walk(draws=5), 0).output.unconstrained


# -- the disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
def test_a_second_process_compiles_no_sampler(folder, devices):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"

    def process() -> tuple[int, str]:
        out = subprocess.run(
            [sys.executable, "-m", "tests.core.cached"],
            cwd=_ROOT,
            env={
                **os.environ,
                "PROBKIT_CACHE": str(folder),
                "JAX_ENABLE_COMPILATION_CACHE": "0",
                "XLA_FLAGS": flags if devices > 1 else os.environ["XLA_FLAGS"],
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        return int(out[0]), out[1]

    first, draws = process()
    assert first >= 2
    made = _files(folder)
    assert made
    second, again = process()
    # (Dividing arrays among devices compiles small programs of JAX's own.)
    assert second == 0 if devices == 1 else second <= first - 2
    assert again == draws
    assert _files(folder) == made
    if devices == 1:
        assert _fit() == draws  # and this process finds them too
        assert _files(folder) == made


def test_the_folder_is_its_owners_alone(folder):
    _fit()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"no program", None], ids=["empty", "text", "cut"])
def test_a_corrupted_file_is_thrown_away(folder, damage):
    draws = _walk()
    made = _files(folder)
    sizes = {n: (folder / n).stat().st_size for n in made}
    for name in made:
        path = folder / name
        path.write_bytes(path.read_bytes()[:1000] if damage is None else damage)
    np.testing.assert_array_equal(_walk(), draws)
    assert _files(folder) == made
    for name in made:
        assert (folder / name).stat().st_size > 0.5 * sizes[name]


@pytest.mark.parametrize("word", ["off", "OFF", "0", "none"])
def test_the_cache_can_be_switched_off(monkeypatch, tmp_path, word):
    monkeypatch.setenv("PROBKIT_CACHE", word)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert programs.cache_folder() is None
    monkeypatch.setenv("PROBKIT_CACHE", "")
    assert programs.cache_folder() == tmp_path / "probkit"


def test_nothing_is_written_when_it_is_off(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBKIT_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run(normal_target(), Walk(draws=5), 0)
    assert not list(tmp_path.rglob("*.bin"))


def test_an_impossible_folder_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROBKIT_CACHE", str(tmp_path / "file" / "cache"))
    assert programs.cache_folder() is None
    assert run(normal_target(), Walk(draws=5), 0).status.ok


def test_old_files_are_pruned(folder, monkeypatch):
    monkeypatch.setattr(programs, "_MAX_FILES", 3)
    for dimension in range(1, 5):
        run(normal_target(dimension), Walk(draws=3), 0)
    assert 0 < len(_files(folder)) <= 3


def test_what_jaxs_own_cache_served_is_not_stored_again(folder, monkeypatch, tmp_path):
    """Serialised a second time, such an executable lacks functions, and fails when it is run."""
    old = {k: getattr(jax.config, k) for k in _JAX_CACHE}
    try:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax_cache.reset_cache()
        draws = _fit()
        assert _files(folder)
        for name in ("second", "second"):
            monkeypatch.setenv("PROBKIT_CACHE", str(tmp_path / name))
            assert _fit() == draws
        assert not _files(tmp_path / "second")
    finally:
        for name, value in old.items():
            jax.config.update(name, value)
        jax_cache.reset_cache()


# -- never a stale program ------------------------------------------------------------------------


def test_one_constant_changed_is_another_program(folder):
    one = _fit(1.0)
    made = _files(folder)
    other = _fit(1.5)
    assert other != one
    assert _files(folder) > made
    assert _fit(1.0) == one


def _around(array):
    return Target.from_log_density(
        lambda z: -0.5 * jnp.sum((z["x"] - array) ** 2), {"x": np.zeros(array.shape)}
    )


@pytest.mark.parametrize("size", [3, 50, 20_000])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_one_number_of_an_array_closed_over_is_part_of_the_key(size, kind):
    """Arrays are printed in full, however long: an ellipsis would make two programs one."""
    plain = np.linspace(0, 1, size, dtype=np.float32)
    changed = plain.copy()
    changed[size // 2] += 1e-4
    one, same, other = (density_fingerprint(_around(kind(a))) for a in (plain, plain, changed))
    assert one == same
    assert one != other


@pytest.mark.parametrize("size", [3, 20_000])
def test_a_run_sees_the_array_it_closes_over(folder, size):
    method = pk.HMC(draws=2, warmup=0, chains=1, leapfrog=1, metric="diag")
    draws = [
        run(_around(np.full(size, centre, np.float32)), method, 0).output.unconstrained
        for centre in (0.0, 5.0, 0.0)
    ]
    assert not np.array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])


def test_methods_differ_by_their_static_fields(folder):
    texts = [
        describe(pk.NUTS(**options))
        for options in (
            {},
            {"max_depth": 5},
            {"metric": "diag"},
            {"chains": 2},
            {"warmup": 500},
            {"engine": "numpyro"},
        )
    ]
    assert None not in texts
    assert len(set(texts)) == 5  # the length of the warm-up is traced, and no part of the key
    assert texts[0] == texts[4]


def test_what_has_no_name_of_its_own_has_no_key():
    assert describe({"fn": jax.tree_util.Partial(lambda x: x)}) is None


def test_dtype_is_part_of_the_key():
    narrow = density_fingerprint(normal_target())
    with jax.enable_x64(True):
        assert density_fingerprint(normal_target()) != narrow


# -- memory ---------------------------------------------------------------------------------------


def test_memory_is_bounded():
    target = normal_target()
    for i in range(100):
        target.program.cached(("entry", i), lambda: object())
    assert len(target.program._compiled) <= 64
    kept = target.program.cached(("entry", 99), lambda: None)
    assert kept is not None


def test_a_failing_build_is_not_kept():
    target = normal_target()

    def fail():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        target.program.cached("entry", fail)
    assert target.program.cached("entry", lambda: 1) == 1


def test_compiled_by_variant_and_shape(folder):
    target = normal_target()
    double = compiled(target.program, "f", 2, lambda x: 2 * x, (np.ones(3, np.float32),))
    triple = compiled(target.program, "f", 3, lambda x: 3 * x, (np.ones(3, np.float32),))
    again = compiled(target.program, "f", 2, lambda x: 2 * x, (np.zeros(3, np.float32),))
    assert again is double
    np.testing.assert_array_equal(double(np.ones(3, np.float32)), 2 * np.ones(3))
    np.testing.assert_array_equal(triple(np.ones(3, np.float32)), 3 * np.ones(3))


def test_sums_in_batched_programs_are_right():
    # A library of XLA's for reductions gave other sums here (jaxlib 0.10.2), off by whole nats.
    from scipy import stats

    kappa = (10 * np.exp(np.linspace(-0.4, 0.4, 1024))).astype(np.float32)
    y = np.random.default_rng(1).beta(3.0, 7.0, 37).astype(np.float32)
    fn = jax.vmap(lambda k, y: pk.dist.Beta(k * 0.3, k * 0.7).log_prob(y), (0, None))
    program = pk.Model(a=pk.dist.Normal(0, 1)).bind({}).program
    found = compiled(program, "test_sums", None, fn, (kappa, y))(kappa, y)
    k = kappa[:, None].astype(float)
    np.testing.assert_allclose(
        found, stats.beta.logpdf(y.astype(float), 0.3 * k, 0.7 * k), atol=1e-3
    )


def _text(fn, *shapes, dtype=np.float64):
    with jax.enable_x64(True):
        args = [np.ones(s, dtype) for s in shapes]
        return jax.jit(fn).lower(*args).as_text()


@pytest.mark.parametrize(
    ("shapes", "large"),
    [
        (((110, 110), (110, 110)), True),
        (((100, 100), (100, 100)), False),
        (((2000, 600), (600,)), True),
        (((1000, 5, 5), (1000, 5, 5)), False),  # many small ones
        (((3, 128, 128), (3, 128, 128)), True),
    ],
)
def test_large_products_of_doubles_are_seen(shapes, large):
    assert programs._has_large_product(_text(jnp.matmul, *shapes)) == large
    assert not programs._has_large_product(_text(jnp.matmul, *shapes, dtype=np.float32))


def test_a_program_of_large_products_gives_what_the_plain_one_does():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(130, 130))
    with jax.enable_x64(True):
        lowered = jax.jit(lambda a: a @ a.T @ a).lower(a)
        made = programs._compile(lowered, lowered.as_text(), {})
        np.testing.assert_allclose(made(a), a @ a.T @ a, rtol=1e-10, atol=1e-9)
