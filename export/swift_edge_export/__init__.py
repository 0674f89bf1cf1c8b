"""Export a transformers causal LM, with its hidden states, to a bundle that the runtime opens without torch."""
