"""glmd-train convert: to and from the files of the published GLMDNet, of DeFRCN and of detectron2."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from glmd_runtime.commands.command import loading_libraries
from glmd_runtime.errors import UsageError

_WAYS = (
    "what comes out follows from the suffixes: --checkpoint ours.safetensors -o theirs.pth; "
    "--checkpoint theirs.pth --config YAML or --classes FILE -o ours.safetensors; --config theirs.yaml -o ours.yaml"
)


def add_parser(commands: Any) -> None:
    one = commands.add_parser(
        "convert", help="checkpoints and configurations of the published code and of detectron2, and back",
        description="Convert checkpoints and configurations of the published code and of detectron2, or back to them.",
        epilog=f"{_WAYS}.",
        example="glmd-train convert --checkpoint model.pth --classes names.txt -o model.safetensors",
    )
    add = one.add_argument
    add("--checkpoint", "--ckpt", type=Path, metavar="FILE",
        help="a .safetensors checkpoint, or weights in a .pth or .pkl file")
    add("--config", type=Path, metavar="YAML", help="a published configuration, or the one of a file of weights")
    add("--classes", type=Path, metavar="FILE", help="class names of a file of weights, one a line")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write; one that exists is replaced")
    one.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    suffix = options.output.suffix
    if options.checkpoint is None and options.config and suffix in (".yaml", ".yml"):
        _translate(options.config, options.output)
    elif options.checkpoint and suffix in (".pth", ".safetensors"):
        _convert(options)
    else:
        raise UsageError(f"--checkpoint, --config and the output {options.output} do not go together: {_WAYS}.")
    print(f"Written: {options.output}")


def _convert(options: argparse.Namespace) -> None:
    """A file of weights alone is written as such, under published names; a checkpoint in float32, so that nothing is
    lost."""
    from glmd_train.given import check_checkpoint

    check_checkpoint(options.checkpoint, options.config, options.classes)
    with loading_libraries():
        import torch

        from glmd_train.checkpoint import load_checkpoint, save_checkpoint
        from glmd_train.official.weights import write_official

    checkpoint = load_checkpoint(options.checkpoint, config=options.config, classes=options.classes)
    if options.output.suffix == ".pth":
        write_official(options.output, checkpoint.model, checkpoint.config)
    else:
        save_checkpoint(options.output, checkpoint, torch.float32)


def _translate(theirs: Path, output: Path) -> None:
    import yaml

    from glmd_runtime.files.scratch import whole_file
    from glmd_train.official.configuration import is_published_yaml, translate

    if theirs.is_file() and not is_published_yaml(theirs):
        raise UsageError(f"{theirs} is no configuration of detectron2's kind: expected keys like MODEL and SOLVER.")
    values = translate(theirs)
    text = yaml.safe_dump(values, sort_keys=False, width=120, default_flow_style=None)
    with whole_file(output) as partial:
        partial.write_text(f"# glmd-train fit --config {output.name}\n# Translated from {theirs.name}.\n{text}")
