"""Runs models: numpy arrays in and out, ONNX Runtime inside."""
