"""The study: which pieces it plans, how it resumes, and what its tables say of planted results."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.audited_videos import moving_frames, write_frames
from tools.study.__main__ import DOCS, main
from tools.study.pieces import Done, Piece, in_order, overview, read_done, run_pieces
from tools.study.plan import SUBJECTS, Sizes, Study, pieces_of
from tools.study.scores import LOSS, TOP1, TOP1_OTHER, Row, Subject, insert, picture, scores_of, spread, table
from tools.study.videos import cut_segments, link_classes

STUDY = Study(videos=(Path("real"),))


def _plan(study: Study = STUDY) -> list[Piece]:
    return in_order(piece for subject in SUBJECTS.values() for piece in pieces_of(subject(study)))


def test_every_piece_comes_after_what_it_needs_and_only_once() -> None:
    pieces = _plan()
    position = {piece: number for number, piece in enumerate(pieces)}
    assert all(position[need] < position[piece] for piece in pieces for need in piece.needs)
    for names in (Counter(piece.name for piece in pieces), Counter(str(piece.out) for piece in pieces)):
        assert names.most_common(1)[0][1] == 1


def test_every_path_that_a_command_reads_is_made_by_a_piece_that_it_needs() -> None:
    for piece in _plan():
        made = [str(need.out) for need in in_order(piece.needs)]
        paths = [word for word in piece.words if word.startswith("study/") and word != str(piece.out)]
        assert all(path in made or str(Path(path).parent) in made for path in paths), piece.name


def test_the_study_compares_what_it_promises() -> None:
    subjects = {name: subject(STUDY) for name, subject in SUBJECTS.items()}
    settings = {name: list(dict.fromkeys(row.setting for row in one.rows)) for name, one in subjects.items()}
    assert settings["gain"] == [
        "150 steps, probe's head",
        "150 steps, usual head",
        "450 steps, usual head",
        "150 steps, probe's head, one frame repeated",
    ]
    assert [len(row.scores[TOP1]) for row in subjects["gain"].rows] == [3, 3, 3, 3, 3, 1]
    assert settings["labels"] == ["10", "25", "50", "100"]
    assert settings["ratio"] == ["50 %", "75 %", "90 %", "95 %"]
    assert settings["kind"] == ["tube", "random", "frame", "motion"]
    assert settings["decoder"] == ["1 block", "2 blocks", "4 blocks", "1 block, cross-attention"]
    assert settings["joint"] == ["10", "25"]
    assert all(len(row.scores[TOP1]) == 3 for name in ("labels", "ratio", "joint") for row in subjects[name].rows)
    words = {piece.name: piece.words for piece in _plan()}
    assert "mask.ratio=0.95" in words["pretrain-ratio-95-2500-2"]
    assert "seed=2" in words["pretrain-ratio-95-2500-2"]
    assert "mask.kind=motion" in words["pretrain-mask-motion-2500-0"]
    assert "model.decoder_attention=cross" in words["pretrain-decoder-cross-2500-0"]
    assert "aux.reconstruction=0.1" in words["finetune-joint-labels-10-1"]
    assert "--init" not in words["finetune-scratch-labels-10-1"]
    assert (
        "study/runs/pretrain-motion-14800-2" in words["finetune-pretrain-motion-14800-2-slices-labels-25-steps-150-2"]
    )
    assert "standardize=true" in words["finetune-pretrain-motion-14800-2-slices-labels-25-steps-150-2"]
    assert "standardize=true" in words["finetune-pretrain-ratio-95-2500-0-slices-labels-25-steps-150-0"]
    assert {"train.steps=450", "optim.warmup_steps=90"} <= set(words["finetune-scratch-labels-25-steps-450-2"])
    assert "standardize=true" not in words["finetune-scratch-labels-25-steps-450-2"]
    assert words["page-gain"].count("--against") == 8
    assert words["finetune-pretrain-motion-14800-0-labels-10-1"].count("study/runs/pretrain-motion-14800-0") == 1


def test_the_default_study_costs_less_than_twelve_cpu_hours() -> None:
    assert sum(piece.minutes for piece in _plan()) < 12 * 60


def test_another_budget_changes_only_what_depends_on_it() -> None:
    names = {piece.name for piece in _plan()}
    other = {piece.name for piece in _plan(STUDY._replace(sizes=Sizes(pretrain_steps=77)))}
    assert {name for name in names if "2500" not in name} == {name for name in other if "-77-" not in name}


def test_real_videos_must_be_named() -> None:
    with pytest.raises(SystemExit, match="--videos"):
        SUBJECTS["real"](Study())


def _python(folder: Path, name: str, code: str, *needs: Piece) -> Piece:
    out = folder / name
    return Piece(
        name, ("python", "-c", f"import pathlib, sys; out = pathlib.Path({str(out)!r}); {code}"), out, 1.0, needs
    )


@pytest.mark.processes
@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_does_only_what_is_missing(tmp_path: Path, workers: int) -> None:
    append = "out.open('a').write('x')"
    first = _python(tmp_path, "first", append)
    second = _python(tmp_path, "second", f"assert pathlib.Path({str(first.out)!r}).exists(); {append}", first)
    third = _python(tmp_path, "third", f"{append}; sys.exit(0 if len(out.read_text()) > 1 else 3)", second)
    last = _python(tmp_path, "last", append, third)
    pieces = in_order([last])
    assert pieces == [first, second, third, last]
    with pytest.raises(SystemExit) as ended:
        run_pieces(tmp_path, pieces, workers)
    assert ended.value.code == 3
    assert not last.out.exists()
    assert [line.split()[:2] for line in overview(tmp_path, pieces).splitlines()][:4] == [
        ["done", "0.0"],
        ["done", "0.0"],
        ["to", "do"],
        ["to", "do"],
    ]
    assert overview(tmp_path, pieces).endswith("2 pieces of about 2 remain")
    run_pieces(tmp_path, pieces, workers)
    run_pieces(tmp_path, pieces, workers)
    assert [piece.out.read_text() for piece in pieces] == ["x", "x", "xx", "x"]


@pytest.mark.processes
def test_a_piece_runs_again_if_its_command_changed_or_its_result_is_gone(tmp_path: Path) -> None:
    piece = _python(tmp_path, "piece", "out.write_text('old')")
    run_pieces(tmp_path, [piece], 1)
    changed = _python(tmp_path, "piece", "out.write_text('new')")
    run_pieces(tmp_path, [changed], 1)
    assert changed.out.read_text() == "new"
    changed.out.unlink()
    assert read_done(tmp_path, changed) is None


def _planted(folder: Path, name: str, file: str, scores: object) -> Piece:
    piece = Piece(name, ("python",), folder / name, 1.0)
    piece.out.mkdir(parents=True)
    (piece.out / file).write_bytes(msgspec.json.encode(scores))
    (folder / "done").mkdir(exist_ok=True)
    (folder / "done" / f"{name}.json").write_bytes(msgspec.json.encode(Done(piece.words, 90.0)))
    return piece


@pytest.fixture
def planted(tmp_path: Path) -> Subject:
    per_class = {"pan-left": 100.0, "zoom-in": 20.0, "rotate-clockwise": 40.0}
    missing = Piece("missing", ("python",), tmp_path / "missing", 1.0)

    def row(setting: str, series: str, *top1: float) -> Row:
        scores = [{"top1": value, "per_class": per_class} for value in top1]
        tuned = [_planted(tmp_path, f"{setting}-{series}-{n}", "evaluation.json", one) for n, one in enumerate(scores)]
        return Row(setting, series, {TOP1: tuple(tuned), TOP1_OTHER: (*tuned[:1], missing)})

    rows = (row("10", "scratch", 30, 40, 50), row("25", "scratch", 70), row("10", "pretrained"))
    return Subject("labels", "labels a class", rows)


def test_a_table_has_mean_spread_and_every_run(tmp_path: Path, planted: Subject) -> None:
    assert table(tmp_path, planted).splitlines() == [
        "| labels a class | start | finetuned top-1, % | of rotations and zooms, % |",
        "| --- | --- | --- | --- |",
        "| 10 | scratch | 40.0 ± 10.0 (30.0, 40.0, 50.0) | 30.0 |",
        "| 25 | scratch | 70.0 | 30.0 |",
        "| 10 | pretrained | not run yet | not run yet |",
    ]
    assert table(tmp_path, planted._replace(rows=planted.rows[2:])) == "Not run yet."
    assert spread([0.5, 0.75], 3) == "0.625 ± 0.177 (0.500, 0.750)"


def test_a_score_may_be_the_file_of_its_piece(tmp_path: Path) -> None:
    piece = _planted(tmp_path, "loss", "other", {})
    piece = piece._replace(out=tmp_path / "loss.json")
    piece.out.write_bytes(b'{"loss": 0.75, "videos": 3}')
    assert scores_of(tmp_path, Row("a", "b", {LOSS: (piece,)}), LOSS) == [0.75]


def test_a_picture_names_axes_and_series_and_is_the_same_twice(tmp_path: Path, planted: Subject) -> None:
    svg = picture(tmp_path, planted)
    assert svg == picture(tmp_path, planted)
    for text in ("finetuned top-1, %", "labels a class", "scratch", "10", "25"):
        assert f"<!-- {text} -->" in svg.decode()


def test_a_section_of_the_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- labels: made by tools.study -->\n\nold\n\n<!-- end of labels -->\n\nafter\n")
    for _ in range(2):
        insert(page, "labels", "| a\\1 |")
    assert page.read_text().split("\n\n") == [
        "before",
        "<!-- labels: made by tools.study -->",
        "| a\\1 |",
        "<!-- end of labels -->",
        "after\n",
    ]
    with pytest.raises(SystemExit, match="markers"):
        insert(page, "ratio", "new")


def test_the_page_has_a_section_for_every_subject() -> None:
    page = (Path(__file__).parents[2] / DOCS / "study.md").read_text()
    assert re.findall(r"<!-- (\w+): made by tools.study -->\n", page) == list(SUBJECTS)
    assert re.findall(r"<!-- end of (\w+) -->", page) == list(SUBJECTS)


def test_the_command_lists_pieces_and_refuses_unknown_subjects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["labels", "--list", "--seeds", "5", "--folder", str(tmp_path)])
    listed = capsys.readouterr().out
    assert "finetune-scratch-labels-100-5\n" in listed
    assert "ratio" not in listed
    with pytest.raises(SystemExit, match="no such subject: labells"):
        main(["labells"])
    with pytest.raises(SystemExit, match="name subjects"):
        main([])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_some_classes_links_their_videos(tmp_path: Path) -> None:
    for name in ("pan-left/a.mp4", "pan-up/b.mp4", "zoom-in/c.mp4"):
        (tmp_path / "all" / name).parent.mkdir(parents=True)
        (tmp_path / "all" / name).write_text(name)
    link_classes(tmp_path / "all", tmp_path / "pans", "pan-")
    assert sorted(path.read_text() for path in (tmp_path / "pans").rglob("*.mp4")) == ["pan-left/a.mp4", "pan-up/b.mp4"]
    with pytest.raises(SystemExit, match="no class turn"):
        link_classes(tmp_path / "all", tmp_path / "turns", "turn")


@pytest.mark.processes
def test_segments_of_a_video_are_for_training_or_held_out(tmp_path: Path) -> None:
    for number, name in enumerate("abcde"):
        write_frames(tmp_path / f"{name}.mp4", moving_frames(number, 0, 30 if name == "e" else 85))
    cut_segments([tmp_path], tmp_path / "cut")
    made = sorted(str(path.relative_to(tmp_path / "cut")) for path in (tmp_path / "cut").rglob("*.mp4"))
    assert made == [
        *(f"later/{name}/{name}-01.mp4" for name in "abc"),
        *(f"train/{name}/{name}-00.mp4" for name in "abc"),
        *("unseen/d/d-00.mp4", "unseen/d/d-01.mp4"),
    ]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_a_tiny_study_from_videos_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = Sizes(2, 2, 2, 1, 1, 4, train_videos=40, val_videos=16, labels=(1, 2), few_labels=1)
    subject = SUBJECTS["quality"](Study(tmp_path, (0,), sizes))
    subject = subject._replace(rows=subject.rows[:2])
    pieces = pieces_of(subject)
    run_pieces(tmp_path, pieces, 2)
    text = table(tmp_path, subject)
    assert "not run yet" not in text
    # The audit keeps exactly the lively half.
    assert [line.split(" | ")[1] for line in text.splitlines()[2:]] == ["40", "20"]
    capsys.readouterr()
    run_pieces(tmp_path, pieces, 2)
    assert capsys.readouterr().err == ""
