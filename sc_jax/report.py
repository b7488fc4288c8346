"""`python -m sc_jax.report`: `metrics.json` → report.html (self-contained), report.md, figures/*.png, metrics.csv."""

from __future__ import annotations

import functools
import html
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sc_jax import cascade_pages, cli, ensemble_pages, figures, files, pages
from sc_jax.files import InputError
from sc_jax.training import logs

SOURCES = ("pages.py", "cascade_pages.py", "ensemble_pages.py", "figures.py")
"""What a report is made by."""


def report(workdir: Path) -> None:
    """Writes the report of what `metrics.json` in `workdir` holds, unless it is written already.

    Raises:
      InputError: there is no `metrics.json`, or it is not one of ours.
    """
    source = workdir / "metrics.json"
    if not source.exists():
        raise InputError(f"{source}: no such file; run `python -m sc_jax.evaluate --workdir={workdir} …` first")
    document = files.read_json(source)
    if not isinstance(document, dict) or document.get("schema") != 1 or not document.get("runs"):
        raise InputError(f"{source}: not a metrics.json of schema 1 with at least one run; evaluate again")
    built_from = f"{files.fingerprint_json(document)} by {files.fingerprint_sources(*SOURCES)}"
    page, watched, stamps = (workdir / name for name in ("report.html", "logit_statistics.jsonl", "logs.json"))
    if watched.exists():
        if stamps.exists() and watched.name in (known := files.read_json(stamps, sealed=True)):
            logs.require(watched, known[watched.name])
        built_from = f"{built_from} with {files.fingerprint_file(watched)}"
    try:
        sections, names = _sections(workdir, document)
        written = ["report.html", "report.md", "metrics.csv", *(f"figures/{name}" for name in names)]
        if _is_whole(workdir, built_from, written):
            print("report: done")
            return
        parts = [section(document) for section in sections]
        table = pages.as_csv(document)
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{source}: not a metrics.json that can be drawn ({what}); evaluate again") from error
    body, text = ("\n".join(part[i] for part in parts) for i in (1, 2))
    for pictures, _, _ in parts:
        for name, picture in pictures.items():
            figures.save_png(picture, workdir / "figures" / name)
    files.write_text(workdir / "metrics.csv", table)
    files.write_text(workdir / "report.md", text)
    title = text.partition("\n")[0].removeprefix("# ")
    files.write_text(page, pages.PAGE.format(built_from=built_from, title=html.escape(title), body=body))
    hashes = {name: files.fingerprint_file(workdir / name) for name in written if (workdir / name).exists()}
    files.write_json(
        workdir / "report.json", {"built_from": built_from, "files": hashes}, seal=True
    )  # last: all is there
    print(f"report: {page}")


Section = Callable[[dict[str, Any]], tuple[Mapping[str, Any], str, str]]


def _sections(workdir: Path, document: dict[str, Any]) -> tuple[list[Section], list[str]]:
    """What makes each section of the report, and the names of all pictures."""
    first, names = pages.of_files, list(pages.FILES_PICTURES)
    if any(row["kind"] == "primary" for row in document.get("contrasts", [])):
        first, names = functools.partial(pages.of_study, workdir), list(pages.STUDY_PICTURES)
        names += [name for part, name in pages.REASON_PICTURES.items() if document[part]]
    elif "cascades" in document:
        first, names = cascade_pages.head, []
    elif "aggregates" in document:
        first, names = functools.partial(pages.of_grid, workdir), list(pages.GRID_PICTURES)
    known = [("repair", pages.of_repair, pages.REPAIR_PICTURES)]
    known += [("objectives", pages.of_objectives, pages.OBJECTIVE_PICTURES)]
    known += [("ensemble", ensemble_pages.section, ensemble_pages.PICTURES)]
    if "cascades" in document:
        known += [("cascades", cascade_pages.section, cascade_pages.pictures_of(document["cascades"]))]
        known += [("aggregates", functools.partial(cascade_pages.members, workdir), pages.GRID_PICTURES)]
    known += [("pictures", functools.partial(pages.of_pixels, workdir), pages.PIXEL_PICTURES)]
    sections = [first]
    for part, section, pictures in known:
        if part in document:
            sections.append(section)
            names += pictures
    if (workdir / "logit_statistics.jsonl").exists():
        sections.append(functools.partial(pages.of_training, workdir))
        names += pages.TRAINING_PICTURES
    return sections, names


def _is_whole(workdir: Path, built_from: str, names: Sequence[str]) -> bool:
    """Whether every file of the report is there as it was written, and built from just this."""
    path = workdir / "report.json"
    if not path.exists():
        return False
    try:
        stated = files.read_json(path, sealed=True)
        hashes = {name: files.fingerprint_file(workdir / name) for name in names}
    except InputError as error:
        print(f"report: {error}; it is written again", file=sys.stderr)
        return False
    changed = [name for name in names if stated["files"].get(name) != hashes[name]]
    if changed and stated["built_from"] == built_from:
        print(f"report: damaged, or changed by hand: {', '.join(changed)}; written again", file=sys.stderr)
    return not changed and stated["built_from"] == built_from


def main(argv: Sequence[str] | None = None) -> None:
    """The door."""
    arguments = cli.parser("report", __doc__)
    arguments.add_argument("--workdir", required=True, metavar="DIR", help="where metrics.json is")
    workdir = Path(arguments.parse_args(argv).workdir)
    if not workdir.is_dir():
        raise InputError(f"{workdir}: no such workdir; evaluate into it first")
    with files.lock(workdir):
        report(workdir)


if __name__ == "__main__":
    cli.main(main)
