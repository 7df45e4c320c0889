from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from tests.command import call_command
from vmae_data.errors import MisuseError
from vmae_data.recipes import load_recipe
from vmae_train.finetune import FinetuneSpec
from vmae_train.plan_inputs import GPUS, Rates, Value, find_gpu, read_rates, videos_of
from vmae_train.pretrain import PretrainSpec
from vmae_train.runs.metadata import RunFacts, write_facts
from vmae_train.training_plan import Job, Machine, Plan, make_plan

JOB = Job(
    steps=3600,
    batch=100,
    repeats=1,
    workers=4,
    threads=1,
    gflop_a_clip=300,
    micro_batch=64,
    state_mib=1024,
    peak_mib=17 * 1024,
    frame_bytes=1_200_000,
)
MACHINE = Machine(gpus=2, gpu="X", cores=6, store_gbps=1, tflops=100, memory_gib=24, mfu=Value(0.3, "given"))
# Videos per second: network 1250, decode 400, transfer 20,000, compute 200.
RATES = Rates(cpu_seconds_a_video=Value(0.01, "measured"), kb_a_video=Value(100, "measured"))


def plan_of(job: Job = JOB, machine: Machine = MACHINE, rates: Rates = RATES) -> Plan:
    return make_plan(job, machine, rates)


def speeds(plan: Plan) -> dict[str, float]:
    return {stage.name: stage.videos_per_second for stage in plan.stages}


def test_the_slowest_stage_decides() -> None:
    plan = plan_of()
    assert speeds(plan) == pytest.approx({"network": 1250, "decode": 400, "transfer": 20_000, "compute": 200})
    assert (plan.limit, plan.videos_per_second) == ("compute", pytest.approx(200))
    assert plan.hours == pytest.approx(360_000 / 200 / 3600)
    assert plan.gpu_hours == 2 * plan.hours and plan.cost is None


@pytest.mark.parametrize(
    ("limit", "machine", "rates"),
    [
        ("network", {"store_gbps": 0.1}, {}),
        ("decode", {"cores": 3}, {}),
        ("transfer", {}, {"transfer_seconds_a_video": Value(1, "measured")}),
        ("compute", {"mfu": Value(0.1, "given")}, {}),
    ],
)
def test_every_stage_can_be_the_limit(limit: str, machine: dict[str, object], rates: dict[str, Value]) -> None:
    plan = plan_of(machine=msgspec.structs.replace(MACHINE, **machine), rates=RATES._replace(**rates))
    assert plan.limit == limit
    assert plan.videos_per_second == speeds(plan)[limit] == min(speeds(plan).values())


def test_what_is_needed_makes_compute_the_limit() -> None:
    slow = msgspec.structs.replace(MACHINE, cores=3, store_gbps=0.01)
    needed = plan_of(machine=slow)
    assert needed.cores_needed == 2 + 2  # 200 videos/s of 10 ms, and a core for each process
    assert needed.store_gbps_needed == pytest.approx(200 * 100e3 * 8 / 1e9)
    assert needed.workers_needed == 1
    enough = msgspec.structs.replace(MACHINE, cores=needed.cores_needed, store_gbps=1.001 * needed.store_gbps_needed)
    assert plan_of(msgspec.structs.replace(JOB, workers=1), enough).videos_per_second == pytest.approx(200)


def test_the_workers_of_the_recipe_bound_decoding_and_more_are_proposed() -> None:
    many = msgspec.structs.replace(MACHINE, cores=22)
    plan = plan_of(
        msgspec.structs.replace(JOB, workers=1), many, RATES._replace(cpu_seconds_a_video=Value(0.1, "given"))
    )
    assert (plan.limit, plan.videos_per_second) == ("decode", pytest.approx(20))
    change = next(change for change in plan.changes if change.what == "loader.workers=10")
    assert change.hours == pytest.approx(plan.hours / 10)


def test_without_workers_a_process_decodes_between_its_steps() -> None:
    plan = plan_of(msgspec.structs.replace(JOB, workers=0))
    assert plan.videos_per_second == pytest.approx(2 / (0.01 + 0.01))
    assert plan.cores_needed == 2


def test_more_clips_of_a_video_help_a_training_that_waits_for_data() -> None:
    waits = msgspec.structs.replace(MACHINE, cores=3)
    rates = RATES._replace(cpu_seconds_a_video=Value(0.015, "measured"))
    plan = plan_of(machine=waits, rates=rates)
    assert plan.limit == "decode"
    twice, four_times = plan.changes[:2]
    assert twice.hours == pytest.approx(plan.hours / 2)
    assert four_times.hours == pytest.approx(plan_of().hours)
    assert (twice.limit, four_times.limit) == ("decode", "compute")


def test_other_profiles_change_decoding_and_bytes() -> None:
    waits = plan_of(machine=msgspec.structs.replace(MACHINE, cores=3))
    changes = {change.what: change for change in waits.changes}
    assert changes["profile mpeg4 qscale 3"].hours < waits.hours
    far = plan_of(machine=msgspec.structs.replace(MACHINE, store_gbps=0.01))
    assert {change.what: change for change in far.changes}["profile mjpeg qscale 4"].hours > 2 * far.hours


def test_memory_that_does_not_fit_gives_a_micro_batch_that_does() -> None:
    assert plan_of().micro_batch_that_fits == 64
    assert plan_of(machine=msgspec.structs.replace(MACHINE, memory_gib=10)).micro_batch_that_fits == 32
    assert plan_of(machine=msgspec.structs.replace(MACHINE, memory_gib=1)).micro_batch_that_fits is None


def test_a_machine_that_cannot_train_is_refused() -> None:
    with pytest.raises(MisuseError, match=r"--cores 2: 2 processes need 2 cores.*Give 3 or more"):
        plan_of(machine=msgspec.structs.replace(MACHINE, cores=2))
    with pytest.raises(MisuseError, match="--gpu cpu"):
        plan_of(machine=msgspec.structs.replace(MACHINE, tflops=None))
    for bad in ({"store_gbps": 0.0}, {"store_gbps": float("nan")}, {"mfu": Value(30, "given")}, {"price": -1.0}):
        with pytest.raises(MisuseError, match="--(store-gbps|mfu|price)"):
            msgspec.structs.replace(MACHINE, **bad)


FEED = {
    "cpu_seconds_a_clip": 0.02,
    "read_mb": 30.0,
    "clips": 100,
    "stages": [{"name": "transfer", "seconds_a_clip": 0.001}],
}
DRY_RUN = {"step_seconds": 2.0, "wait_seconds": 0.5, "batch": 10, "memory_mb": 2000.0}
LOG = [
    {"kind": "train", "step": 1, "clips_per_second": None, "data_wait": 0.9},
    *({"kind": "train", "step": 2, "clips_per_second": speed, "data_wait": 0.5} for speed in (5.0, 10.0)),
    {"kind": "validation", "step": 2},
]


def _write(path: Path, *objects: object) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return path


def test_rates_come_from_feed_a_dry_run_or_a_log(tmp_path: Path) -> None:
    feed, dry = _write(tmp_path / "feed", FEED), _write(tmp_path / "dry", DRY_RUN)
    rates = read_rates([feed, dry])
    assert rates.cpu_seconds_a_video == Value(0.02, "measured")
    assert rates.kb_a_video == Value(300.0, "measured")
    assert rates.transfer_seconds_a_video == Value(0.001, "measured")
    assert rates.device_seconds_a_video == Value(0.15, "measured")
    assert rates.memory_mb == Value(2000.0, "measured")
    logged = read_rates([dry, _write(tmp_path / "log", *LOG)])
    assert logged.device_seconds_a_video == Value(pytest.approx((0.1 + 0.05) / 2), "measured")
    assert read_rates([_write(tmp_path / "own", {"kb_a_video": 7})]).kb_a_video == Value(7.0, "given")
    assert read_rates([]).cpu_seconds_a_video.source == "assumed"
    plan = plan_of(rates=rates)
    assert plan.stages[-1].videos_per_second == pytest.approx(2 / 0.15)
    assert plan.peak_gib == Value(pytest.approx(2e9 / 2**30), "measured")


NO_RATES = """
x
[1]
{}
{"kb_a_video": 0}
{"kb_a_video": "1"}
{"kb_a_video": null}
{"kb_a_video": true}
{"kb_a_video": 7, "cpu_secods_a_video": 1}
{"kb_a_video": 1e999}
{"cpu_seconds_a_clip": 1}
{"step_seconds": 1, "wait_seconds": 2, "batch": 1, "memory_mb": 1}
{"step_seconds": 1, "wait_seconds": 0, "batch": 0, "memory_mb": 1}
{"kind": "train", "clips_per_second": 3}
{"kind": "train", "clips_per_second": 3, "data_wait": 1.5}
{"kind": "train", "clips_per_second": "a"}
""".splitlines()


@pytest.mark.parametrize("text", NO_RATES)
def test_a_file_without_rates_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(MisuseError, match="rates.json: expected JSON"):
        read_rates([path])
    with pytest.raises(MisuseError, match="no such|No such"):
        read_rates([tmp_path / "none"])


def test_a_log_of_other_steps_is_refused(tmp_path: Path) -> None:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec)
    facts = RunFacts(
        kind="pretrain", recipe=msgspec.json.decode(msgspec.json.encode(spec)), data=("d",), data_digest=("0",)
    )
    write_facts(tmp_path, facts)
    log = _write(tmp_path / "log.jsonl", *LOG)
    assert read_rates([log], spec).device_seconds_a_video is not None
    same = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, ["train.batch=16", "train.steps=7"])
    assert read_rates([log], same).device_seconds_a_video is not None
    for setting, found in (
        ("model.depth=3", "model.depth: not set → 3"),
        ("train.repeats=2", "train.repeats: 1 → 2"),
        ("mask.ratio=0.5", "mask.ratio: 0.75 → 0.5"),
    ):
        other = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [setting])
        with pytest.raises(MisuseError, match=f"log.jsonl: its run had other steps.*{re.escape(found)}"):
            read_rates([log], other)
    finetuned = load_recipe("vmae_train", "finetune/demo", FinetuneSpec)
    with pytest.raises(MisuseError, match="its run had other steps.*mask"):
        read_rates([log], finetuned)


def test_gpus_and_data_sets_are_known_by_name() -> None:
    assert find_gpu("h100") == find_gpu("H100") == GPUS["H100"]
    assert find_gpu("RTX 4090") == GPUS["RTX4090"]
    assert find_gpu("cpu") is None
    with pytest.raises(MisuseError, match="--gpu Z80: expected one of"):
        find_gpu("Z80")
    assert videos_of("pretrain/k400-b-1600") == 240_000
    assert videos_of("finetune/v2-k600-g-300-k710") == 370_000
    assert videos_of("mine.toml") is None


ARGUMENTS = ["plan", "--gpus", "8", "--gpu", "H100", "--cores", "128", "--store-gbps", "10"]


def test_the_command_names_the_limit_and_what_is_assumed() -> None:
    done = call_command("vmae_train", *ARGUMENTS, "--recipe", "pretrain/k400", "--mfu", "0.4", "--price", "3", "--json")
    plan = json.loads(done.stdout)
    assert plan["job"]["steps"] == 800 * (240_000 // 1024)
    assert plan["machine"]["mfu"] == {"value": 0.4, "source": "given"}
    assert plan["peak_gib"]["source"] == "computed"
    assert plan["cost"] == pytest.approx(3 * plan["gpu_hours"])
    assert plan["limit"] == "decode"  # 8 workers of each process
    text = call_command("vmae_train", *ARGUMENTS, "--recipe", "pretrain/k400").stdout
    for word in ("network", "decode", "transfer", "compute", "limit", "time", "needed", "memory", "assumed", "MFU"):
        assert word in text
    assert call_command("vmae_train", *ARGUMENTS, "--recipe", "pretrain/k400", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "pretrain/own-small", "--set", "train.epochs=3"], "--videos: recipe pretrain/own-small counts"),
        (["--recipe", "pretrain/k400", "--videos", "9"], "--videos 9: fewer than one batch of 1024"),
        (["--recipe", "pretrain/k400", "--mfu", "40"], "--mfu 40"),
        (["--recipe", "pretrain/k400", "--gpu", "Z80"], "--gpu Z80"),
        (["--recipe", "pretrain/k400", "--rates", "/nowhere"], "--rates /nowhere"),
        (["--recipe", "pretrain/k400", "--gpu", "cpu"], "--rates"),
        (["--recipe", "pretrain/k400", "--gpus", "2000"], "train.batch = 1024 is smaller than the 2000 processes"),
    ],
)
def test_the_command_refuses_what_it_cannot_plan(arguments: list[str], message: str) -> None:
    done = call_command("vmae_train", *ARGUMENTS, *arguments, "--quiet", status=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
