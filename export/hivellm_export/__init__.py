"""The exporter: turns a base model and PEFT experts into ONNX graphs and `.expert` packages.

`pipeline` is one export from start to end. It reads the base (`base_model`, `huggingface`, `gguf`), merges an adapter
if asked (`merge`), traces and lowers the model (`graph`, `weights`), writes the files (`packaging`) and compares them
with their sources (`verify`). `cli` and `demo` are the commands.

It needs the `export` extra: PyTorch, transformers, PEFT, Optimum and onnx. The runtime never imports it.
"""
