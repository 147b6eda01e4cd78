"""Text in, text out: tokenizer, chat template, prompt and the incremental detokenizer."""
