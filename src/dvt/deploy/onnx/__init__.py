"""The exits as ONNX, from configuration and weights: operators (`graph`), the model (`exits`), the files (`files`)."""
