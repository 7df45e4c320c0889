"""Peak memory and FLOPs of every training recipe, without a GPU → vmae_train/footprints.json.

    python -m tools.bench.memory        # some minutes

Run it after a change of a model, of augmentation or of a recipe. It also updates the heads of the recipes.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import msgspec

import vmae_train
from vmae_data.recipes import list_recipes, load_recipe
from vmae_train.console import spec_of
from vmae_train.footprint import Footprint, KnownFootprint, footprint_key, measure_footprint, memory_text

TABLE = Path(vmae_train.__file__).with_name("footprints.json")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    recipes: dict[str, list[str]] = {}
    measured: dict[str, Footprint] = {}
    for name in list_recipes("vmae_train"):
        spec = load_recipe("vmae_train", name, spec_of(name))
        key = footprint_key(spec)
        recipes.setdefault(key, []).append(name)
        if key not in measured:
            measured[key] = measure_footprint(spec)
            print(f"{measured[key].peak_mib / 1024:8.1f} GiB  {name}", file=sys.stderr)
        write(recipes, measured)
        update_head(TABLE.parent / "recipes" / f"{name}.toml", measured[key])


def update_head(recipe: Path, footprint: Footprint) -> None:
    text = recipe.read_text("utf-8")
    recipe.write_text(
        re.sub(r"^# Memory: .*", f"# {memory_text(footprint.peak_mib)}", text, count=1, flags=re.M), "utf-8"
    )


def write(recipes: dict[str, list[str]], measured: dict[str, Footprint]) -> None:
    rows = [KnownFootprint(recipes=tuple(recipes[key]), key=key, footprint=measured[key]) for key in measured]
    TABLE.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")


if __name__ == "__main__":
    main()
