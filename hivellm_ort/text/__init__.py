"""Text in, text out: tokenizer, chat templates, prompts, reasoning and the incremental detokenizer."""
