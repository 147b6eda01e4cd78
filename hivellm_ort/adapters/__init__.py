"""Reads PEFT adapters and prepares them for the graph.

`config` reads `adapter_config.json`, `tensors` reads safetensors, `prepare` converts every kind to
`y = scale * (W x) + (x A) B + b + bias`, `prepared_adapter` holds the result and its file.
"""
