"""A posterior read back from a file: groups, verdict, summary and report, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probkit.core import nearest
from probkit.results._verdict import Verdict

if TYPE_CHECKING:
    import pandas
    import xarray


_NEED_MODEL = (
    "importance_resample",
    "log_evidence",
    "log_likelihood",
    "log_predictive",
    "loo",
    "predict",
    "target",
)


class SavedPosterior:
    """What `Posterior.load` returns; reads any ArviZ file, whichever library wrote it.

    Attributes:
        attrs: global attributes of the file.

    Raises:
        FileNotFoundError: no such file. ValueError: not an ArviZ file, or no posterior in it.
    """

    def __init__(self, groups: dict[str, xarray.Dataset], attrs: dict[str, Any]):
        if "posterior" not in groups:
            raise ValueError(
                f"load: the file has no posterior group; it has {sorted(groups)}: save it with "
                "posterior.save(path), or with ArviZ"
            )
        self._groups = groups
        self.attrs = attrs

    @staticmethod
    def load(path: str | Path) -> SavedPosterior:
        """Read a netCDF file."""
        from probkit.results._netcdf import load_file

        return SavedPosterior(*load_file(path))

    @property
    def draws(self) -> xarray.Dataset:
        """The posterior draws."""
        return self._groups["posterior"]

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Draws by site, shape ``(chain, draw, *shape)``."""
        names = map(str, self.draws.data_vars)
        return {k: self.draws[k].transpose("chain", "draw", ...).values for k in names}

    def __getitem__(self, name: str) -> xarray.DataArray:
        return self.draws[name]

    def label(self, site: str, index: tuple[int, ...]) -> str:
        """A component's name with its coordinate labels."""
        if not index:
            return site
        array = self.draws[site].transpose("chain", "draw", ...)
        parts = [str(array[d].values[i]) for d, i in zip(array.dims[2:], index, strict=True)]
        return f"{site}[{', '.join(parts)}]"

    def check(self) -> Verdict:
        """The verdict saved in the file, else one judged from its groups."""
        from probkit.results._report_data import ReportData

        return ReportData(self._groups, self.attrs).verdict

    def summary(self, var_names: Any = None, **options: Any) -> pandas.DataFrame:
        """As `Posterior.summary`."""
        from probkit.results._summary import picked, summarise

        return summarise(picked(self.values, var_names), self.label, **options)

    def groups(self, *names: str) -> dict[str, xarray.Dataset]:
        """The groups of the file."""
        return {k: self._groups[k] for k in names or self._groups}

    def to_arviz(self, *names: str) -> Any:
        """An ArviZ object."""
        from probkit.results._arviz import to_arviz

        return to_arviz(self.groups(*names), self.attrs)

    def report(self, path: str | Path, title: str | None = None) -> Path:
        """As `Posterior.report`."""
        from probkit.results._report import write_report

        return write_report(self._groups, path, title=title, attrs=self.attrs)

    def save(self, path: str | Path) -> Path:
        """As `Posterior.save`."""
        from probkit.results._netcdf import save_groups

        return save_groups(self._groups, path, self.attrs)

    def __getattr__(self, name: str) -> Any:
        if name in _NEED_MODEL:
            raise AttributeError(
                f"SavedPosterior.{name}: a file holds draws and tables, not the model, so that it "
                "can be read wherever ArviZ is; call it on the posterior of a fit before saving, "
                "or go on from a checkpoint: pk.fit(model, data, resume=folder)"
            )
        raise AttributeError(f"SavedPosterior has no {name!r}.{nearest(name, dir(type(self)))}")

    def __repr__(self) -> str:
        return f"SavedPosterior of {list(self.draws.data_vars)}\n{self.check()}"
