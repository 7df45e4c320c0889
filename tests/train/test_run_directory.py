"""Runs in a real bucket: complete uploads, resumed on other machines, never mixed with another run's files."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.command import call_command, command_line
from tests.loopback import free_ports
from tests.s3_server import PUBLIC, S3Bucket, S3Server
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import proxy_thread
from vmae_data.errors import MisuseError
from vmae_train.runs.run_directory import RunDirectory
from vmae_train.runs.run_files import local_copy

pytestmark = pytest.mark.processes

STEPS = 12
MEASURED = {"clips_per_second", "data_wait", "limits", "cache_hits", "read_mb", "memory_mb"}
STATE = "state.json"


def _arguments(data: str | Path, out: str | Path, *more: str | Path) -> list[str | Path]:
    arguments: list[str | Path] = ["vmae_train", "pretrain", "--recipe", "pretrain/demo", "--data", data, "--out", out]
    settings = (f"train.steps={STEPS}", "checkpoint.every_steps=3", "log.every_steps=1", "model.depth=1")
    return [*arguments, *(word for setting in settings for word in ("--set", setting)), "--quiet", *more]


def _environment(bucket: S3Bucket, machine: Path, **more: str) -> dict[str, str]:
    """The environment of a machine that has its own cache and reaches the bucket."""
    return {**os.environ, **bucket.environment, "VMAE_CACHE": str(machine), **more}


def _names(bucket: S3Bucket, prefix: str = "run") -> set[str]:
    return {meta["path"].removeprefix(f"{prefix}/") for page in bucket.store().list(prefix) for meta in page}


def _bytes(bucket: S3Bucket, name: str) -> bytes:
    return bytes(bucket.store().get(f"run/{name}").bytes())


def _numbers(log: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines if line["kind"] != "start"]


def _checkpoint(step: int) -> str:
    return f"checkpoints/step-{step:09d}"


@pytest.fixture(scope="session")
def local_run(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in a folder."""
    out = tmp_path_factory.mktemp("local") / "run"
    call_command(*_arguments(demo_shards, out))
    return out


def _is_the_run(bucket: S3Bucket, local: Path) -> None:
    for name in ("model.safetensors", "model.json", "optimizer.safetensors", STATE):
        assert _bytes(bucket, f"{_checkpoint(STEPS)}/{name}") == (local / _checkpoint(STEPS) / name).read_bytes()
    assert _numbers(_bytes(bucket, "log.jsonl")) == _numbers((local / "log.jsonl").read_bytes())


def _kill_when_published(process: subprocess.Popen[bytes], bucket: S3Bucket, step: int) -> None:
    until = time.monotonic() + 120
    while f"{_checkpoint(step)}/{STATE}" not in _names(bucket) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_resumes_from_the_bucket_on_another_machine_and_ends_the_same(
    demo_shards: Path, local_run: Path, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    arguments = _arguments(demo_shards, f"{s3_bucket.url}/run")
    process = subprocess.Popen(command_line(*arguments), env=_environment(s3_bucket, tmp_path / "one"))
    _kill_when_published(process, s3_bucket, 3)
    done = call_command(*arguments[:-1], env=_environment(s3_bucket, tmp_path / "two"))
    assert "3 done" in done.stderr or "6 done" in done.stderr or "9 done" in done.stderr
    _is_the_run(s3_bucket, local_run)
    kept = {name.split("/")[1] for name in _names(s3_bucket) if name.startswith("checkpoints/")}
    assert kept == {path.name for path in (local_run / "checkpoints").iterdir()}
    # The first machine's folder is older: it downloads what the other machine did.
    done = call_command(*arguments[:-1], "--json", env=_environment(s3_bucket, tmp_path / "one"))
    assert json.loads(done.stdout)["step"] == STEPS
    _is_the_run(s3_bucket, local_run)


def test_a_checkpoint_that_could_not_be_uploaded_is_kept_and_uploaded_by_the_next_start(
    demo_shards: Path, local_run: Path, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    arguments = _arguments(demo_shards, f"{s3_bucket.url}/run", "--scratch", tmp_path / "scratch")
    down = Faults(
        faults=(Fault(kind=Kind.STATUS, status=500),), methods=("PUT", "POST"), path_part="6/optimizer.safetensors"
    )
    with proxy_thread(s3_bucket.server.endpoint, down) as proxy:
        hasty = _environment(s3_bucket.through(proxy.url), tmp_path / "one", VMAE_STORAGE_OPTIONS='{"give_up": "2"}')
        done = call_command(*arguments, env=hasty, status=1)
    assert done.stderr.count("\n") == 1
    assert f"{s3_bucket.url}/run/{_checkpoint(6)}/optimizer.safetensors" in done.stderr
    assert f"{_checkpoint(6)}/{STATE}" not in _names(s3_bucket)
    (folder,) = (tmp_path / "scratch").iterdir()
    assert (folder / _checkpoint(6) / STATE).is_file()
    done = call_command(
        *[word for word in arguments if word != "--quiet"], env=_environment(s3_bucket, tmp_path / "one")
    )
    assert "6 done" in done.stderr
    _is_the_run(s3_bucket, local_run)


def test_a_killed_upload_leaves_no_checkpoint(
    demo_shards: Path, local_run: Path, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    arguments = _arguments(demo_shards, f"{s3_bucket.url}/run")
    call_command(*arguments, env=_environment(s3_bucket, tmp_path / "one"))
    s3_bucket.store().delete(f"run/{_checkpoint(STEPS)}/{STATE}")
    done = call_command(*[w for w in arguments if w != "--quiet"], env=_environment(s3_bucket, tmp_path / "two"))
    assert "9 done" in done.stderr
    _is_the_run(s3_bucket, local_run)


def test_a_local_copy_of_another_run_is_discarded(demo_shards: Path, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    arguments = _arguments(demo_shards, f"{s3_bucket.url}/run")
    one = _environment(s3_bucket, tmp_path / "one")
    call_command(*arguments, env=one)
    for name in _names(s3_bucket):
        s3_bucket.store().delete(f"run/{name}")
    other = [*arguments, "--set", "mask.ratio=0.5"]
    call_command(*other, env=_environment(s3_bucket, tmp_path / "two"))
    before = _bytes(s3_bucket, f"{_checkpoint(STEPS)}/model.safetensors")
    done = call_command(*arguments, env=one, status=2)
    assert f"{s3_bucket.url}/run: was started with other settings" in done.stderr
    assert "recipe.mask.ratio: 0.5 → 0.75" in done.stderr
    call_command(*other, env=one)
    assert _bytes(s3_bucket, f"{_checkpoint(STEPS)}/model.safetensors") == before


def test_of_two_trainings_of_one_run_only_the_last_started_continues(
    demo_shards: Path, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    arguments = _arguments(demo_shards, f"{s3_bucket.url}/run", "--set", "train.steps=100000")
    with ExitStack() as stack:
        words = command_line(*arguments)
        env = _environment(s3_bucket, tmp_path / "one")
        first = stack.enter_context(subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True))
        stack.callback(first.kill)
        until = time.monotonic() + 120
        while f"{_checkpoint(3)}/{STATE}" not in _names(s3_bucket) and time.monotonic() < until:
            time.sleep(0.05)
        # A refused training claims nothing.
        call_command(*arguments, "--set", "mask.ratio=0.5", env=_environment(s3_bucket, tmp_path / "two"), status=2)
        assert first.poll() is None
        second = stack.enter_context(subprocess.Popen(words, env=_environment(s3_bucket, tmp_path / "two")))
        stack.callback(second.terminate)
        _, printed = first.communicate(timeout=280)
        assert first.returncode == 1
        assert "another process has taken over this run" in printed
        assert printed.count("\n") == 1
        assert second.poll() is None
    assert second.wait() == 143


def test_checkpoints_data_and_outputs_may_all_be_urls(demo_shards: Path, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    """No file, remote or local, and no printed line contains a secret."""
    store, url = s3_bucket.store(), s3_bucket.url
    for path in demo_shards.iterdir():
        store.put(f"data/{path.name}", path.read_bytes())
    env = _environment(s3_bucket, tmp_path / "one")
    data = f"{url}/data"
    shown = [call_command(*[w for w in _arguments(data, f"{url}/run") if w != "--quiet"], env=env)]
    ft = ["vmae_train", "finetune", "--recipe", "finetune/demo", "--data", data, "--val", data, "--out", f"{url}/ft"]
    settings = ["--set", "train.steps=4", "--set", "evaluate.views='1x1'", "--set", "model.depth=1"]
    settings += ["--set", "evaluate.every_steps=2", "--set", "ema.decay=0.9"]
    shown.append(call_command(*ft, "--init", f"{url}/run", *settings, env=env))
    scores = ["evaluate", f"{url}/ft", "--data", data, "--views", "1x1", "--out", f"{url}/out/scores.json"]
    shown.append(call_command("vmae_train", *scores, env=env))
    assert _bytes_at(s3_bucket, "out/scores.json") == _bytes_at(s3_bucket, "ft/evaluation.json")
    best = json.loads(_bytes_at(s3_bucket, "ft/best.json"))["step"]
    there = _names(s3_bucket, "ft")
    assert {f"{_checkpoint(step)}/{name}" for step in (best, 4) for name in ("ema.safetensors", "state.json")} <= there
    answers = ["evaluate", f"{url}/ft", "--data", data, "--best", "--ema", "--predictions", f"{url}/out/a.parquet"]
    shown.append(call_command("vmae_train", *answers, env=env))
    assert _bytes_at(s3_bucket, "out/a.parquet").startswith(b"PAR1")
    picture = ["reconstruct", f"{url}/run/{_checkpoint(STEPS)}", "--data", data, "--out", f"{url}/out/a.png"]
    shown.append(call_command("vmae_train", *picture, env=env))
    assert _bytes_at(s3_bucket, "out/a.png").startswith(b"\x89PNG")
    shown.append(call_command("vmae_train", "report", f"{url}/ft", "--out", f"{url}/out/page.html", env=env))
    page = _bytes_at(s3_bucket, "out/page.html").decode()
    assert "Finetuning ft" in page
    assert "Pretraining: run" in page
    wrong = {**env, "AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}
    shown.append(call_command("vmae_train", *scores, env=wrong, status=1))
    secrets = [s3_bucket.server.secret.encode(), s3_bucket.server.access_key.encode(), b"X-Amz-Signature"]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    written += [_bytes_at(s3_bucket, name) for name in _names(s3_bucket, "")]
    for text in (*written, *((done.stdout + done.stderr).encode() for done in shown)):
        assert not any(secret in text for secret in secrets)


def test_storage_options_reach_the_workers_and_are_written_to_no_file(
    demo_shards: Path, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    server, url = s3_bucket.server, s3_bucket.url
    for path in demo_shards.iterdir():
        s3_bucket.store().put(f"data/{path.name}", path.read_bytes())
    around = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    options = [f"endpoint={server.endpoint}", f"access_key_id={server.access_key}", f"region={server.region}"]
    given: list[str | Path] = []
    for option in [*options, f"secret_access_key={server.secret}"]:
        given += ["--storage-option", option]
    env = {**around, "VMAE_CACHE": str(tmp_path / "one"), "NO_PROXY": "127.0.0.1"}
    train = [word for word in _arguments(f"{url}/data", f"{url}/run") if word != "--quiet"]
    shown = [call_command(*train, *given, env=env)]
    report = ["vmae_train", "report", f"{url}/run", "--out", tmp_path / "page.html"]
    shown.append(call_command(*report, *given, env=env))
    shown.append(call_command(*report, *given[:-2], "--storage-option", "secret_access_key=wrong", env=env, status=1))
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    texts += [_bytes(s3_bucket, name) for name in _names(s3_bucket)]
    texts += [(done.stdout + done.stderr).encode() for done in shown]
    for text in texts:
        assert server.secret.encode() not in text
        assert server.access_key.encode() not in text


def _bytes_at(bucket: S3Bucket, name: str) -> bytes:
    return bytes(bucket.store().get(name).bytes())


def test_a_web_server_or_a_whole_bucket_can_not_hold_a_run(tmp_path: Path) -> None:
    for out, arguments in (("http://host/run", "takes no files"), ("s3://bucket", "a folder in it")):
        with pytest.raises(MisuseError, match=arguments):
            RunDirectory(out)
    with pytest.raises(MisuseError, match="Remove it"):
        RunDirectory(tmp_path / "run", tmp_path / "scratch")


@pytest.mark.parametrize("name", ["index.json", "shard-000000.tar"])
def test_a_folder_of_shards_can_not_hold_a_run(name: str, tmp_path: Path) -> None:
    RunDirectory(tmp_path / "absent")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(MisuseError, match=rf"--out {tmp_path}: is a folder of shards \(it holds {name}\)"):
        RunDirectory(tmp_path)
    (tmp_path / "run.json").write_bytes(b"")  # a run, with an extra file
    RunDirectory(tmp_path)


def test_a_folder_of_shards_in_a_bucket_can_not_hold_a_run(
    s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    s3_bucket.store().put("data/index.json", b"{}")
    RunDirectory(f"{s3_bucket.url}/run", tmp_path).download()
    with pytest.raises(MisuseError, match="data: is a folder of shards"):
        RunDirectory(f"{s3_bucket.url}/data", tmp_path).download()


def _two_machines(bucket: S3Bucket, machines: tuple[Path, Path], arguments: list[str | Path]) -> list[str]:
    """One training on two machines, each with its own cache. Returns what each printed."""
    (port,) = free_ports(1)
    running = []
    for rank, machine in enumerate(machines):
        launcher = ["--nnodes", "2", "--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *launcher,
            "-m",
            "vmae_train.cli",
            *map(str, arguments[1:]),
        ]
        running.append(subprocess.Popen(command, env=_environment(bucket, machine), stderr=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    return printed


@pytest.mark.slow
def test_each_machine_of_a_training_downloads_the_checkpoint(
    demo_shards: Path, local_run: Path, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    arguments = _arguments(demo_shards, f"{s3_bucket.url}/run")
    call_command(*arguments, env=_environment(s3_bucket, tmp_path / "alone"))
    s3_bucket.store().delete(f"run/{_checkpoint(STEPS)}/{STATE}")
    # One machine has a checkpoint of the run that the bucket lacks, the other machine is new.
    printed = _two_machines(s3_bucket, (tmp_path / "new", tmp_path / "alone"), [w for w in arguments if w != "--quiet"])
    assert "9 done" in printed[0]
    lines = [line for line in _numbers(_bytes(s3_bucket, "log.jsonl")) if line["kind"] == "train"]
    wanted = [line for line in _numbers((local_run / "log.jsonl").read_bytes()) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [line["step"] for line in wanted]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in wanted], rel=1e-4)


def test_of_a_run_on_a_web_server_the_log_names_the_last_checkpoint_and_best_json_the_best(
    object_storage: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path))
    run = f"run-{secrets.token_hex(4)}"
    store, url = object_storage.bucket(PUBLIC).store(), f"{object_storage.endpoint}/{PUBLIC}/{run}"
    lines = [{"kind": "train", "step": 4}, {"kind": "train", "step": 8}, {"kind": "validation", "step": 8}]
    files = {
        "run.json": b"{}",
        "best.json": b'{"step": 4}',
        "log.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in lines),
        **{f"{_checkpoint(step)}/{name}": b"{}" for step in (4, 8) for name in (STATE, "model.json")},
    }
    for name, data in files.items():
        store.put(f"{run}/{name}", data)
    folder = local_copy(url)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(files)
    store.delete(f"{run}/{_checkpoint(8)}/{STATE}")
    with pytest.raises(
        MisuseError, match=f"no checkpoint. Name a checkpoint, such as {url}/{_checkpoint(4)}, the best"
    ) as caught:
        local_copy(url)
    assert caught.value.exit_status == 2
