"""One request from the question to the answer: request, generation, scheduler, loop, stream."""
