"""The exits as ONNX, from configuration and weights: operators (`graph`), the model and its files (`exits`)."""
