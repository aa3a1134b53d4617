"""Speed, measured beside the peers': the same weights, prompts, lengths and threads, in turns."""
