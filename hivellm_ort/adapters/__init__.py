"""Adapters as numbers: PEFT files in, one form out.

`config` reads `adapter_config.json`, `tensors` reads safetensors, `prepare` brings every kind to
`y = scale * (W x) + (x A) B + b + bias`, `prepared` is that form and its file.
"""
