"""The model: tokens, reuse, layers, backbone and cascade, in the order an image meets them."""
