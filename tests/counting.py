"""Counts backend compilations, the events that JAX's monitoring tells of."""

from __future__ import annotations

from typing import Any

import jax


class Compiles:
    """``with Compiles() as counter: ...``; then ``counter.count`` compilations were made."""

    def __enter__(self) -> Compiles:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, seconds: float, **more: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"
