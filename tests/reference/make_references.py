"""Makes models.npz and randaugment.npz from the full set of reference numbers.

    python tests/reference/make_references.py REFERENCE_FOLDER

The folder holds one `<model><suffix>.npz` per model and set of reuses, computed in float64 with the published PyTorch
model from the recipe in tests/models/recipe.py. For tests/models/test_parity.py, kept are logits, losses, norm and sum
of each gradient in the order of the released names, and every STRIDE-th number of what the exits hand on.

It also holds randaugment.npz: one `image`, and what became of it for each `Operation/magnitude/sign/interpolation`. Of
equal results, test_policies.py gets one only (signs and interpolation mean nothing to most operations).
"""

import sys
from pathlib import Path

import numpy as np

SRC = Path(__file__).resolve().parents[2] / "src"
sys.path[:0] = [str(SRC), str(Path(__file__).resolve().parents[1] / "models")]

import recipe  # noqa: E402

from dvt.convert import reference_shapes  # noqa: E402
from dvt.models.variants import model_config  # noqa: E402

REUSES = {
    "": {},
    ".no_reuse": {"feature_reuse": False, "relation_reuse": False},
    ".no_features": {"feature_reuse": False},
    ".no_relations": {"relation_reuse": False},
}
STRIDE = 97


def kept(case: str, full: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the tests need of one case."""
    model, _, switched_off = case.partition(".")
    config = model_config(model, **REUSES[f".{switched_off}" if switched_off else ""])
    trained = [name for name in reference_shapes(config) if not recipe.is_fixed(name, config.tokenizer)]
    if trained != full["grad_names"].tolist():
        raise SystemExit(f"{case}: the gradients are not those of the released tensors in their order")
    result = {"stride": np.int64(STRIDE)}
    for key in ("logits", "loss", "grad_norms", "grad_sums"):
        result[key] = full[key].astype(np.float32)
    for key in full:
        if key.startswith("exit"):
            result[key] = full[key].ravel()[::STRIDE].astype(np.float32)
    return {f"{case}/{key}": value for key, value in result.items()}


def without_repetitions(full: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`image`, the different `results` (r, H, W, 3), the `names` of all operations and the `rows` of their results."""
    names = [name for name in full if name != "image"]
    rows: dict[bytes, int] = {}
    row_of_name = [rows.setdefault(full[name].tobytes(), len(rows)) for name in names]
    results = np.stack([np.frombuffer(result, np.uint8).reshape(full["image"].shape) for result in rows])
    return {"image": full["image"], "results": results, "names": np.array(names), "rows": np.array(row_of_name)}


def main(folder: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    for model in ("dvt_t2t_vit_12", "dvt_t2t_vit_14", "dvt_deit_small"):
        for suffix in REUSES:
            path = folder / f"{model}{suffix}.npz"
            if path.exists():
                with np.load(path) as full:
                    arrays |= kept(f"{model}{suffix}", dict(full))
    save("models.npz", arrays)
    with np.load(folder / "randaugment.npz") as full:
        save("randaugment.npz", without_repetitions(dict(full)))


def save(name: str, arrays: dict[str, np.ndarray]) -> None:
    target = Path(__file__).with_name(name)
    np.savez_compressed(target, **arrays)
    print(f"{target}: {len(arrays)} arrays, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_references.py REFERENCE_FOLDER")
    main(Path(sys.argv[1]))
