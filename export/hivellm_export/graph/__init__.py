"""From a Hugging Face model to ONNX graphs: trace the model once, then lower the trace for each target."""
