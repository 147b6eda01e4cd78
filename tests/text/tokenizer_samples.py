"""Small real tokenizers of the families in use."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LINES = [
    "SELECT name, age FROM users WHERE registered >= '2024-01-01' ORDER BY age;",
    "MATCH (a:Person)-[:KNOWS]->(b:Person) RETURN a.name",
    "Größe, naïve, 東京, 🙂 and 👩‍🚀",
    "system user assistant question endofturnmarker",
]


def byte_level_tokenizer() -> Tokenizer:
    """Return a ByteLevel BPE as Qwen and SmolLM have it, with every byte in its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    plain = ("<think>", "naïve text", "</think>")
    tokenizer.add_tokens([AddedToken(token, special=False) for token in plain])
    return tokenizer


def prefixed_tokenizer() -> Tokenizer:
    """Return the ByteLevel BPE with `<s>` before every text, as Llama's post-processor puts it."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<s>"])
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer


def metaspace_tokenizer(decoder: decoders.Decoder | None) -> Tokenizer:
    """Return a BPE with byte fallback as Llama 2 and Gemma have it, decoded by `decoder`."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁▁", "a", "b", "é", "▁a", "ab", "##b", "b</w>", "\N{REPLACEMENT CHARACTER}", " ", "."]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(
        vocabulary, [("▁", "▁"), ("▁", "a"), ("a", "b")], byte_fallback=True, unk_token="<unk>", fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer
