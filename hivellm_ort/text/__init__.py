"""Tokenizer, chat templates, prompts, reasoning and the incremental detokenizer."""
