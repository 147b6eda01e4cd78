"""Build-time exporter: a base model and PEFT experts to ONNX graphs and `.expert` packages.

Rooms, top to bottom: `cli` and `demo` are commands; `verify` compares what was made with what it was made from;
`package` writes `.expert` files; `bundle` writes a base bundle; `lower`, `quantize` and `weights` turn a trace into a
graph for one execution provider; `trace` runs Optimum; `merge` folds an adapter into the weights; `source` reads base
models.

Needs the `export` extra (PyTorch, transformers, PEFT, Optimum, onnx); the runtime never imports it.
"""
