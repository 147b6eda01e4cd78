"""From logits to an answer: sampler, stop strings and the generation loop."""
