"""ONNX Runtime inside, numpy outside: sessions, cache buffers and adapter bindings."""
