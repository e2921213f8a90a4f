"""`glmd-train fit` and `eval`, as a user runs them, on pictures that the test draws itself."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glmd_runtime.errors import CheckpointError, GlmdError, OutputError, UnsupportedError, UsageError
from glmd_runtime.thermal import Intensity
from glmd_train.checkpoint import load_checkpoint
from glmd_train.config import TrainConfig, load_config
from glmd_train.data.loaders import lost_workers
from glmd_train.loop import fit
from glmd_train.training.optimizer import schedule
from glmd_train.training.run_folder import RunFolder
from tests.train.squares import draw_squares, glmd_train, write_config

CONFIGS = Path(__file__).parents[2] / "glmd_train" / "configs"
BASE = CONFIGS.parent / "thermal_lite0_base.safetensors"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def config(dataset: Path) -> Path:
    return write_config(dataset)


def test_fit_learns_then_refuses_resumes_and_is_scored(config: Path, dataset: Path) -> None:
    glmd_train("fit", "--config", config)
    run = dataset / "run"
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, scored = rows[0], rows[-1]["scores"][f"{dataset.name}/labels"]
    assert scored["mean"]["ap50"] > 0.5  # it learned to find warm squares
    assert first["roi_class"] > rows[-2]["roi_class"]
    assert list((run / "tensorboard").iterdir())

    again = glmd_train("fit", "--config", config, check=False)
    assert again.returncode == 2 and "--resume" in again.stderr and "Traceback" not in again.stderr

    glmd_train("fit", "--config", config, "--resume", "--set", "iterations=42", "val=[]")
    stored = load_checkpoint(run / "model.safetensors")
    assert stored.provenance["iterations"] == 42
    assert stored.preprocess.statistics is not None  # of its pictures, grey and mostly dark
    assert 0 < stored.preprocess.statistics.brightness[0] < 120 and stored.preprocess.statistics.colour == (0, 0)

    command = ("eval", "--checkpoint", run / "model.safetensors", "--data", dataset / "labels.json")
    result = json.loads(glmd_train(*command, "--json").stdout)
    assert result[str(dataset / "labels.json")]["classes"]["square"]["objects"] == 8
    assert "square" in glmd_train(*command).stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.stride=7", "model.stride"),
        ("iterations=0", r"^--set iterations: it must be greater than or equal to 1; got 0\.$"),
        ("devices=0", "devices"),
        ("seed=-1", "seed"),
        ("train.0.annotations=x.json", "A list is given whole"),
        ("freeze=[head]", "freeze.0"),
        ("model.resnet={}", "belongs to the backbones"),
        ("model.strid=8", r"^--set model\.strid: there is no such key; did you mean stride\?$"),
        ("sed=1", r"^--set sed: there is no such key; did you mean seed\?$"),
        ("sed.x=1", r"^--set sed: there is no such key; did you mean seed\?$"),
        ("train=[{anotations: x}]", r"train\.0\.annotations: there is no value; give one\.\n"
         r"--set train\.0\.anotations: there is no such key; did you mean annotations\?$"),
        ("model.resnet={group: 5}", r"^--set model\.resnet\.group: there is no such key; did you mean groups\?"),
        ("model.xyz=1", r"no such key; expected one of class_names, backbone, .*roi_loss\.$"),
        ("model.class_names=[a, a]", "differ from each other"),
        ('model.class_names=[a, "b\\n"]', "expected a text"),
        ("nonsense", "key=value"),
        ("weights=[", "not a YAML value"),
        ("model.in_channels=3", "must agree"),
        ("augment.scale=[1.5, 0.5]", "smallest and the largest"),
        ("augment.crop_hw=[0, 80]", "augment.crop_hw.0"),
        ("train=5", "train"),
        ("preprocess.std=[0]", "preprocess.std.0"),
        ("preprocess.intensity.mode=gamma", "preprocess.intensity.mode"),
        ("preprocess.intensity={low: 99, high: 1}", "needs 0 <= low < high <= 100"),
    ],
)
def test_a_wrong_configuration_names_the_key(config: Path, change: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_config(config, [change])


def test_intensities_are_a_runs_choice_and_records_from_before_still_fit(config: Path) -> None:
    """A run that began before there was the choice has no such key in its record, and may go on."""
    plain = load_config(config)
    assert "intensity" not in plain.model_dump()["preprocess"] and plain.preprocess.spec().intensity == Intensity()
    chosen = load_config(config, ["preprocess.intensity={mode: plateau, plateau: 0.5}"])
    assert TrainConfig.model_validate_json(chosen.model_dump_json()) == chosen
    assert chosen.preprocess.spec().intensity == Intensity("plateau", plateau=0.5)


def test_a_missing_configuration_and_bad_yaml(tmp_path: Path) -> None:
    assert glmd_train("fit", "--config", tmp_path / "none.yaml", check=False).returncode == 2
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UsageError, match=r"list\.yaml must hold keys .* got list\. Write lines of `key: value`\.$"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "slip.yaml").write_text("sed: 1")
    with pytest.raises(UsageError, match=r"slip\.yaml: sed: there is no such key; did you mean seed\?"):
        load_config(tmp_path / "slip.yaml", ["iterations=5"])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (["accelerator=cuda"], UnsupportedError, "accelerator 'cuda'"),
        (["accelerator=abacus"], UnsupportedError, "accelerator 'abacus'"),
        (["accumulate=3"], UsageError, "batch_size 2 cannot be shared out"),
        (["weights=imagenet", "model.backbone=resnet50", "model.stride=16"], UsageError, "R-50.pkl"),
    ],
)
def test_what_this_machine_lacks_is_said_before_anything_is_written(
    config: Path, tmp_path: Path, changes: list[str], error: type[Exception], says: str
) -> None:
    if "accelerator=cuda" in changes and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(error, match=says):
        fit(load_config(config, [f"output={tmp_path / 'run'}", *changes]))
    assert not (tmp_path / "run").exists()


def test_resume_wants_its_own_run(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(load_config(config, [f"output={run}", "iterations=1", "val=[]"]), resume=True)  # nothing there yet: it begins
    record = (run / "config.json").read_text()
    for change in ("model.class_names=[square, other]", "learning_rate=0.1", "seed=5"):
        with pytest.raises(CheckpointError, match=rf"does not continue.*{change.partition('.')[0].partition('=')[0]}"):
            fit(load_config(config, [f"output={run}", change]), resume=True)
    assert (run / "config.json").read_text() == record  # the run's own record is still its own
    (run / "last.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="does not continue this configuration"):
        fit(load_config(config, [f"output={run}"]), resume=True)


@pytest.mark.parametrize("command", [(), ("--dry-run",)])
def test_a_class_without_an_object_is_an_error(config: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    changes = ("--set", "model.class_names=[square, zebra]", "--set", f"output={tmp_path / 'run'}")
    result = glmd_train("fit", "--config", config, *command, *changes, check=False)
    assert result.returncode == 1 and "no object of ['zebra']" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_yaml_that_grows_when_it_is_told_is_told_shortly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UsageError) as error:
        load_config(tmp_path / "bomb.yaml")
    assert len(str(error.value)) < 5000


def test_an_error_of_a_loader_process_is_one_line(config: Path, dataset: Path, tmp_path: Path) -> None:
    labels = json.loads((dataset / "labels.json").read_text())
    for image in labels["images"]:
        (tmp_path / image["file_name"]).write_bytes(b"no picture")
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    data = f"train=[{{annotations: {tmp_path / 'labels.json'}}}]"
    changes = (data, "workers=1", f"output={tmp_path / 'run'}")
    result = glmd_train("fit", "--config", config, "--set", *changes, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and "cannot be read as a picture" in last and "Traceback" not in result.stderr


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid_and_say_command_duration_and_score(path: Path) -> None:
    load_config(path)
    header, *lines = path.read_text().splitlines()
    assert header == f"# glmd-train fit --config glmd_train/configs/{path.name}"
    comment = " ".join(line for line in lines[:3] if line.startswith("#"))
    assert "uration" in comment and ("xpected" in comment or "score" in comment)


def test_a_configuration_extends_another(tmp_path: Path) -> None:
    shots, ten = (load_config(CONFIGS / f"r101_novel_{k}shot.yaml") for k in (2, 10))
    assert (shots.model, shots.freeze, shots.learning_rate) == (ten.model, ten.freeze, ten.learning_rate)
    assert (shots.iterations, shots.steps) == (2000, (1000,))
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(UsageError, match="extends itself"):
        load_config(tmp_path / "a.yaml")


def config_with(**changes: object) -> TrainConfig:
    values = {"output": "x", "model": {"class_names": ["a"]}, "train": [{"annotations": "a.json"}], "iterations": 100}
    return TrainConfig.model_validate({**values, "warmup": 10, **changes})


def test_schedules() -> None:
    cosine = config_with()
    assert schedule(0, cosine) == pytest.approx(0.001)
    assert schedule(50, cosine) == pytest.approx(0.5)
    assert schedule(99, cosine) < 0.001
    steps = config_with(schedule="steps", steps=[60, 80])
    assert [schedule(i, steps) for i in (10, 59, 60, 80)] == pytest.approx([1, 1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("glmd_train.cli", ["convert", "--checkpoint", str(BASE), "-o", "not_written.safetensors"], "[train]"),
        ("glmd_export.cli", ["--ckpt", str(BASE), "-o", "not_written.glmd"], "[export]"),
    ],
)
def test_without_torch_the_error_names_the_extra(module: str, arguments: list[str], extra: str) -> None:
    block = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; "
    code = block + f"from {module} import main; sys.exit(main({arguments!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 5 and extra in result.stderr and "Traceback" not in result.stderr


def test_help_imports_no_framework() -> None:
    call = "import sys, glmd_train.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code = call + "print('torch' in sys.modules)"
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.strip().endswith("False") and "fit" in result.stdout


def test_a_full_disk_costs_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(2, 2)
    folder, optimizer = RunFolder(tmp_path), torch.optim.SGD(layer.parameters(), 0.1)
    folder.store(layer, optimizer, 1)  # type: ignore[arg-type]
    before = folder.last.read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"last\.pt could not be written to its end: No space"):
        folder.store(layer, optimizer, 2)  # type: ignore[arg-type]
    assert folder.last.read_bytes() == before and list(tmp_path.iterdir()) == [folder.last]


def test_a_worker_that_the_system_ends_is_one_error() -> None:
    with pytest.raises(GlmdError, match=r"memory runs out .*Killed.*fewer workers.*--resume"), lost_workers():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="our own"), lost_workers():
        raise RuntimeError("our own")
