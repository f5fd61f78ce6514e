"""The PyTorch model that speed is compared with computes what ours computes."""

import numpy as np
import pytest
from mindspore import Tensor

from dvt import build_model
from dvt.checkpoint.released import to_reference
from dvt.models.variants import model_config

torch = pytest.importorskip("torch", reason="PyTorch is optional: pip install -r requirements-torch.txt")


@pytest.mark.parametrize("name", ["dvt_t2t_vit_12", "dvt_deit_small"])
def test_the_logits_are_ours(name: str):
    from benchmarks.pytorch_model import PyTorchDVT

    rng, model = np.random.default_rng(0), build_model(name, depth=2, num_classes=10)
    config = model_config(name, depth=2, num_classes=10)
    for parameter in model.get_parameters():
        if "pos_embed" not in parameter.name:
            parameter.set_data(Tensor(rng.normal(1.0 * (parameter.ndim == 1), 0.1, parameter.shape).astype(np.float32)))
    weights = {each: parameter.asnumpy() for each, parameter in model.parameters_dict().items()}
    other = PyTorchDVT(config).eval()
    other.load_state_dict({each: torch.tensor(value) for each, value in to_reference(config, weights).items()})
    images = rng.standard_normal((2, 3, 224, 224), dtype=np.float32)
    with torch.inference_mode():
        expected = torch.stack(other(torch.from_numpy(images))).numpy()
    found = np.stack([logits.asnumpy() for logits in model.set_train(False)(Tensor(images))])
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
