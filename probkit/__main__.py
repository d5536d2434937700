"""``python -m probkit``: a report of a saved posterior, and what is installed.

    python -m probkit report FILE.nc -o report.html
    python -m probkit info
    python -m probkit --version

``report`` works on any netCDF file with a group ``posterior``, whichever library wrote it.
Exit codes: 0 done; 1 ``--strict`` was given and the verdict is not OK; 2 the command or the file
cannot be used.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from probkit._version import __version__

_PACKAGES = (
    "jax",
    "jaxlib",
    "numpyro",
    "blackjax",
    "arviz",
    "xarray",
    "equinox",
    "optax",
    "lineax",
    "optimistix",
    "gpjax",
    "funsor",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "formulaic",
    "h5netcdf",
    "netCDF4",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"probkit: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m probkit",
        description="Reports on saved posteriors, and what is installed.",
    )
    parser.add_argument("--version", action="version", version=f"probkit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    report = commands.add_parser(
        "report",
        help="write an HTML page about the posterior in a netCDF file",
        description="Write one self-contained HTML page about the posterior in a netCDF file, "
        "whichever library wrote the file through ArviZ.",
    )
    report.add_argument("file", help="netCDF file with a group 'posterior'")
    report.add_argument("-o", "--output", help="HTML file to write; default: FILE with .html")
    report.add_argument("--title", help="heading of the page")
    report.add_argument("--strict", action="store_true", help="exit 1 if the verdict is not OK")
    report.set_defaults(run=_report)

    info = commands.add_parser("info", help="print versions and devices")
    info.set_defaults(run=_info)
    return parser


def _report(options: argparse.Namespace) -> int:
    from probkit.results._netcdf import load_file
    from probkit.results._report import write_page
    from probkit.results._report_data import ReportData

    groups, attrs = load_file(options.file)
    output = Path(options.output or Path(options.file).with_suffix(".html"))
    if output.resolve() == Path(options.file).resolve():
        raise ValueError(f"report: {str(output)!r} is the input itself; give -o another name.")
    data = ReportData(groups, attrs)
    title = options.title or attrs.get("title") or Path(options.file).stem
    write_page(data, output, title=str(title))
    print(data.verdict.headline())
    print(f"wrote {output}")
    return 1 if options.strict and not data.verdict.ok else 0


def _info(options: argparse.Namespace) -> int:
    import jax

    print(f"probkit {__version__}")
    print(f"python {platform.python_version()} ({platform.platform()})")
    for name in _PACKAGES:
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} -")
    devices = [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()]
    print(f"devices: {', '.join(devices)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
