"""A base model as a GGUF file, which is read key by key and tensor by tensor."""
