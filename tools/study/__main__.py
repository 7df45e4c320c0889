"""A study on demo videos: what decides how well a pretraining does. Tables and pictures for docs/study.md.

    python -m tools.study SUBJECT… [--seeds 0,1,2] [--workers 2] [--folder study] [--budget 2500] [--videos PATH]…
    python -m tools.study --list

Every step is a command that a person could type, and is printed. A second call does only what is missing.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from tools.study.pieces import in_order, overview, parse_seeds, read_done, run_pieces
from tools.study.plan import SUBJECTS, Sizes, Study, pieces_of, real_videos
from tools.study.scores import NOT_RUN, Subject, insert, picture, table
from vmae_data.storage import commit_bytes

DOCS = Path("docs")


def main(words: list[str] | None = None) -> None:
    options = _parser().parse_args(words)
    study = Study(
        options.folder, options.seeds, Sizes(pretrain_steps=options.budget), real_videos(tuple(options.videos))
    )
    chosen = options.subjects or [name for name in SUBJECTS if name != "real" or study.videos]
    if unknown := sorted(set(chosen) - set(SUBJECTS)):
        raise SystemExit(f"no such subject: {', '.join(unknown)}. There are {', '.join(SUBJECTS)}")
    if not (options.subjects or options.list or options.docs):
        raise SystemExit(f"name subjects: {', '.join(SUBJECTS)}; or --list, or --docs")
    subjects = [SUBJECTS[name](study) for name in chosen]
    pieces = in_order(piece for subject in subjects for piece in pieces_of(subject))
    if options.list:
        print(overview(study.folder, pieces))
        return
    if not options.docs:
        run_pieces(study.folder, pieces, options.workers)
    for subject in subjects:
        show(study, subject, DOCS if options.docs else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2), help="[default: 0,1,2]")
    parser.add_argument("--workers", type=_positive, default=1, help="commands at a time [default: 1]")
    parser.add_argument("--folder", type=Path, default=Path("study"), help="[default: study]")
    parser.add_argument(
        "--budget",
        type=_positive,
        default=Sizes().pretrain_steps,
        metavar="STEPS",
        help="steps of a pretraining [default: 2500]",
    )
    parser.add_argument("--videos", type=Path, action="append", default=[], help="real videos, a file or a folder")
    parser.add_argument("--list", action="store_true", help="print the pieces, and which are done; run nothing")
    parser.add_argument("--docs", action="store_true", help="copy tables and pictures into docs; run nothing")
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def show(study: Study, subject: Subject, docs: Path | None) -> None:
    """Print the table, and write it and the picture to the study's folder and, if named, to `docs`."""
    text = table(study.folder, subject)
    print(f"\n{text}" if docs is None else f"{subject.name}: {'not run yet' if text == NOT_RUN else 'copied'}")
    if text != NOT_RUN:
        done = [found for piece in pieces_of(subject) if (found := read_done(study.folder, piece))]
        minutes = sum(one.cpu_seconds for one in done) / 60
        seeds = ", ".join(map(str, study.seeds))
        text += (
            f"\n\nSeeds {seeds}. Pretrainings have {study.sizes.pretrain_steps:,} steps unless the row says"
            f"\notherwise. {len(done)} pieces took {minutes:.0f} CPU minutes, some shared with other subjects."
        )
        svg = picture(study.folder, subject)
        (study.folder / "tables").mkdir(parents=True, exist_ok=True)
        commit_bytes(study.folder / "tables" / f"{subject.name}.md", f"{text}\n".encode())
        commit_bytes(study.folder / "tables" / f"{subject.name}.svg", svg)
        if docs is not None:
            name = f"study-{subject.name}.svg"
            commit_bytes(docs / "pictures" / name, svg)
            text += f"\n\n![scores of {subject.name}](pictures/{name})"
    if docs is not None:
        insert(docs / "study.md", subject.name, text)


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
