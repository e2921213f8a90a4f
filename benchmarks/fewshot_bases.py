"""Base models of thermal-fs. The two of the main table are committed; the ablation's are trained where they lack."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fewshot_runs import SWITCHES
from glmd_train.config import load_config
from glmd_train.loop import fit

ROOT = Path(__file__).parents[1]
COMMITTED = {
    "glmd": ROOT / "models" / "thermal_lite0_base.safetensors",
    "plain": ROOT / "benchmarks" / "weights" / "plain_base.safetensors",
}
SHORT = 500  # iterations; a fifth of what the committed ones had, in two stages
_CHANGES: dict[str, list[str]] = {"short": [], **{f"short_no_{name}": [f"model.{name}=false"] for name in SWITCHES}}


def base_path(name: str) -> Path:
    """The checkpoint of a base; a short one is trained first, or goes on where it was stopped (runs/fewshot)."""
    if name in COMMITTED:
        return COMMITTED[name]
    output = ROOT / "runs" / "fewshot" / name
    finished = output / "finished"
    if not finished.exists():
        changes = [f"output={output}", f"iterations={SHORT}", "eval_every=null", *_CHANGES[name]]
        fit(load_config(ROOT / "glmd_train" / "configs" / "lite0_base.yaml", changes), resume=True)
        finished.touch()
    return output / "model.safetensors"
