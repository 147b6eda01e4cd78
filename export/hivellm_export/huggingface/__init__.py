"""A base model as a Hugging Face folder, which is read field by field."""
