"""`python -m sc_jax.report`: `metrics.json` → report.html (self-contained), report.md, figures/*.png, metrics.csv."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from pathlib import Path

from sc_jax import cascade_pages, cli, ensemble_pages, figures, files, pages
from sc_jax.files import InputError

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
    page = workdir / "report.html"
    make, names = lambda: pages.of_files(document), pages.FILES_PICTURES
    if any(row["kind"] == "primary" for row in document.get("contrasts", [])):
        make, names = lambda: pages.of_study(workdir, document), pages.STUDY_PICTURES
        names = (*names, *pages.REASON_PICTURES) if document["max_logit_gap"] else names
    elif "cascades" in document:
        make, names = lambda: cascade_pages.head(document), ()
    elif "aggregates" in document:
        make, names = lambda: pages.of_grid(workdir, document), pages.GRID_PICTURES
    segmentation = "pictures" in document
    names = (*names, *pages.PIXEL_PICTURES) if segmentation else names
    sections = [("repair", pages.of_repair, pages.REPAIR_PICTURES)]
    sections += [("objectives", pages.of_objectives, pages.OBJECTIVE_PICTURES)]
    sections += [("ensemble", ensemble_pages.section, ensemble_pages.PICTURES)]
    if "cascades" in document:
        sections += [("cascades", cascade_pages.section, cascade_pages.pictures_of(document["cascades"]))]
        sections += [("aggregates", functools.partial(cascade_pages.members, workdir), pages.GRID_PICTURES)]
    for part, _, more_names in sections:
        names = (*names, *more_names) if part in document else names
    watched = workdir / "logit_statistics.jsonl"
    if watched.exists():
        names, built_from = (*names, *pages.TRAINING_PICTURES), f"{built_from} with {files.fingerprint_file(watched)}"
    marker = f"<!-- built from {built_from} -->"
    written = [page, workdir / "report.md", workdir / "metrics.csv", *(workdir / "figures" / name for name in names)]
    if all(path.exists() for path in written) and marker in page.read_text(encoding="utf-8"):
        print("report: done")
        return
    pictures, body, text = make()
    for part, section, _ in sections:
        if part in document:
            more, more_body, more_text = section(document)
            pictures, body, text = {**pictures, **more}, f"{body}\n{more_body}", f"{text}\n{more_text}"
    if segmentation:
        more, more_body, more_text = pages.of_pixels(workdir, document)
        pictures, body, text = {**pictures, **more}, f"{body}\n{more_body}", f"{text}\n{more_text}"
    if watched.exists():
        more, more_body, more_text = pages.of_training(workdir)
        pictures, body, text = {**pictures, **more}, f"{body}\n{more_body}", f"{text}\n{more_text}"
    for name, picture in pictures.items():
        figures.save_png(picture, workdir / "figures" / name)
    files.write_text(workdir / "metrics.csv", pages.as_csv(document))
    files.write_text(workdir / "report.md", text)
    title = text.partition("\n")[0].removeprefix("# ")
    files.write_text(page, pages.PAGE.format(built_from=built_from, title=html.escape(title), body=body))
    print(f"report: {page}")


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
